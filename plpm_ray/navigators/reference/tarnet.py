"""TARNet: a representation shared by all arms, and a head for each of them."""

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
from plpm_ray.nn import MLP, BranchMLP, FieldInputs


class TARNetConfig(UpliftConfig):
    """Treatment-agnostic representation with one head an arm (Shalit et al. 2017)."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (96,), description="width of each hidden layer of the shared part"
    )
    representation: Annotated[int, Field(ge=1)] = Field(96, description="width of the shared representation")
    head_hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (48,), description="width of each hidden layer of an arm's head"
    )


@register("learner", "reference.tarnet")
class TARNet(UpliftLearner):
    """Every sample moves the shared part, and the head of its own arm only."""

    Config: ClassVar[type[TARNetConfig]] = TARNetConfig
    config: TARNetConfig

    def __init__(
        self, config: TARNetConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats
    ) -> None:
        super().__init__(config, spec, pages, stats)
        self.fields = FieldInputs(self.n_numeric, self.cat_sizes, config.embedding_dim)
        self.shared = MLP(self.fields.out_features, config.hidden, config.representation)
        self.heads = BranchMLP(self.n_pages + 1, config.representation, config.head_hidden, 1)
        nn.init.constant_(self.heads.layers[-1].bias, UNIT_LOGIT)  # type: ignore[arg-type]

    def predict(self, batch: Batch) -> Tensor:
        return F.softplus(self.heads(self._representation(batch)).squeeze(2))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": arm_error(self.heads, self._representation(batch), batch["arm"], self.target(batch))}

    def _representation(self, batch: Batch) -> Tensor:
        x = self.fields(self.daily(batch, "dense"), self.daily(batch, "cat"))
        return self.shared(x).relu_()
