from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from plpm_ray.core.errors import ConfigError, StorageError
from plpm_ray.core.storage import read_json
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.job import plugins_identity
from plpm_ray.training.loop import Loop
from plpm_ray.training.run import TrainResult, train
from tests.training_tables import make_warehouse


@pytest.fixture
def warehouse(tmp_path):
    return make_warehouse(tmp_path / "warehouse")


def go(warehouse, learner="klan.iit", config=None, notify=lambda text: None, **training) -> TrainResult:
    days = warehouse.transitions.days()
    more = {k: training.pop(k) for k in ("run_dir", "name", "plugins", "valid") if k in training}
    valid = more.pop("valid", days[4:])
    settings = {"epochs": 3, "batch_size": 64, "device": "cpu"} | training
    return train(
        learner,
        {"hidden": [16], **(config or {})},
        TrainingConfig(**settings),
        warehouse.root,
        days[:4],
        valid,
        warehouse.root.parent / "runs",
        notify=notify,
        **more,
    )


def test_a_run_leaves_config_metrics_bundle_and_summary(warehouse):
    result = go(warehouse, name="first")
    assert result.run_dir.name.startswith("first-") and not result.resumed and not result.finished_before
    records = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2, 3]
    summary = read_json(result.run_dir / "summary.json")
    assert summary["status"] == "finished" and summary["metrics"] == result.metrics
    bundle = load_bundle(result.bundle_path)
    assert bundle.metrics == result.metrics and bundle.data["train_days"][0] == "2024-03-01"
    assert bundle.version == summary["version"]
    assert len(list((result.run_dir / "checkpoints").iterdir())) == 2


def test_a_finished_run_returns_its_result_and_says_so(warehouse):
    first, said = go(warehouse), []
    again = go(warehouse, notify=said.append)
    assert again.finished_before and again.metrics == first.metrics and again.history == first.history
    assert "finished before" in said[0]


def test_another_config_gets_another_folder(warehouse):
    assert go(warehouse).run_dir != go(warehouse, config={"alpha": 0.3}).run_dir
    assert go(warehouse).run_dir != go(warehouse, seed=1).run_dir
    assert go(warehouse).run_dir == go(warehouse, max_failures=0, keep_checkpoints=1).run_dir


def test_other_data_gets_another_folder(warehouse):
    first = go(warehouse)
    table = warehouse.transitions
    day = table.days()[0]
    rows = {bucket: table.read(bucket, [day]) for bucket in table.entries()[day].rows}
    gen = table.new_generation()
    table.commit(gen, {day: {bucket: table.write(day, gen, bucket, part) for bucket, part in rows.items()}})
    assert go(warehouse).run_dir != first.run_dir


def test_a_folder_with_another_config_is_refused(warehouse, tmp_path):
    go(warehouse, run_dir=tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"another config \(differs in config.alpha\)"):
        go(warehouse, run_dir=tmp_path / "mine", config={"alpha": 0.5})


