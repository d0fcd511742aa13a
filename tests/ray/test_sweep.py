"""Sweeps through Ray Tune: the same trials as in one process, and nothing lost when driver or worker are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plpm_ray.core.errors import ConfigError
from plpm_ray.tuning.config import SweepConfig
from plpm_ray.tuning.run import sweep
from plpm_ray.tuning.world_run import sweep_world
from tests.sweep_world import build_tables, toy_sweep
from tests.world_sweeps import build_glan, build_klan, world_sweep

DRIVER = """
import sys
import ray
from plpm_ray.tuning.config import SweepConfig
from plpm_ray.tuning.run import sweep

ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False,
         logging_level="ERROR", _temp_dir=sys.argv[2])
sweep(SweepConfig.model_validate_json(open(sys.argv[1]).read()))
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    return build_tables(tmp_path_factory.mktemp("tables") / "demo", users=200, days=6)


def ledger_events(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "trials.jsonl").read_text().splitlines()]


def values_by_number(run_dir: Path) -> dict[int, tuple]:
    ended = [e for e in ledger_events(run_dir) if e["event"] == "end" and e["status"] != "lost"]
    return {e["number"]: (e["params"], [r["value"] for r in e["reports"]]) for e in ended}


def test_one_trial_at_a_time_equals_the_local_backend(
    ray_session: None, tables: Path, tmp_path: Path
) -> None:
    runs = {}
    for backend in ("local", "ray"):
        (tmp_path / backend).mkdir()
        config = toy_sweep(tables, tmp_path / backend, backend=backend, concurrency=1, trials=4)
        result = sweep(config)
        assert result.best is not None
        runs[backend] = (values_by_number(result.run_dir), result.best.number, result.summary["stopped"])
    assert runs["ray"] == runs["local"]


def test_a_sweep_in_the_world_is_the_same_in_other_processes(
    ray_session: None, tables: Path, tmp_path: Path
) -> None:
    klan = build_klan(tables, tmp_path / "klan")
    search = {"am.threshold": None, "navigator.gamma": {"choices": [None, 0.5]}}
    runs = {}
    for backend in ("local", "ray"):
        changes = {"backend": backend, "concurrency": 1, "trials": 2, "search": search}
        result = sweep_world(world_sweep(tables, klan, tmp_path / backend, **changes))
        assert result.best is not None
        runs[backend] = (values_by_number(result.run_dir), result.best.number)
    assert runs["ray"] == runs["local"]


def test_trials_with_reward_models_of_their_own_side_by_side(
    ray_session: None, tables: Path, tmp_path: Path
) -> None:
    glan = build_glan(tables, tmp_path / "glan")
    runs, before = {}, sorted((tables / "rewards").iterdir())
    for backend in ("local", "ray"):
        changes = {"backend": backend, "trials": 3, "startup_trials": 3, "search": {"hrm.tau_s": None}}
        result = sweep_world(world_sweep(tables, glan, tmp_path / backend, **changes))
        assert result.best is not None and result.summary["failed"] == 0
        runs[backend] = values_by_number(result.run_dir)
    assert runs["ray"] == runs["local"]  # drawn at random, so neither hangs on the order in which trials end
    assert sorted((tables / "rewards").iterdir()) == before


def test_side_by_side_with_asha_failures_and_growth(ray_session: None, tables: Path, tmp_path: Path) -> None:
    learner = {"name": "toy.tilt", "fail_above": 2.0}
    config = toy_sweep(tables, tmp_path, backend="ray", learner=learner, trials=4)
    result = sweep(config)
    summary = result.summary
    assert result.n_trials == 4 and result.best is not None
    assert sum(summary[name] for name in ("finished", "stopped", "refused", "failed")) == 4
    assert (result.run_dir / "response.svg").stat().st_size > 0
    more = sweep(toy_sweep(tables, tmp_path, backend="ray", learner=learner, trials=5))
    assert (more.run_dir, more.n_trials, more.resumed) == (result.run_dir, 5, 4)


def test_a_trial_whose_worker_is_killed_starts_again(ray_session: None, tables: Path, tmp_path: Path) -> None:
    learner = {"name": "toy.tilt", "die_once": str(tmp_path / "died")}
    result = sweep(toy_sweep(tables, tmp_path, backend="ray", learner=learner, trials=2, concurrency=1))
    assert (tmp_path / "died").exists()
    assert result.n_trials == 2 and result.summary["failed"] == 0
    assert [e["status"] for e in ledger_events(result.run_dir) if e["event"] == "end"].count("lost") == 0


def test_a_trial_that_no_node_can_hold_is_refused(ray_session: None, tables: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reserves 64 CPUs, and the largest node has 2"):
        sweep(toy_sweep(tables, tmp_path, backend="ray", cpus_per_trial=64))


def test_a_killed_driver_loses_no_finished_trial(ray_session: None, tables: Path, tmp_path: Path) -> None:
    learner = {"name": "toy.tilt", "sleep_s": 0.4}
    config = toy_sweep(tables, tmp_path, backend="ray", learner=learner, trials=6, concurrency=2)
    run_dir = kill_after(2, config, tmp_path)
    before = ledger_events(run_dir)
    ended = [e["number"] for e in before if e["event"] == "end"]
    begun = {e["number"]: e["params"] for e in before if e["event"] == "start"}
    assert 2 <= len(ended) < config.trials
    result = sweep(config)
    assert (result.run_dir, result.n_trials, result.resumed) == (run_dir, config.trials, len(ended))
    assert ledger_events(run_dir)[: len(before)] == before
    found = values_by_number(run_dir)
    assert sorted(found) == list(range(config.trials))
    for number, params in begun.items():  # what had begun is run again as it was
        assert found[number][0] == params


def kill_after(trials: int, config: SweepConfig, folder: Path) -> Path:
    """Sweeps in another process, with a cluster of its own, and kills that driver once so many trials are on record."""
    path = folder / "sweep.json"
    path.write_text(config.model_dump_json())
    scratch = (
        Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent / "killed"
    )  # short: Ray's socket paths may have 107 bytes
    command = [sys.executable, "-c", DRIVER, str(path), str(scratch)]
    process = subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2])
    family: set[int] = set()
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            for ledger in (folder / "runs").glob("*/trials.jsonl"):
                if ledger.read_text().count('"event": "end"') >= trials:
                    return ledger.parent
            assert process.poll() is None, "the sweep ended before it could be killed"
            time.sleep(0.1)
        raise AssertionError("no trial ended in time")
    finally:
        family = descendants(process.pid)
        process.kill()
        process.wait()
        remove(family)


def descendants(pid: int) -> set[int]:
    """Processes started by a process, and by those."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found: set[int] = {pid}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return found - {pid}


def remove(pids: set[int]) -> None:
    """Gives processes the time to end by themselves, as most of a killed driver's cluster do, then ends the others."""
    deadline = time.monotonic() + 3
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
