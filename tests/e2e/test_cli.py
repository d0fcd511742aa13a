"""The commands one after another on simulated logs, as the README does it, and how they behave when called again."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from plpm_ray.cli import quickstart
from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import Warehouse
from tests.command_line import REPO, done, only, plpm, plpm_process, write_yaml
from tests.world_logs import world_logs

SPLIT = {"valid_days": 1, "test_days": 1}
WORLD_PAGES = ("featured", "explore", "following")
HEURISTICS = ["last_exit_page", "most_frequent", "longest_use", "popularity"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs of all commands, and what `plpm data` made of the first of them."""
    home = tmp_path_factory.mktemp("home")
    shared = {"run_root": str(home / "runs"), "tables": str(home / "tables"), "split": SPLIT}
    training = {"epochs": 2, "batch_size": 512, "device": "cpu"}
    policies: list[dict[str, Any]] = [
        {"label": name.upper(), "bundle": str(home / "runs" / name)} for name in ("iit", "bc")
    ]
    policies += [{"label": name, "navigator": f"heuristic.{name}"} for name in HEURISTICS]
    configs: dict[str, dict[str, Any]] = {
        "data": {"dataset": world_logs(120, 7), "output": str(home / "tables"), "n_buckets": 2},
        "iit": {
            "name": "iit",
            "learner": {"name": "klan.iit", "hidden": [16]},
            "training": training,
            **shared,
        },
        "bc": {
            "name": "bc",
            "learner": {"name": "reference.bc", "hidden": [16]},
            "training": training,
            **shared,
        },
        "evaluate": {"policies": policies, **shared},
        "decide": {
            "bundle": str(home / "runs" / "iit"),
            "history": str(home / "tables"),
            "entries": str(home / "entries.parquet"),
            "output": str(home / "decided" / "decisions.parquet"),
        },
    }
    for name, content in configs.items():
        write_yaml(home / f"{name}.yaml", content)
    done("data", home / "data.yaml")
    return home


def test_from_logs_to_decisions(home: Path) -> None:
    for name in ("iit", "bc"):
        printed = done("train", home / f"{name}.yaml")
        assert printed.startswith("train done\n") and "valid loss" in printed
        run = only(home / "runs", f"{name}-*")
        assert read_json(run / "summary.json")["status"] == "finished"
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [r["epoch"] for r in records] == [1, 2]

    printed = done("evaluate", home / "evaluate.yaml")
    run = only(home / "runs", "evaluate-*")
    rows = [r["policy"] for r in read_json(run / "summary.json")["results"]]
    assert rows == ["(the log itself)", "IIT", "BC", *HEURISTICS]
    assert all(name in printed and name in (run / "table.md").read_text() for name in rows)
    for estimator in ("snips", "dr", "fqe"):
        assert estimator in printed.splitlines()[0]

    sessions = Warehouse.open(home / "tables").sessions.read(0)
    pq.write_table(
        sessions.select(["user_id", "entry_time", "live_followed", "push"]), home / "entries.parquet"
    )
    printed = done("decide", home / "decide.yaml", "--set", "policy={kind: epsilon, epsilon: 0.1}")
    decisions = pq.read_table(home / "decided" / "decisions.parquet")
    assert decisions.num_rows == sessions.num_rows and "decide done" in printed
    assert read_json(home / "decided" / "summary.json")["command"] == "decide"
    firsts = pc.sum(pc.equal(decisions["fallback"], "unknown_user")).as_py()
    assert firsts == len(sessions["user_id"].unique())  # each user's first entry has no history


def test_the_same_command_again_does_nothing_twice(home: Path) -> None:
    assert "days recomputed        0" in done("data", home / "data.yaml")
    done("train", home / "bc.yaml")
    ended = plpm("train", home / "bc.yaml")
    assert ended.out.startswith("train done before; nothing was run")
    assert "finished before; its results are returned" in ended.err


