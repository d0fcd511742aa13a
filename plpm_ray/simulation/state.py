"""What changes about the users: within the day (wishes, boosts) and over the days (satisfaction, what the app remembers)."""

from __future__ import annotations

import numpy as np

from plpm_ray.data.contract import DAY_MS
from plpm_ray.simulation.population import Users
from plpm_ray.simulation.walk import Walk
from plpm_ray.simulation.world import World

_HOUR_MS = 3_600_000


class UserState:
    """State of U users, struct of arrays.

    Attributes:
        satiation_KU: (K, U) visits' worth of recent use, as of `last_exit_ms`.
        unfinished_KU: (K, U) 0 or 1.
        theme_KU: (K, U) logits of the day.
        boost: (U,) log rate of further entries this evening.
        multi_today: (U,) bool.
        rate_today: (U,) rate of entries of this day.
        satisfaction: (U,) running mean over active days; day_satisfaction, day_entries: sums of this day.
        last_exit_ms: (U,) UTC; last_exit_page: (U,) int16, -1 for none.
        seconds_KU, visits_KU: (K, U) what the app remembers of the use of each page, fading over days.
    """

    def __init__(self, world: World, users: Users) -> None:
        k, u = len(world), len(users)
        self.world = world
        self.satiation_KU = np.zeros((k, u))
        self.unfinished_KU = np.zeros((k, u))
        self.theme_KU = np.zeros((k, u))
        self.boost = np.zeros(u)
        self.multi_today = users.multi.copy()
        self.rate_today = users.rate.copy()
        self.satisfaction = np.full(u, world.config.retention.reference)
        self.day_satisfaction = np.zeros(u)
        self.day_entries = np.zeros(u, dtype=np.int64)
        self.last_exit_ms = np.full(u, world.first_day * DAY_MS - 10 * DAY_MS)
        self.last_exit_page = np.full(u, -1, dtype=np.int16)
        self.seconds_KU = np.zeros((k, u))
        self.visits_KU = np.zeros((k, u))

    def end_day(self, rows: np.ndarray) -> None:
        """Settles the day of the given users: satisfaction, and what fades overnight."""
        config = self.world.config
        came = rows[self.day_entries[rows] > 0]
        mean = self.day_satisfaction[came] / self.day_entries[came]
        self.satisfaction[came] += config.retention.memory * (mean - self.satisfaction[came])
        self.day_satisfaction[rows] = 0.0
        self.day_entries[rows] = 0
        self.boost[rows] = 0.0
        self.unfinished_KU[:, rows] = 0.0
        fade = np.exp(-1 / config.logging.memory_days)
        self.seconds_KU[:, rows] *= fade
        self.visits_KU[:, rows] *= fade

    def felt_satiation(self, rows: np.ndarray, now_ms: np.ndarray) -> np.ndarray:
        """(K, B) visits' worth of recent use still felt."""
        config = self.world.config.satiation
        if not config.enabled:
            return np.zeros((len(self.world), len(rows)))
        hours = (now_ms - self.last_exit_ms[rows]) / _HOUR_MS
        return self.satiation_KU[:, rows] * np.exp(-hours / config.decay_h)

    def after(self, rows: np.ndarray, exit_ms: np.ndarray, walk: Walk, u_break: np.ndarray) -> None:
        """Takes in one session of each of the given users.

        Args:
            rows: (B,) users, none twice.
            exit_ms: (B,) UTC.
            walk: of B sessions.
            u_break: (B,) uniform draws: whether the last visit was broken off.
        """
        world, config = self.world, self.world.config
        every = np.arange(len(rows))
        satiation = self.felt_satiation(rows, exit_ms)
        unfinished = self.unfinished_KU[:, rows]
        seconds, visits = self.seconds_KU[:, rows], self.visits_KU[:, rows]
        boost = self.boost[rows]
        last, shown_last = np.zeros((2, len(rows)), dtype=np.int16)
        for p in range(len(walk.lived_PB)):
            on = every if p == 0 else np.flatnonzero(walk.lived_PB[p] >= 0)
            if not len(on):
                break
            page, shown = walk.lived_PB[p, on], walk.pages_PB[p, on]
            dwell = walk.dwell_ms_PB[p, on] / 1000
            effective = dwell >= config.visits.effective_s
            satiation[page, on] += dwell / world.dwell_s[page]
            unfinished[page, on] *= ~effective
            boost[on] += world.returning[page] * effective
            seconds[shown, on] += dwell
            visits[shown, on] += 1.0
            last[on], shown_last[on] = page, shown
        if config.unfinished.enabled:
            missed = np.flatnonzero(~walk.reached)
            unfinished[walk.wanted[missed], missed] = 1.0
            broken = np.flatnonzero(walk.engaged & (u_break < config.unfinished.interrupted))
            unfinished[last[broken], broken] = 1.0
        self.satiation_KU[:, rows] = np.minimum(satiation, config.satiation.most)
        self.unfinished_KU[:, rows] = unfinished
        self.seconds_KU[:, rows], self.visits_KU[:, rows] = seconds, visits
        self.boost[rows] = np.minimum(boost, config.returning.most)
        self.last_exit_ms[rows], self.last_exit_page[rows] = exit_ms, shown_last
        self.day_satisfaction[rows] += np.where(
            walk.matched & walk.reached, 1.0, np.where(walk.reached, config.retention.walked, 0.0)
        )
        self.day_entries[rows] += 1
