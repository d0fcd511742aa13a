"""The batch kernel: features of many entries from the sessions of one bucket, without a loop over users or rows.

Sessions are put in the order (user, exit, entry, key); then everything a user did in a window is the
difference of two rows of running totals, and windows are found by binary search on composite keys. The work
goes block by block of whole users, so that the running totals stay in the cache and memory beyond input and
output does not grow with them.

Letters: M sessions, B entries, K pages, s and b their numbers in a block. Semantics
(`plpm_ray.data.features.state` has the same online): a session counts for an entry iff it ended strictly
before; its feature day is the local day of its exit, made monotone per user; the day D of an entry is its
local day, or the last feature day if that is later; a window of w days holds the feature days D - w to D - 1;
sessions before D - 30 are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from plpm_ray.core.features import (
    HISTORY_DAYS,
    PAGE_WINDOW_DAYS,
    RECENT_STEPS,
    WINDOW_DAYS,
    FeatureSchema,
    RawFeatures,
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

_BLOCK_CELLS = 1 << 19


def batch_features(
    users: np.ndarray,
    sessions: SessionArrays,
    entry_users: np.ndarray,
    entries: EntryArrays,
    schema: FeatureSchema,
    context: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
) -> RawFeatures:
    """Features of B entries from M sessions; sessions that end at or after an entry are not seen by it.

    Args:
        users: (M,) int64 user codes >= 0 of the sessions, any numbering (`user_codes` makes one).
        sessions: M sessions in any order, no session twice.
        entry_users: (B,) int64 codes of the entries' users, in the same numbering.
        entries: B entries in any order.
        schema: of the dataset.
        context, profile: column name -> (B,) Arrow array, NumPy array or list; what is absent is missing
            (NaN, None).

    Returns:
        Features in the order of the entries.
    """
    return _features(users, sessions, entry_users, entries, schema, context, profile, None)[0]


def batch_features_and_days(
    users: np.ndarray,
    sessions: SessionArrays,
    entry_users: np.ndarray,
    entries: EntryArrays,
    schema: FeatureSchema,
    wanted: np.ndarray,
    context: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
) -> tuple[RawFeatures, np.ndarray]:
    """`batch_features`, and the days before of some of the entries.

    Args:
        wanted: (B,) bool, W of them true.

    Returns:
        Features of all entries (without days), and (W, HISTORY_DAYS, 2) float32 as in `RawFeatures.days`.
    """
    return _features(users, sessions, entry_users, entries, schema, context, profile, wanted)


def _features(
    users: np.ndarray,
    sessions: SessionArrays,
    entry_users: np.ndarray,
    entries: EntryArrays,
    schema: FeatureSchema,
    context: Mapping[str, Any] | None,
    profile: Mapping[str, Any] | None,
    days_of: np.ndarray | None,
) -> tuple[RawFeatures, np.ndarray]:
    out = empty_features(schema, len(entries))
    place = np.full(len(entries), -1) if days_of is None else np.where(days_of, np.cumsum(days_of) - 1, -1)
    days = np.zeros((int(place.max(initial=-1)) + 1, HISTORY_DAYS, 2), dtype=np.float32)
    by_user = _session_order(users, sessions)
    entry_order = np.argsort(entry_users, kind="stable")
    for some, wanted in _blocks(
        users[by_user], entry_users[entry_order], _BLOCK_CELLS // (16 + 3 * len(schema.pages))
    ):
        rows = entry_order[wanted]
        index = _Index(users[by_user[some]], sessions.take(by_user[some]), len(schema.pages))
        part = entries.take(rows)
        totals, last = index.read(entry_users[rows], part)
        fill_history(out, rows, part, totals, last)
        some_days = rows[place[rows] >= 0]
        if len(some_days):
            days[place[some_days]] = index.days_before(entry_users[some_days], entries.take(some_days))
    fill_extras(out, context, profile)
    return out, days


def _session_order(users: np.ndarray, sessions: SessionArrays) -> np.ndarray:
    """Order by (user, exit, entry, key)."""
    exit_ms = sessions.exit_ms
    if not len(users):
        return np.empty(0, dtype=np.int64)
    first = int(exit_ms.min())
    span = int(exit_ms.max()) - first + 1
    if span * (int(users.max()) + 1) >= 1 << 62:
        return np.lexsort((sessions.key, sessions.entry_ms, exit_ms, users))
    composite = users * span + (exit_ms - first)
    order = np.argsort(composite)
    ordered = composite[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.zeros(len(order), dtype=bool)
        tied[1:] |= same
        tied[:-1] |= same
        rows = order[tied]
        order[tied] = rows[np.lexsort((sessions.key[rows], sessions.entry_ms[rows], composite[rows]))]
    return order


def _blocks(users: np.ndarray, entry_users: np.ndarray, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of both (sorted) arrays that hold whole users, about `size` rows each; none without entries."""
    cuts = np.unique(np.concatenate([users[::size], entry_users[::size]]))
    at = np.append(np.searchsorted(users, cuts), len(users))
    entry_at = np.append(np.searchsorted(entry_users, cuts), len(entry_users))
    for i in range(len(cuts)):
        if entry_at[i] < entry_at[i + 1]:
            yield slice(at[i], at[i + 1]), slice(entry_at[i], entry_at[i + 1])


