"""Twins: what they are under a policy is what an experiment with twins says, and nothing that is run changes them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from plpm_ray.core.storage import read_parquet
from plpm_ray.navigators.heuristics import LongestUse
from plpm_ray.simulation.arms import world_stats
from plpm_ray.simulation.choosers import FixedPage, LoggingPolicy
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.experiment import ExperimentConfig, run_experiment
from plpm_ray.simulation.navigated import NavigatorChooser
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.simulation.twins import CONTROL, Twins
from plpm_ray.simulation.world import World

USERS, FIRST = 60, 1_000_000_000


@pytest.fixture(scope="module")
def twins() -> Twins:
    return Twins(World(load_world("kuaishou")), FIRST + np.arange(USERS), 2, 2, 2)


def longest(world: World):
    navigator = LongestUse(LongestUse.Config(), world.pages, world_stats(world.config))
    return lambda online: NavigatorChooser(world, navigator, None, online)


def test_they_are_the_users_of_an_experiment_with_twins(twins: Twins, tmp_path: Path):
    config = {"world": "kuaishou", "design": "twins", "users": USERS, "first_user": FIRST}
    days = {"warmup_days": 2, "aa_days": 2, "ab_days": 2}
    arms = [{"builtin": "logging"}, {"navigator": "heuristic.longest_use", "label": "longest"}]
    raw = {**config, **days, "arms": arms, "run_root": str(tmp_path)}
    result = run_experiment(ExperimentConfig.model_validate(raw))
    users = read_parquet(Path(result["run"]) / "users.parquet")
    assert users.slice(0, USERS).equals(twins.control)
    assert users.slice(USERS).equals(twins.run(longest(twins.world), "longest"))


def test_the_logging_policy_again_is_the_control_itself(twins: Twins):
    again = twins.run(lambda online: LoggingPolicy(), CONTROL)
    assert again.equals(twins.control)


def test_a_run_changes_nothing_for_the_next(twins: Twins):
    before = twins.run(longest(twins.world), "a")
    twins.run(lambda online: FixedPage(twins.world, 1), "b")
    assert twins.run(longest(twins.world), "a").equals(before)
    assert pickle.loads(pickle.dumps(twins)).run(longest(twins.world), "a").equals(before)


def test_what_came_before_is_the_same_under_every_policy(twins: Twins):
    other = twins.run(lambda online: FixedPage(twins.world, 2), "b")
    same = ["user_id", *(name for name in other.column_names if name.startswith("aa_"))]
    assert other.select(same).equals(twins.control.select(same))
    assert not other["ab_use_s"].equals(twins.control["ab_use_s"])


def test_the_chooser_knows_what_had_been_before(twins: Twins):
    seen: list[OnlineFeatures] = []

    def keep(online: OnlineFeatures) -> LoggingPolicy:
        seen.append(online)
        return LoggingPolicy()

    twins.run(keep, "a")
    assert any(seen[0].states[name].any() for name in seen[0].states.dtype.names or ())
