"""Training on whole days with Ray Train: workers whose batches hold unlike many sessions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plpm_ray.data.fit import fit_spec
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.navigators.glan.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.evaluate import evaluate
from plpm_ray.training.job import build_learner
from plpm_ray.training.run import TrainResult, train
from plpm_ray.training.trajectories import TrajectoryTable
from tests.joined_shards import fit_joined
from tests.training_tables import make_warehouse

LEARNER = {"reward": "duration", "width": 16, "layers": 1, "state_hidden": [8]}
TRAINING = {"epochs": 2, "batch_size": 32, "lr": 3e-3, "device": "cpu", "num_threads": 1}


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    return make_warehouse(tmp_path_factory.mktemp("trajectories") / "warehouse", users=60)


def go(warehouse, root: Path, **training) -> TrainResult:
    days = warehouse.transitions.days()
    config = TrainingConfig(**(TRAINING | {"workers": 2, "cpus_per_worker": 0.5} | training))
    return train(
        "glan.dt", LEARNER, config, warehouse.root, days[:4], days[4:], root, notify=lambda text: None
    )


def test_two_workers_take_the_mean_over_all_their_sessions(ray_session, warehouse, tmp_path):
    result = go(warehouse, tmp_path)
    days = tuple(warehouse.transitions.days())
    spec, stats = fit_spec(warehouse, days[:4])
    needs = Needs.of(DecisionTransformer, DecisionTransformerConfig(reward="duration"))
    source = TableSource(warehouse.root, days[:4], spec, needs)
    parts = source.parts()
    shards = [TrajectoryTable.of(source.load(share)) for share in (parts[:2], parts[2:])]
    learner = build_learner(DecisionTransformer, LEARNER, spec, warehouse.info.pages, stats, 0)
    alone = fit_joined(learner, shards, TrainingConfig(**TRAINING))
    assert (alone.steps, alone.samples) == (result.steps, result.samples)
    assert result.history[-1]["train/loss"] == pytest.approx(alone.history[-1]["train/loss"], rel=1e-5)
    weights = load_bundle(result.bundle_path).weights
    for name, weight in learner.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-5)
    wanted = evaluate(learner, TableSource(warehouse.root, days[4:], spec, needs).load())
    assert result.metrics == pytest.approx(wanted, rel=1e-4)


def test_a_stream_of_days_is_read_by_ray_data(ray_session, warehouse, tmp_path):
    streamed = go(warehouse, tmp_path, data={"mode": "stream", "window_rows": 150})
    assert streamed.steps == 2 * -(-60 * 4 // 32) and streamed.metrics["rows"] > 60
