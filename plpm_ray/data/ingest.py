"""Logs in, sessions out: reads a dataset through its adapter, checks every row, and commits whole days at once.

Two phases of tasks (`plpm_ray.data.ingest_tasks`) with a scratch folder in the warehouse between them. Memory holds
one slice of a file, or one user bucket, per task. Nothing is visible to readers before the last step, an atomic commit;
a day whose sessions come out as they were keeps its generation, so that tables built on it stay valid.
"""

from __future__ import annotations

import datetime as dt
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from plpm_ray.core.config import ConfigSource, Named, StrictConfig
from plpm_ray.core.errors import DataError, PlpmError
from plpm_ray.core.storage import storage_errors, write_json, write_parquet
from plpm_ray.data import ingest_tasks as tasks
from plpm_ray.data.assignments import read_assignments
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.datasets.base import Adapter, make_adapter
from plpm_ray.data.datasets.trial import TrialAdapter
from plpm_ray.data.day_table import DayEntry, DayTable, day_name, day_number
from plpm_ray.data.ingest_trial import ingest_trial
from plpm_ray.data.quarantine import Tally, refuse_over
from plpm_ray.data.ray_exec import Backend, run_tasks
from plpm_ray.data.staging import staging


class IngestConfig(StrictConfig):
    """What `plpm data` reads and where it puts it."""

    dataset: Named = Field(description="name of the adapter, and its own settings beside it")
    output: str = Field(min_length=1, description="folder of the warehouse")
    n_buckets: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="users are hashed into this many buckets; a bucket of all days must fit in a worker's memory",
    )
    days: tuple[dt.date, dt.date] | None = Field(
        default=None, description="first and last local day to process; null takes all days of the input"
    )
    max_bad_share: float = Field(
        default=0.01, ge=0, le=1, description="share of bad rows above which the run stops"
    )
    backend: Backend = Field(
        default="local",
        description="local: this process; processes: of this machine; ray: tasks on the cluster",
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules with dataset adapters of your own"
    )

    @model_validator(mode="after")
    def _in_order(self) -> IngestConfig:
        if self.days is not None and self.days[0] > self.days[1]:
            raise ValueError(f"days: {self.days[0]} lies after {self.days[1]}")
        return self


def ingest(config: IngestConfig, source: ConfigSource | None = None) -> dict[str, Any]:
    """Brings a dataset into a warehouse.

    Args:
        config: what to read and where to put it.
        source: where the config came from, so that errors in its `dataset:` section name file and line.

    Returns:
        The summary, also written to `<output>/quarantine/<ingest id>/summary.json`: rows_read, rows_outside (of other
        days than asked for), rows_in, sessions, users, days, changed_days, dropped_days,
        shrunk_days (day -> sessions before and after, where they became fewer), quarantined (reason -> rows),
        quarantined_rows, landing_shares (page -> share of sessions), profiles, assignments, seconds. rows_in = sessions +
        quarantined_rows where the dataset gives sessions. Of a dataset that is a table of a trial's users, see
        `ingest_trial`.

    Raises:
        ConfigError: unknown dataset or setting.
        DataError: unreadable or unfitting files, or too many bad rows. Nothing is committed.
        StorageError: full disk, another ingest at work, or another dataset in the folder. Nothing is committed.
    """
    started = time.monotonic()
    plugins = tuple(os.path.abspath(p) if p.endswith(".py") else p for p in config.plugins)
    adapter = make_adapter(config.dataset, plugins, source)
    info = adapter.info(config.n_buckets)
    root = Path(config.output).expanduser().absolute()
    if (root / "manifest.json").exists():
        Warehouse.create(root, info)  # refuses another dataset before any work
    if isinstance(adapter, TrialAdapter):
        return ingest_trial(config, adapter, plugins, started)
    sessions = DayTable(root / "sessions")
    items, profile_items = tuple(adapter.inputs()), tuple(adapter.profile_inputs())
    if not items:
        where = config.dataset.options.get("path", f"dataset {config.dataset.name}")
        raise DataError(f"{where}: the files hold no rows", hint="check the path, or copy the files again")
    with staging(root, sessions) as (folder, gen):
        ingest_id = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{gen[:6]}"
        window = None if config.days is None else (day_number(config.days[0]), day_number(config.days[1]))
        plan = tasks.Plan(
            dataset=config.dataset,
            plugins=plugins,
            info=info,
            items=items,
            profile_items=profile_items,
            root=str(root),
            staging=str(folder),
            quarantine=str(root / "quarantine" / ingest_id),
            gen=gen,
            window=window,
        )
        return _Run(config, plan, adapter, sessions, started).go()


