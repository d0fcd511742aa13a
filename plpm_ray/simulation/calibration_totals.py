"""Totals of simulated days from which the calibration table is made: integers, kept apart by group of users.

Every user belongs, by a hash of the id, to one of `GROUPS` groups. A statistic is a function of the totals, and its interval
comes from leaving out one group after another (the delete-a-group jackknife), which is clustered by user for means, shares,
fits and quantiles alike. As all totals are integers, they are the same however the users were split over workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from scipy.stats import t as student_t

from plpm_ray.core.hashing import splitmix64
from plpm_ray.simulation.simulation import Sessions, Simulation

GROUPS = 50
GAP_MS = 1_800_000
"""Exposures that lie further apart belong to two sessions: the published sessions per user of KuaiRand-27K (150.16) are one more
than its gaps of 30 minutes and more per user."""
LONG_GAP_MS = 7_200_000
_HOUR_MS = 3_600_000


@dataclass
class CalibrationTotals:
    """Sums over the measured days; G groups of users, K pages, D days, N + 1 entry counts, U users.

    Attributes:
        users: (G,) users.
        entries, gap_sessions, long_gaps, drop_offs: (G,) app entries; sessions by the 30-minute gap; those that follow a gap
            of two hours or more; landings left at once.
        use_ms, watch_ms: (G,).
        hour_views: (G, 24) video views by the local hour in which they happened.
        day_views, day_use_ms, day_active: (G, D) by local day of entry.
        landings, page_drop_offs, page_views, page_use_ms: (G, K); the first two by landing page.
        days_by_entries, use_ms_by_entries: (G, N + 1) active user-days with that many entries, and their use.
        multi_days: (G,) active user-days with an effective visit on two or more pages.
        user_group, user_sessions, user_views: (U,) one value a user, in no order.
    """

    users: np.ndarray
    entries: np.ndarray
    gap_sessions: np.ndarray
    long_gaps: np.ndarray
    drop_offs: np.ndarray
    use_ms: np.ndarray
    watch_ms: np.ndarray
    hour_views: np.ndarray
    day_views: np.ndarray
    day_use_ms: np.ndarray
    day_active: np.ndarray
    landings: np.ndarray
    page_drop_offs: np.ndarray
    page_views: np.ndarray
    page_use_ms: np.ndarray
    days_by_entries: np.ndarray
    use_ms_by_entries: np.ndarray
    multi_days: np.ndarray
    user_group: np.ndarray
    user_sessions: np.ndarray
    user_views: np.ndarray

    def __add__(self, other: CalibrationTotals) -> CalibrationTotals:
        merged = {}
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            merged[field.name] = np.concatenate([mine, its]) if field.name.startswith("user_") else mine + its
        return CalibrationTotals(**merged)

    def without(self, group: int | None) -> CalibrationTotals:
        """The totals of all groups but one (None: of all), with G = 1."""
        whose = slice(None) if group is None else self.user_group != group
        found = {}
        for field in fields(self):
            values = getattr(self, field.name)
            if field.name.startswith("user_"):
                found[field.name] = values[whose]
            else:
                total = values.sum(axis=0, keepdims=True)
                found[field.name] = total if group is None else total - values[group]
        return CalibrationTotals(**found)


def jackknife(
    totals: CalibrationTotals, statistics: Callable[[CalibrationTotals], np.ndarray], level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Statistics of all users, and their intervals.

    Args:
        totals: of G groups; groups without users are left aside.
        statistics: totals with G = 1 -> (S,) numbers.
        level: coverage of the intervals.

    Returns:
        value, low and high, (S,) each.
    """
    value = statistics(totals.without(None))
    groups = np.flatnonzero(totals.users)
    if len(groups) < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    left_out = np.stack([statistics(totals.without(int(g))) for g in groups])
    g = len(groups)
    error = np.sqrt((g - 1) / g * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    half = student_t.ppf(0.5 + level / 2, g - 1) * error
    return value, value - half, value + half


class CalibrationSink:
    """Adds up the sessions of one simulation's users; call `end_day` after each measured day.

    Args:
        simulation: its users, in their present state: days before this moment are not counted.
        days: number of days to be measured.
    """

    def __init__(self, simulation: Simulation, days: int) -> None:
        self.world, self.users = simulation.world, simulation.users
        u, k, n = len(self.users), len(self.world), self.world.config.entries.most
        self.days, self.n_most = days, n
        # mixed once more: the hash of the id also decides buckets, arms and draws of policies
        self.group = (splitmix64(self.users.hash) % np.uint64(GROUPS)).astype(np.int64)
        self.day = 0
        self.last_exit_ms = simulation.state.last_exit_ms.copy()
        self.user_sessions, self.user_views = np.zeros((2, u), dtype=np.int64)
        self._entries, self._use, self._views, self._seen = np.zeros((4, u), dtype=np.int64)
        self._sums: dict[str, np.ndarray] = {
            name: np.zeros((GROUPS, *shape), dtype=np.int64)
            for name, shape in {
                "entries": (), "gap_sessions": (), "long_gaps": (), "drop_offs": (),
                "use_ms": (), "watch_ms": (), "multi_days": (),
                "hour_views": (24,), "day_views": (days,), "day_use_ms": (days,), "day_active": (days,),
                "landings": (k,), "page_drop_offs": (k,), "page_views": (k,), "page_use_ms": (k,),
                "days_by_entries": (n + 1,), "use_ms_by_entries": (n + 1,),
            }.items()
        }  # fmt: skip

    def _add(
        self, name: str, group: np.ndarray, weight: np.ndarray | None, cell: np.ndarray | None = None
    ) -> None:
        total = self._sums[name]
        width = total.size // GROUPS
        flat = group if cell is None else group * width + cell
        # sums below 2^53 are exact in float64
        counted = np.bincount(flat, weights=weight, minlength=GROUPS * width)
        total += counted.astype(np.int64).reshape(total.shape)

    def __call__(self, sessions: Sessions) -> None:
        entries, walk = sessions.entries, sessions.walk
        rows, group = entries.rows, self.group[entries.rows]
        views_PB = sessions.video_views(self.world)
        views, landing = views_PB.sum(axis=0), sessions.landing.astype(np.int64)
        gap_ms = entries.entry_ms - self.last_exit_ms[rows]
        apart = gap_ms >= GAP_MS
        self.last_exit_ms[rows] = sessions.exit_ms
        self._add("entries", group, None)
        self._add("gap_sessions", group, apart)
        self._add("long_gaps", group, gap_ms >= LONG_GAP_MS)
        self._add("drop_offs", group, sessions.dropped)
        self._add("use_ms", group, sessions.use_ms)
        self._add("watch_ms", group, sessions.watch_ms(self.world).sum(axis=0))
        self._add("landings", group, None, landing)
        self._add("page_drop_offs", group, sessions.dropped, landing)
        self.user_sessions[rows] += apart
        self.user_views[rows] += views
        self._entries[rows] += 1
        self._use[rows] += sessions.use_ms
        self._views[rows] += views
        begin_ms = entries.entry_ms + entries.utc_offset_min * 60_000
        effective_ms = self.world.config.visits.effective_s * 1000
        for p, page in enumerate(walk.pages_PB):
            on = np.flatnonzero(page >= 0)
            if not len(on):
                break
            at, dwell_ms = page[on].astype(np.int64), walk.dwell_ms_PB[p, on]
            self._add("page_views", group[on], views_PB[p, on], at)
            self._add("page_use_ms", group[on], dwell_ms, at)
            self._seen[rows[on]] |= (dwell_ms >= effective_ms).astype(np.int64) << at
            self._spread(group[on], begin_ms[on], dwell_ms, views_PB[p, on])
            begin_ms = begin_ms + walk.dwell_ms_PB[p]

    def _spread(
        self, group: np.ndarray, begin_ms: np.ndarray, dwell_ms: np.ndarray, views: np.ndarray
    ) -> None:
        """The views of visits over the local hours that each visit touches, in proportion to the time."""
        while len(group):
            room_ms = _HOUR_MS - begin_ms % _HOUR_MS
            now = np.where(dwell_ms <= room_ms, views, np.rint(views * room_ms / np.maximum(dwell_ms, 1)))
            self._add("hour_views", group, now, begin_ms // _HOUR_MS % 24)
            on = np.flatnonzero(dwell_ms > room_ms)
            group, views = group[on], (views - now)[on]
            begin_ms, dwell_ms = (begin_ms + room_ms)[on], (dwell_ms - room_ms)[on]

    def end_day(self) -> None:
        """Settles the day that all users have lived through."""
        came = np.flatnonzero(self._entries)
        group, day = self.group[came], np.full(len(came), self.day)
        count = np.minimum(self._entries[came], self.n_most)
        self._add("day_active", group, None, day)
        self._add("day_views", group, self._views[came], day)
        self._add("day_use_ms", group, self._use[came], day)
        self._add("days_by_entries", group, None, count)
        self._add("use_ms_by_entries", group, self._use[came], count)
        # more than one bit set
        seen = self._seen[came]
        self._add("multi_days", group, (seen & (seen - 1)) != 0)
        for held in (self._entries, self._use, self._views, self._seen):
            held[:] = 0
        self.day += 1

    def totals(self) -> CalibrationTotals:
        """What was added up so far."""
        return CalibrationTotals(
            users=np.bincount(self.group, minlength=GROUPS),
            **self._sums,
            user_group=self.group,
            user_sessions=self.user_sessions,
            user_views=self.user_views,
        )
