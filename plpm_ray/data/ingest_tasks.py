"""The tasks of an ingest: slices of files -> staged rows by user bucket -> sorted sessions by day. No Ray in here.

Phase 1, one task per slice: read, check, put bad rows into quarantine, write the good ones as shards by user bucket.
Between the phases, where session ids come from outside: ids are exchanged by their hash, to find those used twice.
Phase 2, one task per user bucket: gather the shards in file order, drop duplicates into quarantine, make sessions of
events, sort, and write one file per day. Every task writes whole files under names of its own, so it may be repeated.
"""

# pyarrow makes most functions of `compute` while it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.config import Named
from plpm_ray.core.storage import read_parquet, write_parquet
from plpm_ray.data.contract import DAY_MS, MINUTE_MS, DatasetInfo, Warehouse
from plpm_ray.data.datasets.base import Adapter, Raw, Slice, make_adapter
from plpm_ray.data.day_table import DayTable
from plpm_ray.data.duplicates import repeated
from plpm_ray.data.normalise import contiguous
from plpm_ray.data.quarantine import Tally, write_rows
from plpm_ray.data.sessionise import bucketise, sessionise
from plpm_ray.data.shards import read_shards, write_shards
from plpm_ray.data.staging import item_and_row, positions
from plpm_ray.data.validate import (
    MAX_OFFSET_MIN,
    UNKNOWN_MS,
    Checked,
    check_events,
    check_profiles,
    check_sessions,
)

AT = "_at"


@dataclass(frozen=True)
class Plan:
    """All that tasks must know; travels to every worker.

    Attributes:
        dataset: the `dataset:` section, with which a worker builds its adapter anew.
        plugins: absolute paths or module names.
        info: of the warehouse.
        items, profile_items: slices in file order.
        root, staging, quarantine: folders.
        gen: generation of the sessions being written.
        window: first and last local day to process, or None for all.
    """

    dataset: Named
    plugins: tuple[str, ...]
    info: DatasetInfo
    items: tuple[Slice, ...]
    profile_items: tuple[Slice, ...]
    root: str
    staging: str
    quarantine: str
    gen: str
    window: tuple[int, int] | None

    def adapter(self) -> Adapter:
        return make_adapter(self.dataset, self.plugins)

    def stage(self, name: str) -> Path:
        return Path(self.staging) / name


@dataclass
class Mapped:
    """Result of a phase 1 task: counts, and the local entry days of its good sessions."""

    tally: Tally
    days: set[int] = field(default_factory=set)


@dataclass
class Reduced:
    """Result of a phase 2 task.

    Attributes:
        rows: day -> sessions of this bucket.
        digests: day -> hash of the written file.
        users: users with sessions.
        landings: (K,) sessions by landing page.
        tally: duplicates found.
    """

    bucket: int
    rows: dict[int, int]
    digests: dict[int, str]
    users: int
    landings: np.ndarray
    tally: Tally


