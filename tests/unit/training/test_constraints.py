"""Runs of learners of days and of ended sessions: a run under constraints says whether they hold, and draws them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.tables import build_transitions
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.constraints import constraint_plot
from plpm_ray.training.run import TrainResult, train
from tests.world_logs import world_logs


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    root = tmp_path_factory.mktemp("world") / "tables"
    ingest(IngestConfig(dataset=world_logs(60, 8), output=str(root), n_buckets=2))  # type: ignore[arg-type]
    found = Warehouse.open(root)
    build_transitions(found)
    return found


def go(warehouse: Warehouse, learner: str, root: Path, config: dict | None = None) -> TrainResult:
    days = warehouse.transitions.days()
    training = TrainingConfig(epochs=3, batch_size=64, device="cpu", log_every=2)
    return train(learner, config or {}, training, warehouse.root, days[:6], days[6:], root)


def test_a_run_under_constraints_says_whether_they_hold(warehouse, tmp_path):
    result = go(warehouse, "glan.lrtg", tmp_path, {"epsilon_se": 1e-3, "epsilon_rel": 50.0})
    found = read_json(result.run_dir / "summary.json")["constraints"]
    assert found["se"]["lambda"] > 0 and not found["se"]["holds"]
    assert found["rel"]["lambda"] == 0 and found["rel"]["holds"]
    for name, constraint in found.items():
        excess = result.metrics[f"excess_{name}"]
        assert constraint.pop("valid") == pytest.approx(excess + constraint["bound"])
        assert constraint.pop("holds_valid") == (excess <= 0.05 * constraint["bound"])
    # what the bundle holds is what was said
    bundle = load_bundle(result.bundle_path)
    assert bundle.learner().constraints() == found
    records = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["train/lambda_se"] > records[0]["train/lambda_se"] >= 0
    assert "valid/excess_se" in records[-1]
    drawing = ET.fromstring((result.run_dir / "constraints.svg").read_bytes())
    text = " ".join(drawing.itertext())
    assert drawing.tag.endswith("svg") and {"se", "rel"} <= set(text.split())


def test_a_run_without_constraints_says_nothing_of_any(warehouse, tmp_path):
    result = go(warehouse, "glan.hrm", tmp_path)
    assert "constraints" not in read_json(result.run_dir / "summary.json")
    assert not (result.run_dir / "constraints.svg").exists()
    assert {"brier", "log_loss", "drop_off"} < result.metrics.keys()
    assert np.isfinite(list(result.metrics.values())).all()


def test_the_drawing_takes_the_steps_in_order_and_the_epochs_only_where_there_is_nothing_else():
    constraint = {"se": {"bound": 0.5}}
    epoch = {"step": 4, "train/se": 0.9, "train/lambda_se": 0.1, "samples_per_s": 1.0}
    steps = [{"step": s, "train/se": 0.2 * s, "train/lambda_se": 0.1} for s in (4, 2)]
    assert constraint_plot([*steps, epoch], constraint) == constraint_plot(steps[::-1], constraint)
    assert constraint_plot([epoch], constraint) != constraint_plot(steps, constraint)
