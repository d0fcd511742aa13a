"""The online state of a user: one fixed-size row from which every feature of the next entry is read.

A row holds day aggregates (rings of 32 days in general, of 16 days per page) and the last 12 ended sessions.
`observe` adds ended sessions, `features` reads; both work on many users at once and know no clock but the
times in the data. Replaying a log gives exactly the batch features (`plpm_ray.data.features.batch`).

How far that holds when the world is out of order:

- **Late sessions** (observed after sessions that ended later) lead to the same state, byte for byte, as in
  order, if the user's UTC offset does not change. With changing offsets the feature day of a late session is
  its local exit day, kept between the days of its neighbours among the last sessions.
- **Repeated sessions** (same key) are ignored while the first copy is among the last KEPT; older ones would
  count twice.
- **Sessions that end at or after the entry** (clock skew, an entry asked for late) do not count, exactly, as
  long as no more than SPARE of them were observed and none lies two or more local days after the entry. With
  more, up to KEPT, totals stay exact and only `recent_*` gets shorter; beyond KEPT the older ones do count.

A row is plain bytes (`to_bytes`, `from_bytes`): 4.4 KB for 3 pages, 21 KB for 32, mostly zeros in young
users, so a store that compresses helps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plpm_ray.core.errors import StateError
from plpm_ray.core.features import (
    HISTORY_DAYS,
    PAGE_WINDOW_DAYS,
    RECENT_STEPS,
    WINDOW_DAYS,
    FeatureSchema,
    RawFeatures,
)
from plpm_ray.data.features.layout import (
    DAY,
    DAYS,
    ENTRY,
    EXIT,
    EXIT_PAGE,
    KEPT,
    KEY,
    LANDING,
    LANDING_DWELL,
    LAYOUT_HINT,
    LAYOUT_VERSION,
    NO_DAY,
    PAGE_DAYS,
    SPARE,
    TOTALS,
    empty_states,
    from_bytes,
    nav_state,
    set_nav_state,
    state_dtype,
    to_bytes,
)
from plpm_ray.data.features.sessions import EntryArrays, SessionArrays
from plpm_ray.data.features.shared import (
    ACTIVE_DAYS,
    COUNT,
    GENERAL,
    SWITCHES,
    USE_MS,
    VIEWS,
    LastSessions,
    Totals,
    empty_features,
    fill_extras,
    fill_history,
    seconds,
)

__all__ = [
    "ENTRY",
    "EXIT",
    "KEPT",
    "KEY",
    "LAYOUT_VERSION",
    "SPARE",
    "TOTALS",
    "empty_states",
    "features",
    "from_bytes",
    "nav_state",
    "observe",
    "set_nav_state",
    "state_dtype",
    "to_bytes",
]

_BLOCK = 1024


def observe(states: np.ndarray, rows: np.ndarray, sessions: SessionArrays) -> None:
    """Adds ended sessions to the states, in place. Their order in the call does not matter.

    Args:
        states: (n,) from `empty_states` or `from_bytes`.
        rows: (M,) integer row of `states` of each session's user; a user may occur many times.
        sessions: M sessions.
    """
    if not len(sessions):
        return
    k = states.dtype["pages"].shape[1] // 3
    order = np.lexsort((sessions.key, sessions.entry_ms, sessions.exit_ms, rows))
    sorted_rows = rows[order]
    new_user = np.ones(len(order), dtype=bool)
    new_user[1:] = sorted_rows[1:] != sorted_rows[:-1]
    if not new_user.all():
        position = np.arange(len(order))
        rank = position - np.maximum.accumulate(np.where(new_user, position, 0))
        order = order[np.argsort(rank, kind="stable")]
        rounds = np.bincount(rank)
    else:
        rounds = np.array([len(order)])
    done = 0
    for size in rounds:  # the n-th session of every user that has one
        for start in range(done, done + size, _BLOCK):
            part = order[start : min(start + _BLOCK, done + size)]
            _observe_distinct(states, rows[part], sessions.take(part), k)
        done += size


def _observe_distinct(states: np.ndarray, rows: np.ndarray, sessions: SessionArrays, k: int) -> None:
    """One session for each of the given rows, no row twice."""
    per_page = sessions.per_page(k)
    new = np.empty((len(rows), states.dtype["recent"].shape[1]), dtype=np.int64)
    new[:, EXIT], new[:, ENTRY], new[:, KEY] = sessions.exit_ms, sessions.entry_ms, sessions.key
    new[:, LANDING], new[:, EXIT_PAGE], new[:, LANDING_DWELL] = (
        sessions.landing,
        sessions.exit_page,
        sessions.landing_dwell_ms,
    )
    general = new[:, TOTALS : TOTALS + GENERAL]
    general[:, COUNT] = general[:, ACTIVE_DAYS] = 1
    general[:, USE_MS], general[:, VIEWS] = sessions.use_ms, sessions.views
    general[:, SWITCHES] = sessions.switches
    new[:, TOTALS + GENERAL :] = per_page[:, : 2 * k]

    recent = states["recent"][rows]
    repeated = ((recent[:, :, KEY] == new[:, None, KEY]) & (recent[:, :, TOTALS + COUNT] == 1)).any(axis=1)
    place = _newer(recent, new).sum(axis=1)
    new[:, DAY] = _feature_day(recent, place, sessions.exit_day)
    if repeated.any():
        fresh = ~repeated
        rows, recent, new, place, per_page = (
            rows[fresh],
            recent[fresh],
            new[fresh],
            place[fresh],
            per_page[fresh],
        )
        general = new[:, TOTALS : TOTALS + GENERAL]
    states["recent"][rows] = _inserted(recent, new, place)
    _add_to_ring(states["day"], states["general"], rows, new[:, DAY], general)
    states["general"][rows, new[:, DAY] % DAYS, ACTIVE_DAYS] = 1
    _add_to_ring(states["page_day"], states["pages"], rows, new[:, DAY], per_page)


def _newer(recent: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(B, KEPT) bool: which of the last sessions come after the new one in the order (exit, entry, key)."""
    newer = recent[:, :, EXIT] > new[:, None, EXIT]
    equal = recent[:, :, EXIT] == new[:, None, EXIT]
    if equal.any():
        for column in (ENTRY, KEY):
            newer |= equal & (recent[:, :, column] > new[:, None, column])
            equal &= recent[:, :, column] == new[:, None, column]
    return newer


