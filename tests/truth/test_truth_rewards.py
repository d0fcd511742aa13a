"""HRM's reward against the true worth of landing decisions, which the world knows: better than the length of the session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.tables import build_transitions
from plpm_ray.evaluation.assess import SESSION, held_out
from plpm_ray.evaluation.rank_correlation import clustered_spearman, spearman_gain
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.simulation.dataset import WorldLogsConfig
from plpm_ray.simulation.worth import decision_worths
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train

LEARN, JUDGE, DAYS = 400, 100, 6


def logs(world: str, first: int, users: int) -> dict[str, Any]:
    return {
        "world": world,
        "first_user": first,
        "users": users,
        "days": DAYS,
        "warmup_days": 2,
        "policy": "logging",
    }


def tables(root: Path, section: dict[str, Any]) -> Warehouse:
    made = {"dataset": {"name": "world", **section}, "output": str(root), "n_buckets": 1}
    ingest(IngestConfig.model_validate(made))
    warehouse = Warehouse.open(root)
    build_transitions(warehouse)
    return warehouse


@pytest.mark.parametrize("world", ["kuaishou", "hard"])
def test_the_reward_ranks_decisions_better_than_the_duration_does(world: str, tmp_path: Path) -> None:
    learned = tables(tmp_path / "learn", logs(world, 0, LEARN))
    asked = logs(world, LEARN, JUDGE)
    judged = tables(tmp_path / "judge", asked)
    training = TrainingConfig.model_validate({"epochs": 8, "batch_size": 512, "lr": 3e-3})
    run = train("glan.hrm", {}, training, learned.root, learned.transitions.days(), run_dir=tmp_path / "hrm")
    bundle = load_bundle(run.bundle_path)
    rows = held_out(bundle.learner(), SESSION, judged, bundle.spec, judged.transitions.days())
    found = judged.transitions.read(0, None, ["session_id"])
    assert found is not None
    users = np.arange(LEARN, LEARN + JUDGE)
    worth = decision_worths(WorldLogsConfig.model_validate(asked), users).of(found["session_id"].to_numpy())
    reward, duration = rows.of("reward"), rows.columns["use_s"]
    for truth in (worth.over_mean_s, worth.under_best_s):
        gain = spearman_gain(reward, duration, truth, rows.user)
        assert gain.low > 0, gain
    # in part only: what a session came to is mostly luck
    assert 0.3 < clustered_spearman(reward, worth.over_mean_s, rows.user).value < 0.9
