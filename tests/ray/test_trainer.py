"""Training on Ray: the numbers of one process, killed workers, clear errors; one undisturbed run serves all tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from plpm_ray.core.errors import ConfigError, DataError, StorageError
from plpm_ray.core.registry import load_plugins
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.evaluate import evaluate
from plpm_ray.training.job import build_learner
from plpm_ray.training.run import TrainResult, train
from tests.joined_shards import fit_joined
from tests.training_tables import make_warehouse

PLUGIN = str(Path(__file__).with_name("killed_learner_plugin.py"))
TRAINING = {"epochs": 3, "batch_size": 128, "lr": 3e-3, "workers": 2, "num_threads": 1, "device": "cpu"}
Train = Callable[..., TrainResult]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory) -> Warehouse:
    return make_warehouse(tmp_path_factory.mktemp("trainer") / "warehouse", users=100)


@pytest.fixture(scope="module")
def quick_polls() -> Iterator[None]:
    """Ray Train's controller looks for reports every 2 s, for which a checkpoint waits; here more often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        yield


@pytest.fixture(scope="module")
def go(ray_session, quick_polls, warehouse) -> Train:
    days = warehouse.transitions.days()
    fitted = fit_spec(warehouse, days[:4])

    def run(
        root: Path = warehouse.root, marker: str = "", training: dict | None = None, **more
    ) -> TrainResult:
        config = TrainingConfig(**(TRAINING | {"checkpoint_every_steps": 5} | (training or {})))
        runs = warehouse.root.parent / "runs"
        learner = {"hidden": [16], "marker": marker}
        named = {"plugins": [PLUGIN], "fitted": fitted, "notify": lambda text: None, **more}
        return train("test.killed", learner, config, root, days[:4], days[4:], runs, "run", **named)

    return run


@pytest.fixture(scope="module")
def undisturbed(go) -> TrainResult:
    return go()


def numbers(result: TrainResult) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "samples_per_s"} for record in result.history]


def test_two_workers_equal_one_process_on_the_joined_batch(undisturbed, warehouse):
    load_plugins([PLUGIN])
    bundle = load_bundle(undisturbed.bundle_path)
    cls = type(bundle.learner())
    days = tuple(warehouse.transitions.days())
    source = TableSource(warehouse.root, days[:4], bundle.spec, Needs.of(cls, cls.Config()))
    parts = source.parts()
    shards = [source.load(parts[:2]), source.load(parts[2:])]
    learner = build_learner(cls, {"hidden": [16]}, bundle.spec, bundle.pages, bundle.stats, 0)
    result = fit_joined(learner, shards, TrainingConfig(**(TRAINING | {"workers": 0})))
    assert result.steps == undisturbed.steps and result.samples == undisturbed.samples
    for name, weight in learner.state_dict().items():
        torch.testing.assert_close(bundle.weights[name], weight, rtol=1e-3, atol=1e-5)
    valid = TableSource(warehouse.root, days[4:], bundle.spec, source.needs).load()
    wanted = evaluate(learner, valid)
    assert undisturbed.metrics == pytest.approx(wanted, rel=1e-4)


def test_a_killed_worker_changes_nothing(go, undisturbed, tmp_path):
    """SIGKILL in the middle of an epoch: the group restarts from the last checkpoint and ends in the same numbers."""
    marker = tmp_path / "killed"
    killed = go(marker=str(marker))
    assert marker.exists()
    assert killed.metrics == undisturbed.metrics
    assert numbers(killed) == numbers(undisturbed)
    assert (killed.steps, killed.samples) == (undisturbed.steps, undisturbed.samples)
    first, second = load_bundle(undisturbed.bundle_path), load_bundle(killed.bundle_path)
    assert all(torch.equal(weight, second.weights[name]) for name, weight in first.weights.items())
    steps = [json.loads(line)["step"] for line in (killed.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_finished_run_is_not_trained_again(go, undisturbed):
    again = go()
    assert again.finished_before and again.metrics == undisturbed.metrics


def test_another_config_does_not_resume_a_run(go, undisturbed):
    with pytest.raises(ConfigError, match=r"another config \(differs in training.lr\)"):
        go(training={"lr": 0.1}, run_dir=undisturbed.run_dir)


def test_a_damaged_file_is_named(go, tmp_path):
    damaged = make_warehouse(tmp_path / "warehouse", users=100)
    file = next((damaged.root / "transitions").rglob("bucket=002.parquet"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"bucket=002\.parquet cannot be read as Parquet"):
        go(root=damaged.root)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_once(go, tmp_path):
    """Rank 0's error ends all workers with our message, and the group is not started again."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-000000005").write_text("in the way")
    with pytest.raises(StorageError, match="step-000000005"):
        go(run_dir=tmp_path / "run")


@pytest.mark.slow
def test_a_stream_is_read_by_ray_data(go):
    result = go(training={"data": {"mode": "stream", "window_rows": 150}, "epochs": 1})
    assert result.epochs == 1 and result.metrics["rows"] > 0
