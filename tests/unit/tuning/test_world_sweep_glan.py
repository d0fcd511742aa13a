"""Sweeps of GLAN in a small world: what depends on a changed part is trained again, all else is the bundle's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plpm_ray.cli import configs
from plpm_ray.cli.navigators import train_navigator
from plpm_ray.core.config import load_config, read_config, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.data.contract import Warehouse
from plpm_ray.navigators.bundle import Bundle, load_bundle
from plpm_ray.training.data import REWARD_COLUMNS
from plpm_ray.tuning.world import WorldSweepConfig
from plpm_ray.tuning.world_prepare import prepare_world
from plpm_ray.tuning.world_run import sweep_world
from plpm_ray.tuning.world_subject import open_subject
from plpm_ray.tuning.world_trial import WorldPlace
from tests.sweep_world import build_tables
from tests.world_sweeps import TRAINING, build_glan, world_sweep

REPO = Path(__file__).resolve().parents[3]
TAU, CONTEXT = {"hrm.tau_s": None}, {"dt.context": {"choices": [4, 8]}}
EPSILON = {"lrtg.epsilon_se": None, "navigator.rtg_multiplier": None}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    return build_tables(tmp_path_factory.mktemp("tables") / "demo", users=120, days=5)


@pytest.fixture(scope="module")
def glan(tables: Path, tmp_path_factory) -> Path:
    return build_glan(tables, tmp_path_factory.mktemp("glan"))


def place_of(tables: Path, bundle: Path, folder: Path, search: dict[str, Any], **changes: Any) -> WorldPlace:
    config = world_sweep(tables, bundle, folder, search=search, **changes)
    return WorldPlace(prepare_world(open_subject(config))[0])


def versions(bundle: Bundle) -> dict[str, str]:
    return {role: part.version for role, part in bundle.parts.items()}


def reward_tables(tables: Path) -> set[str]:
    return {folder.name for folder in (tables / "rewards").iterdir()}


def test_a_new_reward_model_makes_a_new_transformer(tables: Path, glan: Path, tmp_path: Path):
    before = reward_tables(tables)
    place, kept = place_of(tables, glan, tmp_path, TAU), versions(load_bundle(glan))
    assert set(place.task.parts) == {"hrm", "dt"}
    assert not set(REWARD_COLUMNS) & set(place.task.parts["dt"].tables[""].columns)
    one, two = (versions(place.bundle({"hrm.tau_s": tau})) for tau in (5.0, 20.0))
    assert one["lrtg"] == two["lrtg"] == kept["lrtg"]
    assert len({one["hrm"], two["hrm"], kept["hrm"]}) == len({one["dt"], two["dt"], kept["dt"]}) == 3
    assert place.trained == 4
    place.bundle({"hrm.tau_s": 5.0})
    assert place.trained == 4
    assert reward_tables(tables) == before  # a trial's rewards are in memory


def test_the_transformer_alone_learns_from_the_rewards_of_the_bundle(
    tables: Path, glan: Path, tmp_path: Path
):
    before = reward_tables(tables)
    place, kept = place_of(tables, glan, tmp_path, CONTEXT), versions(load_bundle(glan))
    assert set(place.task.parts) == {"dt"}
    trained = place.bundle({"dt.context": 4})
    assert versions(trained) == {**kept, "dt": trained.parts["dt"].version} != kept
    assert trained.parts["dt"].config["context"] == 4 and trained.navigator().state_size > 0
    # where the bundle stands, its own training comes to its own weights: same table, same seed
    assert versions(place.bundle({"dt.context": 8})) == kept
    assert reward_tables(tables) == before


def test_the_return_to_go_is_trained_alone(tables: Path, glan: Path, tmp_path: Path):
    place, kept = place_of(tables, glan, tmp_path, EPSILON), versions(load_bundle(glan))
    assert set(place.task.parts) == {"lrtg"}
    made = place.bundle({"lrtg.epsilon_se": 0.6, "navigator.rtg_multiplier": 2.0})
    assert versions(made) == {**kept, "lrtg": made.parts["lrtg"].version} != kept
    assert made.config["rtg_multiplier"] == 2.0
    place.bundle({"lrtg.epsilon_se": 0.6, "navigator.rtg_multiplier": 1.0})
    assert place.trained == 1


def test_a_transformer_of_durations_among_the_choices(tables: Path, glan: Path, tmp_path: Path):
    search = {"dt.reward": {"choices": ["hrm", "duration"]}, "hrm.switch_weight": None}
    place = place_of(tables, glan, tmp_path, search)
    plain = [
        place.bundle({"dt.reward": "duration", "hrm.switch_weight": weight}).parts["dt"]
        for weight in (0.5, 5.0)
    ]
    assert plain[0].version == plain[1].version and plain[0].stats.reward_s is None
    of_hrm = place.bundle({"dt.reward": "hrm", "hrm.switch_weight": 5.0}).parts["dt"]
    assert of_hrm.stats.reward_s is not None and place.trained == 4


@pytest.mark.parametrize("search", [TAU, CONTEXT, EPSILON, {**TAU, **CONTEXT}])
def test_the_best_point_is_a_config_that_makes_the_very_navigator(
    tables: Path, glan: Path, tmp_path: Path, search: dict[str, Any]
):
    config = world_sweep(tables, glan, tmp_path, search=search, trainings={"dt": {**TRAINING, "lr": 3e-3}})
    result = sweep_world(config)
    assert result.best is not None and result.summary["failed"] == 0
    source = read_config(result.run_dir / "best.yaml")
    made = train_navigator(validate(configs.TrainRunConfig, source), source)
    wanted = WorldPlace(prepare_world(open_subject(config))[0]).bundle(result.best.params)
    assert load_bundle(made.bundle_path).version == wanted.version


def test_what_cannot_be_is_refused(tables: Path, glan: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="'glan' has no part 'td'"):
        open_subject(world_sweep(tables, glan, tmp_path, search=TAU, trainings={"td": TRAINING}))
    with pytest.raises(ConfigError, match="how long a part is trained"):
        search = {"dt.training.epochs": {"low": 1, "high": 3}}
        open_subject(world_sweep(tables, glan, tmp_path, search=search))
    plain = build_glan(tables, tmp_path / "plain", dt={"reward": "duration"})
    with pytest.raises(ConfigError, match=r"search\.hrm\.tau_s: no part learns from the rewards of 'hrm'"):
        open_subject(world_sweep(tables, plain, tmp_path, search=TAU))
    assert set(open_subject(world_sweep(tables, plain, tmp_path, search=CONTEXT)).trained) == {"dt"}


@pytest.mark.parametrize(
    ("name", "searched", "trained"),
    [
        ("glan_world", ("navigator.rtg_multiplier", "navigator.caution"), ()),
        ("glan_reward", ("hrm.tau_s", "hrm.switch_weight"), ("dt", "hrm")),
        ("glan_rtg", ("lrtg.epsilon_se", "lrtg.epsilon_rel", "navigator.rtg_multiplier"), ("lrtg",)),
        ("glan_context", ("dt.context",), ("dt",)),
    ],
)
def test_the_yaml_that_comes_along_is_valid(tables: Path, glan: Path, name: str, searched, trained):
    here = [f"tables={tables}", f"bundle={glan}", "split={valid_days: 1, test_days: 1}"]
    config = load_config(WorldSweepConfig, REPO / "tune" / f"{name}.yaml", here)
    subject = open_subject(config)
    assert subject.space.names == searched and subject.trained == trained
    assert subject.world.seed not in config.final_seeds and config.constraints.epef is not None


def test_rewards_in_memory_are_those_beside_the_transitions(tables: Path, glan: Path, tmp_path: Path):
    ours = place_of(tables, glan, tmp_path, TAU)
    theirs = place_of(tables, glan, tmp_path, CONTEXT).task.parts["dt"]
    kept = load_bundle(glan).parts["hrm"]
    judged = ours.rewards_of("hrm", kept, torch.device("cpu"))
    assert judged.total == theirs.reward_s
    for name in REWARD_COLUMNS:
        assert (judged.columns[name].numpy() == theirs.tables[""].columns[name]).all()
    assert Warehouse.open(tables).rewards(kept.version).days()
