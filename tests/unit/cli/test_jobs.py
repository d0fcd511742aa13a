"""Arguments of the entry points in jobs/ and tune/, and what becomes of them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from plpm_ray import cli
from plpm_ray.cli import jobs

REPO = Path(__file__).resolve().parents[3]
ENTRY_POINTS = {
    "jobs/build_tables.py": ["data", "jobs/data_kuairand.yaml", "--set", "backend=ray"],
    "jobs/train.py": ["train", "jobs/train.yaml"],
    "jobs/evaluate.py": ["evaluate", "jobs/evaluate.yaml"],
    "jobs/assess.py": ["assess", "jobs/assess_glan.yaml"],
    "jobs/score_isp.py": ["score", "jobs/score_isp.yaml", "--set", "backend=ray"],
    "jobs/stream_am.py": ["stream", "jobs/stream_am.yaml"],
    "tune/sweep.py": ["sweep", "tune/alpha_beta.yaml"],
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that would have been run."""
    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["job"])
    monkeypatch.setattr(cli, "main", lambda: seen.append([*sys.argv]))
    return seen


def test_without_arguments_the_default_config_runs(called) -> None:
    jobs.main("train", "jobs/train.yaml", argv=[])
    assert called == [["plpm", "train", "jobs/train.yaml"]]


def test_a_config_and_overrides_in_any_order(called) -> None:
    argv = ["training.epochs=3", "my.yaml", "name=a b", "--set", "learner.alpha=0.5"]
    jobs.main("train", "jobs/train.yaml", argv=argv)
    sets = ["training.epochs=3", "name=a b", "learner.alpha=0.5"]
    assert called == [["plpm", "train", "my.yaml", *(part for s in sets for part in ("--set", s))]]


def test_presets_come_before_what_is_given(called) -> None:
    jobs.main("data", "d.yaml", preset=("backend=ray",), argv=["backend=local"])
    assert called == [["plpm", "data", "d.yaml", "--set", "backend=ray", "--set", "backend=local"]]


def test_two_configs_are_refused(called, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        jobs.main("train", "t.yaml", argv=["a.yaml", "b.yaml"])
    assert ended.value.code == 2 and "one config, not 2" in capsys.readouterr().err
    assert not called


def test_output_inside_the_upload_of_a_job_is_refused(called, capsys, tmp_path, monkeypatch) -> None:
    """Ray removes the upload; on any other working directory relative paths are as good as absolute ones."""
    (tmp_path / "train.yaml").write_text("tables: /shared/tables\n")
    (tmp_path / "data.yaml").write_text("output: warehouse/my_app\n")
    monkeypatch.chdir(tmp_path)
    jobs.main("train", "train.yaml", argv=[])
    upload = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    upload.mkdir(parents=True)
    monkeypatch.chdir(upload)
    jobs.main("train", tmp_path / "train.yaml", argv=["run_root=/shared/runs"])
    assert len(called) == 2
    for command, key in (("train", "run_root 'runs'"), ("data", "output 'warehouse/my_app'")):
        with pytest.raises(SystemExit) as ended:
            jobs.main(command, tmp_path / f"{command}.yaml", argv=[])
        message = capsys.readouterr().err
        assert ended.value.code == 2 and f"error: {key} would lie in the upload" in message
        assert "/shared/" in message
    assert len(called) == 2


@pytest.mark.parametrize("script", ENTRY_POINTS)
def test_every_entry_point_calls_its_command_with_a_config_that_is_there(called, script) -> None:
    runpy.run_path(str(REPO / script), run_name="__main__")
    command, config, *rest = ENTRY_POINTS[script]
    assert called == [["plpm", command, str(REPO / config), *rest]]
    assert (REPO / config).is_file()


def test_an_entry_point_needs_no_installed_package() -> None:
    """From any folder, as a cluster starts it in the uploaded working directory."""
    command = [sys.executable, str(REPO / "jobs" / "train.py"), "--help"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "plpm train as a Ray job" in done.stdout


def test_a_navigator_by_name_takes_its_own_config(called) -> None:
    jobs.main("train", "jobs/train.yaml", argv=["navigator=klan", "name=mine"])
    assert called == [["plpm", "train", "jobs/train_klan.yaml", "--set", "name=mine"]]


def test_a_navigator_without_a_config_is_refused(called, capsys) -> None:
    with pytest.raises(SystemExit):
        jobs.main("train", "jobs/train.yaml", argv=["navigator=clan"])
    assert "train_clan.yaml" in capsys.readouterr().err and not called
