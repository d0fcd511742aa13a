"""Behaviour cloning: which page does the logging policy choose? The floor that every offline learner must leave."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from plpm_ray.core.config import Tunable
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch, Learner, LearnerConfig
from plpm_ray.nn import MLP, FieldEmbedding


class BCConfig(LearnerConfig):
    """Classifier of the logged page by cross entropy; its scores are probabilities of the logging policy."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (256, 256), description="width of each hidden layer"
    )
    embedding_dim: Annotated[int, Tunable(4, 32, log=True, kind="int")] = Field(
        8, ge=1, le=256, description="numbers per categorical field"
    )
    class_balanced: bool = Field(
        False,
        description="weight sessions by 1 / share of their page in the training window, so that rare pages count alike",
    )
    label_smoothing: Annotated[float, Tunable(0.0, 0.2)] = Field(
        0.0, ge=0, lt=1, description="probability taken from the logged page and spread over all"
    )


@register("learner", "reference.bc")
class BC(Learner):
    """Weighted cross entropy over the pages; it reads single sessions, so it needs no next state."""

    Config: ClassVar[type[BCConfig]] = BCConfig
    config: BCConfig
    grain: ClassVar[Literal["transition", "session"]] = "session"
    columns: ClassVar[tuple[str, ...]] = ("action",)
    page_weight: Tensor

    def __init__(self, config: BCConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats) -> None:
        super().__init__(config, spec, pages, stats)
        self.fields = FieldEmbedding(spec.cat_sizes, config.embedding_dim)
        self.mlp: nn.Module = MLP(spec.n_dense + self.fields.out_features, config.hidden, len(pages))
        share_K = torch.as_tensor(stats.landings / max(stats.landings.sum(), 1.0), dtype=torch.float32)
        # the mean weight over the training window is 1, so that the learning rate keeps its meaning
        weight_K = (
            1.0 / (len(pages) * share_K.clamp(min=1e-4)) if config.class_balanced else torch.ones(len(pages))
        )
        self.register_buffer("page_weight", weight_K)

    def logits(self, batch: Batch) -> Tensor:
        """(B, K) unnormalised log probabilities."""
        return self.mlp(torch.cat([batch["dense"], self.fields(batch["cat"])], dim=1))

    def _loss(self, logits_BK: Tensor, action_B: Tensor) -> Tensor:
        loss_B = F.cross_entropy(
            logits_BK, action_B, reduction="none", label_smoothing=self.config.label_smoothing
        )
        return loss_B * self.page_weight[action_B]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self._loss(self.logits(batch), batch["action"]).mean()}

    def scores(self, batch: Batch) -> Tensor:
        """(B, K) probabilities of the logging policy (of the re-weighted one, if balanced)."""
        return F.softmax(self.logits(batch), dim=1)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """(B,) each: loss, log loss without weights, and whether the likeliest page is the logged one."""
        logits_BK = self.logits(batch)
        return {
            "loss": self._loss(logits_BK, batch["action"]),
            "log_loss": F.cross_entropy(logits_BK, batch["action"], reduction="none"),
            "agreement": (logits_BK.argmax(1) == batch["action"]).float(),
        }
