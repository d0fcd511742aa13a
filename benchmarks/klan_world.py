"""KLAN against its parts and what else an engineer would try, in the world: logs, training, A/B, from nothing to the table.

    python benchmarks/klan_world.py run --world kuaishou --seed 101 --out runs/klan_world     # one world, one seed
    python benchmarks/klan_world.py table --out runs/klan_world                               # all that have run

A seed makes the users, their tastes and their luck: of the logs (with a randomised trial in the second week), and of other
users who meet every policy in the A/B test, each with the same luck under all of them (`design: twins`). Nothing is tuned on
these seeds. A world may be a shipped one or a YAML file. The table has means over the seeds, and intervals that join theirs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

HEURISTICS = ("last_exit_page", "most_frequent", "longest_use", "popularity")
METRICS = ("use_s", "watch_s", "video_views", "dau", "lt", "pdr")
SPLIT = {"valid_days": 2, "test_days": 2}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["run", "table"])
    parser.add_argument("--world", default="kuaishou")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--out", type=Path, default=Path("runs/klan_world"))
    parser.add_argument("--log-users", type=int, default=40_000)
    parser.add_argument("--users", type=int, default=50_000, help="of the A/B test")
    parser.add_argument("--workers", type=int, default=2, help="processes of this run")
    given = parser.parse_args()
    if given.stage == "table":
        print(table(given.out))
    else:
        Run(given).go()


class Run:
    """One world and one seed, in a folder of their own; what is there already is not done again."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.root = given.out / f"{Path(given.world).stem}-{given.seed}"
        self.root.mkdir(parents=True, exist_ok=True)
        self.runs, self.tables = str(self.root / "runs"), str(self.root / "tables")

    def go(self) -> None:
        self.make_klan(alone=True)
        self.plpm("simulate ab", "ab", self.experiment())

    def logs(self) -> dict[str, Any]:
        """The world whose users are logged."""
        given = self.given
        return {"name": "world", "world": given.world, "seed": given.seed, "users": given.log_users}

    def make_klan(self, alone: bool = False) -> None:
        """Logs with a trial, and KLAN of them; with its rivals too, where it is alone."""
        import torch

        trial = {"start_day": 7, "shares": {"control": 4}}
        dataset = {**self.logs(), "days": 14, "warmup_days": 7, "trial": trial}
        self.plpm("data", "data", {"dataset": dataset, "output": self.tables, "backend": "processes"})
        graph = torch.cuda.is_available()
        fast = {"epochs": 6, "batch_size": 8192, "lr": 1e-3, "cuda_graph": graph, "num_threads": 1}
        learners = {"iit": {"name": "klan.iit"}}
        jobs: dict[str, dict[str, Any]] = {}
        if alone:
            learners["iit_constant"] = {"name": "klan.iit", "beta": 0.0}
            learners |= {n: {"name": f"reference.{n}"} for n in ("dqn", "bc")}
            jobs["lightgbm"] = {"navigator": {"name": "reference.lightgbm", "rounds": 200}}
        jobs |= {n: {"learner": x, "training": fast} for n, x in learners.items()}
        # the spec of the training days is fitted once, by the first
        self.train("iit", jobs.pop("iit"))
        small = {"epochs": 30, "batch_size": 1024, "lr": 1e-3, "patience": 5, "num_threads": 1}
        parts = {
            "isp": {"training": small},
            "iit": {"bundle": f"{self.runs}/iit"},
            "am": {"stream": {"batch_sessions": 1024}},
        }
        with ThreadPoolExecutor(self.given.workers) as pool:
            list(pool.map(lambda job: self.train(*job), jobs.items()))
        self.train("klan", {"navigator": {"name": "klan"}, "parts": parts, "backend": "processes"})

    def train(self, name: str, content: dict[str, Any]) -> None:
        shared = {"name": name, "run_root": self.runs, "tables": self.tables, "split": SPLIT}
        self.plpm("train", name, {**shared, **content})

    def arms(self) -> list[dict[str, Any]]:
        klan = f"{self.runs}/klan"
        return [
            {"label": "logging", "builtin": "logging"},
            {"label": "random", "builtin": "random"},
            {"label": "oracle", "builtin": "far_sighted_oracle"},
            *({"label": name, "navigator": f"heuristic.{name}"} for name in HEURISTICS),
            *({"label": n, "bundle": f"{self.runs}/{n}"} for n in ("bc", "dqn", "lightgbm", "iit_constant")),
            *({"label": f"{n} only", "bundle": klan, "options": {"fusion": n}} for n in ("isp", "iit", "am")),
            *({"label": f"klan, {w}", "bundle": klan, "options": {"weights": w}} for w in ("page", "shared")),
            {"label": "klan", "bundle": klan},
        ]

    def experiment(self) -> dict[str, Any]:
        from plpm_ray.simulation.config import load_world

        world = load_world(self.given.world).model_dump(mode="json") | {"seed": self.given.seed}
        made = {"name": "ab", "run_root": self.runs, "world": world, "arms": self.arms(), "design": "twins"}
        days = {"warmup_days": 7, "aa_days": 3, "ab_days": 7, "users": self.given.users}
        return {
            **made,
            **days,
            "backend": "processes",
            "workers": self.given.workers,
            "users_per_task": 12_500,
        }

    def plpm(self, command: str, name: str, content: dict[str, Any]) -> None:
        import subprocess
        import time

        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        code = "import sys; sys.argv[0] = 'plpm'; from plpm_ray.cli import main; main()"
        begun = time.time()
        with (self.root / f"{name}.log").open("w") as log:
            done = subprocess.run(
                [sys.executable, "-c", code, *command.split(), str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            )
        print(f"{self.root.name}: {name} {time.time() - begun:.0f} s", flush=True)
        if done.returncode:
            sys.exit(f"{path} failed: see {self.root / name}.log")


def table(out: Path, metrics: Sequence[str] = METRICS, by_page: str = "epef") -> str:
    """Markdown, a table for each world: change against the control in %, joined over its seeds."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(out.glob("*/runs/ab-*/ab.json")):
        found[path.parents[2].name.rpartition("-")[0]].append(json.loads(path.read_text()))
    return "\n\n".join(_world_table(world, runs, metrics, by_page) for world, runs in found.items())


def _world_table(world: str, runs: list[dict[str, Any]], metrics: Sequence[str], by_page: str) -> str:
    names = [*metrics, *(f"{by_page}_{page}" for page in runs[0]["pages"])]
    users = " and ".join(f"{n:,}" for n in sorted({run["users"] for run in runs}))
    lines = [f"**{world}**, {len(runs)} seeds of {users} users", "", f"| arm | gap | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for arm in runs[0]["arms"]:
        rows = [{r["metric"]: r for r in run["metrics"] if r["arm"] == arm} for run in runs]
        gaps = [r["use_s"]["gap_share"] for r in rows if r["use_s"].get("gap_share") is not None]
        cells = [_joined([r[name] for r in rows if name in r]) for name in names]
        gap = f"{100 * sum(gaps) / len(gaps):.0f} %" if gaps else ""
        lines.append(f"| {arm} | {gap} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _joined(rows: list[dict[str, Any]]) -> str:
    """Mean relative change with the half width of its 95 % interval, in %; seeds are independent."""
    known = [r for r in rows if r.get("low") is not None]
    if not known:
        return ""
    mean = sum(r["relative"] for r in known) / len(known)
    half = math.sqrt(sum(((r["high"] - r["low"]) / 2) ** 2 for r in known)) / len(known)
    mark = "**" if abs(mean) > half else ""
    return f"{mark}{100 * mean:+.2f}{mark} ± {100 * half:.2f}"


if __name__ == "__main__":
    main()
