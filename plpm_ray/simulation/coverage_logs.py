"""Simulated logs as evaluation reads them, kept in memory: what was known at each decision, and what came of it.

Features are those of serving (`simulation.online`), taken at decision time. Letters: U users, B batch, N rows, K pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from plpm_ray.core.feature_fitting import fitted_spec
from plpm_ray.core.features import FeatureSpec, RawFeatures
from plpm_ray.evaluation.held_out import Decisions
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.simulation.simulation import Entries, Sessions, Simulation
from plpm_ray.simulation.walk import expected
from plpm_ray.simulation.world import World


@dataclass(frozen=True)
class Moment:
    """N decisions as they stand: what any policy may be asked about them.

    Attributes:
        features: visible.
        logging: (N, K) float64 probabilities of the logging policy.
        use_s: (N, K) float64 expected seconds of the session for each landing page: the hidden truth.
    """

    features: RawFeatures
    logging: np.ndarray
    use_s: np.ndarray

    def __len__(self) -> int:
        return len(self.logging)


@dataclass(frozen=True)
class Log:
    """N logged decisions of consecutive days.

    Attributes:
        decisions: as evaluation reads them from tables.
        moment: the same rows with the logging policy's probabilities and the hidden truth.
        day: (N,) int64, days since the world's first.
    """

    decisions: Decisions
    moment: Moment
    day: np.ndarray

    def of_days(self, first: int, last: int) -> Log:
        """The rows of the days from `first` to `last`, both included."""
        rows = np.flatnonzero((self.day >= first) & (self.day <= last))
        held = self.decisions
        arrays = {f.name: getattr(held, f.name)[rows] for f in fields(Decisions) if f.name != "features"}
        features = held.features.take(rows)
        return Log(
            Decisions(features=features, **arrays),
            Moment(features, self.moment.logging[rows], self.moment.use_s[rows]),
            self.day[rows],
        )

    def fit_spec(self) -> FeatureSpec:
        """The encoder fitted on these rows."""
        return fitted_spec(self.decisions.features)


class Life:
    """Users of a world, with the features that the app keeps of them.

    Attributes:
        simulation, online: the hidden world and what is known of it.
    """

    def __init__(self, world: World, user_id: np.ndarray) -> None:
        self.world = world
        self.simulation = Simulation(world, user_id)
        self.online = OnlineFeatures(world, self.simulation.users.profile())
        self._logging = LoggingPolicy()

    def log_days(self, days: int, sink: Callable[[Moment, Sessions], None] | None = None) -> None:
        """The next days under the logging policy.

        Args:
            sink: told of every batch of decisions and sessions; without one no features are formed.
        """
        for _ in range(days):
            self.simulation.begin_day()
            while (entries := self.simulation.entries()) is not None:
                moment = None if sink is None else self.moment(entries)
                choice = self._logging.choose(self.simulation, entries)
                sessions = self.land(choice.page, choice.propensity)
                if sink is not None and moment is not None:
                    sink(moment, sessions)

    def moment(self, entries: Entries) -> Moment:
        """What stands at the given entries."""
        return Moment(
            self.online.features(entries),
            self._logging.probabilities(self.simulation, entries).T,
            expected(self.world, entries.situation).use_KB.T,
        )

    def land(self, page: np.ndarray, propensity: np.ndarray | None = None) -> Sessions:
        """Lets the waiting users land, and notes their sessions."""
        sessions = self.simulation.land(page, propensity)
        self.online.observe(sessions)
        return sessions


def simulate_log(world: World, user_id: np.ndarray, before: int, days: int) -> Log:
    """Logs of `days` days under the logging policy, after `before` days of it that are not kept."""
    life = Life(world, user_id)
    life.log_days(before)
    kept: list[tuple[Moment, Sessions]] = []
    life.log_days(days, lambda moment, sessions: kept.append((moment, sessions)))
    return _joined(kept)


def _joined(kept: list[tuple[Moment, Sessions]]) -> Log:
    def column(make: Callable[[Sessions], np.ndarray]) -> np.ndarray:
        return np.concatenate([make(sessions) for _, sessions in kept])

    features = RawFeatures.concat([moment.features for moment, _ in kept])
    day = column(lambda s: s.entries.day)
    decisions = Decisions(
        features=features,
        action=column(lambda s: s.landing.astype(np.int64)),
        use_s=column(lambda s: s.use_ms / 1000),
        user=column(lambda s: s.entries.user_hash.view(np.int64)),
        episode=column(lambda s: s.entries.rows) * (int(day.max(initial=0)) + 1) + day,
        step=column(lambda s: s.entries.step),
        propensity=column(lambda s: s.propensity),
    )
    truth = Moment(
        features,
        np.concatenate([moment.logging for moment, _ in kept]),
        np.concatenate([moment.use_s for moment, _ in kept]),
    )
    return Log(decisions, truth, day)
