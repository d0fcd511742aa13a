"""Run folders of the simulation: what decides their names, and that two processes do not write one."""

from __future__ import annotations

from pathlib import Path

import pytest

from plpm_ray.core.errors import ConfigError
from plpm_ray.core.storage import read_json
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.experiment import ExperimentConfig, run_experiment
from plpm_ray.simulation.runs import run_folder

ARMS = [{"builtin": "logging"}, {"builtin": "random"}]


def _config(tmp_path: Path, **extra: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"world": "kuaishou", "arms": ARMS, "run_root": str(tmp_path), **extra}
    )


def _folder(config: ExperimentConfig) -> str:
    with run_folder(config, load_world(config.world)) as run_dir:
        return run_dir.name


def test_the_name_depends_on_what_decides_the_result_alone(tmp_path: Path) -> None:
    name = _folder(_config(tmp_path))
    assert _folder(_config(tmp_path, workers=3, backend="ray", users_per_task=9)) == name
    assert _folder(_config(tmp_path, users=9)) != name
    kept = read_json(tmp_path / name / "config.json")
    assert [arm["builtin"] for arm in kept["arms"]] == ["logging", "random"]
    assert kept["name"] == "ab" and kept["world"]["name"] == "kuaishou" and "workers" not in kept


def test_plugins_count_by_their_content(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("A = 1\n")
    config = _config(tmp_path / "runs", plugins=[str(plugin)])
    before = _folder(config)
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "mine.py"
    moved.write_text(plugin.read_text())
    assert _folder(_config(tmp_path / "runs", plugins=[str(moved)])) == before
    plugin.write_text("A = 2\n")
    assert _folder(config) != before


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with (
        run_folder(config, load_world("kuaishou")),
        pytest.raises(ConfigError, match="in use by another process"),
    ):
        _folder(config)
    assert _folder(config)


def test_a_finished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(tmp_path, users=40, warmup_days=1, aa_days=1, ab_days=1)
    first = run_experiment(config)
    assert "finished before" not in capsys.readouterr().err
    assert run_experiment(config) == first
    assert "finished before" in capsys.readouterr().err
