"""`plpm simulate uplift`: learners trained on the trial's users stand beside the ridge models, and mistakes are told early."""

from __future__ import annotations

from pathlib import Path

import pytest

from plpm_ray.core.errors import ConfigError
from plpm_ray.simulation import uplift_run
from plpm_ray.simulation.uplift_run import UpliftRunConfig, run_uplift

TINY = {"users": 400, "warmup_days": 2, "trial_days": 1, "replicates": 1, "draws": 2}


def config(tmp_path: Path, **more) -> UpliftRunConfig:
    return UpliftRunConfig.model_validate({**TINY, "run_root": str(tmp_path), **more})


def test_learners_are_judged_by_the_trial_and_by_the_truth(tmp_path: Path) -> None:
    learners = ["reference.s_learner", {"name": "klan.isp", "experts": 2}]
    training = {"epochs": 2, "batch_size": 64, "device": "cpu", "patience": 1}
    result = run_uplift(config(tmp_path, learners=learners, training=training))
    names = ["true effects", "reference.s_learner", "klan.isp, experts 2"]
    assert result["models"] == [*names, "T-learner (ridge)", "S-learner (ridge)", "average effect"]
    mine = {r["metric"] for r in result["rows"] if r["model"] == "klan.isp, experts 2"}
    assert {"qini", "pehe", "regret", "policy_value_true", "policy_value_dr"} <= mine


def test_without_learners_the_ridge_models_are_left(tmp_path: Path) -> None:
    models = run_uplift(config(tmp_path, learners=[]))["models"]
    assert models == ["true effects", "T-learner (ridge)", "S-learner (ridge)", "average effect"]


def test_wrong_learners_are_told_before_the_world_is_simulated(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(uplift_run, "_report", None)
    with pytest.raises(ConfigError, match="unknown learner 'klan.ips'"):
        run_uplift(config(tmp_path, learners=["klan.ips"]))
    with pytest.raises(ConfigError, match="does not predict responses of the arms"):
        run_uplift(config(tmp_path, learners=["klan.iit"]))
    with pytest.raises(ConfigError, match="exprts"):
        run_uplift(config(tmp_path, learners=[{"name": "klan.isp", "exprts": 2}]))