def test_an_interrupted_run_goes_on_and_ends_alike(warehouse, monkeypatch):
    whole = go(warehouse, name="whole", checkpoint_every_steps=2)

    class Interrupt(Exception):
        pass

    step = Loop.train_step

    def until(loop, batch):
        if loop.total == 7:
            raise Interrupt
        step(loop, batch)

    monkeypatch.setattr(Loop, "train_step", until)
    with pytest.raises(Interrupt):
        go(warehouse, name="broken", checkpoint_every_steps=2)
    monkeypatch.setattr(Loop, "train_step", step)
    resumed = go(warehouse, name="broken", checkpoint_every_steps=2)
    assert resumed.resumed and resumed.metrics == whole.metrics
    assert load_bundle(resumed.bundle_path).version == load_bundle(whole.bundle_path).version
    epochs = [
        json.loads(line)["step"] for line in (resumed.run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    assert epochs == sorted(set(epochs))


def test_a_crash_before_the_bundle_is_repaired(warehouse):
    result = go(warehouse)
    shutil.rmtree(result.bundle_path)
    (result.run_dir / "summary.json").unlink()
    again = go(warehouse)
    assert again.metrics == result.metrics and again.steps == result.steps
    assert load_bundle(again.bundle_path).metrics == result.metrics


def test_a_damaged_checkpoint_is_named(warehouse):
    result = go(warehouse)
    (result.run_dir / "summary.json").unlink()
    newest = sorted((result.run_dir / "checkpoints").iterdir())[-1] / "state.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(StorageError, match=r"state\.pt is damaged"):
        go(warehouse)


def test_a_checkpoint_of_another_run_is_refused(warehouse):
    result = go(warehouse)
    other = go(warehouse, config={"alpha": 0.3})
    (result.run_dir / "summary.json").unlink()
    shutil.rmtree(result.run_dir / "checkpoints")
    shutil.copytree(other.run_dir / "checkpoints", result.run_dir / "checkpoints")
    with pytest.raises(ConfigError, match="belongs to another run"):
        go(warehouse)


def test_a_second_process_is_kept_out(warehouse):
    import fcntl

    result = go(warehouse)
    with (result.run_dir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="in use by another process"):
            go(warehouse)


def test_a_full_disk_says_so(warehouse, monkeypatch):
    import errno

    fsync = os.fsync

    def full(handle):
        if "state.pt" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left.*\n.*disk is full"):
        go(warehouse)


def test_a_typo_in_the_learners_config_is_explained(warehouse):
    with pytest.raises(ConfigError, match="unknown key 'alhpa'") as error:
        go(warehouse, config={"alhpa": 1})
    assert error.value.hint == "did you mean 'alpha'?"


def test_without_validation_days_there_are_no_metrics(warehouse):
    result = go(warehouse, valid=())
    assert result.metrics == {} and result.epochs == 3


@pytest.mark.parametrize("learner", ["reference.dqn", "reference.bc"])
def test_stream_mode_learns_from_the_same_rows(warehouse, learner):
    streamed = go(warehouse, learner, data={"mode": "stream", "window_rows": 100})
    in_memory = go(warehouse, learner)
    assert streamed.samples == in_memory.samples
    assert streamed.metrics["loss"] == pytest.approx(in_memory.metrics["loss"], rel=0.3)


def test_continuing_horizon_trains(warehouse):
    """The last session of a user has no successor within the held-out days, so it is not evaluated."""
    result, daily = go(warehouse, config={"horizon": "continuing"}), go(warehouse)
    assert 0 < result.metrics["rows"] < daily.metrics["rows"]


def test_a_plugin_is_one_file(warehouse, tmp_path):
    plugin = tmp_path / "toy_plugin_of_test_run.py"
    plugin.write_text(
        "from plpm_ray.core.registry import register\n"
        "from plpm_ray.navigators.reference.dqn import DQN\n"
        "@register('learner', 'toy.of_test_run')\n"
        "class Toy(DQN):\n"
        "    pass\n"
    )
    result = go(warehouse, "toy.of_test_run", plugins=[str(plugin)])
    bundle = load_bundle(result.bundle_path)
    assert bundle.plugins == (str(plugin),) and bundle.navigator().name == "toy.of_test_run"


def test_tensorboard_and_mlflow_take_the_same_numbers(warehouse):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    result = go(warehouse, trackers=["tensorboard", "mlflow"], epochs=1)
    assert list((result.run_dir / "tensorboard").glob("events*"))
    client = mlflow.MlflowClient(f"sqlite:///{result.run_dir}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("plpm_ray").experiment_id])
    assert run.data.metrics["valid.loss"] == pytest.approx(result.metrics["loss"])
    assert run.data.params["alpha"] == "0.1"


def test_config_refuses_bad_workers():
    for bad in ((0, 2), (3, 2), -1):
        with pytest.raises(ValueError, match="workers"):
            TrainingConfig(workers=bad)
    assert TrainingConfig(workers=[1, 2]).workers == (1, 2)


def test_checkpoints_execute_no_pickled_code(tmp_path: Path):
    from plpm_ray.training.checkpoint import load_state

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"learner": Evil()}, tmp_path / "state.pt")
    with pytest.raises(StorageError):
        load_state(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_an_edited_plugin_is_another_run(tmp_path):
    plugin, found = tmp_path / "mine.py", []
    for text in ("A = 1\n", "A = 2\n"):
        plugin.write_text(text)
        found.append(plugins_identity([str(plugin)]))
    assert found[0] != found[1] and plugins_identity([]) == {}
