"""KLAN-ISP: what each page causes, per user, in branches that share nothing but embeddings (KLAN 4.1, A.2, A.3).

Letters: B batch, K pages and branches, F fields, D width of an embedding, M experts, H width of z, T users of the arm with
the most of them.

Settled on purpose where the paper is open:
- The weights of A.2 depend on the arm and not on the user, so e_x^k is one weighted sum of tables (`FieldPool`).
- A numeric field's embedding is that of its bin plus value times vector; bins alone lose the order of the values.
- Training begins without any effect: every branch has the same weights and every arm the control's embedding, so that
  y_k = y_0 for everyone and what a trial cannot tell stays so. Begun apart, branches differ by more than pages do.
- KL in eq. 5 is between distributions: softmax of z over its H dimensions, and z* is the mean of the K distributions. The
  gradient through z* is zero (the terms of a mean of distributions cancel), so it makes no difference whether it is stopped.
- A sample of arm k reaches the selection, experts, gate and tower of branch k and row k of the arm table. All other branches'
  parameters and inputs f, and all other rows of that table, get exactly zero; the field embeddings are shared (eq. 16).
  A control sample reaches all branches and row 0, by eq. 5.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from plpm_ray.core.config import Tunable
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch
from plpm_ray.navigators.uplift import UNIT_LOGIT, UpliftConfig, UpliftLearner
from plpm_ray.nn import BranchMLP, ExpertMixture, FieldPool, Groups
from plpm_ray.nn.fields import Numeric

# rows computed at once on a CPU, so that the activations of all branches stay in its cache
CHUNK = 1024


class ISPConfig(UpliftConfig):
    """Static page preference from a randomised trial: one branch a page, run with the page and with the control (KLAN 4.1)."""

    numeric: Annotated[Numeric, Tunable(choices=("both", "bins", "linear"))] = Field(
        "both",
        description="embedding of a numeric field: that of its bin, value times vector (for small trials), or their sum",
    )
    experts: Annotated[int, Tunable(1, 8, kind="int")] = Field(
        4, ge=1, le=64, description="experts of each branch (M)"
    )
    expert_hidden: Annotated[int, Tunable(8, 128, log=True, kind="int")] = Field(
        24, ge=1, description="hidden units of each expert"
    )
    latent_dim: Annotated[int, Tunable(4, 64, log=True, kind="int")] = Field(
        16, ge=1, description="width of a branch's latent representation z (H)"
    )
    tower_hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16,), description="width of each hidden layer of a branch's tower"
    )
    kl_weight: Annotated[float, Tunable(0.0, 10.0)] = Field(
        1.0,
        ge=0,
        description="weight of the KL term that holds the branches' views of the control together (eq. 5); the paper has 1",
    )


@register("learner", "klan.isp")
class ISP(UpliftLearner):
    """Eq. 5: squared error of the own branch; for control users that of every branch, and the KL of their representations."""

    Config: ClassVar[type[ISPConfig]] = ISPConfig
    config: ISPConfig
    inputs: ClassVar[tuple[str, ...]] = ("dense", "cat", "bins")

    def __init__(self, config: ISPConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats) -> None:
        super().__init__(config, spec, pages, stats)
        k, width = self.n_pages, config.embedding_dim
        self.fields = FieldPool(self.bin_sizes, self.cat_sizes, width, config.numeric)
        self.arms = nn.Embedding(k + 1, width)
        nn.init.normal_(self.arms.weight, std=width**-0.5)
        self.selection_weight = nn.Parameter(torch.empty(k, self.fields.n_fields, width))
        self.selection_bias = nn.Parameter(torch.zeros(k, self.fields.n_fields))
        nn.init.normal_(self.selection_weight, std=width**-0.5)
        self.experts = ExpertMixture(k, 2 * width, config.expert_hidden, config.latent_dim, config.experts)
        self.towers = BranchMLP(k, config.latent_dim, config.tower_hidden, 1)
        nn.init.constant_(self.towers.layers[-1].bias, UNIT_LOGIT)  # type: ignore[arg-type]
        self._begin_alike()

    @torch.no_grad()
    def _begin_alike(self) -> None:
        """All branches begin with the same weights and all arms as the control, so that only data makes an effect."""
        branches = [*self.experts.parameters(), *self.towers.parameters()]
        for parameter in (self.arms.weight, self.selection_weight, self.selection_bias, *branches):
            parameter.copy_(parameter[:1].expand_as(parameter).clone())

    def arm_embeddings(self) -> Tensor:
        """(2, K, D) e_t of the two runs of every branch: with the control, and with its own page."""
        table = self.arms.weight
        return torch.stack([table[:1].expand(self.n_pages, -1), table[1:]])

    def selection(self, arms_2KD: Tensor) -> Tensor:
        """(2, K, F) softmax(W^k e_t + b^k) of both runs; a branch has one W and b for the two (A.2)."""
        logits = torch.einsum("kfd,rkd->rkf", self.selection_weight, arms_2KD) + self.selection_bias
        return logits.softmax(2)

    def branches(self, e_BKD: Tensor, t_KD: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, K, H) and predicted responses (B, K) of every branch from f = [e_x, e_t] (eq. 3, 4).

        Args:
            e_BKD: selected features e_x of every branch.
            t_KD: the arm embedding e_t that each branch is run with, the same for all rows.
        """
        z_BKH = self.experts(e_BKD, t_KD)
        return z_BKH, F.softplus(self.towers(z_BKH).squeeze(2))

    def selected(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(2, K, D) e_t and (B, 2, K, D) e_x of the runs with the control and with the page (eq. 2)."""
        arms = self.arm_embeddings()
        weight = self.selection(arms).flatten(0, 1)
        e_x = self.fields(self.codes(batch), self.daily(batch, "dense"), weight)
        return arms, e_x.unflatten(1, (2, self.n_pages))

    def codes(self, batch: Batch) -> Tensor:
        """(B, coded) int64 codes of the fields that have some, numeric ones by their bins."""
        if self.config.numeric == "linear" or not self.n_numeric:
            return self.daily(batch, "cat")
        bins = self.daily(batch, "bins")
        return torch.cat([bins, self.daily(batch, "cat")], dim=1) if self.n_categorical else bins

    def predict(self, batch: Batch) -> Tensor:
        """(B, K + 1): the mean of all branches' control predictions, then each branch's own page (KLAN 4.1.3)."""
        (t_0, t_k), e_x = self.selected(batch)
        whole = torch.is_grad_enabled() or not e_x.is_cpu
        parts = []
        for e_B2KD in e_x.split(max(len(e_x), 1) if whole else CHUNK):
            _, y_0 = self.branches(e_B2KD[:, 0], t_0)
            _, y_k = self.branches(e_B2KD[:, 1], t_k)
            parts.append(torch.cat([y_0.mean(1, keepdim=True), y_k], dim=1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if batch["arm"].is_cpu and not torch.compiler.is_compiling():
            terms = self._given_runs(batch)
        else:
            terms = self._all_runs(batch)
        control, treated, kl = (term / len(batch["arm"]) for term in terms)
        loss = control + treated + self.config.kl_weight * kl
        return {"loss": loss, "control": control.detach(), "treated": treated.detach(), "kl": kl.detach()}

    def _all_runs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of the terms of eq. 5 over the batch, from both runs of every branch; its sizes are known in advance."""
        (t_0, t_k), e_x = self.selected(batch)
        z_0, y_0 = self.branches(e_x[:, 0], t_0)
        _, y_k = self.branches(e_x[:, 1], t_k)
        target = self.target(batch).unsqueeze(1)
        given = F.one_hot(batch["arm"], self.n_pages + 1).float()
        control, treated = given[:, :1], given[:, 1:]
        return (
            (control * (y_0 - target).square()).sum(),
            (treated * (y_k - target).square()).sum(),
            (control * kl_to_mean(z_0)).sum(),
        )

    def _given_runs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The same sums from the runs that they hold only: of control users all branches', of others their own page's."""
        codes, dense, target = self.codes(batch), self.daily(batch, "dense"), self.target(batch)
        t_0, t_k = arms = self.arm_embeddings()
        select_0, select_k = self.selection(arms)
        users = torch.nonzero(batch["arm"] == 0).squeeze(1)
        z_0, y_0 = self.branches(self.fields(codes[users], dense[users], select_0), t_0)
        groups = Groups.of(batch["arm"] - 1, self.n_pages)
        e_k = self.fields.grouped(groups.take(codes), groups.take(dense), select_k)
        y_k = self.branches(e_k.transpose(0, 1), t_k)[1]
        error_k = (y_k.t() - groups.take(target)) * groups.kept
        return (
            (y_0 - target[users].unsqueeze(1)).square().sum(),
            error_k.square().sum(),
            kl_to_mean(z_0).sum(),
        )


def kl_to_mean(z_BKH: Tensor) -> Tensor:
    """(B, K) KL(softmax z^k || mean_j softmax z^j), never negative (the second term of eq. 5)."""
    log_p = F.log_softmax(z_BKH, dim=2)
    # in logarithms throughout: a probability may be too small for float32
    log_mean = log_p.logsumexp(1, keepdim=True) - math.log(z_BKH.shape[1])
    return (log_p.exp() * (log_p - log_mean)).sum(2)
