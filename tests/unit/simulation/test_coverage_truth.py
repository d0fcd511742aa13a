"""The truth per decision, and the logs kept in memory: against what happens, and against the tables' own features."""

from __future__ import annotations

import numpy as np
import pytest

from plpm_ray.simulation import walk
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.coverage_logs import simulate_log
from plpm_ray.simulation.coverage_targets import Regression, Target, TargetConfig
from plpm_ray.simulation.coverage_truth import Ratio, truths
from plpm_ray.simulation.simulation import Simulation, run_days
from plpm_ray.simulation.world import World

BEFORE = 2


@pytest.fixture(scope="module")
def world() -> World:
    return World(load_world("kuaishou"))


def target(world: World, **section) -> Target:
    return Target(TargetConfig.model_validate(section), world)


def test_the_truth_per_decision_is_the_mean_over_every_pages_own_session(world: World) -> None:
    users = np.arange(1500)
    policies = [target(world, builtin="random"), target(world, page="explore")]
    known = truths(world, policies, users, BEFORE, 1, 1.0)
    simulation, logging = Simulation(world, users), LoggingPolicy()
    run_days(simulation, BEFORE, logging)
    simulation.begin_day()
    use_KU, count = np.zeros((len(world), len(users))), np.zeros(len(users))
    while (entries := simulation.entries()) is not None:
        for page in range(len(world)):
            landing = np.full(len(entries), page)
            drawn = walk.draw(world, entries.situation, landing, entries.key)
            use_KU[page, entries.rows] += drawn.use_ms / 1000
        count[entries.rows] += 1
        simulation.land(logging.choose(simulation, entries).page)
    for truth, use_U in zip(known, (use_KU.mean(axis=0), use_KU[world.pages.index("explore")]), strict=True):
        happened = Ratio.of(use_U, count)
        # the same users and entries: what differs is the luck within their sessions, less than all luck together
        assert truth.decision.n == happened.n
        assert abs(truth.decision.value - happened.value) < 3 * happened.standard_error


def test_a_log_holds_what_the_policy_knew_and_did(world: World) -> None:
    log = simulate_log(world, np.arange(60), BEFORE, 2)
    held, moment = log.decisions, log.moment
    rows = np.arange(len(held))
    assert set(log.day) == {BEFORE, BEFORE + 1}
    np.testing.assert_allclose(moment.logging.sum(axis=1), 1)
    np.testing.assert_allclose(moment.logging[rows, held.action], held.propensity)
    today = held.features.column("today_entries")
    # a session that went on past midnight counts on the day on which it ended
    assert set(today - held.step) <= {0.0, 1.0} and (today == held.step).mean() > 0.9
    for episode in np.unique(held.episode)[:20]:
        mine = held.episode == episode
        assert len(set(held.user[mine])) == 1 and len(set(log.day[mine])) == 1
        assert sorted(held.step[mine]) == list(range(mine.sum()))
    part = log.of_days(BEFORE + 1, BEFORE + 1)
    assert len(part.decisions) == len(part.moment) == (log.day == BEFORE + 1).sum()


def test_targets_are_distributions_and_shares_are_left_to_the_logging_policy(world: World) -> None:
    log = simulate_log(world, np.arange(80), BEFORE, 1)
    regression = Regression.of(log, len(world))
    sections = (
        {"builtin": "logging"},
        {"builtin": "random"},
        {"builtin": "regression", "policy": {"kind": "softmax", "temperature": 50.0}},
        {"builtin": "myopic_oracle"},
        {"page": "following"},
        {"navigator": "heuristic.most_frequent", "policy": {"kind": "epsilon", "epsilon": 0.2}},
    )
    for section in sections:
        whole = Target(TargetConfig.model_validate(section), world, regression).probabilities(log.moment)
        np.testing.assert_allclose(whole.sum(axis=1), 1)
        half = TargetConfig.model_validate({**section, "logged_share": 0.5})
        mixed = Target(half, world, regression).probabilities(log.moment)
        np.testing.assert_allclose(mixed, (whole + log.moment.logging) / 2)


def test_a_target_is_one_thing() -> None:
    for section in ({}, {"page": "following", "builtin": "random"}):
        with pytest.raises(ValueError, match="exactly one"):
            TargetConfig.model_validate(section)
