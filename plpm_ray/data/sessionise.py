"""Page events -> canonical sessions, one vectorised pass over a bucket of users; and the split into buckets.

An event is one stay on one page: who, when it began, which page, how long. What makes a session:

- Events of a user are ordered by start; events at the same millisecond keep the order of the input.
- A session begins where an event starts more than `gap_ms` after everything the user did before has **ended** (start
  minus the latest end so far, not start minus start: a long video is use, not a pause).
- Consecutive equal pages of a session are one page whose dwell, views and watch time are the sums.
- Entry is the first event's start, exit the latest end in the session (the last event's, unless events overlap).
- Every further column of the events (context, policy, ...) belongs to the session and is taken from its first event.
- The session id is a hash of (user, entry time): the same events give the same ids in every run.

The order comes from a radix sort over 16-bit digits (the stable `np.argsort` of uint16 is one), time digits first and
only where the input is not in time order already; everything after it is cumulative sums and gathers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.errors import DataError
from plpm_ray.core.hashing import bucket_of, splitmix64, user_hash
from plpm_ray.data.contract import SESSION_COLUMNS, TIMESTAMP

EVENT_COLUMNS = ("user_id", "time_ms", "page", "duration_ms")
"""Required columns of events. `video_views` (count) and `watch_ms` are summed, all others belong to the session."""

_CHUNK = 1 << 16  # rows hashed at a time: what is written in between stays in the cache
_BLOCK = 1 << 19  # events worked on at a time
_SUMMED = ("video_views", "watch_ms")
_DEFAULT_TYPES = {"policy": pa.string(), "propensity": pa.float64(), "experiment_arm": pa.string()}


def bucketise(table: pa.Table, n_buckets: int, *, by: str = "user_id") -> list[pa.Table]:
    """Splits a table by the hash of its user column.

    Args:
        table: any columns; rows of one bucket keep their order.
        n_buckets: 1 to 65,536.
        by: the user column, integers or strings without nulls.

    Returns:
        `n_buckets` tables of the same schema, some perhaps empty: slices of one reordered copy of the input.

    Raises:
        DataError: a null user, or a user type that is neither integer nor string.
    """
    table = table.combine_chunks()
    if n_buckets == 1:
        return [table]
    users = table[by]
    digits = np.empty(len(users), dtype=np.uint8 if n_buckets <= 256 else np.uint16)
    for start in range(0, len(users), _CHUNK):
        part = users.slice(start, _CHUNK)
        digits[start : start + len(part)] = bucket_of(user_hash(part), n_buckets)
    counts = np.bincount(digits, minlength=n_buckets)
    ordered = pc.take(table, pa.array(np.argsort(digits, kind="stable")), boundscheck=False)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [ordered.slice(int(start), int(count)) for start, count in zip(starts, counts, strict=False)]


def sessionise(
    events: pa.Table, *, gap_ms: int, utc_offset_min: int = 0, schema: pa.Schema | None = None
) -> pa.Table:
    """Turns the page events of one bucket into sessions; see the module's text for the rules.

    Args:
        events: (n,) rows in any order; rows in time order (files read one after the other) are faster. Columns:
            user_id, integers or strings; time_ms, integers (ms since 1970, UTC) or any timestamp; page, catalogue
            positions; duration_ms, integers >= 0; optional video_views (count), watch_ms, utc_offset_min, and more.
        gap_ms: longest pause inside a session, >= 0.
        utc_offset_min: local time of the users, where the events have no such column.
        schema: cast the result to this one, as `DatasetInfo.sessions_schema`; columns it lacks are dropped,
            nullable columns missing in the events become null.

    Returns:
        One row per session, sorted by (user_id, entry_time), in one chunk or several: the columns of
        `contract.SESSION_COLUMNS`, then what else the events hold. The lists of a row (pages int16, dwell_s and
        watch_s float32, video_views int32) are of equal length.

    Raises:
        DataError: a required column is missing, has nulls or another type, a duration is negative, or the times lie
            so far apart that they cannot be right.
    """
    _check(events, gap_ms)
    tables = []
    for block in _blocks(events):
        columns = {name: _contiguous(block[name]) for name in events.column_names}
        runs = _find_runs(columns, gap_ms)
        found = _session_columns(columns, runs)
        tables.append(_assemble(found, len(runs.first_row), utc_offset_min, schema))
    return pa.concat_tables(tables)


def session_ids(users: pa.Array, entry_ms: np.ndarray) -> np.ndarray:
    """Deterministic session ids.

    Args:
        users: (n,) int64 or string.
        entry_ms: (n,) int64, ms since 1970 UTC.

    Returns:
        (n,) int64 >= 0: 63 bits of a hash of both; among 100 million sessions a clash has a chance of 0.05 %.
    """
    mixed = splitmix64(user_hash(users) ^ splitmix64(entry_ms))
    return (mixed >> np.uint64(1)).view(np.int64)


@dataclass(frozen=True)
class _Runs:
    """Where sessions and runs of equal pages begin. n events, r runs, s sessions.

    Attributes:
        order: (n,) row of the input of each event in (user, time) order.
        at: (r + 1,) event position at which each run begins, then n.
        pages: (r,) int16 page of each run.
        dwell_ms: (r,) int64, sum of the durations of each run.
        offsets: (s + 1,) int32 run at which each session begins, then r.
        first_row: (s,) row of the input of each session's first event.
        entry_ms, exit_ms: (s,) int64, ms since 1970 UTC.
    """

    order: np.ndarray
    at: np.ndarray
    pages: np.ndarray
    dwell_ms: np.ndarray
    offsets: np.ndarray
    first_row: np.ndarray
    entry_ms: np.ndarray
    exit_ms: np.ndarray


def _blocks(events: pa.Table) -> list[pa.Table]:
    """Events split by ranges of users, in user order: bounds the memory of what is computed, and suits the cache."""
    n = len(events)
    n_blocks = min(-(-n // _BLOCK), 256)
    if n_blocks <= 1:
        return [events]
    codes = _user_codes(_contiguous(events["user_id"]))
    leading = np.uint64(max(int(codes.max()).bit_length() - 16, 0))
    digit = (codes >> leading).astype(np.uint16)
    counts = np.bincount(digit, minlength=1 << 16)
    block_of = ((np.cumsum(counts) - counts) * n_blocks // n).astype(np.uint8)
    blocks = block_of[digit]
    ordered = pc.take(events.combine_chunks(), pa.array(np.argsort(blocks, kind="stable")), boundscheck=False)
    ends = np.cumsum(np.bincount(blocks)).tolist()
    return [
        ordered.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False) if end > start
    ]


def _session_columns(columns: dict[str, pa.Array], runs: _Runs) -> dict[str, pa.Array]:
    """What the events tell of their sessions, one value or list per session."""
    first = pa.array(runs.first_row)
    users = columns["user_id"].take(first)
    users = users.cast(pa.int64()) if pa.types.is_integer(users.type) else users.cast(pa.string())
    found: dict[str, pa.Array] = {
        "user_id": users,
        "session_id": pa.array(session_ids(users, runs.entry_ms)),
        "entry_time": pa.array(runs.entry_ms).cast(TIMESTAMP),
        "exit_time": pa.array(runs.exit_ms).cast(TIMESTAMP),
        "landing_page": pa.array(runs.pages[runs.offsets[:-1]]),
        "pages": _lists(runs, runs.pages),
        "dwell_s": _lists(runs, _seconds(runs.dwell_ms)),
    }
    if "video_views" in columns:
        found["video_views"] = _lists(runs, _run_sums(columns["video_views"], runs).astype(np.int32))
    if "watch_ms" in columns:
        found["watch_s"] = _lists(runs, _seconds(_run_sums(columns["watch_ms"], runs)))
    for name, column in columns.items():
        if name not in found and name not in EVENT_COLUMNS + _SUMMED:
            found[name] = column.take(first)
    return found


def _find_runs(columns: dict[str, pa.Array], gap_ms: int) -> _Runs:
    time, duration = _integers(columns["time_ms"]), _integers(columns["duration_ms"])
    codes = _user_codes(columns["user_id"])
    n = len(time)
    if n == 0:
        return _no_runs()
    if duration.min() < 0:
        raise DataError(
            f"a duration is {duration.min()} ms", hint="rows with negative durations belong in quarantine"
        )
    earliest = time.min()
    order = _order(codes, (time - earliest).view(np.uint64))
    codes, page = _gather(codes, order), _gather(_numpy(columns["page"]).astype(np.int16, copy=False), order)

    # Lay the users' lives one after the other on a single line, further apart than any gap: then one running maximum
    # of the ends serves all users, and the step from user to user is a session boundary like any other.
    start = _gather(time, order)
    stride = int(time.max()) - int(earliest) + int(duration.max()) + gap_ms + 1
    shift = _user_shift(codes, stride, int(earliest))
    start += shift
    duration = _gather(duration, order)
    end = start + duration
    np.maximum.accumulate(end, out=end)
    new_session = np.ones(n, dtype=bool)
    np.greater(start[1:], end[:-1] + gap_ms, out=new_session[1:])
    new_run = new_session.copy()
    new_run[1:] |= page[1:] != page[:-1]

    run_at = np.flatnonzero(new_run)
    offsets = np.flatnonzero(_gather(new_session, run_at))
    session_at = _gather(run_at, offsets)
    last_at = np.append(session_at[1:], n) - 1
    own_shift = _gather(shift, session_at)
    bounds = np.append(run_at, n)
    return _Runs(
        order=order,
        at=bounds,
        pages=_gather(page, run_at),
        dwell_ms=_sums(duration, bounds),
        offsets=np.append(offsets, len(run_at)).astype(np.int32),
        first_row=_gather(order, session_at),
        entry_ms=_gather(start, session_at) - own_shift,
        exit_ms=_gather(end, last_at) - own_shift,
    )


def _no_runs() -> _Runs:
    none, zero = np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    return _Runs(none, zero, none.astype(np.int16), none, zero.astype(np.int32), none, none, none)


def _user_codes(users: pa.Array) -> np.ndarray:
    """(n,) uint64 that order the users: distance from the smallest integer, or rank among the distinct strings."""
    if pa.types.is_integer(users.type):
        ids = _numpy(users).astype(np.int64, copy=False)
        return (ids - ids.min()).view(np.uint64) if len(ids) else ids.view(np.uint64)
    coded = users.dictionary_encode()
    codes = np.arange(len(coded.dictionary), dtype=np.uint64)
    by_name = pa.table({"name": coded.dictionary, "code": codes}).sort_by("name")["code"].to_numpy()
    rank = np.empty_like(codes)
    rank[by_name] = codes
    return rank[_numpy(coded.indices)]


def _order(codes: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Stable order by (code, time): least significant 16-bit digits first; time is skipped where it never decreases."""
    keys = [codes] if (time[1:] >= time[:-1]).all() else [time, codes]
    order: np.ndarray | None = None
    for key in keys:
        for shift in range(0, int(key.max()).bit_length(), 16):
            digit = (key >> np.uint64(shift)).astype(np.uint16)
            if order is None:
                order = np.argsort(digit, kind="stable")
            else:
                order = _gather(order, np.argsort(_gather(digit, order), kind="stable"))
    return np.arange(len(codes)) if order is None else order