def _feature_day(recent: np.ndarray, place: np.ndarray, exit_day: np.ndarray) -> np.ndarray:
    """(B,) local exit day, not below that of the session before nor above that of the session after."""
    every = np.arange(len(place))
    before = np.where(place < KEPT, recent[every, np.minimum(place, KEPT - 1), DAY], NO_DAY)
    day = np.maximum(exit_day, before)
    late = place > 0
    return np.where(late, np.minimum(day, recent[every, np.maximum(place, 1) - 1, DAY]), day)


def _inserted(recent: np.ndarray, new: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The last sessions with the new one at its place; the oldest falls out."""
    out = np.empty_like(recent)
    if not place.any():
        out[:, 0] = new
        out[:, 1:] = recent[:, :-1]
        return out
    column = np.arange(KEPT)
    source = column - (column > place[:, None])
    out[:] = np.take_along_axis(recent, source[:, :, None], axis=1)
    inside = np.flatnonzero(place < KEPT)
    out[inside, place[inside]] = new[inside]
    return out


def _add_to_ring(
    days: np.ndarray, totals: np.ndarray, rows: np.ndarray, day: np.ndarray, added: np.ndarray
) -> None:
    """Adds to the place of a day; a newer day takes the place over, an older one is forgotten already."""
    slot = day % days.shape[1]
    held = days[rows, slot]
    current = held <= day
    if not current.all():
        rows, slot, day, added, held = (
            rows[current],
            slot[current],
            day[current],
            added[current],
            held[current],
        )
    kept = totals[rows, slot]
    kept[held < day] = 0
    days[rows, slot] = day
    totals[rows, slot] = kept + added


def features(
    states: np.ndarray,
    entries: EntryArrays,
    schema: FeatureSchema,
    context: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
    *,
    rows: np.ndarray | None = None,
    days: bool = False,
) -> RawFeatures:
    """Features of B entries from the states of their users; the states are not changed.

    Args:
        states: (B,) the state of each entry's user; or (n,) states together with `rows`.
        entries: B entries.
        schema: of the dataset; its pages must be those of the state.
        context, profile: column name -> (B,) Arrow array, NumPy array or list; what is absent is missing
            (NaN, None).
        rows: (B,) row of `states` of each entry's user; faster than gathering them first.
        days: fill `RawFeatures.days` too.

    Raises:
        StateError: the states were made for another number of pages.
    """
    if states.dtype["pages"].shape[1] != 3 * len(schema.pages):
        raise StateError(
            f"the states hold {states.dtype['pages'].shape[1] // 3} pages, the schema {len(schema.pages)}",
            hint=LAYOUT_HINT,
        )
    out = empty_features(schema, len(entries))
    if days:
        out.days = np.empty((len(entries), HISTORY_DAYS, 2), dtype=np.float32)
    for start in range(0, len(entries), _BLOCK):
        some = slice(start, min(start + _BLOCK, len(entries)))
        part = EntryArrays(entries.entry_ms[some], entries.utc_offset_min[some])
        held = states[some] if rows is None else states[rows[some]]
        ended = _without_unended(held, part.entry_ms)
        totals, last = _read(ended, part)
        fill_history(out, some, part, totals, last)
        if out.days is not None:
            out.days[some] = _days_before(ended, part)
    fill_extras(out, context, profile)
    return out


def _read(states: np.ndarray, entries: EntryArrays) -> tuple[Totals, LastSessions]:
    recent = states["recent"]
    day = np.maximum(entries.local_day, recent[:, 0, DAY])
    every = np.arange(len(day))
    today_general = states["general"][every, day % DAYS]
    today_general[states["day"][every, day % DAYS] != day] = 0
    today_pages = states["pages"][every, day % PAGE_DAYS]
    today_pages[states["page_day"][every, day % PAGE_DAYS] != day] = 0
    totals = Totals(
        today=today_general,
        today_pages=today_pages,
        general=_windows(states["day"], states["general"], day, WINDOW_DAYS),
        pages=_windows(states["page_day"], states["pages"], day, PAGE_WINDOW_DAYS),
    )
    steps = recent[:, :RECENT_STEPS]
    last = LastSessions(
        present=(steps[:, :, TOTALS + COUNT] == 1) & (steps[:, :, DAY] >= day[:, None] - HISTORY_DAYS),
        use_ms=steps[:, :, TOTALS + USE_MS],
        landing=steps[:, :, LANDING],
        exit_ms=steps[:, 0, EXIT],
        landing_dwell_ms=steps[:, 0, LANDING_DWELL],
        exit_page=steps[:, 0, EXIT_PAGE],
    )
    return totals, last


def _days_before(states: np.ndarray, entries: EntryArrays) -> np.ndarray:
    """(B, HISTORY_DAYS, 2) float32 seconds and sessions of the days before, yesterday first."""
    day = np.maximum(entries.local_day, states["recent"][:, 0, DAY])
    wanted = day[:, None] - np.arange(1, HISTORY_DAYS + 1)
    slot = wanted % DAYS
    held = np.take_along_axis(states["day"], slot, axis=1) == wanted
    totals = np.take_along_axis(states["general"], slot[:, :, None], axis=1)
    use_s, count = seconds(totals[:, :, USE_MS]), totals[:, :, COUNT].astype(np.float32)
    return np.stack([use_s, count], axis=2) * held[:, :, None].astype(np.float32)


def _windows(
    days: np.ndarray, totals: np.ndarray, day: np.ndarray, widths: Sequence[int]
) -> tuple[np.ndarray, ...]:
    age = day[:, None] - days
    inside = np.stack([(age >= 1) & (age <= width) for width in widths], axis=1).astype(np.int64)
    sums = np.matmul(inside, totals)
    return tuple(sums[:, i] for i in range(len(widths)))


def _without_unended(states: np.ndarray, entry_ms: np.ndarray) -> np.ndarray:
    """The states as they were before any session that ends at or after the entry; the same array if there is none."""
    affected = np.flatnonzero(states["recent"][:, 0, EXIT] >= entry_ms)
    if not len(affected):
        return states
    states = states.copy()
    recent = states["recent"][affected]
    dropped = (recent[:, :, EXIT] >= entry_ms[affected, None]).sum(axis=1)
    for step in range(int(dropped.max())):
        part = dropped > step
        _take_back(states, affected[part], recent[part, step])
    places = np.arange(KEPT) + dropped[:, None]
    blank = np.broadcast_to(empty_states(states.dtype, 1)["recent"], recent.shape)
    longer = np.concatenate([recent, blank], axis=1)
    states["recent"][affected] = np.take_along_axis(longer, places[:, :, None], axis=1)
    return states


def _take_back(states: np.ndarray, rows: np.ndarray, session: np.ndarray) -> None:
    """Subtracts one of the last sessions of each row (distinct) from the day totals."""
    k = states.dtype["pages"].shape[1] // 3
    pages = np.zeros((len(rows), 3 * k), dtype=np.int64)
    pages[:, : 2 * k] = session[:, TOTALS + GENERAL :]
    pages[np.arange(len(rows)), 2 * k + session[:, LANDING]] = 1
    general = session[:, TOTALS : TOTALS + GENERAL]
    for days, totals, taken in (("day", "general", general), ("page_day", "pages", pages)):
        slot = session[:, DAY] % states.dtype[days].shape[0]
        held = states[days][rows, slot] == session[:, DAY]
        states[totals][rows[held], slot[held]] -= taken[held]
    slot = session[:, DAY] % DAYS
    states["general"][rows, slot, ACTIVE_DAYS] = states["general"][rows, slot, COUNT] > 0
