"""Users side by side, each on days of its own: what the environments for reinforcement learning step through.

An episode is one user on one day (or some days in a row), on which the user comes. Before it the user lived through a
warm-up under the logging policy, so that the features have a history. A warm-up takes many more sessions than an episode,
so a user serves for several episodes, each of which begins at the end of that warm-up with another luck.

Users are drawn from a stream of random numbers that belongs to a slot, and everything else is a function of the user and
the episode's number, so that a slot meets the same episodes whatever runs beside it.

Letters: n slots, B waiting entries, M users that a slot goes through in turns, U users.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plpm_ray.core.errors import ConfigError
from plpm_ray.core.hashing import splitmix64
from plpm_ray.simulation import luck
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import WorldConfig, load_world
from plpm_ray.simulation.encoding import (
    ObservationEncoder,
    WorldFeatures,
    fit_features,
    read_features,
)
from plpm_ray.simulation.online import OnlineFeatures, world_schema
from plpm_ray.simulation.population import Users
from plpm_ray.simulation.simulation import Entries, Sessions, Simulation
from plpm_ray.simulation.world import PROFILE, World

WEEK = 7
FIRST_USER_BIT = 42
"""Users of episodes have numbers from 2^42 to 2^43: those of logs and experiments are never trained on here."""

BLOCK_USERS, BLOCK_ROUNDS = 8, 16
"""A slot goes through a block of so many users so many times; then come others."""

_NEVER = np.iinfo(np.int64).max
_NUMBER = np.uint64(0xD6E8FEB86659FD93)


class SlotSimulation(Simulation):
    """A simulation into whose rows users of another one can be put, with all their state."""

    def place(self, rows: np.ndarray, source: Simulation, source_rows: np.ndarray) -> None:
        """Puts the users of `source_rows` (B,) of another simulation into `rows` (B,) of this one."""
        for mine, theirs in ((self.users, source.users), (self.state, source.state), (self, source)):
            for name, values in vars(theirs).items():
                if isinstance(values, np.ndarray):
                    getattr(mine, name)[..., rows] = values[..., source_rows]
        self._entries = None

    def copy(self) -> SlotSimulation:
        """The same users at the same moment; who they are is shared, what happens to them is not."""
        other = SlotSimulation(self.world, self.users.user_id, users=self.users)
        for mine, theirs in ((other.state, self.state), (other, self)):
            for name, values in vars(theirs).items():
                if isinstance(values, np.ndarray):
                    setattr(mine, name, values.copy())
        return other


class SlotFeatures(OnlineFeatures):
    """Online states in rows, as those of a `SlotSimulation`."""

    def place(self, rows: np.ndarray, source: OnlineFeatures, source_rows: np.ndarray, users: Users) -> None:
        """Puts states of another simulation into `rows`; `users` are those of this one, as they are now."""
        self.states[rows] = source.states[source_rows]
        profile = users.profile()
        self._profile = {name: profile[name].combine_chunks() for name in PROFILE}


@dataclass(frozen=True)
class LandingTask:
    """What the environments are about: the world, how it is observed, and what an episode is.

    Attributes:
        world: the world.
        features: encoder and totals.
        encoder: of observations.
        horizon_days: days of an episode; 1 is the user-day of the papers.
        warmup_days: days under the logging policy before an episode; up to six more, so that it begins on any weekday.
        reward_scale_s: seconds that give a reward of 1.
    """

    world: World
    features: WorldFeatures
    encoder: ObservationEncoder
    horizon_days: int
    warmup_days: int
    reward_scale_s: float

    @classmethod
    def of(
        cls,
        world: str | dict[str, Any] | WorldConfig = "kuaishou",
        features: str | WorldFeatures | None = None,
        horizon_days: int = 1,
        warmup_days: int = 14,
        reward_scale_s: float | None = None,
    ) -> LandingTask:
        """The task from the arguments of an environment; see `LandingPageEnv`.

        Raises:
            ConfigError: unknown world, or features that are not this world's.
            ValueError: a number is out of bounds.
        """
        if horizon_days < 1 or warmup_days < 0 or (reward_scale_s is not None and not reward_scale_s > 0):
            raise ValueError(
                "horizon_days is at least 1, warmup_days at least 0, and reward_scale_s positive"
            )
        config = world if isinstance(world, WorldConfig) else load_world(world)
        made = World(config)
        if features is None:
            features = fit_features(config)
        elif not isinstance(features, WorldFeatures):
            features = read_features(features, world_schema(made), config.name)
        if features.spec.schema != world_schema(made):
            raise ConfigError(
                f"the features are those of other pages or columns than the world {config.name!r} has",
                hint="take tables made from logs of this world, or judge in the world that they come from",
            )
        scale = features.stats.mean_use_s if reward_scale_s is None else float(reward_scale_s)
        return cls(made, features, ObservationEncoder(features.spec), horizon_days, warmup_days, scale)


class UserEpisodes:
    """n slots, each of which plays one episode after the other.

    Attributes:
        simulation: row i is the user of slot i; its waiting entries are those of slots in the middle of an episode.
        online: features of the slots' users.
    """

    def __init__(self, task: LandingTask, n: int) -> None:
        self.task = task
        self.simulation, self.online = _empty(task.world, n)
        self._last_day = np.zeros(n, dtype=np.int64)
        # two blocks a slot: the next one is prepared while the first is in use, for all slots together
        self._reservoir, self._kept = _empty(task.world, n * 2 * BLOCK_USERS)
        self._stream = np.zeros(n, dtype=np.uint64)
        self._episode, self._blocks = np.zeros((2, n), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.simulation)

    def seed(self, slots: np.ndarray, streams: np.ndarray) -> None:
        """Gives slots (B,) the streams of users (B,) that they take from now on; their next episode is the first of it."""
        self._stream[slots] = streams.astype(np.uint64)
        self._episode[slots] = self._blocks[slots] = 0

    def begin(self, slots: np.ndarray) -> None:
        """Begins the next episode of slots (B,), none twice: users who do not come on their day are passed over."""
        simulation, waiting = self.simulation, slots
        taken = np.zeros(len(self), dtype=np.int64)
        while len(waiting):
            block, position = np.divmod(self._episode[waiting], BLOCK_USERS * BLOCK_ROUNDS)
            if (block == self._blocks[waiting]).any():
                self._prepare()
            taken[waiting] = rows = _rows(waiting, block) + position % BLOCK_USERS
            simulation.place(waiting, self._reservoir, rows)
            # another luck from here on; days have numbers from 0 on, so negative ones are free
            simulation.users.key[waiting] = luck.child_keys(simulation.users.key[waiting], -1 - position)
            self._episode[waiting] += 1
            waiting = waiting[~simulation.begin_day(waiting)]
        self.online.place(slots, self._kept, taken[slots], simulation.users)
        self._last_day[slots] = simulation.day[slots] + self.task.horizon_days - 1

    def _prepare(self) -> None:
        """Warms up the next block of every slot that has no block ahead of the one in use."""
        slots = np.flatnonzero(self._blocks <= self._episode // (BLOCK_USERS * BLOCK_ROUNDS) + 1)
        each = np.arange(BLOCK_USERS)
        number = (self._blocks[slots, None] * BLOCK_USERS + each).ravel()
        stream = np.repeat(self._stream[slots], BLOCK_USERS)
        prepared, online = warmed_up(self.task.world, *draw_users(stream, number, self.task.warmup_days))
        rows = (_rows(slots, self._blocks[slots])[:, None] + each).ravel()
        self._reservoir.place(rows, prepared, np.arange(len(rows)))
        self._kept.states[rows] = online.states
        self._blocks[slots] += 1

    def entries(self) -> Entries | None:
        """Entries that wait for a page, `rows` are their slots; None where no episode is under way."""
        return self.simulation.entries()

    def observations(self) -> np.ndarray:
        """(n, W) float32 encoded features of the slots' waiting entries, zeros where none waits."""
        out = np.zeros((len(self), self.task.encoder.width), dtype=np.float32)
        entries = self.entries()
        if entries is not None:
            out[entries.rows] = self.task.encoder.encode(self.online.features(entries))
        return out

    def land(self, pages: np.ndarray) -> Sessions:
        """Lets the waiting users land on pages (B,); an episode of several days goes on to the next one on which they come."""
        return land_on(self.simulation, self.online, pages, self._last_day)

    def ended(self, slots: np.ndarray) -> np.ndarray:
        """(B,) bool, slots whose episode is over."""
        return self.simulation.next_ms[slots] == _NEVER