def _user_shift(codes: np.ndarray, stride: int, earliest: int) -> np.ndarray:
    """(n,) int64: how far each user's events are moved so that users lie `stride` ms apart; `codes` are sorted."""
    new_user = np.zeros(len(codes), dtype=np.int64)
    np.not_equal(codes[1:], codes[:-1], out=new_user[1:])
    rank = np.cumsum(new_user, out=new_user)
    if stride * (int(rank[-1]) + 1) + abs(earliest) >= 1 << 62:
        raise DataError(
            f"times and durations span {stride / 3.6e6:.3g} hours, too far apart to be right",
            hint="check the unit of the time and duration columns, and for rows with garbage in them",
        )
    rank *= stride
    return rank


def _run_sums(column: pa.Array, runs: _Runs) -> np.ndarray:
    """(r,) int64: sum of an event column over each run."""
    return _sums(_gather(_integers(column), runs.order), runs.at)


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(r,) sums of (n,) int64 values between (r + 1,) bounds."""
    total = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=total[1:])
    return np.diff(_gather(total, bounds))


def _gather(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # mode="clip" skips the check of every index, which makes this several times faster than values[rows]
    return values.take(rows, mode="clip")


def _seconds(milliseconds: np.ndarray) -> np.ndarray:
    return (milliseconds / 1000).astype(np.float32)


def _lists(runs: _Runs, values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(runs.offsets), pa.array(values))


def _assemble(found: dict[str, pa.Array], n: int, utc_offset_min: int, schema: pa.Schema | None) -> pa.Table:
    if "utc_offset_min" in found:
        found["utc_offset_min"] = found["utc_offset_min"].cast(pa.int16())
    else:
        found["utc_offset_min"] = pa.array(np.full(n, utc_offset_min, dtype=np.int16))
    absent = {"video_views": pa.list_(pa.int32()), "watch_s": pa.list_(pa.float32()), **_DEFAULT_TYPES}
    for name, kind in absent.items():
        if name not in found:
            found[name] = pa.nulls(n, kind)
    if schema is None:
        names = (*SESSION_COLUMNS, *(name for name in found if name not in SESSION_COLUMNS))
        return pa.table({name: found[name] for name in names})
    arrays = []
    for field in schema:
        if field.name not in found and not field.nullable:
            raise DataError(f"the events have no column {field.name!r}", hint=f"they hold {sorted(found)}")
        arrays.append(found[field.name].cast(field.type) if field.name in found else pa.nulls(n, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _check(events: pa.Table, gap_ms: int) -> None:
    if gap_ms < 0:
        raise ValueError(f"gap_ms is {gap_ms}, it must not be negative")
    for name in (*EVENT_COLUMNS, *(c for c in _SUMMED if c in events.column_names)):
        if name not in events.column_names:
            raise DataError(f"the events have no column {name!r}", hint=f"they hold {events.column_names}")
        nulls, kind = events[name].null_count, events.schema.field(name).type
        if nulls:
            raise DataError(
                f"column {name!r} of the events has {nulls} nulls", hint="such rows belong in quarantine"
            )
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        other = (name == "user_id" and text) or (name == "time_ms" and pa.types.is_timestamp(kind))
        if not (pa.types.is_integer(kind) or other):
            raise DataError(f"column {name!r} of the events is {kind}", hint="cast it beforehand")


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms"), safe=False)
    elif pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _integers(array: pa.Array) -> np.ndarray:
    """(n,) int64 view or copy of an integer or ms timestamp array."""
    plain = array.view(pa.int64()) if pa.types.is_timestamp(array.type) else array
    return _numpy(plain).astype(np.int64, copy=False)


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)
