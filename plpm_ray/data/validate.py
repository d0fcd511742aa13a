"""The rules every log row must pass, applied to whole tables at once; what passes comes out in the stored form.

| reason | rule that the row breaks |
|---|---|
| null_user, null_session_id | the id is missing (null or an empty string) |
| null_time, invalid_time | a time is missing, or lies outside 1990 to 2099 (most often a wrong unit) |
| exit_before_entry | exit_time >= entry_time |
| invalid_utc_offset | utc_offset_min within -840 .. 840, not null |
| unknown_page | every page is in the catalogue |
| empty_pages | a session has at least one page |
| landing_not_first | landing_page is the first of pages |
| unequal_lists | dwell_s, video_views and watch_s are as long as pages |
| null_dwell, null_views, null_watch | no nulls inside the lists, no event without a duration |
| negative_dwell, negative_views, negative_watch | none is below 0 |
| excessive_dwell, excessive_views, excessive_watch | a stay has at most 366 days, and a million views |
| non_finite | no NaN or infinity in durations, watch times or numeric context and profile columns |
| propensity_range | 0 < propensity <= 1, or null |
| null_arm, unknown_arm | rows of a trial: the arm is there, and is the control or a page |
| null_response | rows of a trial: the response is there |

Found while sessions are made (`plpm_ray.data.ingest_tasks`): duplicate_session_id, duplicate_event, duplicate_user; and
by adapters while files are read: malformed_row. Consecutive equal pages of a session are merged: one page, sums of
dwell, views and watch time.

Shapes: n rows of the raw table, g good ones, b bad ones, m values of all lists.
"""

# pyarrow makes most functions of `compute` while it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.features import ColumnKind
from plpm_ray.data import normalise as to
from plpm_ray.data.contract import DAY_MS, MINUTE_MS, SESSION_COLUMNS, TIMESTAMP
from plpm_ray.data.day_table import day_number
from plpm_ray.data.visits import (
    MAX_SECONDS,
    MAX_VIEWS,
    Findings,
    Reading,
    column_of,
    page_values,
    read_visits,
)

EARLIEST_MS = day_number("1990-01-01") * DAY_MS
LATEST_MS = day_number("2100-01-01") * DAY_MS
MAX_OFFSET_MIN = 840
UNKNOWN_MS = np.iinfo(np.int64).min

EVENT_INPUT = ("user_id", "time", "page", "duration")
EVENT_OPTIONAL = ("video_views", "watch")
SHARED_OPTIONAL = ("utc_offset_min", "policy", "propensity", "experiment_arm")
SESSION_OPTIONAL = tuple(c for c in SESSION_COLUMNS if c in ("video_views", "watch_s")) + SHARED_OPTIONAL


@dataclass(frozen=True)
class Checked:
    """A raw table after the rules.

    Attributes:
        table: (g,) good rows in stored form (for events: the columns that `sessionise` reads).
        findings: which rows break which rule.
        start_ms, end_ms: (n,) local time of entry and exit of every row, UNKNOWN_MS where it cannot be told.
    """

    table: pa.Table
    findings: Findings
    start_ms: np.ndarray
    end_ms: np.ndarray


def check_sessions(raw: pa.Table, reading: Reading, origin: to.Origin) -> Checked:
    """Raw sessions -> stored sessions.

    Args:
        raw: (n,) rows with the required columns of `contract.SESSION_COLUMNS` (and any optional or context ones), in
            any of the accepted types.
        reading: units and catalogue.
        origin: file and column mapping, for messages.

    Raises:
        DataError: a column is missing or of a type that cannot be read; names file and column.
    """
    found = Findings(raw.num_rows)
    columns = _shared(raw, reading, origin, found)
    session, missing = to.ids(
        column_of(raw, "session_id", origin), "session_id", reading.info.session_id, origin
    )
    found.mark("null_session_id", missing)
    columns["session_id"] = session
    entry = _time(raw, "entry_time", reading, origin, found)
    leave = _time(raw, "exit_time", reading, origin, found)
    both = (entry != UNKNOWN_MS) & (leave != UNKNOWN_MS)
    found.mark("exit_before_entry", both & (leave < entry))
    landing = reading.info.pages.encode(
        page_values(column_of(raw, "landing_page", origin), "landing_page", origin)
    )
    found.mark("unknown_page", landing < 0)
    visits = read_visits(raw, landing, reading, origin, found)

    good = ~found.bad
    columns["entry_time"] = pa.array(entry).view(TIMESTAMP)
    columns["exit_time"] = pa.array(leave).view(TIMESTAMP)
    columns["landing_page"] = pa.array(landing)
    keep = pa.array(np.flatnonzero(good))
    kept = {name: column.take(keep) for name, column in columns.items()}
    kept.update(visits.merged(good))
    schema = reading.info.sessions_schema
    n = len(keep)
    arrays = [kept[f.name].cast(f.type) if f.name in kept else pa.nulls(n, f.type) for f in schema]
    offsets = _offset_ms(columns)
    return Checked(
        pa.Table.from_arrays(arrays, schema=schema),
        found,
        np.where(entry != UNKNOWN_MS, entry + offsets, UNKNOWN_MS),
        np.where(leave != UNKNOWN_MS, leave + offsets, UNKNOWN_MS),
    )