def draw_users(stream: np.ndarray, number: np.ndarray, warmup_days: int) -> tuple[np.ndarray, np.ndarray]:
    """The `number`-th users (B,) of streams (B,) uint64, and the day (B,) of the world on which their episodes begin."""
    drawn = splitmix64(stream + number.astype(np.uint64) * _NUMBER)
    user_id = (drawn >> np.uint64(64 - FIRST_USER_BIT)).astype(np.int64) + (1 << FIRST_USER_BIT)
    return user_id, warmup_days + (drawn % np.uint64(WEEK)).astype(np.int64)


def warmed_up(world: World, user_id: np.ndarray, days: np.ndarray) -> tuple[SlotSimulation, OnlineFeatures]:
    """Users (U,) who have each lived through their first `days` (U,) days under the logging policy, and their online states."""
    simulation = SlotSimulation(world, user_id)
    online, policy = OnlineFeatures(world, simulation.users.profile()), LoggingPolicy()
    rows = np.arange(len(user_id))
    while True:
        while len(
            rows := rows[(simulation.next_ms[rows] == _NEVER) & (simulation.day[rows] + 1 < days[rows])]
        ):
            simulation.begin_day(rows)
        entries = simulation.entries()
        if entries is None:
            return simulation, online
        online.observe(simulation.land(policy.choose(simulation, entries).page))
        rows = entries.rows


