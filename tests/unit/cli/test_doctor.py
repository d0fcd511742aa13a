"""What `plpm doctor` finds on a machine, and in a config before it is run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from plpm_ray.cli import doctor
from plpm_ray.cli.doctor import GIB, Finding, diagnose
from plpm_ray.core.errors import ConfigError


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cores", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def found(config: Path | None = None, *overrides: str, containing: str) -> Finding:
    """The finding (just one) with a text in it."""
    (finding,) = [f for f in diagnose(config, list(overrides)) if containing in f"{f.what} {f.advice}"]
    return finding


def write(folder: Path, **content: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def train(folder: Path, **training: Any) -> Path:
    return write(folder, tables=str(folder), learner={"name": "reference.bc"}, training=training)


def test_this_machine_is_described_without_anything_bad() -> None:
    findings = diagnose(None, [])
    assert not [f for f in findings if f.level == "bad"]
    text = "\n".join(map(str, findings))
    assert "Python 3." in text and "ray 2." in text and "2 cores" in text and "GPU" in text


def test_a_finding_is_a_line_with_its_advice_below() -> None:
    assert str(Finding("ok", "2 cores")) == "ok    2 cores"
    assert str(Finding("bad", "no tables", "run it")) == "BAD   no tables\n      -> run it"


def test_a_missing_package_is_bad_and_a_missing_extra_is_not(monkeypatch) -> None:
    version, spec = importlib.metadata.version, importlib.util.find_spec

    def without(name: str) -> str:
        if name == "optuna":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "mlflow" else spec(n, *a))
    assert found(containing="optuna is not installed").level == "bad"
    assert found(containing="mlflow (its tracker)").level == "note"


def test_little_disk_and_little_shared_memory_are_noted(monkeypatch) -> None:
    real = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=GIB))
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 64 * GIB)
    assert found(containing="GiB free here").level == "note"
    if Path("/dev/shm").exists():
        assert "slow disk" in found(containing="shared memory for Ray").advice


def test_the_environment_is_looked_at(monkeypatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert found(containing="usage statistics").level == "ok"
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    assert "export" in found(containing="usage statistics").advice
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "RAY_AUTH_TOKEN_PATH" in found(containing="RAY_AUTH_MODE is not set").advice
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert not [f for f in diagnose(None, []) if "RAY_AUTH_MODE is not" in f.what]


def test_workers_that_fit_are_ok(tmp_path) -> None:
    assert found(train(tmp_path), containing="training runs in this process").level == "ok"
    assert found(train(tmp_path, workers=2), containing="training asks").level == "ok"
    assert found(train(tmp_path, workers=[1, 2]), containing="2 workers with 1 CPU").level == "ok"


def test_workers_that_would_starve_are_predicted(tmp_path) -> None:
    finding = found(train(tmp_path, workers=8), containing="2 CPUs")
    assert finding.level == "note" and "4 of 8 workers train, with 0.5 CPUs each" in finding.what
    assert "training.cpus_per_worker" in finding.advice
    # a stream is read while training: two workers may not take both cores
    stream = train(tmp_path, workers=2, data={"mode": "stream"})
    assert "2 of 2 workers train, with 0.87 CPUs each" in found(stream, containing="2 CPUs").what


def test_gpus_that_are_not_there_are_bad(tmp_path, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    finding = found(train(tmp_path, workers=1, gpus_per_worker=1), containing="GPUs asked for")
    assert finding.level == "bad" and "gpus_per_worker" in finding.advice


def test_a_cluster_elsewhere_decides_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert found(train(tmp_path, workers=64), containing="64 workers").level == "ok"


def test_missing_tables_are_bad(tmp_path) -> None:
    assert found(train(tmp_path), containing="is not there").level == "bad"
    (tmp_path / "manifest.json").touch()
    assert found(train(tmp_path), containing=f"tables {tmp_path}").level == "ok"


def test_typos_are_found_before_the_run(tmp_path) -> None:
    finding = found(train(tmp_path), "learner.hiden=[8]", containing="hiden")
    assert finding.level == "bad" and finding.advice == "did you mean 'hidden'?"
    with pytest.raises(ConfigError, match="does not exist"):
        diagnose(tmp_path / "absent.yaml", [])


@pytest.mark.parametrize(
    ("content", "command"),
    [
        ({"dataset": {"name": "world", "world": "kuaishou"}, "output": "o"}, "data"),
        ({"tables": "t", "learner": {"name": "reference.bc"}}, "train"),
        ({"tables": "t", "learner": {"name": "klan.iit"}, "search": {"alpha": None}}, "sweep"),
        ({"tables": "t", "policies": [{"navigator": "heuristic.popularity"}]}, "evaluate"),
        ({"bundle": "b", "entries": "e", "output": "o"}, "decide"),
        ({"bundle": "b"}, "serve"),
    ],
)
def test_every_command_has_its_config_checked(tmp_path, content, command) -> None:
    path = write(tmp_path, **content)
    assert found(path, containing=f"is a config of `plpm {command}`").level == "ok"
    assert found(path, "nonsense=1", containing="nonsense").level == "bad"


def test_a_sweep_that_fits_says_how_many_trials_run_at_a_time(tmp_path) -> None:
    content = {"tables": "t", "learner": {"name": "klan.iit"}, "search": {"alpha": None}, "trials": 20}
    path = write(tmp_path, **content)
    assert found(path, containing="20 trials, 2 at a time").level == "ok"
    assert found(path, "backend=local", containing="one by one").level == "ok"
    assert found(path, "cpus_per_trial=4", containing="4 CPUs of 2").level == "bad"
    assert "alpha" in found(path, "search.alfa=null", containing="alfa").advice


def test_another_file_is_said_to_be_none_of_ours(tmp_path) -> None:
    assert found(write(tmp_path, services=[]), containing="no config of a plpm command").level == "note"


def test_a_config_of_serve_deploy_is_checked(tmp_path) -> None:
    right = {"bundle": str(tmp_path / "klan"), "parts": {"am": "runs/am"}, "refresh_s": 1}
    config = write(tmp_path, applications=[{"import_path": "serve.app:build", "args": right}])
    assert found(config, containing="a config of `serve deploy`").level == "ok"
    assert found(config, containing="no bundle at").level == "bad"
    wrong = write(tmp_path, applications=[{"import_path": "serve.app:build", "args": right | {"refresh": 1}}])
    assert "refresh_s" in str(found(wrong, containing="refresh"))


@pytest.mark.parametrize(
    "content", [{"bundle": "runs/absent"}, {"bundle": "runs/absent", "users_per_batch": 9}]
)
def test_a_missing_bundle_is_bad(tmp_path, content) -> None:
    assert found(write(tmp_path, **content), containing="no bundle at runs/absent").level == "bad"
