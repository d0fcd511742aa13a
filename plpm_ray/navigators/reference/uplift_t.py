"""T-learner: a network of its own for every arm."""

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
from plpm_ray.navigators.uplift import UNIT_LOGIT, UpliftConfig, UpliftLearner, arm_error
from plpm_ray.nn import BranchMLP, FieldInputs


class TLearnerConfig(UpliftConfig):
    """K + 1 networks, each fitted on the users of its arm (Kuenzel et al. 2019)."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (64, 64), description="width of each hidden layer of an arm's network"
    )


@register("learner", "reference.t_learner")
class TLearner(UpliftLearner):
    """Only the embeddings of categorical features are shared between the arms."""

    Config: ClassVar[type[TLearnerConfig]] = TLearnerConfig
    config: TLearnerConfig

    def __init__(
        self, config: TLearnerConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats
    ) -> None:
        super().__init__(config, spec, pages, stats)
        self.fields = FieldInputs(self.n_numeric, self.cat_sizes, config.embedding_dim)
        self.networks = BranchMLP(self.n_pages + 1, self.fields.out_features, config.hidden, 1)
        nn.init.constant_(self.networks.layers[-1].bias, UNIT_LOGIT)  # type: ignore[arg-type]

    def predict(self, batch: Batch) -> Tensor:
        return F.softplus(self.networks(self._x(batch)).squeeze(2))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": arm_error(self.networks, self._x(batch), batch["arm"], self.target(batch))}

    def _x(self, batch: Batch) -> Tensor:
        return self.fields(self.daily(batch, "dense"), self.daily(batch, "cat"))
