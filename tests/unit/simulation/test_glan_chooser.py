"""GLAN in the world and behind the service's engine: the same decisions for the same users, over days and midnights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from plpm_ray.core.config import ConfigSource
from plpm_ray.core.errors import BundleError, ConfigError
from plpm_ray.core.feature_fitting import fitted_spec
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.bundle import Bundle, save_bundle
from plpm_ray.navigators.glan.glan import GLAN
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.engine import load_policy
from plpm_ray.simulation.arms import ArmConfig, check_arm, make_chooser, world_stats
from plpm_ray.simulation.choosers import RandomPage
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.coverage_logs import simulate_log
from plpm_ray.simulation.coverage_targets import Target, TargetConfig
from plpm_ray.simulation.episodes import LandingTask
from plpm_ray.simulation.judge import Judge
from plpm_ray.simulation.logs import SessionLog
from plpm_ray.simulation.navigated import NavigatorChooser
from plpm_ray.simulation.online import context_columns
from plpm_ray.simulation.simulation import Entries, Simulation
from plpm_ray.simulation.world import World

USERS, DAYS = 40, 3
POLICY = PolicyConfig(kind="proportional")


@pytest.fixture(scope="module")
def world() -> World:
    return World(load_world("kuaishou"))


@pytest.fixture(scope="module")
def bundle(world: World) -> Bundle:
    """GLAN with random weights, large enough for every input to matter."""
    spec = fitted_spec(simulate_log(world, np.arange(1000, 1060), 1, 2).decisions.features)
    counts = np.random.default_rng(0).integers(1, 12, 300)
    stats = world_stats(world.config)
    stats = replace(
        stats, day_totals=TableStats.days(counts, counts * stats.mean_use_s), reward_s=0.8 * stats.use_s
    )
    parts = {}
    for seed, (role, config) in enumerate({"lrtg": {}, "hrm": {}, "dt": {"width": 16, "context": 4}}.items()):
        torch.manual_seed(seed)
        cls = lookup("learner", f"glan.{role}")
        learner = cls(cls.Config(**config), spec, world.pages, stats)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        parts[role] = Bundle.of_learner(learner, spec, world.pages, stats)
    return Bundle("navigator", "glan", {}, world.pages, spec, stats, parts=parts)


def as_table(world: World, entries: Entries) -> pa.Table:
    columns = {"user_id": entries.user_id, "entry_time": entries.entry_ms}
    columns["utc_offset_min"] = entries.utc_offset_min
    return pa.table(columns | context_columns(world, entries.live_followed, entries.push))


def test_the_world_and_the_engine_decide_alike(world: World, bundle: Bundle) -> None:
    simulation = Simulation(world, np.arange(USERS))
    chooser = NavigatorChooser(world, bundle.navigator(), POLICY)
    served = load_policy(bundle, POLICY, users=simulation.users.profile())
    log, seen, later = SessionLog(world, USERS, ["glan"]), 0, 0
    for _ in range(DAYS):
        simulation.begin_day()
        while (entries := simulation.entries()) is not None:
            choice = chooser.choose(simulation, entries)
            decided = served.decide(as_table(world, entries))
            probabilities = np.array(decided["probabilities"].to_pylist())
            np.testing.assert_allclose(probabilities, choice.probabilities, rtol=0, atol=1e-4)
            assert (decided["page_index"].to_numpy() == choice.page).mean() > 0.99
            assert decided["fallback"].null_count == len(entries.rows)
            sessions = simulation.land(choice.page, choice.propensity)
            chooser.observe(simulation, sessions)
            log(sessions)
            assert served.observe(log.table()) == len(entries.rows)
            seen, later = seen + len(entries.rows), later + int((entries.step >= 4).sum())
    assert seen > 200 and later > 20
    assert chooser.decisions == seen


def test_the_past_of_a_day_matters_and_ends_with_it(world: World, bundle: Bundle) -> None:
    simulation, random = Simulation(world, np.arange(USERS)), RandomPage()
    chooser = NavigatorChooser(world, bundle.navigator(), POLICY)
    simulation.begin_day()
    while (entries := simulation.entries()) is not None:
        chooser.choose(simulation, entries)
        sessions = simulation.land(random.choose(simulation, entries).page)
        chooser.observe(simulation, sessions)
    assert chooser._nav[:, 0].max() > 4
    simulation.begin_day()
    entries = simulation.entries()
    assert entries is not None
    state = chooser._day_state(entries)
    assert state is not None and not state.any()


def test_what_asks_about_single_decisions_refuses_a_state_of_the_day(
    world: World, bundle: Bundle, tmp_path: Path
) -> None:
    path = save_bundle(bundle, tmp_path / "glan")
    with pytest.raises(ConfigError, match="every decision is asked about alone"):
        Target(TargetConfig(bundle=str(path)), world)
    judge = Judge(LandingTask.of("kuaishou"), 5)
    with pytest.raises(ConfigError, match="keeps a state of the day"):
        judge.play(bundle.navigator())
    with pytest.raises(BundleError, match="lrtg, hrm, dt"):
        GLAN(GLAN.Config(), world.pages, bundle.stats)


def test_what_was_decided_from_is_what_is_observed_with(world: World, bundle: Bundle) -> None:
    """Features are made once for an entry; where others decided, anew, to the same state of the day."""
    chooser, told = (NavigatorChooser(world, bundle.navigator(), POLICY) for _ in range(2))
    simulation = Simulation(world, np.arange(USERS))
    simulation.begin_day()
    made = 0
    while (entries := simulation.entries()) is not None:
        page = chooser.choose(simulation, entries).page
        online, calls = chooser._begin(simulation), []
        whole = online.features
        online.features = lambda *given, whole=whole, calls=calls: calls.append(1) or whole(*given)
        sessions = simulation.land(page)
        chooser.observe(simulation, sessions)
        online.features = whole
        told.observe(simulation, sessions)
        assert not calls and np.array_equal(chooser._nav, told._nav)
        made += len(sessions)
    assert made > USERS


@pytest.mark.parametrize("role", ["lrtg", "hrm"])
def test_a_part_that_says_numbers_is_no_arm(world: World, bundle: Bundle, tmp_path: Path, role: str) -> None:
    arm = ArmConfig(bundle=str(save_bundle(bundle.parts[role], tmp_path / role)))
    with pytest.raises(BundleError, match="chooses no pages"):
        check_arm(world.config, arm, (), ConfigSource({}, "config", {}, {}), ("arms", 0))
    with pytest.raises(BundleError, match="chooses no pages"):
        make_chooser(world, arm)