def check_events(raw: pa.Table, reading: Reading, origin: to.Origin, keys: tuple[str, ...] = ()) -> Checked:
    """Raw page events -> events as `sessionise` takes them.

    Args:
        raw: (n,) rows with `EVENT_INPUT` (and `EVENT_OPTIONAL`, shared and context columns).
        reading: units and catalogue.
        origin: file and column mapping, for messages.
        keys: further raw columns to keep under their own names (parts of the key by which duplicates are found).

    Raises:
        DataError: a column is missing or of a type that cannot be read; names file and column.
    """
    found = Findings(raw.num_rows)
    columns = _shared(raw, reading, origin, found)
    time = _time(raw, "time", reading, origin, found)
    page = reading.info.pages.encode(page_values(column_of(raw, "page", origin), "page", origin))
    found.mark("unknown_page", page < 0)
    duration = _durations(raw, "duration", "dwell", reading, origin, found)
    known = time != UNKNOWN_MS
    end = np.where(known, time + np.minimum(duration, LATEST_MS), UNKNOWN_MS)
    found.mark("invalid_time", known & (end >= LATEST_MS))
    columns.update(time_ms=pa.array(time), page=pa.array(page), duration_ms=pa.array(duration))
    if "watch" in raw.column_names:
        columns["watch_ms"] = pa.array(_durations(raw, "watch", "watch", reading, origin, found))
    if "video_views" in raw.column_names:
        views, empty = to.integers(raw["video_views"], "video_views", origin)
        found.mark("null_views", empty)
        found.mark("negative_views", views < 0)
        found.mark("excessive_views", views > MAX_VIEWS)
        columns["video_views"] = pa.array(views)
    columns.update(
        {name: to.contiguous(column_of(raw, name, origin)) for name in keys if name not in columns}
    )
    offsets = _offset_ms(columns)
    keep = pa.array(np.flatnonzero(~found.bad))
    table = pa.table({name: column.take(keep) for name, column in columns.items()})
    return Checked(
        table, found, np.where(known, time + offsets, UNKNOWN_MS), np.where(known, end + offsets, UNKNOWN_MS)
    )


def check_profiles(raw: pa.Table, reading: Reading, origin: to.Origin) -> Checked:
    """Raw user profiles -> `DatasetInfo.users_schema`.

    Raises:
        DataError: a column is missing or of a type that cannot be read; names file and column.
    """
    found = Findings(raw.num_rows)
    users, missing = to.ids(column_of(raw, "user_id", origin), "user_id", reading.info.user_id, origin)
    found.mark("null_user", missing)
    columns = {"user_id": users, **_extra(raw, dict(reading.info.profile), origin, found)}
    keep = pa.array(np.flatnonzero(~found.bad))
    table = pa.table({n: c.take(keep) for n, c in columns.items()}, schema=reading.info.users_schema)
    nowhere = np.full(raw.num_rows, UNKNOWN_MS)
    return Checked(table, found, nowhere, nowhere)


