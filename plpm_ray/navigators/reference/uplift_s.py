"""S-learner: one network for all arms, the arm being one of its inputs."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch
from plpm_ray.navigators.uplift import UNIT_LOGIT, UpliftConfig, UpliftLearner
from plpm_ray.nn import MLP, FieldInputs


class SLearnerConfig(UpliftConfig):
    """One network over features and arm; effects are differences of its predictions (Kuenzel et al. 2019)."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (128, 128), min_length=1, description="width of each hidden layer"
    )


@register("learner", "reference.s_learner")
class SLearner(UpliftLearner):
    """The arm's embedding enters the first layer, where it is a bias that all users of the arm share."""

    Config: ClassVar[type[SLearnerConfig]] = SLearnerConfig
    config: SLearnerConfig

    def __init__(
        self, config: SLearnerConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats
    ) -> None:
        super().__init__(config, spec, pages, stats)
        first, *rest = config.hidden
        self.fields = FieldInputs(self.n_numeric, self.cat_sizes, config.embedding_dim)
        self.features = nn.Linear(self.fields.out_features, first)
        self.arms = nn.Embedding(self.n_pages + 1, config.embedding_dim)
        self.arm_input = nn.Linear(config.embedding_dim, first, bias=False)
        self.mlp = MLP(first, rest, 1)
        nn.init.constant_(self.mlp[-1].bias, UNIT_LOGIT)  # type: ignore[arg-type]

    def predict(self, batch: Batch) -> Tensor:
        x_B1H = self.features(self._x(batch)).unsqueeze(1)
        return self._outcome(x_B1H + self.arm_input(self.arms.weight))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        arm_AH = self.arm_input(self.arms.weight)
        y_B = self._outcome(self.features(self._x(batch)) + F.embedding(batch["arm"], arm_AH))
        return {"loss": F.mse_loss(y_B, self.target(batch))}

    def _x(self, batch: Batch) -> Tensor:
        return self.fields(self.daily(batch, "dense"), self.daily(batch, "cat"))

    def _outcome(self, first: Tensor) -> Tensor:
        """(..., H) sums of the first layer -> (...) responses."""
        return F.softplus(self.mlp(first.relu_()).squeeze(-1))
