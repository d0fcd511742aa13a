"""`plpm simulate logs`: logs of a world as Parquet files, of any size in bounded memory, on one machine or a Ray cluster.

One task simulates `users_per_file` users over all days and writes their files, and at last that they are whole
(`plpm_ray.simulation.logs_folder`). So a task may run twice, and a run that was stopped goes on with the parts that are
missing. A part depends on config and seed alone: the number of workers does not change the content.
"""

from __future__ import annotations

import datetime as dt
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

import plpm_ray
from plpm_ray.core.config import ConfigSource
from plpm_ray.data.ray_exec import Backend, run_tasks
from plpm_ray.simulation.dataset import WorldLogs, WorldLogsConfig
from plpm_ray.simulation.logged_by import resolved_policy
from plpm_ray.simulation.logs_folder import LogsFolder, totals_of
from plpm_ray.simulation.world import CONTEXT, PROFILE

_FORMAT = 1
_ELSEWHERE = {"output", "backend", "workers", "cpus_per_task", "plugins"}  # what does not change the content


class LogsConfig(WorldLogsConfig):
    """What `plpm simulate logs` writes, and where."""

    output: str = Field(
        min_length=1, description="folder of the logs; on a cluster, one that all machines see"
    )
    users_per_file: int = Field(
        default=8000,
        ge=1,
        description="users of one file and task; about 350 bytes of memory for each of their sessions",
    )
    potential_outcomes: int = Field(
        default=0,
        ge=0,
        description="with a trial: what every user would have done under each arm, averaged over this many lucks; 0: not",
    )
    backend: Backend = Field(
        default="local",
        description="local: this process; processes: of this machine; ray: tasks on the cluster",
    )
    workers: int | None = Field(
        default=None, ge=1, description="tasks at a time; null: 1 here, all CPUs with ray"
    )
    cpus_per_task: float = Field(default=1.0, gt=0, description="CPUs that Ray reserves for a task")
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that the navigator of `policy` needs"
    )

    @model_validator(mode="after")
    def _outcomes_of_a_trial(self) -> LogsConfig:
        if self.potential_outcomes and self.trial is None:
            raise ValueError("potential_outcomes are those of the arms of a trial; add `trial: {}`")
        return self

    @property
    def parts(self) -> int:
        return -(-self.users // self.users_per_file)

    def users_of(self, part: int) -> np.ndarray:
        """(U,) ids of the users of one part."""
        first = self.first_user + part * self.users_per_file
        return np.arange(first, min(first + self.users_per_file, self.first_user + self.users))


def write_logs(config: LogsConfig, source: ConfigSource | None = None) -> dict[str, Any]:
    """Writes the logs that a config describes; parts that an earlier run of the same config finished are kept.

    Args:
        config: what to simulate and where to write it.
        source: where the config came from, so that errors name file and line.

    Returns:
        The summary: output, world, users, first_day, last_day, sessions, files, reused_files, hash (of the content of all
        tables, parts in order), bytes, landing_shares, arms (arm -> users, with a trial), seed, policy. The manifest holds
        the same, without the output, beside the config.

    Raises:
        ConfigError, BundleError: the world, the policy or the trial is wrong.
        StorageError: the folder holds something else, another run writes to it, or the disk is full.
    """
    logs = WorldLogs(config, config.plugins, source)
    # the world goes with the tasks: they need no file of it, and a later change of that file cannot mix two worlds
    world = logs.world.config.model_dump(mode="json")
    own = {"world": world, "seed": None, "policy": resolved_policy(config.policy)}
    config = config.model_copy(update=own)
    root = Path(config.output).expanduser().absolute()
    folder = LogsFolder(root, _identity(config, logs.policy_version))
    with folder.open_for_writing():
        folder.write_yaml("world.yaml", world)
        missing = [number for number in range(config.parts) if folder.part(number) is None]
        run_tasks(
            partial(write_part, config, folder),
            missing,
            backend=config.backend,
            workers=config.workers,
            num_cpus=config.cpus_per_task,
            progress="simulating",
        )
        totals = _totals(config, folder, logs)
        folder.write_yaml(
            "dataset.yaml", _dataset(config, logs), f"plpm data {root}/dataset.yaml --set output=FOLDER"
        )
        folder.finish(totals)
    return {"output": config.output, **totals, "reused_files": config.parts - len(missing)}


def write_part(config: LogsConfig, folder: LogsFolder, number: int) -> None:
    """The task: simulates the users of one part and writes their tables; may be repeated."""
    logs, users = WorldLogs(config, config.plugins), config.users_of(number)
    done = logs.run(users, config.potential_outcomes)
    tables = {
        "sessions": done.sessions,
        "users": logs.profiles(users),
        "responses": done.responses,
        "potential_outcomes": done.potential_outcomes,
    }
    folder.write_part(number, {name: table for name, table in tables.items() if table is not None})


def _identity(config: LogsConfig, policy_version: str) -> dict[str, Any]:
    content = config.model_dump(mode="json", exclude=_ELSEWHERE)
    # the folder of a bundle may be another one on another machine; its version says what it is
    if isinstance(config.policy, dict) and "bundle" in config.policy:
        content["policy"] = {**config.policy, "bundle": policy_version}
    return {"format": _FORMAT, "plpm_ray": plpm_ray.__version__, "config": content}


def _totals(config: LogsConfig, folder: LogsFolder, logs: WorldLogs) -> dict[str, Any]:
    parts = [folder.part(number) for number in range(config.parts)]
    found = totals_of(part for part in parts if part is not None)
    first = dt.date(1970, 1, 1) + dt.timedelta(days=logs.world.first_day + config.warmup_days)
    totals = {
        "world": logs.world.config.name,
        "seed": logs.world.config.seed,
        "policy": logs.policy_version,
        "users": config.users,
        "first_day": first.isoformat(),
        "last_day": (first + dt.timedelta(days=config.days - 1)).isoformat(),
        "sessions": found["rows"]["sessions"],
        "files": config.parts,
        **{name: found[name] for name in ("landing_shares", "bytes", "hash")},
    }
    if logs.trial is not None:
        trial = logs.trial
        everybody = [config.users_of(number) for number in range(config.parts)]
        folder.join("assignments", (trial.assignments(users) for users in everybody))
        folder.join("responses", folder.parts_of("responses", config.parts))
        counts = sum(np.bincount(trial.arm_of(users), minlength=len(trial.arms)) for users in everybody)
        totals["arms"] = dict(zip(trial.arms, np.asarray(counts).tolist(), strict=True))
    return totals


def _dataset(config: LogsConfig, logs: WorldLogs) -> dict[str, Any]:
    """The section with which `plpm data` reads the folder."""
    root = Path(config.output).expanduser().absolute()
    dataset: dict[str, Any] = {
        "name": "canonical",
        "title": logs.world.config.name,
        "path": str(root / "sessions"),
        "pages": list(logs.world.pages.names),
        "context": dict(CONTEXT),
        "profile": {"path": str(root / "users"), "columns": dict(PROFILE)},
    }
    if logs.trial is not None:
        dataset["assignments"] = {"path": str(root / "assignments.parquet")}
    return {"dataset": dataset}
