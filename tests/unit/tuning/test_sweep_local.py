"""A whole sweep in this process: trials, resumption after a kill, growth, failures, refusals, retraining."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plpm_ray.core.errors import ConfigError, PlpmError
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.tuning.config import SweepConfig
from plpm_ray.tuning.run import sweep
from tests.sweep_world import build_tables, toy_sweep


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    return build_tables(tmp_path_factory.mktemp("tables") / "demo")


def ledger_events(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "trials.jsonl").read_text().splitlines()]


def outcomes(run_dir: Path) -> dict[int, tuple]:
    ended = [e for e in ledger_events(run_dir) if e["event"] == "end"]
    values = {e["number"]: [r["value"] for r in e["reports"]] for e in ended}
    return {e["number"]: (e["params"], e["status"], values[e["number"]]) for e in ended}


def test_iit_by_doubly_robust_value(tables: Path, tmp_path: Path):
    config = toy_sweep(
        tables,
        tmp_path,
        learner={"name": "klan.iit", "hidden": [16]},
        training={"epochs": 2, "batch_size": 512},
        search={"alpha": None, "beta": None},
        objective={"estimator": "dr", "baseline": "heuristic.popularity"},
        trials=3,
        plugins=[],
    )
    result = sweep(config)
    assert (result.n_trials, result.resumed) == (3, 0)
    assert result.best is not None and result.best.last is not None
    first = outcomes(result.run_dir)[0]
    assert first[0] == {"alpha": 0.1, "beta": 1.0}
    assert result.best.last.low < result.best.last.value < result.best.last.high
    assert result.best.last.gain is not None
    assert "train/loss" in result.best.last.metrics
    assert (
        result.summary["unit"] == "s per session" and result.summary["held_out"]["propensities"] == "logged"
    )
    for name in ("table.csv", "table.md", "response.svg", "best.yaml", "config.json", "metrics.jsonl"):
        assert (result.run_dir / name).stat().st_size > 0


def test_the_same_sweep_again_gives_the_same_trials(tables: Path, tmp_path: Path):
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append(outcomes(sweep(toy_sweep(tables, tmp_path / name)).run_dir))
    assert runs[0] == runs[1]


def test_a_finished_sweep_is_read_and_grows(tables: Path, tmp_path: Path):
    first = sweep(toy_sweep(tables, tmp_path, trials=3))
    begun = (first.run_dir / "trials.jsonl").read_text()
    again = sweep(toy_sweep(tables, tmp_path, trials=3))
    assert (again.n_trials, again.resumed) == (3, 3)
    assert (first.run_dir / "trials.jsonl").read_text() == begun
    more = sweep(toy_sweep(tables, tmp_path, trials=5))
    assert (more.run_dir, more.n_trials, more.resumed) == (first.run_dir, 5, 3)
    assert (first.run_dir / "trials.jsonl").read_text().startswith(begun)
    (tmp_path / "whole").mkdir()
    assert outcomes(more.run_dir) == outcomes(sweep(toy_sweep(tables, tmp_path / "whole", trials=5)).run_dir)


def test_another_config_never_meets_these_trials(tables: Path, tmp_path: Path):
    first = sweep(toy_sweep(tables, tmp_path, trials=2))
    other = sweep(toy_sweep(tables, tmp_path, trials=2, seed=1))
    assert other.run_dir != first.run_dir and other.resumed == 0


def test_the_best_tilt_wins_and_has_the_highest_value(tables: Path, tmp_path: Path):
    result = sweep(toy_sweep(tables, tmp_path, trials=6, scheduler="none"))
    found = outcomes(result.run_dir)
    assert all(status == "finished" for _, status, _ in found.values())
    assert result.best is not None
    assert result.best.value == max(values[-1] for _, _, values in found.values())
    assert result.best.score == result.best.value


def test_by_default_the_lower_end_of_the_gain_decides(tables: Path, tmp_path: Path):
    result = sweep(toy_sweep(tables, tmp_path, objective={"estimator": "snips"}, trials=3, scheduler="none"))
    ended = [e for e in ledger_events(result.run_dir) if e["event"] == "end"]
    lows = {e["number"]: e["reports"][-1]["gain_low"] for e in ended}
    assert result.best is not None and lows[result.best.number] == max(lows.values())
    assert "lower end" in result.summary["best"]["ranked_by"]


def test_failed_trials_are_counted_and_do_not_end_the_sweep(tables: Path, tmp_path: Path):
    learner = {"name": "toy.tilt", "fail_above": 0.0}
    result = sweep(toy_sweep(tables, tmp_path, learner=learner, trials=5))
    assert result.summary["failed"] > 0 and result.best is not None
    assert result.best.params["tilt"] <= 0
    assert result.summary["failures"][0]["error"] == "RuntimeError: tilt is too high"


def test_a_sweep_of_failures_says_so(tables: Path, tmp_path: Path):
    learner = {"name": "toy.tilt", "fail_above": -99.0}
    with pytest.raises(PlpmError, match="every trial failed; the first said: RuntimeError"):
        sweep(toy_sweep(tables, tmp_path, learner=learner, trials=2))


@pytest.mark.parametrize("estimator", ["snips", "fqe"])
def test_refused_estimates_do_not_win(tables: Path, tmp_path: Path, estimator: str):
    objective = {"estimator": estimator, "policy": {"kind": "softmax"}, "min_effective_users": 1e6}
    result = sweep(toy_sweep(tables, tmp_path, objective=objective, trials=3))
    assert result.best is None and result.summary["refused"] == 3
    assert "effective number of users" in result.summary["refusals"][0]["reason"]


def test_the_winner_may_be_trained_at_once(tables: Path, tmp_path: Path):
    result = sweep(toy_sweep(tables, tmp_path, trials=2, retrain={"epochs": 1}))
    assert result.bundle is not None and result.best is not None
    bundle = load_bundle(result.bundle)
    assert bundle.config["tilt"] == result.best.params["tilt"]
    assert result.summary["bundle"] == str(result.bundle)


def test_a_split_without_validation_days_is_refused(tables: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="validation days"):
        sweep(toy_sweep(tables, tmp_path, split={"valid_days": 0}))


@pytest.mark.parametrize(
    ("learner", "search", "said"),
    [
        ("glan.dt", "layers", "decides from the day so far"),
        ("glan.lrtg", "delta", "says use_s and sessions"),
        ("klan.isp", "embedding_dim", "learns from a trial's users"),
    ],
)
def test_learners_whose_scores_are_no_decisions_are_refused(
    tables: Path, tmp_path: Path, learner: str, search: str, said: str
):
    with pytest.raises(ConfigError, match=said):
        sweep(toy_sweep(tables, tmp_path, learner={"name": learner}, search={search: None}))


def test_a_baseline_that_is_composed_of_trained_parts_is_refused(tables: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="composed of trained parts"):
        sweep(toy_sweep(tables, tmp_path, objective={"baseline": "glan"}))


def test_a_killed_sweep_goes_on_and_ends_as_if_nothing_had_happened(tables: Path, tmp_path: Path):
    config = toy_sweep(tables, tmp_path, learner={"name": "toy.tilt", "sleep_s": 0.25})
    run_dir = _kill_after(2, config, tmp_path)
    before = ledger_events(run_dir)
    ended = [e for e in before if e["event"] == "end"]
    assert 2 <= len(ended) < config.trials
    result = sweep(config)
    assert result.resumed == len(ended) and result.n_trials == config.trials
    assert ledger_events(run_dir)[: len(before)] == before
    whole = tmp_path / "whole"
    whole.mkdir()
    undisturbed = sweep(toy_sweep(tables, whole, learner={"name": "toy.tilt", "sleep_s": 0.25}))
    assert outcomes(undisturbed.run_dir) == outcomes(run_dir)


def _kill_after(trials: int, config: SweepConfig, folder: Path) -> Path:
    """Starts a sweep in another process and kills it once so many trials are on record; its run folder."""
    path = folder / "sweep.json"
    path.write_text(config.model_dump_json())
    code = (
        "import sys; from plpm_ray.tuning.config import SweepConfig; from plpm_ray.tuning.run import sweep; "
        "sweep(SweepConfig.model_validate_json(open(sys.argv[1]).read()))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).resolve().parents[3],
        env=os.environ.copy(),
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for ledger in (folder / "runs").glob("*/trials.jsonl"):
                if ledger.read_text().count('"event": "end"') >= trials:
                    return ledger.parent
            assert process.poll() is None, "the sweep ended before it could be killed"
            time.sleep(0.05)
        raise AssertionError("no trial ended in time")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
