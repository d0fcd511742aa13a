"""A plugin with learners that say numbers and have one weight: what `plpm assess` needs to judge a learner it never heard of."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from plpm_ray.core.registry import register
from plpm_ray.navigators.base import Batch, Grain, Learner


@register("learner", "test.constant_day")
class ConstantDay(Learner):
    """The same seconds for every day."""

    grain: ClassVar[Grain] = "day"
    inputs: ClassVar[tuple[str, ...]] = ("dense",)
    columns: ClassVar[tuple[str, ...]] = ("use_s",)
    says: ClassVar[tuple[str, ...] | None] = ("use_s",)

    def __init__(self, config, spec, pages, stats) -> None:
        super().__init__(config, spec, pages, stats)
        self.seconds = torch.nn.Parameter(torch.tensor(3600.0))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (self.seconds - batch["use_s"]).abs().mean()}

    def scores(self, batch: Batch) -> Tensor:
        return self.seconds.expand(len(batch["dense"]), 1)


@register("learner", "test.constant_session")
class ConstantSession(Learner):
    """The same reward, and the same chance of a drop-off, for every session; it tells no seconds by page."""

    grain: ClassVar[Grain] = "session"
    inputs: ClassVar[tuple[str, ...]] = ("dense",)
    columns: ClassVar[tuple[str, ...]] = ("use_s",)
    says: ClassVar[tuple[str, ...] | None] = ("drop_off", "reward")

    def __init__(self, config, spec, pages, stats) -> None:
        super().__init__(config, spec, pages, stats)
        self.seconds = torch.nn.Parameter(torch.tensor(60.0))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (self.seconds - batch["use_s"]).abs().mean()}

    def scores(self, batch: Batch) -> Tensor:
        seconds = self.seconds.expand(len(batch["dense"]))
        return torch.stack([torch.full_like(seconds, 0.25), seconds], dim=1)
