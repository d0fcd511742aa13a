"""`plpm quickstart`: logs of a simulated app, KLAN and its rivals, offline judgement, a decision of a real server, A/B test."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from plpm_ray.cli import commands, simulate
from plpm_ray.cli.summary import Clock, finish

WORLD = "kuaishou"
# over before the test days: who is always landed on one page tells nothing of other policies
TRIAL = {"start_day": 4, "days": 6, "shares": {"control": 4}}
LOGS = {"name": "world", "world": WORLD, "users": 5000, "days": 14, "warmup_days": 7, "trial": TRIAL}
TRAINING = {"epochs": 4, "batch_size": 4096, "lr": 2e-3}
ISP_TRAINING = {"epochs": 30, "batch_size": 512, "lr": 1e-3, "patience": 5}
SPLIT = {"valid_days": 2, "test_days": 2}
LEARNERS = {
    "iit": {"name": "klan.iit"},
    "dqn": {"name": "reference.dqn"},
    "bc": {"name": "reference.bc"},
}
HEURISTICS = ("last_exit_page", "most_frequent", "longest_use", "popularity")
EXPERIMENT = {"design": "twins", "users": 1500, "warmup_days": 7, "aa_days": 3, "ab_days": 7}


def run(folder: Path) -> None:
    """Runs all steps in `folder`; what is there already and unchanged is not done again."""
    clock, steps = Clock(), {}
    configs, tables, runs = folder / "configs", str(folder / "tables"), str(folder / "runs")

    def config(name: str, content: dict[str, Any]) -> Path:
        configs.mkdir(parents=True, exist_ok=True)
        path = configs / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    def step(title: str) -> None:
        print(f"\n== {title}", flush=True)

    step("1 of 6  logs -> tables (a simulated app; your own logs: docs/your_logs.md)")
    logs = {"dataset": LOGS, "output": tables, "n_buckets": 4}
    steps["data"] = commands.data(config("data", logs), [])["sessions"]
    for name, learner in LEARNERS.items():
        step(f"2 of 6  train {learner['name']}")
        content = {"name": name, "run_root": runs, "tables": tables, "split": SPLIT, "learner": learner}
        written = config(f"train_{name}", {**content, "training": TRAINING})
        steps[name] = str(commands.train(written, []).run_dir)
    step(
        "2 of 6  train klan: ISP from the randomised trial, AM from the sessions in their order, and the IIT of above"
    )
    parts = {"isp": {"training": ISP_TRAINING}, "iit": {"bundle": steps["iit"]}}
    content = {"name": "klan", "run_root": runs, "tables": tables, "split": SPLIT, "navigator": "klan"}
    steps["klan"] = str(commands.train(config("train_klan", {**content, "parts": parts}), []).run_dir)
    rules = [{"label": name.replace("_", " "), "navigator": f"heuristic.{name}"} for name in HEURISTICS]
    learned = [{"label": name.upper(), "bundle": steps[name]} for name in ("bc", "dqn", "iit", "klan")]
    isp = {"label": "ISP", "bundle": steps["klan"], "options": {"fusion": "isp"}}
    step("3 of 6  judge on held-out days, from the logs alone")
    judge = {
        "name": "evaluate",
        "run_root": runs,
        "tables": tables,
        "split": SPLIT,
        "policies": [*reversed(learned), *rules],
    }
    steps["evaluate"] = str(commands.evaluate(config("evaluate", judge), []))
    step("4 of 6  serve KLAN and ask it")
    steps["decision"] = _ask(Path(steps["klan"]) / "bundle", tables)
    step("5 of 6  A/B test in the world: the same users with the same luck under every policy")
    first, *last = _builtin()
    experiment = {
        "name": "ab",
        "run_root": runs,
        "world": WORLD,
        **EXPERIMENT,
        "arms": [first, *rules, *learned[:-1], isp, learned[-1], *last],
    }
    steps["ab"] = simulate.experiment(config("ab", experiment), [])["run"]
    step("6 of 6  report")
    steps["report"] = str(
        commands.report([Path(steps["ab"]), Path(steps["evaluate"])], folder / "report.html")
    )
    print()
    finish(
        "quickstart",
        folder,
        {**steps, "seconds": clock.seconds},
        {"folder": folder, "report": Path(steps["report"]), "seconds": clock.seconds},
    )
    print(
        "next: docs/your_logs.md takes a folder of your own Parquet logs the same way; docs/world.md is about the world"
    )


def _builtin() -> list[dict[str, str]]:
    """The control, the floor and the ceilings."""
    return [
        {"label": "logging policy", "builtin": "logging"},
        {"label": "random", "builtin": "random"},
        {"label": "oracle, myopic", "builtin": "myopic_oracle"},
        {"label": "oracle, far-sighted", "builtin": "far_sighted_oracle"},
    ]


def _ask(bundle: Path, tables: str) -> dict[str, Any]:
    """Starts the service with the state of the logs, asks for one landing page and returns the answer."""
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.policies.base import PolicyConfig
    from plpm_ray.serving.run import ServeConfig, running

    user, time_ms = _last_entry(Warehouse.open(tables))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServeConfig(
        bundle=str(bundle),
        history=tables,
        users=tables,
        port=port,
        policy=PolicyConfig(kind="epsilon", epsilon=0.05),
    )
    entry = {
        "user_id": user,
        "entry_time": time_ms + 3_600_000,
        "utc_offset_min": 480,
        "context": {"live_followed": 2, "push": "none"},
        "explain": True,
    }
    with running(config) as url:
        question = urllib.request.Request(
            f"{url}/v1/navigate", json.dumps(entry).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(question, timeout=60) as reply:
            answer = json.load(reply)
    print(f"POST /v1/navigate {json.dumps(entry)}")
    print(json.dumps(answer, indent=2))
    return answer


def _last_entry(warehouse: Any) -> tuple[int, int]:
    """User and exit time (ms) of a session on the last day of the tables."""
    days = warehouse.sessions.days()
    table = next(
        t for b in range(warehouse.info.n_buckets) if (t := warehouse.sessions.read(b, days[-1:])) is not None
    )
    return table["user_id"][0].as_py(), table["exit_time"][0].value
