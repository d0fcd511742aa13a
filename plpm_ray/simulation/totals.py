"""What an experiment counts: per user, per day, per hour and per page; additive over users, so tasks can be joined."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from plpm_ray.simulation.simulation import Sessions, Simulation
from plpm_ray.simulation.world import World

PERIODS = ("aa", "ab")
USER_TOTALS = ("active_days", "use_s", "watch_s", "video_views", "sessions", "drop_offs", "last7_active_days")
DAILY = ("active_users", "ever_active", "use_s", "sessions", "drop_offs", "watch_s", "video_views")
STATES = ("absent", "single", "multi")
_WEEK = 7


@dataclass
class Counts:
    """Additive totals of some users of one arm, D days in all.

    Attributes:
        users: how many.
        daily: name of DAILY -> (D,).
        hourly: (2, 24, 2) sessions and seconds by period and local hour.
        moves: (D, 3, 3) users by state the day before and on the day (STATES); the first day's before is not known.
        pages: (2, K, 4) landings, effective entries, drop-offs, seconds by period and page.
        decisions, cpu_s: decisions of the arm's own chooser in the AB period, and their CPU time.
    """

    users: int
    daily: dict[str, np.ndarray]
    hourly: np.ndarray
    moves: np.ndarray
    pages: np.ndarray
    decisions: int = 0
    cpu_s: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.users + other.users,
            {name: values + other.daily[name] for name, values in self.daily.items()},
            self.hourly + other.hourly,
            self.moves + other.moves,
            self.pages + other.pages,
            self.decisions + other.decisions,
            self.cpu_s + other.cpu_s,
        )


@dataclass
class Recorder:
    """A sink that counts the AA and AB days of the users of one simulation.

    Args:
        world, simulation: what is recorded.
        days: number of AA days and of AB days.
    """

    world: World
    simulation: Simulation
    days: tuple[int, int]
    per_user: dict[str, np.ndarray] = field(init=False)
    effective: np.ndarray = field(init=False)
    assigned: np.ndarray = field(init=False)
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        u, k, d = len(self.simulation), len(self.world), sum(self.days)
        self.per_user = {name: np.zeros((2, u)) for name in USER_TOTALS}
        self.effective, self.assigned = np.zeros((2, k, u)), np.zeros((2, k, u))
        self.counts = Counts(
            u,
            {name: np.zeros(d) for name in DAILY},
            np.zeros((2, 24, 2)),
            np.zeros((d, 3, 3), dtype=np.int64),
            np.zeros((2, k, 4)),
        )
        self._ever = np.zeros(u, dtype=bool)
        self._seen_pages = np.zeros(u, dtype=np.int64)
        self._came = np.zeros(u, dtype=bool)
        self._before: np.ndarray | None = None
        self._day = 0

    @property
    def period(self) -> int:
        """0 in the AA days, 1 in the AB days."""
        return int(self._day >= self.days[0])

    def __call__(self, sessions: Sessions) -> None:
        period, rows, drawn = self.period, sessions.entries.rows, sessions.walk
        use_s = sessions.use_ms / 1000
        totals = {
            "use_s": use_s,
            "watch_s": sessions.watch_ms(self.world).sum(axis=0) / 1000,
            "video_views": sessions.video_views(self.world).sum(axis=0).astype(np.float64),
            "sessions": np.ones(len(rows)),
            "drop_offs": sessions.dropped.astype(np.float64),
        }
        for name, values in totals.items():
            self.per_user[name][period, rows] += values
            self.counts.daily[name][self._day] += values.sum()
        self.assigned[period, sessions.landing, rows] += 1
        k, pages = len(self.world), self.counts.pages[period]
        pages[:, 2] += np.bincount(sessions.landing, weights=sessions.dropped, minlength=k)
        least_ms = self.world.config.visits.effective_s * 1000
        for position in range(len(drawn.pages_PB)):
            seen = np.flatnonzero(drawn.pages_PB[position] >= 0)
            if not len(seen):
                break
            page, dwell_ms = drawn.pages_PB[position, seen], drawn.dwell_ms_PB[position, seen]
            pages[:, 3] += np.bincount(page, weights=dwell_ms / 1000, minlength=k)
            long = np.flatnonzero(dwell_ms >= least_ms)
            page, of = page[long], rows[seen[long]]
            self.effective[period, page, of] += 1
            self._seen_pages[of] |= np.left_shift(1, page.astype(np.int64))
        hour = sessions.entries.hour
        self.counts.hourly[period, :, 0] += np.bincount(hour, minlength=24)
        self.counts.hourly[period, :, 1] += np.bincount(hour, weights=use_s, minlength=24)
        self._came[rows] = True

    def end_day(self) -> None:
        """Settles a day; to be called after the last session of each."""
        period, day = self.period, self._day
        self.per_user["active_days"][period] += self._came
        if sum(self.days[: period + 1]) - day <= _WEEK:
            self.per_user["last7_active_days"][period] += self._came
        self._ever |= self._came
        self.counts.daily["active_users"][day] = self._came.sum()
        self.counts.daily["ever_active"][day] = self._ever.sum()
        several = (self._seen_pages & (self._seen_pages - 1)) != 0
        state = np.where(self._came, np.where(several, 2, 1), 0)
        if self._before is not None:
            self.counts.moves[day] = np.bincount(self._before * 3 + state, minlength=9).reshape(3, 3)
        self._before = state
        self._seen_pages[:] = 0
        self._came[:] = False
        self._day += 1

    def finish(self) -> Counts:
        """The counts, with those per page that users' totals hold."""
        self.counts.pages[:, :, 0] = self.assigned.sum(axis=2)
        self.counts.pages[:, :, 1] = self.effective.sum(axis=2)
        return self.counts

    def users(self, arm: str) -> pa.Table:
        """One row a user: user_id, arm, and `aa_`, `ab_` totals."""
        columns = {
            "user_id": pa.array(self.simulation.users.user_id),
            "arm": pa.array([arm]).take(pa.array(np.zeros(len(self.simulation), dtype=np.int64))),
        }
        for i, period in enumerate(PERIODS):
            for name in USER_TOTALS:
                columns[f"{period}_{name}"] = pa.array(self.per_user[name][i])
            for kind, values in (("effective", self.effective), ("assigned", self.assigned)):
                for page, title in enumerate(self.world.pages.names):
                    columns[f"{period}_{kind}_{title}"] = pa.array(values[i, page])
        return pa.table(columns)