def map_rows(plan: Plan, index: int) -> Mapped:
    """Phase 1: one slice of sessions or events."""
    adapter, item = plan.adapter(), plan.items[index]
    raw = adapter.read(item)
    reading, origin = adapter.reading(plan.info), adapter.origin(item)
    events = adapter.form == "events"
    if events:
        checked = check_events(raw.table, reading, origin, adapter.event_key)
        inside = _may_touch(checked, plan.window, adapter.gap_ms)
    else:
        checked = check_sessions(raw.table, reading, origin)
        inside = _starts_in(checked, plan.window)
    good = ~checked.findings.bad
    staged = placed(checked, raw, index).filter(pa.array(inside[good]))
    write_shards(bucketise(staged, plan.info.n_buckets), plan.stage("rows"), index)
    mapped = Mapped(set_aside(plan, f"rows-{index:05d}", item, raw, checked, inside))
    if not events:
        mapped.days = {int(d) for d in np.unique(checked.start_ms[good & inside] // DAY_MS)}
        if not adapter.unique_sessions:
            ids = staged.select(["session_id", AT])
            write_shards(bucketise(ids, plan.info.n_buckets, by="session_id"), plan.stage("ids"), index)
    return mapped


def map_profiles(plan: Plan, index: int) -> Tally:
    """Phase 1 for one slice of user profiles."""
    adapter, item = plan.adapter(), plan.profile_items[index]
    raw = adapter.read_profile(item)
    checked = check_profiles(raw.table, adapter.reading(plan.info), adapter.origin(item))
    write_shards(bucketise(placed(checked, raw, index), plan.info.n_buckets), plan.stage("profiles"), index)
    return set_aside(
        plan, f"profiles-{index:05d}", item, raw, checked, np.ones(raw.table.num_rows, dtype=bool)
    )


def stage_committed_ids(plan: Plan, days: list[int], bucket: int) -> None:
    """Session ids of days that stay as they are, for the exchange; position -1 says that they came first."""
    table = DayTable(Path(plan.root) / "sessions").read(bucket, days, ["session_id"])
    if table is None:
        table = pa.schema([plan.info.sessions_schema.field("session_id")]).empty_table()
    table = table.append_column(AT, pa.array(np.full(table.num_rows, -1)))
    write_shards(bucketise(table, plan.info.n_buckets, by="session_id"), plan.stage("committed-ids"), bucket)


def find_duplicate_ids(plan: Plan, with_committed: bool, bucket: int) -> int:
    """Session ids of one hash bucket: writes the positions of all but the first row of each id; returns how many."""
    parts = [read_shards(plan.stage("committed-ids"), bucket, plan.info.n_buckets)] if with_committed else []
    table = pa.concat_tables([*parts, read_shards(plan.stage("ids"), bucket, len(plan.items))])
    again = repeated(table, ["session_id"])
    found = contiguous(table[AT]).to_numpy()[again]
    found = np.sort(found[found >= 0])
    write_parquet(plan.stage("duplicates") / f"{bucket:05d}.parquet", pa.table({AT: found}))
    return len(found)


def reduce_sessions(plan: Plan, duplicates: str | None, bucket: int) -> Reduced:
    """Phase 2: one user bucket, from shards to one sorted file per day."""
    adapter = plan.adapter()
    staged = read_shards(plan.stage("rows"), bucket, len(plan.items)).combine_chunks()
    if adapter.form == "events":
        again = repeated(staged, adapter.event_key)
        reason = "duplicate_event"
    else:
        again = (
            _listed(staged, plan.stage(duplicates)) if duplicates else np.zeros(staged.num_rows, dtype=bool)
        )
        reason = "duplicate_session_id"
    tally = set_aside_staged(plan, f"again-{bucket:05d}", plan.items, staged.filter(pa.array(again)), reason)
    if again.any():
        staged = staged.filter(pa.array(~again))
    sessions = _as_sessions(adapter, plan.info, staged)
    return _write_days(plan, bucket, sessions, tally)


def reduce_profiles(plan: Plan, bucket: int) -> tuple[int, Tally]:
    """Phase 2 for the profiles of one bucket: new rows win over those of earlier ingests; the first of a file wins."""
    staged = read_shards(plan.stage("profiles"), bucket, len(plan.profile_items)).combine_chunks()
    again = repeated(staged, ["user_id"])
    tally = set_aside_staged(
        plan, f"users-{bucket:05d}", plan.profile_items, staged.filter(pa.array(again)), "duplicate_user"
    )
    users = staged.filter(pa.array(~again)).drop_columns([AT])
    earlier = Warehouse(Path(plan.root), plan.info).users_file(bucket)
    if earlier.exists():
        users = pa.concat_tables([users, read_parquet(earlier).cast(users.schema)])
        users = users.filter(pa.array(~repeated(users, ["user_id"])))
    write_parquet(plan.stage("users") / earlier.name, users.sort_by("user_id"))
    return users.num_rows, tally


def _starts_in(checked: Checked, window: tuple[int, int] | None) -> np.ndarray:
    """(n,) bool: rows that enter on a day of the window; rows without a usable time count as inside."""
    if window is None:
        return np.ones(len(checked.start_ms), dtype=bool)
    day = checked.start_ms // DAY_MS
    return (checked.start_ms == UNKNOWN_MS) | ((day >= window[0]) & (day <= window[1]))


def _may_touch(checked: Checked, window: tuple[int, int] | None, gap_ms: int) -> np.ndarray:
    """(n,) bool: events that can decide how sessions of the window begin and go on.

    An event whose end lies more than a gap before the first midnight cannot join a session that enters after it. Later
    events are all kept: a session goes on as long as its user does.
    """
    if window is None:
        return np.ones(len(checked.start_ms), dtype=bool)
    margin = (
        gap_ms + 2 * MAX_OFFSET_MIN * MINUTE_MS
    )  # two events of one session may carry different local times
    return (checked.end_ms == UNKNOWN_MS) | (checked.end_ms + margin >= window[0] * DAY_MS)


def placed(checked: Checked, raw: Raw, index: int) -> pa.Table:
    """The good rows with the column that says where they came from."""
    rows = np.flatnonzero(~checked.findings.bad)
    return checked.table.append_column(
        AT, pa.array(positions(index, rows if raw.rows is None else raw.rows[rows]))
    )


def set_aside(plan: Plan, part: str, item: Slice, raw: Raw, checked: Checked, inside: np.ndarray) -> Tally:
    """Writes the bad rows of a slice with their original values; counts everything that was read."""
    bad = np.flatnonzero(checked.findings.bad & inside)
    rows = raw.rows if raw.rows is not None else np.arange(raw.table.num_rows)
    original = raw.table if raw.original is None else raw.original
    files = pa.array([item.path]).take(pa.array(np.zeros(len(bad), dtype=np.int64)))
    tally = write_rows(
        plan.quarantine,
        part,
        original.take(pa.array(bad)),
        checked.findings.reasons(bad),
        files,
        item.first_row + rows[bad],
    )
    tally.rows_read = raw.table.num_rows
    tally.rows_outside = int(np.count_nonzero(~inside))
    if raw.rejected is not None and raw.rejected.num_rows:
        n = raw.rejected.num_rows
        at = item.first_row + raw.rejected["row"].to_numpy()
        table = raw.rejected.drop_columns(["row"])
        tally.add(
            write_rows(
                plan.quarantine, f"{part}-rejected", table, _same("malformed_row", n), _same(item.path, n), at
            )
        )
        tally.rows_read += n
    return tally


def set_aside_staged(plan: Plan, part: str, items: tuple[Slice, ...], rows: pa.Table, reason: str) -> Tally:
    """Bad rows found after staging: their values are the normalised ones, page positions written as names."""
    if rows.num_rows == 0:
        return Tally()
    item, row = item_and_row(contiguous(rows[AT]).to_numpy())
    files = pa.array([s.path for s in items]).take(pa.array(item))
    at = np.array([s.first_row for s in items])[item] + row
    named = {name: _page_names(rows[name], name, plan.info) for name in rows.column_names if name != AT}
    return write_rows(plan.quarantine, part, pa.table(named), _same(reason, rows.num_rows), files, at)


def _same(text: str, n: int) -> pa.Array:
    return pa.array([text]).take(pa.array(np.zeros(n, dtype=np.int64)))


def _page_names(column: pa.ChunkedArray, name: str, info: DatasetInfo) -> pa.Array:
    array, names = contiguous(column), pa.array(info.pages.names)
    if name == "pages":
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(array).to_numpy())])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names.take(array.flatten()))
    return names.take(array) if name in ("page", "landing_page") else array