class _Run:
    """One ingest, step by step."""

    def __init__(
        self, config: IngestConfig, plan: tasks.Plan, adapter: Adapter, sessions: DayTable, started: float
    ) -> None:
        self.config, self.plan, self.adapter, self.sessions, self.started = (
            config,
            plan,
            adapter,
            sessions,
            started,
        )
        self.tally, self.profile_tally, self.assignment_tally = Tally(), Tally(), Tally()
        self.assignments = None
        self.run = partial(run_tasks, backend=config.backend)

    def go(self) -> dict[str, Any]:
        plan = self.plan
        try:
            duplicates = self._map()
            if self.adapter.assignment_inputs():
                self.assignments, self.assignment_tally = read_assignments(
                    self.adapter, plan.info, plan.quarantine
                )
            self._refuse()
            reduce = partial(tasks.reduce_sessions, plan, duplicates)
            results = self.run(reduce, range(plan.info.n_buckets), progress="sessions by user")
            for result in results:
                self.tally.add(result.tally)
            profile_users = self._reduce_profiles()
            self._refuse()
            if not any(result.rows for result in results):
                raise self._nothing()
        except PlpmError as error:
            self._write(self._counts() | {"refused": error.message})
            raise
        before = self.sessions.entries()
        changed, dropped = self._commit(results)
        summary = self._counts() | self._outcome(results, changed, dropped, profile_users)
        summary["shrunk_days"] = _shrunk(before, self.sessions.entries())
        self._write(summary)
        return summary

    def _map(self) -> str | None:
        """Phase 1 and the exchange of session ids; returns the stage with duplicates, if one was needed."""
        plan = self.plan
        mapped = self.run(partial(tasks.map_rows, plan), range(len(plan.items)), progress="reading logs")
        for result in mapped:
            self.tally.add(result.tally)
        if plan.profile_items:
            for tally in self.run(
                partial(tasks.map_profiles, plan), range(len(plan.profile_items)), progress="reading profiles"
            ):
                self.profile_tally.add(tally)
        if self.adapter.form == "events" or self.adapter.unique_sessions:
            return None
        found = set().union(*(result.days for result in mapped))
        kept = sorted(set(self.sessions.days()) - self._replaced(found))
        buckets = range(plan.info.n_buckets)
        if kept:
            self.run(partial(tasks.stage_committed_ids, plan, kept), buckets, progress="earlier session ids")
        again = sum(
            self.run(
                partial(tasks.find_duplicate_ids, plan, bool(kept)), buckets, progress="duplicate session ids"
            )
        )
        return "duplicates" if again else None

    def _replaced(self, found: set[int]) -> set[int]:
        """Days that this run replaces: those of the window, or all that occur in the input."""
        if self.plan.window is None:
            return found
        return set(range(self.plan.window[0], self.plan.window[1] + 1))

    def _refuse(self) -> None:
        refuse_over(self.tally, self.config.max_bad_share, self.plan.quarantine)
        refuse_over(self.profile_tally, self.config.max_bad_share, self.plan.quarantine, "profile rows")
        refuse_over(self.assignment_tally, self.config.max_bad_share, self.plan.quarantine, "assignment rows")

    def _nothing(self) -> DataError:
        if self.config.days is not None:
            first, last = self.config.days
            message = f"no sessions enter on {first} to {last} ({self.tally.rows_read:,} rows read)"
            return DataError(message, hint="check `days` against the logs; days are local, by utc_offset_min")
        return DataError(
            f"{self.plan.items[0].path}: no rows to make sessions of", hint="check the input path"
        )

    def _reduce_profiles(self) -> int:
        if not self.plan.profile_items:
            return 0
        reduce = partial(tasks.reduce_profiles, self.plan)
        results = self.run(reduce, range(self.plan.info.n_buckets), progress="profiles by user")
        for _, tally in results:
            self.profile_tally.add(tally)
        return sum(users for users, _ in results)

    def _commit(self, results: list[tasks.Reduced]) -> tuple[list[int], list[int]]:
        """Makes everything visible; returns the days that changed and those that are gone."""
        warehouse = Warehouse.create(self.plan.root, self.plan.info)
        for bucket in range(self.plan.info.n_buckets if self.plan.profile_items else 0):
            target = warehouse.users_file(bucket)
            with storage_errors(f"writing {target}"):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.plan.stage("users") / target.name, target)
        if self.assignments is not None:
            write_parquet(warehouse.assignments_file, self.assignments)
        rows, digests = tasks.merge_rows(results)
        before = self.sessions.entries()
        changed = [day for day in rows if day not in before or before[day].inputs != digests[day]]
        dropped = sorted((self._replaced(set(rows)) & before.keys()) - rows.keys())
        if changed or dropped:
            self.sessions.commit(self.plan.gen, {day: rows[day] for day in changed}, digests, drop=dropped)
        return sorted(changed), dropped

    def _counts(self) -> dict[str, Any]:
        tally, profiles = self.tally, self.profile_tally
        return {
            "dataset": self.plan.info.name,
            "output": self.plan.root,
            "ingest_id": Path(self.plan.quarantine).name,
            "backend": self.config.backend,
            "form": self.adapter.form,
            "files": len({item.path for item in self.plan.items}),
            "rows_read": tally.rows_read,
            "rows_outside": tally.rows_outside,
            "rows_in": tally.rows_in,
            "quarantined_rows": tally.bad_rows,
            "quarantined": dict(tally.reasons.most_common()),
            "quarantine": self.plan.quarantine,
            "profiles": {
                "rows_in": profiles.rows_in,
                "quarantined_rows": profiles.bad_rows,
                "quarantined": dict(profiles.reasons.most_common()),
            },
            "assignments": {
                "rows_in": self.assignment_tally.rows_in,
                "quarantined_rows": self.assignment_tally.bad_rows,
                "quarantined": dict(self.assignment_tally.reasons.most_common()),
            },
            "seconds": round(time.monotonic() - self.started, 2),
        }

    def _outcome(
        self, results: list[tasks.Reduced], changed: list[int], dropped: list[int], profile_users: int
    ) -> dict[str, Any]:
        rows, _ = tasks.merge_rows(results)
        landings = np.sum([result.landings for result in results], axis=0)
        total = int(landings.sum())
        shares = landings / max(total, 1)
        return {
            "sessions": total,
            "users": sum(result.users for result in results),
            "profile_users": profile_users,
            "days": [day_name(day) for day in sorted(rows)],
            "changed_days": [day_name(day) for day in changed],
            "dropped_days": [day_name(day) for day in dropped],
            "landing_shares": {
                name: round(float(s), 6) for name, s in zip(self.plan.info.pages.names, shares, strict=True)
            },
        }

    def _write(self, summary: dict[str, Any]) -> None:
        write_json(Path(self.plan.quarantine) / "summary.json", summary)


def _shrunk(before: dict[int, DayEntry], after: dict[int, DayEntry]) -> dict[str, list[int]]:
    """Days that go on with fewer sessions -> sessions before and after: the sign of a folder with part of a day."""
    return {
        day_name(day): [before[day].total, entry.total]
        for day, entry in after.items()
        if day in before and entry.total < before[day].total
    }
