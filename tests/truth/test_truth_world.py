"""The order of policies in the shipped worlds, the propensities of their logs, and that a warmed-up world stands still."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from plpm_ray.simulation.choosers import FarSightedOracle, LoggingPolicy, MyopicOracle, RandomPage
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.simulation import Chooser, Sessions, Simulation, run_days
from plpm_ray.simulation.world import World


@dataclass
class Lived:
    """Of each user: seconds of use, active days, sessions and drop-offs."""

    use_s: np.ndarray
    days: np.ndarray
    sessions: np.ndarray
    drop_offs: np.ndarray

    @property
    def pdr(self) -> float:
        return self.drop_offs.sum() / self.sessions.sum()


def lived(world: World, chooser: Chooser, users: int, warmup: int, days: int) -> Lived:
    """After some days of the same policy."""
    simulation = Simulation(world, np.arange(users))
    run_days(simulation, warmup, chooser)
    found = Lived(*np.zeros((4, users)))

    def count(s: Sessions) -> None:
        rows = s.entries.rows
        found.use_s[rows] += s.use_ms / 1000
        found.days[rows] += s.entries.step == 0
        found.sessions[rows] += 1
        found.drop_offs[rows] += s.dropped

    run_days(simulation, days, chooser, count)
    return found


def gain(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """Mean difference by user over the mean, and its z."""
    difference = high - low
    return difference.mean() / low.mean(), difference.mean() / (difference.std() / np.sqrt(len(difference)))


@pytest.mark.parametrize(("name", "least"), [("kuaishou", 0.0), ("five_pages", 0.01), ("hard", 0.02)])
def test_random_below_logging_below_myopic_below_far_sighted(name: str, least: float) -> None:
    world = World(load_world(name))
    choosers = (RandomPage(), LoggingPolicy(), MyopicOracle(), FarSightedOracle())
    random, logged, myopic, far = (lived(world, c, 1000, 3, 8) for c in choosers)
    for low, high in ((random, logged), (logged, myopic)):
        relative, z = gain(low.use_s, high.use_s)
        assert relative > 0.01 and z > 3
        assert low.pdr > 1.2 * high.pdr
        assert high.days.sum() > low.days.sum()
    relative, z = gain(myopic.use_s, far.use_s)
    assert relative > least - 0.004 and (least == 0.0 or z > 3)
    # the far-sighted one lets users come back more often
    assert gain(myopic.sessions, far.sessions)[1] > 3
    if name == "kuaishou":
        assert 0.04 < gain(random.use_s, far.use_s)[0] < 0.12 and 0.15 < logged.pdr < 0.3


@pytest.mark.parametrize("name", ["kuaishou", "five_pages", "hard"])
def test_logged_pages_are_as_frequent_as_their_propensities_say(name: str) -> None:
    world = World(load_world(name))
    chooser, k = LoggingPolicy(), len(world)
    probabilities, landed = [], []
    simulation = Simulation(world, np.arange(1500))
    for _ in range(4):
        simulation.begin_day()
        while (entries := simulation.entries()) is not None:
            choice = chooser.choose(simulation, entries)
            np.testing.assert_allclose(choice.probabilities.sum(axis=1), 1.0)
            np.testing.assert_allclose(choice.probabilities, chooser.probabilities(simulation, entries).T)
            at = choice.probabilities[np.arange(len(entries)), choice.page]
            np.testing.assert_array_equal(choice.propensity, at)
            probabilities.append(choice.probabilities)
            landed.append(simulation.land(choice.page, choice.propensity).landing)
    probs, page = np.concatenate(probabilities), np.concatenate(landed)
    assert probs.min() >= world.config.logging.explore / k - 1e-12
    # the page that the rules name is one of k, so that there are k distributions at most
    kinds, kind = np.unique(probs.round(9), axis=0, return_inverse=True)
    assert 2 <= len(kinds) <= k
    statistic = 0.0
    for i, expected in enumerate(kinds):
        of_kind = page[kind.ravel() == i]
        statistic += stats.chisquare(np.bincount(of_kind, minlength=k), expected * len(of_kind)).statistic
    assert stats.chi2.sf(statistic, len(kinds) * (k - 1)) > 1e-4


def test_a_warmed_up_world_stands_still() -> None:
    world = World(load_world("kuaishou"))
    simulation, policy, users = Simulation(world, np.arange(1000)), LoggingPolicy(), 1000
    run_days(simulation, 14, policy)
    weeks = []
    for _ in range(4):
        use, active = np.zeros(users), np.zeros(users)

        def count(s: Sessions, use: np.ndarray = use, active: np.ndarray = active) -> None:
            use[s.entries.rows] += s.use_ms / 1000
            active[s.entries.rows] += s.entries.step == 0

        run_days(simulation, 7, policy, count)
        weeks.append((use, active))
    for measure in (0, 1):
        change, z = gain(weeks[0][measure] + weeks[1][measure], weeks[2][measure] + weeks[3][measure])
        assert abs(change) < 0.03 and abs(z) < 4
    satisfaction = simulation.state.satisfaction.mean()
    assert satisfaction == pytest.approx(world.config.retention.reference, abs=0.02)


def test_users_on_several_pages_are_active_on_more_days() -> None:
    """KLAN fig. 2a."""
    world = World(load_world("kuaishou"))
    found = lived(world, LoggingPolicy(), 2000, 0, 7)
    multi = Simulation(world, np.arange(2000)).users.multi
    assert found.days[multi].mean() > found.days[~multi].mean() + 0.15