def test_an_override_is_another_run_and_a_part_another_evaluation(home: Path) -> None:
    done("train", home / "bc.yaml")
    done("train", home / "bc.yaml", "--set", "name=bc_wide", "--set", "learner.hidden=[32, 32]")
    run = only(home / "runs", "bc_wide-*")
    assert read_json(run / "config.json")["identity"]["config"]["hidden"] == [32, 32]
    sets = [
        "--set",
        f"policies=[{{bundle: {run}}}]",
        "--set",
        "judge.estimators=[snips]",
        "--set",
        "name=on_valid",
    ]
    done("evaluate", home / "evaluate.yaml", *sets, "--set", "part=valid")
    summary = read_json(only(home / "runs", "on_valid-*") / "summary.json")
    assert summary["part"] == "valid" and summary["results"][1]["policy"] == "reference.bc"


def test_nothing_but_the_summary_is_printed_off_a_terminal(home: Path) -> None:
    ended = plpm_process("train", home / "bc.yaml", "--set", "name=quiet")
    assert ended.code == 0 and ended.err == ""
    assert "\r" not in ended.out and "\033" not in ended.out


def test_progress_shows_on_a_terminal(home: Path) -> None:
    terminal, end = pty.openpty()
    code = "from plpm_ray.cli import main; main()"
    arguments = ["-c", code, "train", str(home / "bc.yaml"), "--set", "name=shown"]
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, *arguments],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, end, 2), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:
        pass  # the other end is closed
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert b"epoch 1.00/2" in shown and b"train/loss" in shown


def test_doctor_reads_the_same_configs(home: Path) -> None:
    printed = done("doctor", home / "iit.yaml")
    assert f"tables {home / 'tables'}" in printed and "is a config of `plpm train`" in printed
    ended = plpm("doctor", home / "iit.yaml", "--set", "tables=/nowhere")
    assert ended.code == 1 and "BAD   tables /nowhere is not there" in ended.out


def test_simulated_logs_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    logs = tmp_path / "logs"
    changes = {"users": 60, "days": 3, "warmup_days": 1, "trial.start_day": 1, "output": logs}
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    printed = done("simulate", "logs", "jobs/simulate_logs.yaml", *sets)
    summary = read_json(logs / "summary.json")
    assert "simulate logs done" in printed and summary["arms"].keys() == {"control", *WORLD_PAGES}
    printed = done("data", logs / "dataset.yaml", "--set", f"output={tmp_path / 'tables'}")
    assert f"sessions               {summary['sessions']:,}" in printed
    assert Warehouse.open(tmp_path / "tables").assignments_file.is_file()


def test_quickstart_ends_with_an_experiment_and_its_report(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "LOGS", {**world_logs(160, 7), "trial": {"start_day": 1, "days": 3}})
    monkeypatch.setattr(quickstart, "TRAINING", {"epochs": 1, "batch_size": 512})
    experiment = {"design": "twins", "users": 60, "warmup_days": 2, "aa_days": 1, "ab_days": 2}
    monkeypatch.setattr(quickstart, "EXPERIMENT", experiment)
    printed = done("quickstart", "--folder", tmp_path / "q")
    assert [line for line in printed.splitlines() if line.startswith("== ")][-1] == "== 6 of 6  report"
    assert "quickstart done" in printed
    summary = read_json(tmp_path / "q" / "summary.json")
    decision = summary["decision"]
    assert decision["page"] in decision["scores"] and decision["fallback"] is None
    assert decision["versions"]["navigator"].startswith("klan-")
    assert set(decision["explanation"][decision["page"]]) == {"delta", "p", "gamma", "sigma"}
    arms = read_json(Path(summary["ab"]) / "ab.json")["arms"]
    assert {
        "KLAN",
        "ISP",
        "IIT",
        "DQN",
        "BC",
        "random",
        *(name.replace("_", " ") for name in HEURISTICS),
    } <= set(arms)
    assert "<html" in Path(summary["report"]).read_text(encoding="utf-8")[:500]
