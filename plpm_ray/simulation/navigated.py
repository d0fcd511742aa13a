"""Navigators in the world: bundles and heuristics choose pages through the feature code and the policy of serving."""

from __future__ import annotations

import time

import numpy as np

from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import RawFeatures
from plpm_ray.navigators.base import Navigator
from plpm_ray.policies.base import Choice, Policy, PolicyConfig
from plpm_ray.simulation.online import OnlineFeatures, outcome
from plpm_ray.simulation.simulation import Entries, Sessions, Simulation
from plpm_ray.simulation.world import World

_ROWS = 4096  # decisions at once, as in serving


class NavigatorChooser:
    """One navigator and one policy over the online states of a simulation's users.

    Args:
        world: the world.
        navigator: its pages must be the world's.
        policy: how pages are drawn; greedy by default.
        online: what is known of the users already; it is kept up to date. By default nothing.

    Attributes:
        decisions, cpu_s: how many were made, and the CPU seconds of features, scores and draws, and of the state of the day.
    """

    def __init__(
        self,
        world: World,
        navigator: Navigator,
        policy: PolicyConfig | None = None,
        online: OnlineFeatures | None = None,
    ) -> None:
        if tuple(navigator.pages.names) != tuple(world.pages.names):
            raise ConfigError(
                f"{navigator.name} was made for the pages {list(navigator.pages.names)}, "
                f"the world {world.config.name!r} has {list(world.pages.names)}",
                hint="train it on logs of this world, or name the world it was trained in",
            )
        self.world, self.navigator, self.policy = world, navigator, Policy(policy)
        self.name = navigator.name
        self.decisions, self.cpu_s = 0, 0.0
        self._online = online
        self._nav = np.zeros((0, 0), dtype=np.float32)
        self._nav_day = np.zeros(0, dtype=np.int64)
        # of the entries that were decided last: what they were decided from is what they are observed with
        self._decided: tuple[Entries | None, list[RawFeatures]] = None, []

    def _begin(self, simulation: Simulation) -> OnlineFeatures:
        if self._online is None:
            self._online = OnlineFeatures(self.world, simulation.users.profile())
        if len(self._nav_day) != len(simulation):
            size = self.navigator.state_size
            self._nav = np.zeros((len(simulation), size), dtype=np.float32)
            self._nav_day = np.full(len(simulation), -1, dtype=np.int64)
        return self._online

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        begun = time.process_time()
        online = self._begin(simulation)
        self._decided = entries if self.navigator.state_size else None, []
        parts = [
            self._choose(online, entries.take(np.arange(at, min(at + _ROWS, len(entries)))))
            for at in range(0, len(entries), _ROWS)
        ]
        self.cpu_s += time.process_time() - begun
        self.decisions += len(entries)
        return Choice(
            *(np.concatenate([getattr(p, f) for p in parts]) for f in ("page", "propensity", "probabilities"))
        )

    def _choose(self, online: OnlineFeatures, entries: Entries) -> Choice:
        features = online.features(entries, self.navigator.reads_days)
        if self.navigator.state_size:
            self._decided[1].append(features)
        scores = self.navigator.scores(features, self._day_state(entries))
        return self.policy.draw(scores, entries.user_hash, entries.entry_ms)

    def _day_state(self, entries: Entries) -> np.ndarray | None:
        """(B, state_size) the navigator's numbers of this local day, zeros on a new one."""
        if not self.navigator.state_size:
            return None
        new = self._nav_day[entries.rows] != entries.day
        self._nav[entries.rows[new]] = 0.0
        self._nav_day[entries.rows[new]] = entries.day[new]
        return self._nav[entries.rows]

    def observe(self, simulation: Simulation, sessions: Sessions) -> None:
        online = self._begin(simulation)
        if self.navigator.state_size:
            begun, came = time.process_time(), outcome(self.world, sessions)
            for at in range(0, len(sessions), _ROWS):
                self._day_goes_on(
                    online, sessions.entries, came, np.arange(at, min(at + _ROWS, len(sessions)))
                )
            self.cpu_s += time.process_time() - begun
            self._decided = None, []
        online.observe(sessions)

    def _day_goes_on(
        self, online: OnlineFeatures, entries: Entries, came: dict[str, np.ndarray], rows: np.ndarray
    ) -> None:
        part = entries.take(rows)
        held = self._day_state(part)
        assert held is not None
        asked, made = self._decided
        known = asked is entries
        features = made[rows[0] // _ROWS] if known else online.features(part, self.navigator.reads_days)
        outcomes = {name: values[rows] for name, values in came.items()}
        self._nav[part.rows] = self.navigator.observe(held, features, outcomes)
