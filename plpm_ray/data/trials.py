"""Assignments and sessions -> trial table: one row a user of a randomised trial, with features as of the midnight before.

A row is what KLAN 5.1.1 learns the effects of pages from: the features at the local midnight that begins the user's first
day, the arm, and the response, seconds of app use per day. The period of an assignment is cut to the logged days (from the
first to the last day with sessions), each of which counts, with or without sessions of the user.

Rows lie under the first day of their period. Such a day is computed anew only if its assignments, the sessions it reads,
the profiles, the schema or TRIAL_VERSION have changed; all new days become visible in one commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.config import config_hash
from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.hashing import bucket_of, user_hash
from plpm_ray.core.storage import read_parquet
from plpm_ray.data.contract import DatasetInfo, Warehouse
from plpm_ray.data.day_inputs import day_inputs
from plpm_ray.data.day_table import DayEntry, day_name
from plpm_ray.data.features.sessions import milliseconds, sum_by_session, user_codes
from plpm_ray.data.history import History, Midnight, profile_fingerprint, read_profiles
from plpm_ray.data.ray_exec import Backend
from plpm_ray.data.rebuild import rebuild
from plpm_ray.data.split import UserSplitConfig, trial_parts
from plpm_ray.data.staging import write_lock

TRIAL_VERSION = 1
"""To be raised whenever the meaning of a column changes: all rows are then computed anew."""

CONTROL = "control"


@dataclass(frozen=True)
class TrialSummary:
    """What `build_trial` did.

    Attributes:
        recomputed, unchanged, dropped: first days of trials (days since 1970-01-01).
        rows: rows written.
        unlogged: assignments left out, since no day of their period is logged.
        arm_users: arm (the page's name, or "control") -> users in the whole table.
    """

    recomputed: list[int]
    unchanged: list[int]
    dropped: list[int]
    rows: int
    unlogged: int
    arm_users: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For `summary.json`, with days as `YYYY-MM-DD`."""
        lists = {name: [day_name(d) for d in getattr(self, name)] for name in ("recomputed", "dropped")}
        rest = {"unchanged_days": len(self.unchanged), "rows": self.rows, "unlogged": self.unlogged}
        return {**lists, **rest, "arm_users": self.arm_users}


def build_trial(
    warehouse: Warehouse, *, backend: Backend = "local", workers: int | None = None
) -> TrialSummary:
    """Brings the trial table up to date with assignments, sessions and profiles.

    Args:
        warehouse: sessions and assignments in, trial table out.
        backend, workers: as in `run_tasks`; the rows and their order do not depend on them.

    Raises:
        DataError: no assignments, an arm that is no page, or a missing or damaged file; the table stays as it was.
        StorageError: an ingest or another build is writing to the warehouse.
    """
    with write_lock(warehouse.root):
        warehouse.trial.remove_uncommitted()
        return _build(warehouse, backend, workers)


def trial_arms(warehouse: Warehouse) -> dict[str, int]:
    """Arm (page name, or "control") -> users of the trial table; arms without users are there with 0."""
    counts = np.zeros(len(warehouse.info.pages) + 1, dtype=np.int64)
    for bucket in range(warehouse.info.n_buckets):
        table = warehouse.trial.read(bucket, columns=["arm"])
        if table is not None:
            counts += np.bincount(table["arm"].to_numpy(), minlength=len(counts))
    return dict(zip((CONTROL, *warehouse.info.pages.names), counts.tolist(), strict=True))


def read_part(
    warehouse: Warehouse,
    bucket: int,
    split: UserSplitConfig,
    part: int,
    days: Iterable[int] | None = None,
    columns: list[str] | None = None,
) -> pa.Table | None:
    """Rows of one bucket of the trial table whose users are in one part of a split; None where the bucket has no rows.

    Args:
        warehouse, bucket: of the table.
        split: how users are divided.
        part: 0 train, 1 valid, 2 test.
        days: first days of trials (since 1970-01-01); all by default.
        columns: to read; all by default.

    Raises:
        DataError: the official split is asked for, and the data came without one.
    """
    if columns is not None:
        keys = ["user_id", "part"] if split.official else ["user_id"]
        columns = list(dict.fromkeys([*columns, *keys]))
    table = warehouse.trial.read(bucket, days, columns)
    return None if table is None else table.filter(pa.array(trial_parts(table, split) == part))


def _build(warehouse: Warehouse, backend: Backend, workers: int | None) -> TrialSummary:
    sessions, table = warehouse.sessions.entries(), warehouse.trial
    if not sessions:
        raise DataError(f"{warehouse.root} holds no sessions", hint="run `plpm data`")
    assigned = _read_assignments(warehouse)
    logged = _Assigned.cut(assigned, min(sessions), max(sessions))
    inputs, built = day_inputs(warehouse, sessions), table.entries()
    common = [TRIAL_VERSION, warehouse.info.features.to_dict(), profile_fingerprint(warehouse)]
    plan, prints = [], {}
    for day in np.unique(logged.start).tolist():
        rows = logged.start == day
        midnight = Midnight.of(day, inputs, sessions)
        period = {d: e for d, e in sessions.items() if day <= d <= logged.end[rows].max()}
        seen = [midnight.generations, [[d, e.gen] for d, e in period.items()], min(sessions)]
        prints[day] = config_hash([common, seen, logged.digest(rows)], length=16)
        if day not in built or built[day].inputs != prints[day]:
            plan.append(_Day(midnight, period))
    dropped = sorted(built.keys() - prints.keys())
    stale = [d.midnight.day for d in plan]
    ends = min(sessions), max(sessions)
    total = rebuild(
        [table],
        stale,
        prints,
        dropped,
        _build_bucket,
        lambda gen: [
            _Task(warehouse.root, bucket, gen, plan, *ends) for bucket in range(warehouse.info.n_buckets)
        ],
        backend=backend,
        workers=workers,
        progress="building the trial table",
    )
    left = [d for d in prints if d not in stale]
    return TrialSummary(stale, left, dropped, total, len(assigned) - len(logged), trial_arms(warehouse))


@dataclass(frozen=True)
class _Assigned:
    """n assignments: ids, hashes (n,) uint64, arm (n,) int16, first and last day (n,) int64."""

    ids: pa.Array
    hash: np.ndarray
    arm: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.arm)

    def take(self, rows: np.ndarray) -> _Assigned:
        arrays = (self.hash[rows], self.arm[rows], self.start[rows], self.end[rows])
        return _Assigned(self.ids.filter(pa.array(rows)), *arrays)

    def cut(self, first: int, last: int) -> _Assigned:
        """The part of each period within the logged days, without those that have none. The first day stays."""
        some = self.take((self.start <= last) & (self.end >= first))
        return _Assigned(some.ids, some.hash, some.arm, some.start, np.minimum(some.end, last))

    def digest(self, rows: np.ndarray) -> str:
        """Hash of some of them."""
        found = hashlib.sha256()
        for values in (self.hash, self.arm, self.start, self.end):
            found.update(np.ascontiguousarray(values[rows]).tobytes())
        return found.hexdigest()[:24]