def land_on(
    simulation: Simulation, online: OnlineFeatures, pages: np.ndarray, last_day: np.ndarray
) -> Sessions:
    """Lets the waiting users land on pages (B,), and takes those on whose day is over, up to their `last_day` (U,)."""
    sessions = simulation.land(pages)
    online.observe(sessions)
    rows = sessions.entries.rows
    while True:
        idle = rows[simulation.next_ms[rows] == _NEVER]
        rows = idle[simulation.day[idle] < last_day[idle]]
        if not len(rows):
            return sessions
        simulation.begin_day(rows)


Choose = Callable[[Simulation, Entries, OnlineFeatures], np.ndarray]


@dataclass(frozen=True)
class Returns:
    """Outcomes of E episodes: use_s (E,) seconds in the app, sessions (E,)."""

    use_s: np.ndarray
    sessions: np.ndarray

    @property
    def mean_s(self) -> float:
        """Seconds an episode."""
        return float(self.use_s.mean())


class Cohort:
    """Users after their warm-up, whose episodes can be played again and again: the same luck whatever chooses the pages.

    Args:
        task: the world and what an episode is.
        users: how many are drawn (6 KB each); episodes are those of them who come.
        seed: which ones.
    """

    def __init__(self, task: LandingTask, users: int, seed: int) -> None:
        stream = splitmix64(np.full(users, seed, dtype=np.uint64))
        user_id, day = draw_users(stream, np.arange(users), task.warmup_days)
        self._simulation, self._online = warmed_up(task.world, user_id, day)
        self._came = self._simulation.begin_day()
        self._last_day = day + task.horizon_days - 1

    def play(self, choose: Choose) -> Returns:
        """Outcomes of E episodes.

        Args:
            choose: (simulation, B entries, online states of the users) -> (B,) pages.
        """
        simulation, online = self._simulation.copy(), copy.copy(self._online)
        online.states = self._online.states.copy()
        use_ms, sessions = np.zeros((2, len(self._came)), dtype=np.int64)
        while (entries := simulation.entries()) is not None:
            ended = land_on(simulation, online, choose(simulation, entries, online), self._last_day)
            use_ms[entries.rows] += ended.use_ms
            sessions[entries.rows] += 1
        return Returns(use_ms[self._came] / 1000, sessions[self._came])


def _rows(slots: np.ndarray, block: np.ndarray) -> np.ndarray:
    """(B,) first row of the reservoir of the given blocks of slots."""
    return (slots * 2 + block % 2) * BLOCK_USERS


def _empty(world: World, n: int) -> tuple[SlotSimulation, SlotFeatures]:
    """Rows that wait for users."""
    simulation = SlotSimulation(world, np.arange(n))
    return simulation, SlotFeatures(world, simulation.users.profile())
