"""KLAN-AM: is the user static or dynamic right now? (KLAN 3.3, 4.3.1, A.5, eq. 12)

Differences from the paper, each settled on purpose:
- The paper gives no threshold T. The default is one switch in 500 s of use, a number of its own and not a quantile of
  the window: most sessions have no switch at all (62 % in the world `kuaishou`, 92 % in KuaiRand), so the median rate is
  0 and "less than the median" would call nobody static. A fixed T also means the same in every window, so that a stream
  whose users change is seen to change.
- A session without a switch is static whatever its length, and one with a switch in 0 s of use is dynamic: the rule
  `switches < T * use_s` never divides.
- A.5 has each expert "specialise" in a page; here, as in MMoE, all experts serve all towers and the gates decide.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plpm_ray.core.config import Tunable
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch, Learner, LearnerConfig
from plpm_ray.nn import BranchMLP, FieldEmbedding, MMoE


class AMConfig(LearnerConfig):
    """Chance that a session will be static, by landing page: an MMoE with one tower a page (KLAN eq. 12).

    It is gamma of the fusion: the weight of the static preference against the dynamic interest.
    """

    threshold: Annotated[float, Tunable(0.0002, 0.05, log=True)] = Field(
        0.002,
        gt=0,
        description="T, page switches per second of use: a session below it is static (label 1)",
    )
    experts: Annotated[int, Tunable(2, 8, kind="int")] = Field(
        4, ge=1, le=64, description="experts shared by the towers"
    )
    expert_hidden: Annotated[int, Tunable(16, 256, log=True, kind="int")] = Field(
        64, ge=1, description="hidden units of an expert"
    )
    expert_width: int = Field(32, ge=1, description="outputs of an expert, which the gates mix")
    tower_hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16,), description="width of each hidden layer of a page's tower"
    )
    embedding_dim: Annotated[int, Tunable(4, 32, log=True, kind="int")] = Field(
        8, ge=1, le=256, description="numbers per categorical field"
    )


@register("learner", "klan.am")
class AM(Learner):
    """Cross entropy on the tower of the assigned page; the other towers are masked (KLAN A.5)."""

    Config: ClassVar[type[AMConfig]] = AMConfig
    config: AMConfig
    grain: ClassVar[Literal["transition", "session", "user"]] = "session"
    columns: ClassVar[tuple[str, ...]] = ("action", "use_s", "switches")
    streamed: ClassVar[bool] = True

    def __init__(self, config: AMConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats) -> None:
        super().__init__(config, spec, pages, stats)
        self.fields = FieldEmbedding(spec.cat_sizes, config.embedding_dim)
        width = spec.n_dense + self.fields.out_features
        self.mmoe = MMoE(width, config.expert_hidden, config.expert_width, config.experts, len(pages))
        self.towers = BranchMLP(len(pages), config.expert_width, config.tower_hidden, 1)

    def logits(self, batch: Batch) -> Tensor:
        """(B, K) log odds of a static session on each page."""
        mixed_BKH = self.mmoe(torch.cat([batch["dense"], self.fields(batch["cat"])], dim=1))
        return self.towers(mixed_BKH).squeeze(2)

    def label(self, batch: Batch) -> Tensor:
        """(B,) float32, 1 where the session was static."""
        return static_label(batch["switches"], batch["use_s"], self.config.threshold)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        loss_B = masked_cross_entropy(self.logits(batch), batch["action"], self.label(batch))
        return {"loss": loss_B.mean()}

    def scores(self, batch: Batch) -> Tensor:
        """(B, K) gamma in (0, 1): chance of a static session on each page (KLAN eq. 12)."""
        return self.logits(batch).sigmoid()

    def predicted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """((B,) gamma of the assigned page, (B,) the label that came): what a stream is judged by before it is learned."""
        return _of_page(self.logits(batch), batch["action"]).sigmoid(), self.label(batch)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """(B,) each, on the tower of the assigned page: cross entropy, label, whether gamma is on its side, (gamma - label)^2."""
        logits_BK, label_B = self.logits(batch), self.label(batch)
        gamma_B = _of_page(logits_BK, batch["action"]).sigmoid()
        return {
            "loss": masked_cross_entropy(logits_BK, batch["action"], label_B),
            "static_share": label_B,
            "accuracy": ((gamma_B > 0.5) == (label_B > 0.5)).float(),
            "brier": (gamma_B - label_B).square(),
        }


def static_label(switches_B: Tensor, use_s_B: Tensor, threshold: float) -> Tensor:
    """(B,) float32: 1 where switches / seconds used < T, or where there was no switch (KLAN A.5)."""
    # in double precision: a rate of exactly T is not below it
    below = switches_B.double() < threshold * use_s_B.double()
    return (below | (switches_B == 0)).float()


def masked_cross_entropy(logits_BK: Tensor, action_B: Tensor, label_B: Tensor) -> Tensor:
    """(B,) cross entropy of the assigned page's logit; the others take no part, not even with a gradient (KLAN A.5)."""
    return F.binary_cross_entropy_with_logits(_of_page(logits_BK, action_B), label_B, reduction="none")


def _of_page(values_BK: Tensor, action_B: Tensor) -> Tensor:
    return values_BK.gather(1, action_B.unsqueeze(1)).squeeze(1)
