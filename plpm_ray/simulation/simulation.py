"""Runs users through their days: all users' n-th entry of a day is one batch.

    simulation = Simulation(world, users)
    simulation.begin_day()
    while (entries := simulation.entries()) is not None:
        sessions = simulation.land(pages, propensity)        # (B,) pages for these entries

`run_days` is that loop around a chooser. Users do not touch each other, so any split of them over processes gives the same
sessions. The loop may also run users on different days side by side (`begin_day(rows)`), as environments for reinforcement
learning need it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from scipy.special import expit

from plpm_ray.data.contract import DAY_MS
from plpm_ray.policies.base import Choice
from plpm_ray.simulation import luck, walk
from plpm_ray.simulation.population import Users, make_users
from plpm_ray.simulation.sessions import SESSION_ID_DAYS, SESSION_ID_ENTRIES, Entries, Sessions
from plpm_ray.simulation.situation import make_situation
from plpm_ray.simulation.state import UserState
from plpm_ray.simulation.world import World

__all__ = [
    "SESSION_ID_DAYS",
    "SESSION_ID_ENTRIES",
    "Chooser",
    "Entries",
    "Sessions",
    "Simulation",
    "Sink",
    "copied",
    "run_days",
]

_HOUR_MS = 3_600_000
_MOST_LIVE = 9
_FOREVER = np.iinfo(np.int64).max
_CALMEST = -30.0  # lowest log rate factor that leaves the time of an evening divisible
# streams of a user's day, and of an entry beside those of its walk
_ACTIVE, _RATE, _LIGHT, _THEME = 0, 1, 2, 64
_NEXT, _LIVE = 2, 4


class Chooser(Protocol):
    """What picks landing pages in a simulation."""

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        """Pages and propensities for B entries."""
        ...

    def observe(self, simulation: Simulation, sessions: Sessions) -> None:
        """Told of every session, whoever chose its page."""
        ...


class Simulation:
    """Users of a world, and the day each of them is in.

    Args:
        world: the world.
        user_id: (U,) distinct integers from 0 on; or `users` made before.
        replicate: another luck for the same users.
    """

    def __init__(
        self, world: World, user_id: np.ndarray, replicate: int = 0, users: Users | None = None
    ) -> None:
        self.world = world
        self.users = users or make_users(world, user_id, replicate)
        self.state = UserState(world, self.users)
        u = len(self.users)
        self.day = np.full(u, -1, dtype=np.int64)
        self.day_key = np.zeros(u, dtype=np.uint64)
        self.step = np.zeros(u, dtype=np.int64)
        self.next_ms = np.full(u, _FOREVER)
        self._entries: Entries | None = None
        self._rest_ms = max(1000, round(world.config.entries.rest_min * 60_000))

    def __len__(self) -> int:
        return len(self.users)

    def begin_day(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Ends the day of the given users (default: all) and begins the next.

        Returns:
            (B,) bool, who of them is active on it.
        """
        rows = np.arange(len(self)) if rows is None else rows
        self.state.end_day(rows)
        self.day[rows] += 1
        self.step[rows] = 0
        self._entries = None
        world, config, state = self.world, self.world.config, self.state
        key = luck.child_keys(self.users.key[rows], self.day[rows])
        self.day_key[rows] = key
        weekday = (world.first_day + self.day[rows] + 3) % 7
        u_active, u_mode = luck.pair(key, _ACTIVE)
        drift = config.retention.logit * config.retention.enabled
        chance = expit(
            self.users.active_logit[rows]
            + np.log(world.week[weekday])
            + drift * (state.satisfaction[rows] - config.retention.reference)
        )
        active = u_active < chance
        flips = u_mode < config.population.mode_flip * config.population.enabled
        state.multi_today[rows] = self.users.multi[rows] ^ flips
        rate = (
            self.users.rate[rows]
            * np.exp(config.entries.day_sd * luck.normals(key, _RATE))
            * world.week[weekday]
        )
        if config.entries.light_days:
            rate[luck.uniforms(key, _LIGHT) < config.entries.light_days] *= config.entries.light_rate
        state.rate_today[rows] = rate
        came = rows[active]
        if config.day_intent.enabled:
            state.theme_KU[:, came] = config.day_intent.sd * luck.normals_by_page(
                key[active], _THEME, len(world)
            )
        self.next_ms[rows] = _FOREVER
        self.next_ms[came] = self._first_ms(came, luck.pair(key[active], _RATE)[1], rate[active])
        active[active] = self.next_ms[came] != _FOREVER
        return active

    def _first_ms(self, rows: np.ndarray, u: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """(B,) UTC ms of the first entry: that of a Poisson process along the tide, given that there is one."""
        world = self.world
        midnight = world.day_start_ms(self.day[rows], self.users.utc_offset_min[rows])
        ready_ms = self.state.last_exit_ms[rows] + self._rest_ms
        busy_h = np.clip((ready_ms - midnight) / _HOUR_MS, 0.0, 23.9)
        begun = world.tide_before(busy_h)
        wait = -np.log1p(-u * -np.expm1(-rate * (1 - begun))) / rate
        hour = world.tide_hour(np.minimum(begun + wait, 1 - 1e-9))
        first_ms = np.maximum(midnight + (hour * _HOUR_MS).astype(np.int64), ready_ms)
        # a session that began the day before may have filled this one
        return np.where(first_ms < midnight + DAY_MS, first_ms, _FOREVER)

    def entries(self) -> Entries | None:
        """All users' next entries of their days; None when the days are over."""
        if self._entries is None:
            rows = np.flatnonzero(self.next_ms != _FOREVER)
            if not len(rows):
                return None
            self._entries = self._make_entries(rows)
        return self._entries

    def _make_entries(self, rows: np.ndarray) -> Entries:
        world, config, users, state = self.world, self.world.config, self.users, self.state
        entry_ms, offset, step = self.next_ms[rows], users.utc_offset_min[rows], self.step[rows]
        key = luck.child_keys(self.day_key[rows], step)
        local_ms = entry_ms + offset * 60_000
        hour = local_ms // _HOUR_MS % 24
        weekend = (local_ms // DAY_MS + 3) % 7 >= 5
        logits = users.preference_KU[:, rows] + world.hour_phase_HK.T[:, hour]
        logits += world.weekend_logit[:, None] * weekend
        if config.day_intent.enabled:
            logits += state.theme_KU[:, rows]
        if config.satiation.enabled:
            logits -= config.satiation.logit * state.felt_satiation(rows, entry_ms)
        if config.unfinished.enabled:
            logits += config.unfinished.logit * state.unfinished_KU[:, rows]
        live, push = self._context(rows, hour, key)
        if config.live.enabled:
            logits += world.live[:, None] * np.log1p(live)
        pushed = np.flatnonzero(push >= 0)
        logits[push[pushed], pushed] += config.push.logit
        situation = make_situation(world, logits, users.dwell_KU[:, rows], state.multi_today[rows], step)
        return Entries(
            rows=rows,
            user_id=users.user_id[rows],
            user_hash=users.hash[rows],
            day=self.day[rows],
            step=step,
            entry_ms=entry_ms,
            utc_offset_min=offset,
            hour=hour,
            live_followed=live,
            push=push,
            key=key,
            situation=situation,
        )

    def _context(self, rows: np.ndarray, hour: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) live broadcasts (Poisson, at most 9) and (B,) page pushed or -1."""
        world, config = self.world, self.world.config
        live = np.zeros(len(rows), dtype=np.int64)
        push = np.full(len(rows), -1, dtype=np.int64)
        u_live, u_push = luck.pair(key, _LIVE)
        if config.live.enabled:
            mean = self.users.live_rate[rows] * world.hour_rate[hour]
            term = np.exp(-mean)
            below = term.copy()
            for count in range(1, _MOST_LIVE + 1):
                live += u_live >= below
                term *= mean / count
                below += term
        if config.push.enabled:
            pushed = np.flatnonzero(u_push < config.push.share)
            which = u_push[pushed] / config.push.share
            push[pushed] = (which[:, None] >= world.push_cdf[:-1]).sum(axis=1)
        return live, push

    def land(self, page: np.ndarray, propensity: np.ndarray | None = None) -> Sessions:
        """Lets all waiting users land on the given pages and live through their sessions.

        Args:
            page: (B,) positions in the catalogue, in the order of `entries()`.
            propensity: (B,) probability with which each was chosen.

        Raises:
            ValueError: no entries wait, or the pages are of another number or outside the catalogue.
        """
        entries = self.entries()
        if entries is None or page.shape != (len(entries),):
            waiting = 0 if entries is None else len(entries)
            raise ValueError(
                f"{waiting} entries wait for a landing page, pages of shape {page.shape} were given"
            )
        if len(page) and (page.min() < 0 or page.max() >= len(self.world)):
            raise ValueError(
                f"pages lie between 0 and {len(self.world) - 1}, given were {page.min()} to {page.max()}"
            )
        drawn = walk.draw(self.world, entries.situation, page, entries.key)
        use_ms = drawn.use_ms
        exit_ms = entries.entry_ms + use_ms
        u_next, u_break = luck.pair(entries.key, _NEXT)
        self.state.after(entries.rows, exit_ms, drawn, u_break)
        self._schedule(entries, exit_ms, u_next)
        self._entries = None
        landing_ms = drawn.dwell_ms_PB[0]
        return Sessions(
            entries=entries,
            landing=page.astype(np.int16),
            propensity=np.full(len(page), np.nan) if propensity is None else propensity,
            walk=drawn,
            exit_ms=exit_ms,
            use_ms=use_ms,
            landing_ms=landing_ms,
            count=(drawn.pages_PB >= 0).sum(axis=0),
            dropped=landing_ms < self.world.config.visits.effective_s * 1000,
        )

    def _schedule(self, entries: Entries, exit_ms: np.ndarray, u: np.ndarray) -> None:
        """The next entry of the day of each user, if there is one: the tide goes faster in the evening after a boost."""
        world, rows = self.world, entries.rows
        midnight = world.day_start_ms(entries.day, entries.utc_offset_min)
        ready_ms = exit_ms + self._rest_ms
        hour = (ready_ms - midnight) / _HOUR_MS
        evening = float(world.tide_before(np.array(world.config.returning.evening_hour)))
        gain = np.expm1(np.maximum(self.state.boost[rows], _CALMEST))
        passed = world.tide_before(hour)
        passed += gain * np.maximum(passed - evening, 0.0) - np.log(u) / self.state.rate_today[rows]
        passed = np.where(passed > evening, (passed + gain * evening) / (1 + gain), passed)
        ahead_ms = midnight + (world.tide_hour(passed) * _HOUR_MS).astype(np.int64)
        more = (passed < 1) & (hour < 24) & (entries.step + 1 < world.config.entries.most)
        next_ms = np.maximum(ahead_ms, ready_ms)
        more &= next_ms < midnight + DAY_MS
        self.next_ms[rows] = np.where(more, next_ms, _FOREVER)
        self.step[rows] += 1


def copied(simulation: Simulation, *others: Any, shared: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """A simulation, and what else keeps state of its users, with states of their own.

    The world, its users and what is in `shared` never change and stay one.
    """
    memo = {id(thing): thing for thing in (simulation.world, simulation.users, *shared)}
    return copy.deepcopy((simulation, *others), memo)


Sink = Callable[[Sessions], None]


def run_days(simulation: Simulation, days: int, chooser: Chooser, *sinks: Sink) -> None:
    """Lives through the next `days` days; every batch of sessions goes to the chooser and to all sinks."""
    for _ in range(days):
        simulation.begin_day()
        while (entries := simulation.entries()) is not None:
            choice = chooser.choose(simulation, entries)
            sessions = simulation.land(choice.page, choice.propensity)
            chooser.observe(simulation, sessions)
            for sink in sinks:
                sink(sessions)
