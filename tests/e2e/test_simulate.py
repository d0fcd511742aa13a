"""`plpm simulate ...` and `plpm report` as a user runs them: small configs, what is printed, what lies in the run folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from plpm_ray.core.storage import read_json
from tests.command_line import REPO, done, only, plpm, write_yaml

SHORT = ["--set", "warmup_days=2", "--set", "aa_days=2", "--set", "ab_days=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of an A/B experiment (the shipped config, few users) and of A/A experiments."""
    folder = tmp_path_factory.mktemp("runs")
    home = ["--set", f"run_root={folder}"]
    printed = done("simulate", "ab", REPO / "jobs" / "simulate_ab.yaml", *home, *SHORT, "--set", "users=800")
    assert "control: logging policy" in printed and "oracle, far-sighted" in printed
    few = ["--set", "experiments=10", "--set", "users=100"]
    printed = done("simulate", "aa", *home, *SHORT, *few)
    assert "simulate aa done" in printed
    return folder


def test_an_experiment_is_run_once(runs: Path) -> None:
    run = only(runs, "ab-*")
    before = (run / "ab.json").stat().st_mtime_ns
    home = ["--set", f"run_root={runs}"]
    done("simulate", "ab", REPO / "jobs" / "simulate_ab.yaml", *home, *SHORT, "--set", "users=800")
    assert (only(runs, "ab-*") / "ab.json").stat().st_mtime_ns == before


def test_summaries_say_what_was_run(runs: Path) -> None:
    assert read_json(only(runs, "ab-*") / "summary.json")["command"] == "simulate ab"
    summary = read_json(only(runs, "aa-*") / "summary.json")
    assert summary["experiments"] == 10 and summary["world"] == "kuaishou"


def test_trial_and_report(runs: Path, tmp_path: Path) -> None:
    small = {
        "users": 600,
        "replicates": 1,
        "draws": 20,
        "warmup_days": 3,
        "trial_days": 2,
        "run_root": str(runs),
    }
    printed = done("simulate", "uplift", write_yaml(tmp_path / "uplift.yaml", small))
    assert "T-learner (ridge)" in printed and "PEHE" in printed
    small = {"world": "null", "users": 300, "warmup_days": 2, "days": 7, "run_root": str(runs)}
    printed = done("simulate", "calibrate", write_yaml(tmp_path / "calibrate.yaml", small))
    assert "target" in printed and "reached" in printed
    output = tmp_path / "report.html"
    found = [only(runs, f"{name}-*") for name in ("ab", "aa", "uplift", "calibrate")]
    done("report", *found, "--output", output)
    page = output.read_text(encoding="utf-8")
    assert page.lstrip().startswith("<!doctype html>") and "oracle, far-sighted" in page
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page


def test_mistakes_are_named(tmp_path: Path) -> None:
    ended = plpm("report", tmp_path / "nothing")
    assert ended.code == 2 and "holds no finished run" in ended.err
    ended = plpm("simulate", "aa", "--set", "world=kuaishu")
    assert ended.code == 2 and "did you mean 'kuaishou'?" in ended.err
    ended = plpm("simulate", "ab", "--set", "world=kuaishou")
    assert ended.code == 2 and "arms" in ended.err
