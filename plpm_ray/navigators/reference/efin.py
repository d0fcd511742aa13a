"""EFIN: explicit interactions of features with each other and with the treatment (Liu et al., KDD 2023).

Letters: B batch, K pages, F fields, D width of an embedding, H hidden units.

Differences from the paper, which has one treatment and a binary response:
- Every page is a treatment with an embedding of its own; its uplift network sees that embedding beside what its attention
  found, and all pages are computed at once.
- Where the paper adds log-odds of the control and of the uplift, the numbers under softplus are added.
- The intervention constraint is taken over the page a user was given, and over all pages for control users, their mean.
"""

from __future__ import annotations

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
from plpm_ray.navigators.uplift import UNIT_LOGIT, UpliftConfig, UpliftLearner, own
from plpm_ray.nn import MLP, FieldPool


class EFINConfig(UpliftConfig):
    """Self-attention over features for the control response, attention by the page for its uplift (Liu et al. 2023)."""

    control_hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (32, 32), description="width of each hidden layer of the control response's network"
    )
    uplift_hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (64, 32),
        min_length=1,
        description="width of each hidden layer of the uplift network; the constraint reads the last one",
    )
    constraint: Annotated[float, Tunable(0.0, 1.0)] = Field(
        0.1,
        ge=0,
        description="weight of the intervention constraint, a cross entropy against the reversed treatment; 0 is without",
    )


@register("learner", "reference.efin")
class EFIN(UpliftLearner):
    """Squared error of the given arm plus the intervention constraint; the uplift leaves the control's network alone."""

    Config: ClassVar[type[EFINConfig]] = EFINConfig
    config: EFINConfig

    def __init__(
        self, config: EFINConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats
    ) -> None:
        super().__init__(config, spec, pages, stats)
        width = config.embedding_dim
        self.fields = FieldPool(self.bin_sizes, self.cat_sizes, width, numeric="linear")
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.control = MLP(self.fields.n_fields * width, config.control_hidden, 1)
        self.arms = nn.Embedding(self.n_pages, width)
        self.by_arm = nn.Linear(width, width, bias=False)
        self.by_field = nn.Linear(width, width)
        self.attention = nn.Linear(width, 1, bias=False)
        *inner, last = config.uplift_hidden
        self.uplift_rep = MLP(2 * width, inner, last)
        self.uplift = nn.Linear(last, 1)
        self.treated = nn.Linear(last, 1)
        nn.init.constant_(self.control[-1].bias, UNIT_LOGIT)  # type: ignore[arg-type]

    def predict(self, batch: Batch) -> Tensor:
        control_B, _, uplift_BK = self._parts(batch)
        return F.softplus(torch.cat([control_B.unsqueeze(1), control_B.unsqueeze(1) + uplift_BK], dim=1))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        control_B, rep_BKH, uplift_BK = self._parts(batch)
        arm = batch["arm"]
        logits = torch.cat([control_B.unsqueeze(1), control_B.detach().unsqueeze(1) + uplift_BK], dim=1)
        error = (F.softplus(own(logits, arm)) - self.target(batch)).square().mean()
        treated_BK = self.treated(rep_BKH).squeeze(2)
        # what each sample counts: a page's users for their page, control users for all pages alike
        given = F.one_hot(arm, self.n_pages + 1)[:, 1:].float()
        weight = torch.where(arm.unsqueeze(1) == 0, 1 / self.n_pages, given)
        reversed_BK = (arm == 0).float().unsqueeze(1).expand_as(treated_BK)
        entropy = F.binary_cross_entropy_with_logits(treated_BK, reversed_BK, weight, reduction="sum") / len(
            arm
        )
        loss = error + self.config.constraint * entropy
        return {"loss": loss, "error": error.detach(), "constraint": entropy.detach()}

    def _parts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Under softplus: (B,) control, (B, K, H) representation of the uplift, (B, K) uplift."""
        e_BFD = self.fields.embedded(self.daily(batch, "cat"), self.daily(batch, "dense"))
        q, k, v = self.query(e_BFD), self.key(e_BFD), self.value(e_BFD)
        crossed = F.scaled_dot_product_attention(q, k, v)
        control_B = self.control(crossed.flatten(1)).squeeze(1)
        t_KD = self.arms.weight
        hidden = F.relu(self.by_field(e_BFD).unsqueeze(1) + self.by_arm(t_KD).unsqueeze(1))
        weight_BKF = self.attention(hidden).squeeze(3).softmax(2)
        found = torch.cat(
            [torch.bmm(weight_BKF, e_BFD), t_KD.expand(len(e_BFD), -1, -1)],
            dim=2,
        )
        rep_BKH = F.relu(self.uplift_rep(found))
        return control_B, rep_BKH, self.uplift(rep_BKH).squeeze(2)