def _listed(staged: pa.Table, folder: Path) -> np.ndarray:
    """(n,) bool: rows whose positions stand in the files of the folder."""
    listed = np.concatenate([read_parquet(f)[AT].to_numpy() for f in sorted(folder.glob("*.parquet"))])
    return np.isin(contiguous(staged[AT]).to_numpy(), listed)


def _as_sessions(adapter: Adapter, info: DatasetInfo, staged: pa.Table) -> pa.Table:
    """Stored sessions, sorted by (user_id, entry_time, session_id)."""
    if adapter.form == "events":
        extra = [
            name for name in adapter.event_key if name not in ("user_id", "time_ms", "page", "duration_ms")
        ]
        extra = [
            name for name in extra if name not in info.sessions_schema.names and name in staged.column_names
        ]
        events = staged.drop_columns([AT, *extra])
        return sessionise(events, gap_ms=adapter.gap_ms, schema=info.sessions_schema)
    sessions = staged.drop_columns([AT])
    order = pc.sort_indices(
        sessions, sort_keys=[(k, "ascending") for k in ("user_id", "entry_time", "session_id")]
    )
    return sessions.take(order)


def _write_days(plan: Plan, bucket: int, sessions: pa.Table, tally: Tally) -> Reduced:
    table = DayTable(Path(plan.root) / "sessions")
    days = local_days(sessions)
    if plan.window is not None:
        inside = (days >= plan.window[0]) & (days <= plan.window[1])
        sessions, days = sessions.filter(pa.array(inside)), days[inside]
    reduced = Reduced(bucket, {}, {}, 0, np.zeros(len(plan.info.pages), dtype=np.int64), tally)
    if sessions.num_rows == 0:
        return reduced
    order = np.argsort(days, kind="stable")
    by_day = sessions.take(pa.array(order))
    found, starts = np.unique(days[order], return_index=True)
    for day, start, stop in zip(found.tolist(), starts, [*starts[1:], len(days)], strict=True):
        reduced.rows[day] = table.write(
            day, plan.gen, bucket, by_day.slice(start, stop - start).combine_chunks()
        )
        with open(table.path(day, plan.gen, bucket), "rb") as file:
            reduced.digests[day] = hashlib.file_digest(file, "blake2b").hexdigest()[:24]
    reduced.users = pc.count_distinct(sessions["user_id"]).as_py()
    reduced.landings = np.bincount(sessions["landing_page"].to_numpy(), minlength=len(plan.info.pages))
    return reduced


def local_days(sessions: pa.Table) -> np.ndarray:
    """(n,) int64: local day of entry, in days since 1970-01-01."""
    entry = contiguous(sessions["entry_time"]).view(pa.int64()).to_numpy()
    return (entry + contiguous(sessions["utc_offset_min"]).to_numpy().astype(np.int64) * MINUTE_MS) // DAY_MS


def merge_rows(results: list[Reduced]) -> tuple[dict[int, dict[int, int]], dict[int, str]]:
    """Day -> rows per bucket, and day -> digest of all its files."""
    rows: dict[int, dict[int, int]] = {}
    digests: dict[int, list[str]] = {}
    for result in results:
        for day, count in result.rows.items():
            rows.setdefault(day, {})[result.bucket] = count
            digests.setdefault(day, []).append(f"{result.bucket}:{result.digests[day]}")
    return rows, {
        day: hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] for day, parts in digests.items()
    }
