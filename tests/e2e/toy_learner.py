"""Seconds by page: one linear model a page of log(1 + seconds of use), the smallest learner there can be."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from plpm_ray.core.config import Tunable
from plpm_ray.core.registry import register
from plpm_ray.navigators.base import Batch, Learner, LearnerConfig


class SecondsConfig(LearnerConfig):
    """Its settings; the range in an annotation is what a sweep searches."""

    ridge: Annotated[float, Tunable(1e-4, 1.0, log=True)] = Field(
        default=1e-3, ge=0, description="weight of the squared coefficients"
    )


@register("learner", "toy.seconds")
class Seconds(Learner):
    """Squared error of log(1 + use_s) for the page that was landed on."""

    Config = SecondsConfig
    config: SecondsConfig
    grain = "session"  # no next state
    inputs = ("dense",)
    columns = ("action", "use_s")

    def __init__(self, config, spec, pages, stats):
        super().__init__(config, spec, pages, stats)
        self.linear = torch.nn.Linear(spec.n_dense, len(pages))

    def scores(self, batch: Batch) -> torch.Tensor:
        return self.linear(batch["dense"])

    def error(self, batch: Batch) -> torch.Tensor:
        """(B,) squared errors."""
        predicted_B = self.scores(batch).gather(1, batch["action"][:, None])[:, 0]
        return (predicted_B - batch["use_s"].log1p()) ** 2

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        error = self.error(batch).mean()
        return {"loss": error + self.config.ridge * (self.linear.weight**2).sum(), "squared_error": error}

    def metrics(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self.error(batch)}
