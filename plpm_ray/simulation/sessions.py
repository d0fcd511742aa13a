"""App entries that wait for a landing page, and the sessions that come of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plpm_ray.data.features.sessions import EntryArrays, SessionArrays
from plpm_ray.simulation.situation import Situation
from plpm_ray.simulation.walk import Walk
from plpm_ray.simulation.world import World

SESSION_ID_DAYS, SESSION_ID_ENTRIES = 4096, 256
"""Days and entries of a day that a session id has room for."""


@dataclass(frozen=True)
class Entries:
    """B app entries that wait for a landing page.

    Attributes:
        rows: (B,) int64 position of the user in the simulation.
        user_id: (B,) int64; user_hash: (B,) uint64.
        day: (B,) int64, days since the world's first; step: (B,) int64 entry number of the day, from 0.
        entry_ms: (B,) int64 UTC; utc_offset_min: (B,) int64; hour: (B,) int64 local hour.
        live_followed: (B,) int64 live broadcasts of followed creators; push: (B,) int64 page of the notification that
            led here, -1 for none. Both are visible context.
        key: (B,) uint64 luck of the entry.
        situation: the hidden truth; for oracles and for the walk, never for a navigator.
    """

    rows: np.ndarray
    user_id: np.ndarray
    user_hash: np.ndarray
    day: np.ndarray
    step: np.ndarray
    entry_ms: np.ndarray
    utc_offset_min: np.ndarray
    hour: np.ndarray
    live_followed: np.ndarray
    push: np.ndarray
    key: np.ndarray
    situation: Situation

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> Entries:
        names = [name for name in self.__dataclass_fields__ if name != "situation"]
        return Entries(
            **{name: getattr(self, name)[index] for name in names}, situation=self.situation.take(index)
        )

    @property
    def arrays(self) -> EntryArrays:
        return EntryArrays(self.entry_ms, self.utc_offset_min)


@dataclass(frozen=True)
class Sessions:
    """B sessions that have ended, with the entries that began them.

    Attributes:
        entries: B entries.
        landing: (B,) int16; propensity: (B,) float64, NaN unknown.
        walk: pages and dwell times.
        exit_ms: (B,) int64 UTC.
        use_ms, landing_ms: (B,) int64 in the app, on the landing page.
        count: (B,) int64 pages visited.
        dropped: (B,) bool, the landing page was left before `visits.effective_s`.
    """

    entries: Entries
    landing: np.ndarray
    propensity: np.ndarray
    walk: Walk
    exit_ms: np.ndarray
    use_ms: np.ndarray
    landing_ms: np.ndarray
    count: np.ndarray
    dropped: np.ndarray

    def __len__(self) -> int:
        return len(self.landing)

    @property
    def session_id(self) -> np.ndarray:
        """(B,) int64, unique in the world."""
        entries = self.entries
        return (entries.user_id * SESSION_ID_DAYS + entries.day) * SESSION_ID_ENTRIES + entries.step

    def watch_ms(self, world: World) -> np.ndarray:
        """(P, B) int64 milliseconds watched on each page visited, as the user lived it."""
        share = np.append(world.watch_share, 0.0)[self.walk.lived_PB]
        return np.rint(self.walk.dwell_ms_PB * share).astype(np.int64)

    def video_views(self, world: World) -> np.ndarray:
        """(P, B) int64 videos begun on each page visited, as the user lived it."""
        view_ms = np.append(world.view_s * 1000, np.inf)[self.walk.lived_PB]
        return np.floor(self.walk.dwell_ms_PB / view_ms).astype(np.int64) + (self.walk.dwell_ms_PB >= 1000)

    def stat_columns(self) -> dict[str, np.ndarray]:
        """(B,) columns that `TableStats.of` adds up."""
        return {
            "landing": self.landing,
            "use_s": self.use_ms / 1000,
            "landing_dwell_s": self.landing_ms / 1000,
            "hour": self.entries.hour,
            "step": self.entries.step,
        }

    def arrays(self, world: World) -> SessionArrays:
        """What the feature code reads."""
        seen = self.walk.pages_PB.T >= 0
        start = np.zeros(len(self) + 1, dtype=np.int64)
        np.cumsum(self.count, out=start[1:])
        pages, views_PB = self.walk.pages_PB.T[seen], self.video_views(world)
        return SessionArrays(
            key=self.session_id,
            entry_ms=self.entries.entry_ms,
            exit_ms=self.exit_ms,
            utc_offset_min=self.entries.utc_offset_min,
            landing=self.landing,
            exit_page=pages[start[1:] - 1],
            use_ms=self.use_ms,
            landing_dwell_ms=self.landing_ms,
            switches=self.count - 1,
            views=views_PB.sum(axis=0),
            page_start=start,
            pages=pages,
            dwell_ms=self.walk.dwell_ms_PB.T[seen],
            visit_views=views_PB.T[seen].astype(np.int32),
        )
