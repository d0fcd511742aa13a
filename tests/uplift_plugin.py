"""A learner of trial users, as small as can be; loaded as a plugin only, so that it is registered once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from plpm_ray.core.registry import register
from plpm_ray.navigators.base import Learner, LearnerConfig


@register("learner", "test.uplift")
class LinearUplift(Learner):
    """A linear response for each arm, in units of the control's mean."""

    Config = LearnerConfig
    grain = "user"
    inputs = ("dense",)
    columns = ("arm", "response")

    def __init__(self, config: Any, spec: Any, pages: Any, stats: Any) -> None:
        super().__init__(config, spec, pages, stats)
        self.linear = nn.Linear(spec.n_dense, len(pages) + 1)
        self.register_buffer("scale", torch.tensor(stats.control_mean))

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.metrics(batch)["error"].mean()}

    def scores(self, batch: Any) -> torch.Tensor:
        y_BA = self.linear(batch["dense"])
        return (y_BA[:, 1:] - y_BA[:, :1]) * self.scale

    def metrics(self, batch: Any) -> dict[str, torch.Tensor]:
        y_B = self.linear(batch["dense"]).gather(1, batch["arm"].unsqueeze(1)).squeeze(1)
        return {"error": (y_B - batch["response"] / self.scale).square()}
