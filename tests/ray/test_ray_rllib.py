"""RLlib on the world and on tables: runs end in bundles that score exactly as RLlib's own modules do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plpm_ray.core.storage import read_json, read_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.simulation.encoding import WorldFeatures
from plpm_ray.simulation.episodes import LandingTask, UserEpisodes
from plpm_ray.simulation.judge import Judge
from plpm_ray.simulation.rllib_config import RLlibConfig
from tests.sweep_world import build_tables

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]
SMALL = {"hidden": [16, 8]}
ONLINE = {
    "dqn": {**SMALL, "steps_per_iteration": 200, "learning_starts": 100, "batch_size": 32},
    "ppo": {**SMALL, "batch_size": 256, "minibatch_size": 128, "epochs": 2},
}
OFFLINE = {"batch_size": 256, "updates_per_iteration": 5, **SMALL}
OPTIONS = {**ONLINE, "bc": OFFLINE, "marwil": OFFLINE}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    return build_tables(tmp_path_factory.mktemp("rllib") / "tables", users=60, days=4)


def config(name: str, folder: Path, tables: Path, **changes: Any) -> RLlibConfig:
    raw: dict[str, Any] = {
        "name": name,
        "run_root": str(folder),
        "world": "kuaishou",
        "algorithm": {"name": name, **OPTIONS[name]},
        "environment": {"warmup_days": 1},
        "iterations": 2,
        "envs_per_runner": 8,
        "evaluation_users": 40,
    }
    if name not in ONLINE:
        raw |= {"tables": str(tables), "split": {"valid_days": 1, "test_days": 0}}
    return RLlibConfig.model_validate(raw | changes)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_run_ends_in_a_bundle_that_equals_the_module(name, tables, tmp_path, monkeypatch):
    from ray.rllib.core import DEFAULT_MODULE_ID

    from plpm_ray.simulation import ray_rllib

    outputs: dict[str, Any] = {}
    episodes = UserEpisodes(LandingTask.of("kuaishou", warmup_days=1), 32)
    episodes.begin(np.arange(32))
    raw = episodes.online.features(episodes.simulation.entries())  # pyright: ignore[reportArgumentType]

    def spied(algorithm, *arguments):
        learner = real(algorithm, *arguments)
        encoder = arguments[1].spec.encode(raw)
        batch = {"dense": torch.from_numpy(encoder.dense), "cat": torch.from_numpy(encoder.cat).long()}
        (module,) = algorithm.learner_group.foreach_learner(lambda learner: learner.module[DEFAULT_MODULE_ID])
        with torch.no_grad():
            seen = {"obs": learner.observations(batch)}
            outputs["inference"] = module.get().unwrapped().forward_inference(seen)
            outputs["q"] = (
                module.get().unwrapped().compute_q_values(seen)["qf_preds"] if name == "dqn" else None
            )
        return learner

    real = ray_rllib.export
    monkeypatch.setattr(ray_rllib, "export", spied)
    settings = config(name, tmp_path, tables)
    result = ray_rllib.train_rllib(settings)
    navigator = load_bundle(Path(result["run"]) / "bundle").navigator()
    with torch.no_grad():
        mine = navigator.learner.outputs(navigator.inputs(raw))  # pyright: ignore[reportAttributeAccessIssue]
    if name == "dqn":
        assert torch.equal(mine, outputs["q"])
        assert torch.equal(mine.argmax(1), outputs["inference"]["actions"])
    else:
        assert torch.equal(mine, outputs["inference"]["action_dist_inputs"])
    assert mine.std() > 0

    run = Path(result["run"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2] and np.isfinite(lines[-1]["total_loss"])
    assert lines[-1]["rows_trained"] > lines[0]["rows_trained"]
    assert read_json(run / "summary.json") == {k: v for k, v in result.items() if k != "run"}
    task = LandingTask.of(
        "kuaishou", WorldFeatures(navigator.spec, load_bundle(run / "bundle").stats), warmup_days=1
    )  # pyright: ignore[reportAttributeAccessIssue]
    judged = Judge(task, 40, ray_rllib._JUDGE_SEED).judge(navigator)
    assert judged == result["evaluation"] and not (run / "offline").exists()
    told: list[str] = []
    assert ray_rllib.train_rllib(settings, told.append) == result and "finished before" in told[0]


def test_same_seed_same_network(tables, tmp_path):
    from plpm_ray.simulation.ray_rllib import train_rllib

    runs = [
        train_rllib(config("dqn", tmp_path / str(i), tables, seed=seed)) for i, seed in enumerate((1, 1, 2))
    ]
    versions = [run["version"] for run in runs]
    assert versions[0] == versions[1] != versions[2]


def test_environment_runners_of_their_own(tables, tmp_path):
    """One actor; the second one that is asked for has no room beside the tests' two CPUs."""
    from plpm_ray.simulation.ray_rllib import train_rllib

    told: list[str] = []
    result = train_rllib(
        config("ppo", tmp_path, tables, num_env_runners=2, num_cpus_per_env_runner=2.0, iterations=1),
        told.append,
    )
    assert told == ["the cluster has 2 CPUs: 1 of 2 environment runners start"]
    assert result["training"]["env_steps"] >= 256


def test_logged_columns_are_the_transitions(tables, tmp_path):
    from plpm_ray.core.feature_columns import unpack
    from plpm_ray.core.features import RawFeatures
    from plpm_ray.simulation.encoding import ObservationEncoder
    from plpm_ray.simulation.ray_rllib_offline import write_columns

    warehouse = Warehouse.open(tables)
    days = tuple(warehouse.transitions.days()[:2])
    features = WorldFeatures(*fit_spec(warehouse, days))
    logged = write_columns(tables, days, features, tmp_path, gamma=0.5, scale_s=100.0, seed=0)
    rows, values = 0, []
    for bucket, path in enumerate(logged.files):
        written, table = read_parquet(path), warehouse.transitions.read(bucket, days)
        assert table is not None
        order = np.lexsort((written["t"].to_numpy(), written["eps_id"].to_numpy()))
        obs = ObservationEncoder(features.spec).encode(RawFeatures.from_table(features.spec.schema, table))
        assert np.array_equal(unpack(written["obs"])[order], obs)
        assert np.array_equal(written["actions"].to_numpy()[order], table["landing_page"].to_numpy())
        assert np.array_equal(written["terminateds"].to_numpy()[order], table["done"].to_numpy())
        value, wanted = 0.0, []
        for use_s, done in list(zip(table["use_s"].to_numpy(), table["done"].to_numpy(), strict=True))[::-1]:
            value = use_s / 100 + (0.0 if done else 0.5 * value)
            wanted.append(value)
        np.testing.assert_allclose(written["value_targets"].to_numpy()[order], wanted[::-1], rtol=1e-5)
        rows, values = rows + len(table), values + wanted
    assert logged.rows == rows and logged.return_variance == pytest.approx(np.var(values), rel=1e-3)


def test_runners_that_a_cluster_has_room_for():
    from plpm_ray.simulation.ray_rllib_algorithms import fit_runners

    asked = config("ppo", Path("runs"), Path("tables"), num_env_runners=8, num_cpus_per_env_runner=0.75)
    told: list[str] = []
    assert fit_runners(asked, told.append, [{"CPU": 2.0}, {"CPU": 1.0}, {}]) == 3
    assert (
        fit_runners(asked, told.append, [{"CPU": 16.0}]) == 8 and fit_runners(asked, told.append, [{}]) == 8
    )
    assert told == ["the cluster has 3 CPUs: 3 of 8 environment runners start"]
