"""The A/B experiment in the world: warm-up, AA days on which all arms run the control, AB days on which each runs its own.

Users are split over the arms at random (by hash), or, with `design: twins`, every arm gets the same users with the same
luck, which only a simulation can do and which needs far fewer users for the same interval. Users are simulated in parts
that do not depend on the number of workers, so results do not either.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from plpm_ray.core.config import ConfigSource
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.hashing import user_draws
from plpm_ray.core.storage import read_parquet, write_json, write_parquet
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.evaluation.experiment import analyse
from plpm_ray.simulation.arms import ArmConfig, check_arm, make_chooser, resolved_arm
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import WorldConfig, WorldRef, load_world
from plpm_ray.simulation.navigated import NavigatorChooser
from plpm_ray.simulation.runs import RunConfig, RunName, finished, run_folder
from plpm_ray.simulation.simulation import Chooser, Simulation, Sink, run_days
from plpm_ray.simulation.totals import DAILY, PERIODS, STATES, Counts, Recorder
from plpm_ray.simulation.world import World

_WEEK = 7


class ExperimentConfig(RunConfig):
    """`plpm simulate ab`: arms, users and days."""

    operational: ClassVar[frozenset[str]] = RunConfig.operational | {"users_per_task"}

    name: RunName = "ab"
    world: WorldRef = Field(description="shipped world, path of a YAML file, or the world itself")
    arms: tuple[ArmConfig, ...] = Field(min_length=2, description="what is compared")
    control: str | None = Field(default=None, description="label of the control arm; default: the first arm")
    design: Literal["split", "twins"] = Field(
        default="split",
        description="split: each user in one arm; twins: the same users, with the same luck, in every arm",
    )
    users: int = Field(default=20_000, ge=2, description="users in all (split), or in every arm (twins)")
    first_user: int = Field(
        default=1_000_000_000,
        ge=0,
        description="id of the first; others than those of the logs that arms were trained on",
    )
    warmup_days: int = Field(
        default=14, ge=0, description="days before the experiment, on which the world's logging policy runs"
    )
    aa_days: int = Field(default=7, ge=1, description="days on which all arms run the control")
    ab_days: int = Field(default=14, ge=1, description="days on which each arm runs its own policy")
    seed: int = Field(default=0, ge=0, description="seed of the split")
    users_per_task: int = Field(
        default=8192, ge=1, description="users simulated at once; bounds a task's memory"
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register navigators of your own"
    )

    @model_validator(mode="after")
    def _labels(self) -> ExperimentConfig:
        titles = [arm.title for arm in self.arms]
        twice = sorted({t for t in titles if titles.count(t) > 1})
        if twice:
            raise ValueError(f"two arms are called {twice[0]!r}; give them labels")
        if self.control is not None and self.control not in titles:
            raise ValueError(f"control {self.control!r} is none of the arms {titles}")
        return self

    @property
    def control_arm(self) -> int:
        """Position of the control arm."""
        return 0 if self.control is None else [arm.title for arm in self.arms].index(self.control)


@dataclass(frozen=True)
class _Part:
    """Some users of one arm."""

    config: ExperimentConfig
    world: WorldConfig
    arm: int
    users: np.ndarray
    path: Path


def run_experiment(config: ExperimentConfig, source: ConfigSource | None = None) -> dict[str, Any]:
    """Simulates, counts, tests, and writes the run folder; a finished run is read again.

    Returns:
        The content of `ab.json`, with the run folder under "run".

    Raises:
        ConfigError, BundleError: an arm cannot be made, does not fit the world, or has fewer than two users.
    """
    source = source or ConfigSource({}, "config", {}, {})
    world = load_world(config.world)
    versions = [
        check_arm(world, arm, config.plugins, source, ("arms", i)) for i, arm in enumerate(config.arms)
    ]
    split = split_users(config)
    with run_folder(config, world, versions=versions) as run_dir:
        return finished(run_dir, "ab.json") or _run(config, world, versions, split, run_dir)


def _run(
    config: ExperimentConfig, world: WorldConfig, versions: list[str], split: list[np.ndarray], run_dir: Path
) -> dict[str, Any]:
    """Simulates the users of each arm and writes what they did into the folder."""
    for_tasks = config.model_copy(update={"arms": tuple(map(resolved_arm, config.arms))})
    parts = _parts(for_tasks, world, split, (run_dir / "parts").absolute())
    counts = run_tasks(
        _simulate, parts, backend=config.backend, workers=config.workers, progress="simulating users"
    )
    users = pa.concat_tables([read_parquet(part.path) for part in parts])
    by_arm = [
        reduce(add, [c for p, c in zip(parts, counts, strict=True) if p.arm == arm])
        for arm in range(len(config.arms))
    ]
    result = _result(config, world, versions, users, by_arm)
    write_parquet(run_dir / "users.parquet", users)
    for name, table in _tables(config, world, by_arm).items():
        write_parquet(run_dir / f"{name}.parquet", table)
    write_json(run_dir / "ab.json", result)
    # with what tasks left that were killed
    shutil.rmtree(run_dir / "parts", ignore_errors=True)
    return {**result, "run": str(run_dir)}


def split_users(config: ExperimentConfig) -> list[np.ndarray]:
    """The user ids of every arm; by hash, so that it does not depend on how many users there are.

    Raises:
        ConfigError: an arm has fewer than two.
    """
    ids = config.first_user + np.arange(config.users)
    if config.design == "twins":
        return [ids] * len(config.arms)
    bounds = np.cumsum([arm.share for arm in config.arms])
    draw = user_draws(ids, config.seed) * bounds[-1]
    arm = np.minimum((draw[:, None] >= bounds).sum(axis=1), len(bounds) - 1)
    split = [ids[arm == a] for a in range(len(config.arms))]
    for title, mine in zip((arm.title for arm in config.arms), split, strict=True):
        if len(mine) < 2:
            raise ConfigError(
                f"the arm {title!r} has {len(mine)} of {config.users} users, two are needed",
                hint="raise `users`, or the arm's `share`",
            )
    return split


def _parts(
    config: ExperimentConfig, world: WorldConfig, split: list[np.ndarray], folder: Path
) -> list[_Part]:
    parts = []
    for arm, ids in enumerate(split):
        for start in range(0, len(ids), config.users_per_task):
            some = ids[start : start + config.users_per_task]
            parts.append(_Part(config, world, arm, some, folder / f"users-{arm:03d}-{start:012d}.parquet"))
    return parts


def _simulate(part: _Part) -> Counts:
    """Simulates the users of a part, writes their totals, and returns the counts."""
    config, world = part.config, World(part.world)
    simulation = Simulation(world, part.users)
    own = make_chooser(world, config.arms[part.arm], config.plugins)
    control = own
    if part.arm != config.control_arm:
        control = make_chooser(world, config.arms[config.control_arm], config.plugins)
    recorder = Recorder(world, simulation, (config.aa_days, config.ab_days))
    watchers = (own,) if control is own else (own, control)
    live(simulation, config.warmup_days, LoggingPolicy(), watchers, None)
    live(simulation, config.aa_days, control, watchers, recorder)
    if isinstance(own, NavigatorChooser):
        own.decisions, own.cpu_s = 0, 0.0
    live(simulation, config.ab_days, own, (own,), recorder)
    counts = recorder.finish()
    if isinstance(own, NavigatorChooser):
        counts.decisions, counts.cpu_s = own.decisions, own.cpu_s
    write_parquet(part.path, recorder.users(config.arms[part.arm].title))
    return counts


def live(
    simulation: Simulation,
    days: int,
    chooser: Chooser,
    watchers: Sequence[Chooser],
    recorder: Recorder | None,
) -> None:
    """The next days under a chooser; watchers see every session, so that they know their users when their turn comes."""
    told: list[Sink] = [
        partial(watcher.observe, simulation) for watcher in watchers if watcher is not chooser
    ]
    sinks: list[Sink] = told if recorder is None else [*told, recorder]
    for _ in range(days):
        run_days(simulation, 1, chooser, *sinks)
        if recorder is not None:
            recorder.end_day()


def _result(
    config: ExperimentConfig, world: WorldConfig, versions: list[str], users: pa.Table, counts: list[Counts]
) -> dict[str, Any]:
    titles = [arm.title for arm in config.arms]
    roles = {arm.builtin: arm.title for arm in reversed(config.arms) if arm.builtin is not None}
    weights = np.array([arm.share for arm in config.arms])
    # tasks in threads of one process cannot tell whose CPU time it was
    threads = config.backend == "local" and (config.workers or 1) > 1
    found = analyse(
        users,
        pages=world.catalogue.names,
        arms=titles,
        control=titles[config.control_arm],
        aa_days=config.aa_days,
        ab_days=config.ab_days,
        design=config.design,
        expected_shares=dict(zip(titles, (weights / weights.sum()).tolist(), strict=True)),
        random=roles.get("random", ""),
        oracle=roles.get("far_sighted_oracle", roles.get("myopic_oracle", "")),
    )
    return {
        "kind": "ab",
        "world": world.name,
        "pages": list(world.catalogue.names),
        "control": titles[config.control_arm],
        "arms": titles,
        "versions": dict(zip(titles, versions, strict=True)),
        "design": config.design,
        "users": config.users,
        "warmup_days": config.warmup_days,
        "aa_days": config.aa_days,
        "ab_days": config.ab_days,
        "seed": config.seed,
        **found,
        "latency": {} if threads else _latency(titles, counts),
    }


def _latency(titles: list[str], counts: list[Counts]) -> dict[str, float]:
    """Microseconds of CPU a decision, of the arms that decide by a navigator."""
    return {
        title: 1e6 * c.cpu_s / c.decisions for title, c in zip(titles, counts, strict=True) if c.decisions
    }


def _tables(config: ExperimentConfig, world: WorldConfig, counts: list[Counts]) -> dict[str, pa.Table]:
    """The tables of the run folder: daily, hourly, moves, pages."""
    titles = [arm.title for arm in config.arms]
    days = config.aa_days + config.ab_days
    period = [PERIODS[day >= config.aa_days] for day in range(days)]
    first = world.first_day + dt.timedelta(days=config.warmup_days)
    daily, hourly, moves, pages = [], [], [], []
    for title, c in zip(titles, counts, strict=True):
        active = c.daily["active_users"]
        week = np.array([active[max(day - _WEEK + 1, 0) : day + 1].sum() for day in range(days)])
        columns: dict[str, Any] = {
            "arm": [title] * days,
            "day": np.arange(days),
            "period": period,
            "date": [first + dt.timedelta(days=day) for day in range(days)],
            "users": np.full(days, c.users),
            "lt": week / np.maximum(c.daily["ever_active"], 1),
        }
        daily.append(pa.table({**columns, **{name: c.daily[name] for name in DAILY}}))
        for i, name in enumerate(PERIODS):
            sessions, use_s = c.hourly[i].T
            head = {"arm": [title] * 24, "period": [name] * 24, "hour": np.arange(24)}
            hourly.append(pa.table({**head, "sessions": sessions, "use_s": use_s}))
            k = len(world.pages)
            names = ("assigned", "entries_effective", "drop_offs", "dwell_s")
            head = {"arm": [title] * k, "period": [name] * k, "page": list(world.catalogue.names)}
            pages.append(pa.table({**head, **dict(zip(names, c.pages[i].T, strict=True))}))
        day, before, after = (a.ravel() for a in np.indices(c.moves.shape))
        moves.append(
            pa.table(
                {
                    "arm": [title] * len(day),
                    "period": [period[d] for d in day],
                    "day": day,
                    "from": [STATES[s] for s in before],
                    "to": [STATES[s] for s in after],
                    "users": c.moves.ravel(),
                }
            )
        )
    joined = {"daily": daily, "hourly": hourly, "moves": moves, "pages": pages}
    return {name: pa.concat_tables(parts) for name, parts in joined.items()}
