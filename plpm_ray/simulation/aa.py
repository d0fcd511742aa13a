"""A/A experiments: the same policy in both arms, many times, to see how often the statistics call a difference.

Every experiment has its own users, so the experiments are independent, and the number of false positives of a right test
is binomial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from plpm_ray.core.config import ConfigSource
from plpm_ray.core.hashing import user_draws
from plpm_ray.core.storage import write_json
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.evaluation.experiment import analyse, treatment_p_values
from plpm_ray.evaluation.experiment_checks import false_positives
from plpm_ray.evaluation.experiment_metrics import metric_catalogue
from plpm_ray.simulation.arms import ArmConfig, check_arm, make_chooser, resolved_arm
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import WorldConfig, load_world
from plpm_ray.simulation.experiment import live
from plpm_ray.simulation.runs import RunConfig, RunName, run_folder
from plpm_ray.simulation.simulation import Simulation
from plpm_ray.simulation.totals import Recorder
from plpm_ray.simulation.world import World

_ARMS = ("A1", "A2")
_USERS = 16_384  # simulated at once


class AAConfig(RunConfig):
    """`plpm simulate aa`: how often each metric's test is wrong where nothing differs."""

    name: RunName = "aa"
    arm: ArmConfig = Field(default=ArmConfig(builtin="logging"), description="what runs in both arms")
    experiments: int = Field(
        default=200, ge=1, description="number of experiments, each with users of its own"
    )
    users: int = Field(default=2000, ge=4, description="users of one experiment, split in two")
    first_user: int = Field(default=2_000_000_000, ge=0, description="id of the first user")
    warmup_days: int = Field(default=7, ge=0, description="days before each experiment")
    aa_days: int = Field(default=7, ge=1, description="days from which the variance reduction is taken")
    ab_days: int = Field(default=7, ge=1, description="days on which the arms are compared")
    seed: int = Field(default=0, ge=0, description="seed of the splits")
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register navigators of your own"
    )


@dataclass(frozen=True)
class _Item:
    """Some experiments whose users are simulated side by side."""

    config: AAConfig
    world: WorldConfig
    first: int
    stop: int


def run_aa(config: AAConfig, source: ConfigSource | None = None) -> dict[str, Any]:
    """Runs all experiments and writes `aa.json` into the run folder.

    Returns:
        Its content, with the run folder under "run" and the p-values, metric -> (experiments,), under "p_values".
    """
    world = load_world(config.world)
    version = check_arm(
        world, config.arm, config.plugins, source or ConfigSource({}, "config", {}, {}), ("arm",)
    )
    with run_folder(config, world, version=version) as run_dir:
        result = _result(config, world)
        write_json(run_dir / "aa.json", result)
        return {**result, "run": str(run_dir)}


def _result(config: AAConfig, world: WorldConfig) -> dict[str, Any]:
    """The content of `aa.json`."""
    step = max(1, _USERS // config.users)
    for_tasks = config.model_copy(update={"arm": resolved_arm(config.arm)})
    items = [
        _Item(for_tasks, world, first, min(first + step, config.experiments))
        for first in range(0, config.experiments, step)
    ]
    done = run_tasks(
        _experiments, items, backend=config.backend, workers=config.workers, progress="A/A experiments"
    )
    found = [p for part in done for p in part]
    p_values = {key: [p[key] for p in found] for key in found[0]}
    return {
        "kind": "aa",
        "world": world.name,
        "experiments": config.experiments,
        "users": config.users,
        "seed": config.seed,
        **false_positives(p_values, metric_catalogue(world.catalogue.names)),
        "p_values": p_values,
    }


def _experiments(item: _Item) -> list[dict[str, float | None]]:
    """metric -> p-value, of each experiment."""
    config, world = item.config, World(item.world)
    ids = config.first_user + np.arange(item.first * config.users, item.stop * config.users)
    simulation = Simulation(world, ids)
    chooser = make_chooser(world, config.arm, config.plugins)
    recorder = Recorder(world, simulation, (config.aa_days, config.ab_days))
    live(simulation, config.warmup_days, LoggingPolicy(), (chooser,), None)
    live(simulation, config.aa_days + config.ab_days, chooser, (chooser,), recorder)
    users = recorder.users("")
    half = (user_draws(ids, config.seed) >= 0.5).astype(np.int64)
    arm = pa.array(_ARMS).take(pa.array(half))
    users = users.set_column(users.schema.get_field_index("arm"), "arm", arm)
    found = (
        analyse(
            users.slice(start, config.users),
            world.pages.names,
            control=_ARMS[0],
            arms=_ARMS,
            aa_days=config.aa_days,
            ab_days=config.ab_days,
        )
        for start in range(0, len(ids), config.users)
    )
    return [treatment_p_values(result) for result in found]
