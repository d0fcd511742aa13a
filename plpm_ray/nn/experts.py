"""Mixtures of experts and towers of many branches, all of them in one batched product.

Letters: B batch, R branches, K tasks, M experts, D width in, H width out. Activations are (B, R, width) to the outside; inside
the branch comes first, as batched products want it, which is a change of view and no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BranchLinear(nn.Module):
    """R linear layers of one shape, each with weights of its own.

    Args:
        branches: R.
        width_in, width_out: D and H of every branch.
    """

    def __init__(self, branches: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(branches, width_in, width_out))
        self.bias = nn.Parameter(torch.empty(branches, 1, width_out))
        # as nn.Linear begins
        bound = max(width_in, 1) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x_RBD: Tensor, shared_RC: Tensor | None = None) -> Tensor:
        """(R, B, D) -> (R, B, H); the branch comes first.

        `shared_RC` stands for the last C inputs of every branch where they are the same in all rows; x then holds the others.
        """
        if shared_RC is None:
            return torch.baddbmm(self.bias, x_RBD, self.weight)
        own, rest = self.weight.split([x_RBD.shape[2], shared_RC.shape[1]], dim=1)
        return torch.baddbmm(torch.baddbmm(self.bias, shared_RC.unsqueeze(1), rest), x_RBD, own)


class BranchMLP(nn.Module):
    """R multi-layer perceptrons of one shape, each with weights of its own: the towers of a multi-task network.

    Args:
        branches: R.
        width_in: inputs of every branch.
        hidden: width of each hidden layer, with ReLU behind it; may be empty.
        width_out: outputs of every branch; the last layer is linear.
    """

    def __init__(self, branches: int, width_in: int, hidden: Sequence[int], width_out: int) -> None:
        super().__init__()
        self.branches = branches
        widths = [width_in, *hidden, width_out]
        self.layers = nn.ModuleList(BranchLinear(branches, a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(B, R, D), or (B, D) read by every branch -> (B, R, width_out)."""
        x = x.transpose(0, 1) if x.ndim == 3 else x.unsqueeze(0).expand(self.branches, -1, -1)
        for layer in self.layers[:-1]:
            x = layer(x).relu_()
        return self.layers[-1](x).transpose(0, 1)


class ExpertMixture(nn.Module):
    """A mixture of M experts and its gate for each of R branches, nothing shared between them (KLAN eq. 4).

    g = softmax(W_g f + b_g), d_m = W2_m relu(W1_m f + b1_m) + b2_m, z = sum_m g(m) d_m. The last layer of an expert is linear,
    so the gated sum of all experts is one product over their gated hidden units.

    Args:
        branches: R.
        width_in: D.
        hidden: hidden units of every expert.
        width_out: H.
        experts: M of every branch.
    """

    def __init__(self, branches: int, width_in: int, hidden: int, width_out: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.gate = BranchLinear(branches, width_in, experts)
        self.first = BranchLinear(branches, width_in, experts * hidden)
        self.weight = nn.Parameter(torch.empty(branches, experts * hidden, width_out))
        self.bias = nn.Parameter(torch.empty(branches, experts, width_out))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, f_BRD: Tensor, shared_RC: Tensor | None = None) -> Tensor:
        """(B, R, D) -> (B, R, H); `shared_RC` as in `BranchLinear`."""
        f_RBD = f_BRD.transpose(0, 1)
        gate_RMB = self._gate(f_RBD, shared_RC)
        gate_RBM = gate_RMB.transpose(1, 2)
        hidden = self.first(f_RBD, shared_RC).relu_().unflatten(2, (self.experts, -1)) * gate_RBM.unsqueeze(3)
        z_RBH = torch.baddbmm(torch.bmm(gate_RBM, self.bias), hidden.flatten(2), self.weight)
        return z_RBH.transpose(0, 1)

    def _gate(self, f_RBD: Tensor, shared_RC: Tensor | None) -> Tensor:
        """(R, M, B) gate weights; the rows come last, since a softmax over neighbours of M numbers is slow on a CPU."""
        return self.gate(f_RBD, shared_RC).transpose(1, 2).contiguous().softmax(1)


class MMoE(nn.Module):
    """M experts shared by K tasks, and a gate for each task: a task reads its own mixture of the common experts.

    Args:
        width_in: D.
        hidden: hidden units of every expert.
        width_out: H.
        experts: M.
        tasks: K.
        gate_in: G, inputs of the gates where they see something else than the experts do; None: the same.
    """

    def __init__(
        self, width_in: int, hidden: int, width_out: int, experts: int, tasks: int, gate_in: int | None = None
    ) -> None:
        super().__init__()
        self.experts, self.tasks = experts, tasks
        self.first = nn.Linear(width_in, experts * hidden)
        self.second = BranchLinear(experts, hidden, width_out)
        self.gate = nn.Linear(width_in if gate_in is None else gate_in, tasks * experts)

    def gates(self, x_BD: Tensor) -> Tensor:
        """(B, K, M) weights of the experts for each task; they sum to 1 over M. The input is that of the gates."""
        return self.gate(x_BD).unflatten(1, (self.tasks, self.experts)).softmax(2)

    def forward(self, x_BD: Tensor, gate_BG: Tensor | None = None) -> Tensor:
        """(B, D), and (B, G) for the gates where they have inputs of their own -> (B, K, H)."""
        hidden_BMD = F.relu(self.first(x_BD)).unflatten(1, (self.experts, -1))
        experts_BMH = self.second(hidden_BMD.transpose(0, 1)).transpose(0, 1)
        return torch.bmm(self.gates(x_BD if gate_BG is None else gate_BG), experts_BMH)
