"""A DQN whose worker of a given rank is killed after a given step, once: what a lost node does, on purpose."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch.distributed as dist
from pydantic import Field

from plpm_ray.core.registry import register
from plpm_ray.navigators.reference.dqn import DQN, DQNConfig


class KilledConfig(DQNConfig):
    """DQN's settings and where to note that the kill has happened."""

    marker: str = Field(
        "", description="file whose absence means that the worker is still to be killed; empty: never"
    )


@register("learner", "test.killed")
class Killed(DQN):
    Config = KilledConfig

    def after_step(self, step: int) -> None:
        super().after_step(step)
        marker = getattr(self.config, "marker", "")
        if marker and step == 15 and dist.get_rank() == 1 and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
