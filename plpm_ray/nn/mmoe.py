"""Mixture of experts with a gate and a tower for each task (MMoE: Ma et al. 2018).

Letters: B batch, N inputs, M experts, D width of an expert, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """G linear layers side by side, each on inputs of its own: one batched product instead of G small ones.

    Args:
        groups: G.
        width_in, width_out: of each layer.
    """

    def __init__(self, groups: int, width_in: int, width_out: int) -> None:
        super().__init__()
        bound = width_in**-0.5  # as `nn.Linear` begins
        self.weight = nn.Parameter(torch.empty(groups, width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, width_out).uniform_(-bound, bound))

    def forward(self, x_BGN: Tensor) -> Tensor:
        """(B, G, width_in) -> (B, G, width_out)."""
        return torch.baddbmm(self.bias[:, None], x_BGN.transpose(0, 1), self.weight).transpose(0, 1)


class MMoE(nn.Module):
    """logit_k = tower_k(sum_m softmax(gate_k(x))_m expert_m(x)), all tasks at once.

    Experts and gates are shared or not by what they are: a loss on task k moves every expert, gate k and tower k, and
    leaves exactly zero gradient in the other gates and towers.

    Args:
        width_in: N.
        tasks: K.
        experts: M.
        expert_hidden: width of each layer of an expert, the last one is D; each ends in ReLU.
        tower_hidden: width of each hidden layer of a tower; may be empty.
    """

    def __init__(
        self,
        width_in: int,
        tasks: int,
        experts: int,
        expert_hidden: Sequence[int],
        tower_hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.experts, self.tasks = experts, tasks
        first, *rest = expert_hidden
        # all experts read the same inputs, so that their first layers are one
        self.expert_in = nn.Linear(width_in, experts * first)
        widths = [first, *rest]
        self.expert_layers = nn.ModuleList(GroupedLinear(experts, a, b) for a, b in pairwise(widths))
        self.gate = nn.Linear(width_in, tasks * experts)
        widths = [widths[-1], *tower_hidden, 1]
        self.tower_layers = nn.ModuleList(GroupedLinear(tasks, a, b) for a, b in pairwise(widths))

    def forward(self, x_BN: Tensor) -> Tensor:
        """(B, N) -> (B, K) logits."""
        out_BMD = self.expert_in(x_BN).unflatten(1, (self.experts, -1)).relu()
        for layer in self.expert_layers:
            out_BMD = layer(out_BMD).relu()
        gate_BKM = self.gate(x_BN).unflatten(1, (self.tasks, self.experts)).softmax(2)
        out = torch.bmm(gate_BKM, out_BMD)
        for i, layer in enumerate(self.tower_layers):
            out = layer(out if i == 0 else out.relu())
        return out.squeeze(2)