@dataclass(frozen=True)
class _Day:
    """The midnight before the trials that begin on a day, and the session days of their periods."""

    midnight: Midnight
    period: dict[int, DayEntry]


@dataclass(frozen=True)
class _Task:
    root: Path
    bucket: int
    gen: str
    plan: list[_Day]
    first_logged: int
    last_logged: int


def _read_assignments(warehouse: Warehouse) -> _Assigned:
    path = warehouse.assignments_file
    if not path.exists():
        raise DataError(
            f"{warehouse.root} holds no assignments, so there is no trial to build a table of",
            hint="give `assignments:` in the `dataset:` section, and run `plpm data`",
        )
    table = read_parquet(path, ["user_id", "arm", "start_day", "end_day"]).combine_chunks()
    start, end = (table[n].cast(pa.int32()).to_numpy().astype(np.int64) for n in ("start_day", "end_day"))
    arm = _arm_codes(table["arm"], warehouse.info, path)
    ids = pa.array([], table["user_id"].type) if not len(table) else table["user_id"].chunk(0)
    return _Assigned(ids, user_hash(ids), arm, start, end)


def _arm_codes(arms: pa.ChunkedArray, info: DatasetInfo, path: Path) -> np.ndarray:
    """(n,) int16: 0 where the arm is null (the control), else the page's position + 1."""
    coded = pa.chunked_array(arms.chunks, arms.type).combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    known = []
    for name in coded.dictionary.to_pylist():
        try:
            known.append(info.pages.index(name) + 1)
        except ConfigError as error:
            raise DataError(
                f"{path}: arm {name!r} is no page of the dataset",
                hint=f"{error.hint}; the control is null, every other arm is a page",
            ) from None
    codes = coded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
    return np.array([*known, 0], dtype=np.int16)[codes]


def _build_bucket(task: _Task) -> dict[int, tuple[int]]:
    """Computes and writes all stale days of one bucket; day -> rows."""
    warehouse = Warehouse.open(task.root)
    assigned = _read_assignments(warehouse)
    assigned = assigned.take(bucket_of(assigned.hash, warehouse.info.n_buckets) == task.bucket)
    assigned = assigned.cut(task.first_logged, task.last_logged)
    profiles = read_profiles(warehouse, task.bucket)
    known: dict[int, History] = {}
    written: dict[int, tuple[int]] = {}
    for planned in task.plan:
        mine = assigned.take(assigned.start == planned.midnight.day)
        if not len(mine):
            continue
        raw = planned.midnight.features(warehouse, task.bucket, mine.ids, profiles, known)
        use_ms, active = _outcomes(warehouse, task.bucket, planned.period, mine)
        days = mine.end - np.maximum(mine.start, task.first_logged) + 1
        table = pa.table(
            {
                "user_id": mine.ids,
                "arm": mine.arm,
                "response": (use_ms / (1000 * days)).astype(np.float32),
                "days": days.astype(np.int16),
                "active_days": active.astype(np.int16),
                **raw.to_columns(),
            }
        )
        day = planned.midnight.day
        written[day] = (warehouse.trial.write(day, task.gen, task.bucket, table),)
    return written


def _outcomes(
    warehouse: Warehouse, bucket: int, period: dict[int, DayEntry], assigned: _Assigned
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 milliseconds of use in each user's period, and (n,) int64 days of it with a session."""
    use_ms, active = np.zeros(len(assigned), dtype=np.int64), np.zeros(len(assigned), dtype=np.int64)
    for day, entry in period.items():
        if not entry.rows.get(bucket):
            continue
        table = read_parquet(warehouse.sessions.path(day, entry.gen, bucket), ["user_id", "dwell_s"])
        ids, lists = (table[name].combine_chunks() for name in ("user_id", "dwell_s"))
        offsets = lists.offsets.to_numpy().astype(np.int64)
        dwell = sum_by_session(milliseconds(lists.values.to_numpy(zero_copy_only=False)), offsets)
        mine, theirs = user_codes(assigned.ids, ids)
        n = int(max(mine.max(initial=-1), theirs.max(initial=-1))) + 1
        # sums of whole milliseconds are exact in float64 up to 2^53
        use = np.bincount(theirs, weights=dwell, minlength=n).astype(np.int64)[mine]
        inside = day <= assigned.end
        use_ms[inside] += use[inside]
        active[inside] += np.bincount(theirs, minlength=n)[mine][inside] > 0
    return use_ms, active