class _Index:
    """Sessions of a block of users in order, with running totals.

    Attributes:
        general: (s + 1, GENERAL) int64, totals of the first i sessions (of the block, not of the user).
        pages: (s + 1, 3 K) int64, the same per page: dwell in ms, visits, landings.
        day: (s,) int64 feature days.
    """

    def __init__(self, users: np.ndarray, sessions: SessionArrays, n_pages: int) -> None:
        self.sessions = sessions
        self.n_pages = n_pages
        # a user's rank in the block keeps the composite keys small
        self.users, self.rank = np.unique(users, return_inverse=True)
        self.day = _feature_days(sessions.exit_day, self.rank)
        values = np.empty((len(users), GENERAL), dtype=np.int64)
        values[:, COUNT] = 1
        values[:, ACTIVE_DAYS] = 1
        values[1:, ACTIVE_DAYS] = (self.day[1:] != self.day[:-1]) | (self.rank[1:] != self.rank[:-1])
        values[:, USE_MS], values[:, VIEWS], values[:, SWITCHES] = (
            sessions.use_ms,
            sessions.views,
            sessions.switches,
        )
        self.general = _running(values)
        self.pages = _running(sessions.per_page(n_pages))
        self.day_key = _Key(self.rank, self.day)
        self.exit_key = _Key(self.rank, sessions.exit_ms)

    def read(self, entry_users: np.ndarray, entries: EntryArrays) -> tuple[Totals, LastSessions]:
        """Totals and last sessions of b entries."""
        rank, ended = self._ended(entry_users, entries)
        return self._read(rank, ended, self._day(rank, ended, entries))

    def days_before(self, entry_users: np.ndarray, entries: EntryArrays) -> np.ndarray:
        """(b, HISTORY_DAYS, 2) float32 seconds and sessions of the days before, yesterday first."""
        rank, ended = self._ended(entry_users, entries)
        day = self._day(rank, ended, entries)
        begins = day[:, None] - np.arange(HISTORY_DAYS + 1)
        at = np.minimum(self.day_key.find(rank[:, None], begins), ended[:, None])
        totals = self.general[at[:, :-1]] - self.general[at[:, 1:]]
        return np.stack([seconds(totals[..., USE_MS]), totals[..., COUNT].astype(np.float32)], axis=2)

    def _ended(self, entry_users: np.ndarray, entries: EntryArrays) -> tuple[np.ndarray, np.ndarray]:
        """Rank of each entry's user, and the position behind the last session that ended before the entry."""
        at = np.searchsorted(self.users, entry_users)
        known = at < len(self.users)
        known[known] = self.users[at[known]] == entry_users[known]
        # a user without sessions gets the rank of the next one, and no session of that one ended before his entry ...
        return at, self.exit_key.find(at, np.where(known, entries.entry_ms, self.exit_key.low))

    def _day(self, rank: np.ndarray, ended: np.ndarray, entries: EntryArrays) -> np.ndarray:
        """The day of each entry: its local day, or the last feature day if that is later."""
        if not len(self.day):
            return entries.local_day
        before = np.maximum(ended - 1, 0)
        has_history = (ended > 0) & (self.rank[before] == rank)
        return np.where(has_history, np.maximum(entries.local_day, self.day[before]), entries.local_day)

    def _read(self, rank: np.ndarray, ended: np.ndarray, day: np.ndarray) -> tuple[Totals, LastSessions]:
        # ... so all his windows are empty, since each begins no later than it ends, at `ended`
        today = np.minimum(self.day_key.find(rank, day), ended)
        widths = {*WINDOW_DAYS, *PAGE_WINDOW_DAYS, HISTORY_DAYS}
        begins = {w: np.minimum(self.day_key.find(rank, day - w), ended) for w in widths}
        general, pages = self.general[today], self.pages[today]
        two = 2 * self.n_pages
        totals = Totals(
            today=self.general[ended] - general,
            today_pages=self.pages[ended] - pages,
            general=tuple(general - self.general[begins[w]] for w in WINDOW_DAYS),
            pages=tuple(pages[:, :two] - self.pages[begins[w], :two] for w in PAGE_WINDOW_DAYS),
        )
        return totals, self._last(ended, begins[HISTORY_DAYS])

    def _last(self, ended: np.ndarray, oldest: np.ndarray) -> LastSessions:
        steps = ended[:, None] - np.arange(1, RECENT_STEPS + 1)
        present = steps >= oldest[:, None]
        if not len(self.day):
            nothing = np.zeros(steps.shape, dtype=np.int64)
            return LastSessions(present, nothing, nothing, nothing[:, 0], nothing[:, 0], nothing[:, 0])
        steps = np.maximum(steps, 0)
        s = self.sessions
        newest = steps[:, 0]
        return LastSessions(
            present,
            s.use_ms[steps],
            s.landing[steps],
            s.exit_ms[newest],
            s.landing_dwell_ms[newest],
            s.exit_page[newest],
        )


class _Key:
    """Composite (rank, value) keys in ascending order, for binary search within each rank."""

    def __init__(self, rank: np.ndarray, values: np.ndarray) -> None:
        self.low = int(values.min()) if len(values) else 0
        self.width = int(values.max()) - self.low + 2 if len(values) else 2
        self.keys = rank * self.width + (values - self.low)

    def find(self, rank: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Position of the first key of this rank with at least this value (the end of the rank if there is none)."""
        return np.searchsorted(self.keys, rank * self.width + np.clip(value - self.low, 0, self.width - 1))


def _feature_days(exit_day: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Running maximum of the exit days within each user; `rank` ascends."""
    if not len(exit_day):
        return exit_day
    low = exit_day.min()
    step = int(exit_day.max() - low) + 1
    return np.maximum.accumulate(exit_day - low + rank * step) - rank * step + low


def _running(values: np.ndarray) -> np.ndarray:
    total = np.zeros((len(values) + 1, values.shape[1]), dtype=np.int64)
    np.cumsum(values, axis=0, out=total[1:])
    return total