def check_trial(raw: pa.Table, reading: Reading, control: str | None, origin: to.Origin) -> Checked:
    """Raw rows of a trial -> user_id, arm (int16, 0 = control, k = the page at position k - 1), response (float32), the
    profile columns, and `part` where there is one.

    Args:
        raw: (n,) rows with user_id, arm, response and the profile columns.
        reading: catalogue and column kinds.
        control: the arm's value that means the control; None: no value at all.
        origin: file and column mapping, for messages.

    Raises:
        DataError: a column is missing or of a type that cannot be read; names file and column.
    """
    found = Findings(raw.num_rows)
    users, missing = to.ids(column_of(raw, "user_id", origin), "user_id", reading.info.user_id, origin)
    found.mark("null_user", missing)
    arms = to.text(column_of(raw, "arm", origin), "arm", origin)
    empty = to.nulls(arms)
    is_control = empty if control is None else to.mask(pc.equal(arms, control))
    pages = reading.info.pages.encode(arms)
    found.mark("null_arm", empty & ~is_control)
    found.mark("unknown_arm", (pages < 0) & ~empty & ~is_control)
    response, none = to.numbers(column_of(raw, "response", origin), "response", origin)
    found.mark("null_response", none)
    with np.errstate(over="ignore"):
        stored = response.astype(np.float32)
    found.mark("non_finite", ~none & ~np.isfinite(stored))
    columns = {
        "user_id": users,
        "arm": pa.array(np.where(is_control, 0, pages + 1).astype(np.int16)),
        "response": pa.array(stored),
        **_extra(raw, dict(reading.info.profile), origin, found),
    }
    if "part" in raw.column_names:
        columns["part"] = to.contiguous(raw["part"]).cast(pa.int8())
    keep = pa.array(np.flatnonzero(~found.bad))
    nowhere = np.full(raw.num_rows, UNKNOWN_MS)
    return Checked(pa.table({n: c.take(keep) for n, c in columns.items()}), found, nowhere, nowhere)


def _shared(raw: pa.Table, reading: Reading, origin: to.Origin, found: Findings) -> dict[str, pa.Array]:
    """User, local time, logging policy and context: what sessions and events have in common."""
    users, missing = to.ids(column_of(raw, "user_id", origin), "user_id", reading.info.user_id, origin)
    found.mark("null_user", missing)
    columns = {"user_id": users, "utc_offset_min": _offsets(raw, reading, origin, found)}
    for name in ("policy", "experiment_arm"):
        if name in raw.column_names:
            columns[name] = to.text(raw[name], name, origin)
    if "propensity" in raw.column_names:
        values, empty = to.numbers(raw["propensity"], "propensity", origin)
        found.mark("propensity_range", ~empty & ~((values > 0) & (values <= 1)))
        columns["propensity"] = pa.array(values, mask=empty)
    columns.update(_extra(raw, dict(reading.info.context), origin, found))
    return columns


def _extra(
    raw: pa.Table, kinds: dict[str, ColumnKind], origin: to.Origin, found: Findings
) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    for name, kind in kinds.items():
        if kind == "categorical":
            columns[name] = to.text(column_of(raw, name, origin), name, origin)
            continue
        values, empty = to.numbers(column_of(raw, name, origin), name, origin)
        with np.errstate(over="ignore"):
            stored = values.astype(np.float32)
        found.mark("non_finite", ~empty & ~np.isfinite(stored))
        columns[name] = pa.array(stored, mask=empty)
    return columns


def _offsets(raw: pa.Table, reading: Reading, origin: to.Origin, found: Findings) -> pa.Array:
    if "utc_offset_min" not in raw.column_names:
        return pa.array(np.full(raw.num_rows, reading.utc_offset_min, dtype=np.int16))
    values, empty = to.integers(raw["utc_offset_min"], "utc_offset_min", origin)
    wrong = empty | (np.abs(values) > MAX_OFFSET_MIN)
    found.mark("invalid_utc_offset", wrong)
    return pa.array(np.where(wrong, 0, values).astype(np.int16))


def _offset_ms(columns: dict[str, pa.Array]) -> np.ndarray:
    return columns["utc_offset_min"].to_numpy().astype(np.int64) * MINUTE_MS


def _time(raw: pa.Table, name: str, reading: Reading, origin: to.Origin, found: Findings) -> np.ndarray:
    """(n,) int64, ms since 1970 UTC; UNKNOWN_MS where null or out of range."""
    values, empty = to.times_ms(column_of(raw, name, origin), name, reading.time_unit, origin)
    outside = ~empty & ((values < EARLIEST_MS) | (values >= LATEST_MS))
    found.mark("null_time", empty)
    found.mark("invalid_time", outside)
    return np.where(empty | outside, UNKNOWN_MS, values)


def _durations(
    raw: pa.Table, name: str, what: str, reading: Reading, origin: to.Origin, found: Findings
) -> np.ndarray:
    """(n,) int64 ms of an event column."""
    values, empty = to.numbers(column_of(raw, name, origin), name, origin)
    found.mark(f"null_{what}", empty)
    found.mark("non_finite", ~np.isfinite(values))
    found.mark(f"negative_{what}", values < 0)
    scaled = values * 1000 if reading.duration_unit == "s" else values
    found.mark(f"excessive_{what}", np.isfinite(values) & (scaled > 1000 * MAX_SECONDS))
    return np.rint(np.clip(np.where(np.isfinite(scaled), scaled, 0.0), 0, LATEST_MS)).astype(np.int64)
