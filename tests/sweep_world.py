"""Small tables and a toy learner for the tests of sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.tables import build_transitions
from plpm_ray.data.trials import build_trial
from plpm_ray.tuning.config import SweepConfig
from tests.world_logs import world_logs

TOY = '''
"""A learner that learns nothing: `tilt` moves everybody to the first page, `sleep_s` makes an epoch long."""

import os
import signal
import time
from typing import Annotated

import torch
from pydantic import Field

from plpm_ray.core.config import Tunable
from plpm_ray.core.registry import register
from plpm_ray.navigators.base import Learner, LearnerConfig


class ToyConfig(LearnerConfig):
    tilt: Annotated[float, Tunable(-3.0, 3.0)] = Field(default=0.0, description="added to the first page's score")
    sleep_s: float = Field(default=0.0, ge=0, description="seconds an epoch takes")
    fail_above: float = Field(default=1e9, description="tilts above raise an error")
    die_once: str | None = Field(default=None, description="kill the process unless this file is there; write it first")


@register("learner", "toy.tilt")
class Toy(Learner):
    Config = ToyConfig
    grain = "session"
    inputs = ("dense",)
    columns = ("action",)

    def __init__(self, config, spec, pages, stats):
        super().__init__(config, spec, pages, stats)
        self.weight = torch.nn.Parameter(torch.zeros(len(pages)))

    def losses(self, batch):
        if self.config.tilt > self.config.fail_above:
            raise RuntimeError("tilt is too high")
        if self.config.die_once and not os.path.exists(self.config.die_once):
            open(self.config.die_once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.config.sleep_s)
        return {"loss": (self.weight**2).sum() + 0 * batch["dense"].sum()}

    def scores(self, batch):
        tilt = torch.zeros_like(self.weight)
        tilt[0] = self.config.tilt
        return (self.weight + tilt).expand(len(batch["dense"]), -1)
'''


def build_tables(folder: Path, users: int = 250, days: int = 7, **changes: Any) -> Path:
    """A warehouse of simulated sessions with its transition table, and the trial table where the logs hold a trial."""
    logs = world_logs(users, days, **changes)
    ingest(
        IngestConfig.model_validate(
            {"dataset": logs, "output": str(folder), "n_buckets": 2, "backend": "local"}
        )
    )
    build_transitions(Warehouse.open(folder))
    if "trial" in changes:
        build_trial(Warehouse.open(folder))
    return folder


def write_toy(folder: Path) -> str:
    """The toy learner as a plugin file."""
    path = folder / "toy_learner.py"
    path.write_text(TOY)
    return str(path)


def toy_sweep(tables: Path, folder: Path, **changes: Any) -> SweepConfig:
    """A sweep of the toy learner; an epoch is one step."""
    raw: dict[str, Any] = {
        "name": "toy",
        "run_root": str(folder / "runs"),
        "tables": str(tables),
        "learner": {"name": "toy.tilt"},
        "training": {"epochs": 3, "batch_size": 100_000},
        "search": {"tilt": None},
        "objective": {"estimator": "snips", "policy": {"kind": "softmax"}, "rank_by": "value"},
        "trials": 5,
        "startup_trials": 2,
        "scheduler": {"grace_epochs": 1, "reduction": 2},
        "backend": "local",
        "plugins": [write_toy(folder)],
    }
    return SweepConfig.model_validate(raw | changes)
