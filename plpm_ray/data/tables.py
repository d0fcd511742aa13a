"""Sessions -> transition table: one row a session, with its outcome and the features at its entry; incremental.

Beside it the table of user-days: one row an active local day of a user, with what came of the day, the features at its first
entry, and the thirty days before. Both are made in one pass.

A day is computed anew only if something it depends on has changed: the sessions of the days that can matter
to it (see `day_inputs`), the profiles, the feature schema, or FEATURE_VERSION. Every bucket is one task that
walks through the days in chunks and keeps no more than a chunk with its lookback in memory; all new days
become visible in one commit. The lock that keeps ingests apart keeps builds off them and each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from plpm_ray.core.config import config_hash
from plpm_ray.core.feature_columns import packed
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.storage import read_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_inputs import DayInputs, chunked, day_inputs
from plpm_ray.data.day_table import DayEntry, day_name
from plpm_ray.data.features.batch import batch_features_and_days
from plpm_ray.data.features.sessions import SESSION_INPUTS, EntryArrays, SessionArrays, user_codes
from plpm_ray.data.features.shared import seconds
from plpm_ray.data.history import History, joined_profiles, profile_fingerprint, read_profiles
from plpm_ray.data.ray_exec import Backend
from plpm_ray.data.rebuild import rebuild, unfinished
from plpm_ray.data.staging import write_lock

FEATURE_VERSION = 2
"""To be raised whenever the meaning of a feature or column changes: all tables are then computed anew."""

CHUNK_DAYS = 14
Horizon = Literal["day", "continuing"]


@dataclass(frozen=True)
class BuildSummary:
    """What `build_transitions` did: days (since 1970-01-01) computed, left as they were, and removed; rows written."""

    recomputed: list[int]
    unchanged: list[int]
    dropped: list[int]
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """For `summary.json`, with days as `YYYY-MM-DD`."""
        lists = {name: [day_name(d) for d in getattr(self, name)] for name in ("recomputed", "dropped")}
        return {**lists, "unchanged_days": len(self.unchanged), "rows": self.rows}


def build_transitions(
    warehouse: Warehouse,
    days: Sequence[int] | None = None,
    *,
    backend: Backend = "local",
    workers: int | None = None,
    chunk_days: int = CHUNK_DAYS,
) -> BuildSummary:
    """Brings the transition table and that of user-days up to date with sessions and profiles.

    Args:
        warehouse: sessions in, transitions and user-days out.
        days: only these days (since 1970-01-01); all by default. Days that the sessions no longer hold are
            removed.
        backend, workers: as in `run_tasks`; the rows and their order do not depend on them.
        chunk_days: days computed at once; memory of a task is that of `chunk_days` + 30 days of one bucket.

    Raises:
        DataError: a session or profile file is missing or damaged; the table stays as it was.
        StorageError: an ingest or another build is writing to the warehouse.
    """
    with write_lock(warehouse.root):
        warehouse.transitions.remove_uncommitted()
        warehouse.user_days.remove_uncommitted()
        return _build(warehouse, days, backend, workers, chunk_days)


def _build(
    warehouse: Warehouse, days: Sequence[int] | None, backend: Backend, workers: int | None, chunk_days: int
) -> BuildSummary:
    sessions, tables = warehouse.sessions.entries(), [warehouse.transitions, warehouse.user_days]
    built = tables[0].entries()
    in_scope = sessions.keys() | built.keys() if days is None else set(days)
    inputs = day_inputs(warehouse, sessions)
    common = [FEATURE_VERSION, warehouse.info.features.to_dict(), profile_fingerprint(warehouse)]
    prints = {d: _fingerprint(d, inputs, sessions, common) for d in sorted(in_scope & sessions.keys())}
    stale = unfinished(tables, prints)
    dropped = sorted(in_scope & built.keys() - sessions.keys())
    plan = [_Chunk.of(chunk, inputs, sessions) for chunk in chunked(stale, chunk_days)]
    total = rebuild(
        tables,
        stale,
        prints,
        dropped,
        _build_bucket,
        lambda gen: [_Task(warehouse.root, bucket, gen, plan) for bucket in range(warehouse.info.n_buckets)],
        backend=backend,
        workers=workers,
        progress="building transitions",
    )
    return BuildSummary(stale, [d for d in prints if d not in stale], dropped, total)


def read_transitions(
    warehouse: Warehouse, bucket: int, days: Sequence[int] | None = None, columns: list[str] | None = None
) -> pa.Table | None:
    """Transitions of one bucket, days one after the other, with an int32 column `day` put in front.

    Args:
        bucket: 0 to n_buckets - 1.
        days: days since 1970-01-01; all by default; days not built are left out.
        columns: columns to read beside `day`; all by default.

    Returns:
        Rows sorted by (day, user_id, entry_time, session_id); None where there are none.
    """
    tables = []
    for day, path in warehouse.transitions.files(bucket, days):
        table = read_parquet(path, columns)
        tables.append(table.add_column(0, "day", pa.array(np.full(len(table), day, dtype=np.int32))))
    return pa.concat_tables(tables).combine_chunks() if tables else None


def next_rows(
    users: pa.Array | pa.ChunkedArray | np.ndarray, done: np.ndarray, horizon: Horizon = "day"
) -> np.ndarray:
    """Row of each transition's next state.

    Args:
        users: (n,) user ids in the order of `read_transitions`.
        done: (n,) bool, last of the user's local day.
        horizon: "day" ends at `done`; "continuing" goes on to the same user's next row of a later day.

    Returns:
        (n,) int64, -1 where there is no next state.
    """
    n = len(done)
    following = np.arange(1, n + 1, dtype=np.int64)
    if horizon == "day":
        following[np.asarray(done, dtype=bool)] = -1
        following[following == n] = -1
        return following
    (codes,) = user_codes(users)
    order = np.argsort(codes, kind="stable")
    same = codes[order[1:]] == codes[order[:-1]]
    following[:] = -1
    following[order[:-1][same]] = order[1:][same]
    return following


@dataclass(frozen=True)
class _Chunk:
    """Days computed together, the generation of every session day they need, and the oldest exit day that matters."""

    days: list[int]
    sources: dict[int, DayEntry]
    oldest_exit_day: int

    @classmethod
    def of(cls, days: list[int], inputs: DayInputs, sessions: Mapping[int, DayEntry]) -> _Chunk:
        needed = sorted({source for day in days for source in inputs.of(day)} | set(days))
        return cls(days, {d: sessions[d] for d in needed}, inputs.oldest_exit_day(days[0]))


@dataclass(frozen=True)
class _Task:
    root: Path
    bucket: int
    gen: str
    plan: list[_Chunk]


def _fingerprint(day: int, inputs: DayInputs, sessions: Mapping[int, DayEntry], common: list[Any]) -> str:
    return config_hash([common, [[d, sessions[d].gen] for d in sorted({*inputs.of(day), day})]], length=16)


def _build_bucket(task: _Task) -> dict[int, tuple[int, int]]:
    """Computes and writes all stale days of one bucket; day -> sessions and user-days."""
    warehouse = Warehouse.open(task.root)
    context = list(warehouse.info.context)
    columns = ["user_id", *SESSION_INPUTS, "propensity", *context]
    profiles = read_profiles(warehouse, task.bucket)
    history: dict[int, History] = {}
    written: dict[int, tuple[int, int]] = {}
    for chunk in task.plan:
        files = {
            d: warehouse.sessions.path(d, e.gen, task.bucket)
            for d, e in chunk.sources.items()
            if e.rows.get(task.bucket)
        }
        tables = {d: read_parquet(files[d], columns) for d in chunk.days if d in files}
        if not tables:
            continue
        history = {d: history[d] for d in files if d in history}
        for day, path in files.items():
            if day in tables:
                history[day] = History.of(tables[day])
            elif day not in history:
                history[day] = History.read(path, chunk.oldest_exit_day)
        for day, (table, user_days) in _chunk_tables(warehouse, tables, history, profiles).items():
            written[day] = (
                warehouse.transitions.write(day, task.gen, task.bucket, table),
                warehouse.user_days.write(day, task.gen, task.bucket, user_days),
            )
    return written


def _chunk_tables(
    warehouse: Warehouse, tables: dict[int, pa.Table], history: dict[int, History], profiles: pa.Table | None
) -> dict[int, tuple[pa.Table, pa.Table]]:
    """Transitions and user-days of each day."""
    wanted = pa.concat_tables(tables.values()).combine_chunks()
    order = sorted(history)
    *codes, entry_codes = user_codes(*(history[d].users for d in order), wanted["user_id"])
    first = _firsts(entry_codes, [len(table) for table in tables.values()])
    raw, days = batch_features_and_days(
        np.concatenate(codes),
        SessionArrays.concat([history[d].sessions for d in order]),
        entry_codes,
        EntryArrays.from_table(wanted),
        warehouse.info.features,
        first,
        context={name: wanted[name] for name in warehouse.info.context},
        profile=None if profiles is None else joined_profiles(profiles, wanted["user_id"]),
    )
    made: dict[int, tuple[pa.Table, pa.Table]] = {}
    start = began = 0
    for day, table in tables.items():
        rows = slice(start, start + len(table))
        begins = np.flatnonzero(first[rows])
        part = _rows(raw, rows)
        firsts = part.take(begins)
        firsts.days = days[began : began + len(begins)]
        sessions = history[day].sessions
        made[day] = _transitions(table, sessions, begins, part), _user_days(table, sessions, begins, firsts)
        start, began = rows.stop, began + len(begins)
    return made


def _firsts(codes: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """(n,) bool: the first session of its user on its day. Rows are sorted by (user, entry, session) in each day."""
    first = np.ones(len(codes), dtype=bool)
    first[1:] = codes[1:] != codes[:-1]
    starts = np.cumsum([0, *lengths])[:-1]
    first[starts[starts < len(codes)]] = True
    return first


def _rows(raw: RawFeatures, rows: slice) -> RawFeatures:
    """Some neighbouring rows, without a copy."""
    return RawFeatures(
        raw.schema,
        raw.numeric[rows],
        {name: values[rows] for name, values in raw.categorical.items()},
        {name: values[rows] for name, values in raw.sequences.items()},
    )


def _user_days(table: pa.Table, sessions: SessionArrays, begins: np.ndarray, raw: RawFeatures) -> pa.Table:
    """The table of user-days of one day; `begins` are the first sessions of its users, `raw` their features."""
    totals = np.zeros(len(table) + 1, dtype=np.int64)
    np.cumsum(sessions.use_ms, out=totals[1:])
    ends = np.append(begins[1:], len(table))
    counts = np.minimum(ends - begins, np.iinfo(np.int16).max)
    return pa.table(
        {
            "user_id": table["user_id"].take(pa.array(begins)),
            "use_s": seconds(totals[ends] - totals[begins]),
            "sessions": counts.astype(np.int16),
            **raw.to_columns(),
        }
    )


def _transitions(table: pa.Table, sessions: SessionArrays, begins: np.ndarray, raw: RawFeatures) -> pa.Table:
    """The transition table of one day; its sessions are sorted by (user, entry, session)."""
    n, k = len(table), len(raw.schema.pages)
    first = np.zeros(n, dtype=bool)
    first[begins] = True
    position = np.arange(n)
    step = position - np.maximum.accumulate(np.where(first, position, 0))
    return pa.table(
        {
            "user_id": table["user_id"],
            "session_id": table["session_id"],
            "entry_time": table["entry_time"],
            "landing_page": table["landing_page"],
            "use_s": seconds(sessions.use_ms),
            "landing_dwell_s": seconds(sessions.landing_dwell_ms),
            "switches": np.minimum(sessions.switches, np.iinfo(np.int16).max).astype(np.int16),
            "hour": raw.categorical["hour"].astype(np.int8),
            "step": np.minimum(step, np.iinfo(np.int16).max).astype(np.int16),
            "done": np.append(first[1:], n > 0)[:n],
            "propensity": table["propensity"],
            **{name: packed(values) for name, values in sessions.page_outcomes(k).items()},
            **raw.to_columns(),
        }
    )
