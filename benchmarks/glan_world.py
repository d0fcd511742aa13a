"""GLAN against KLAN, its ablations and the rules, in the world: logs, training, A/B, from nothing to the table.

    python benchmarks/glan_world.py run --world kuaishou --seed 101 --out runs/glan_world     # one world, one seed
    python benchmarks/glan_world.py table --out runs/glan_world                               # all that have run

As in `klan_world.py` a seed makes users and luck. KLAN learns from logs under the world's logging policy, with a randomised
trial. Then it serves, with an epsilon of exploration, users of whom nothing was known (GLAN's paper: the online baseline is
KLAN): their logs are what GLAN learns from. Apart, GLAN learns from the logs of the heuristics that KLAN learned from. Other
users meet every policy in the A/B test, with the same luck under all of them, and KLAN is the control. Nothing is tuned on
these seeds. `--start` of another run's folder takes its tables and its KLAN.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import klan_world

KLAN_LOGS = 1 << 33  # first user of the logs under KLAN: none of those it learned from
HRM, LRTG, DT = (
    {"epochs": 10, "batch_size": 4096, "lr": 3e-3, "num_threads": 1},
    {"epochs": 10, "batch_size": 1024, "lr": 1e-3, "patience": 3, "num_threads": 1},
    {"epochs": 5, "batch_size": 512, "lr": 1e-3, "num_threads": 1},
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["run", "table"])
    parser.add_argument("--world", default="kuaishou")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--out", type=Path, default=Path("runs/glan_world"))
    parser.add_argument("--log-users", type=int, default=40_000, help="of each of the two logs")
    parser.add_argument("--users", type=int, default=50_000, help="of the A/B test")
    parser.add_argument("--explore", type=float, default=0.1, help="epsilon of KLAN while it makes logs")
    parser.add_argument("--workers", type=int, default=2, help="processes of this run")
    given = parser.parse_args()
    if given.stage == "table":
        print(klan_world.table(given.out, ("use_s", "dau", "pdr"), "assigned"))
    else:
        Run(given).go()


class Run(klan_world.Run):
    """One world and one seed."""

    def go(self) -> None:
        self.make_klan()
        policy = {"bundle": f"{self.runs}/klan", "policy": {"kind": "epsilon", "epsilon": self.given.explore}}
        logs = {**self.logs(), "first_user": KLAN_LOGS, "policy": policy, "days": 14, "warmup_days": 7}
        served = str(self.root / "tables_klan")
        self.plpm("data", "data_klan", {"dataset": logs, "output": served, "backend": "processes"})
        self.make_glan("glan", served)
        self.make_glan("glan_rules", self.tables)
        self.plpm("simulate ab", "ab", self.experiment())

    def make_glan(self, name: str, tables: str) -> None:
        """GLAN, and the same with a transformer of plain durations, whose other parts are the same."""
        parts: dict[str, Any] = {
            "lrtg": {"training": LRTG},
            "hrm": {"training": HRM},
            "dt": {"learner": {"name": "glan.dt"}, "training": DT},
        }
        self.tables, kept = tables, self.tables
        self.train(name, {"navigator": "glan", "parts": parts, "backend": "processes"})
        plain = {role: {"bundle": f"{self.runs}/{name}-{role}"} for role in ("lrtg", "hrm")}
        plain["dt"] = {"learner": {"name": "glan.dt", "reward": "duration"}, "training": DT}
        self.train(f"{name}_duration", {"navigator": "glan", "parts": plain})
        self.tables = kept

    def arms(self) -> list[dict[str, Any]]:
        heuristics = [{"label": n, "navigator": f"heuristic.{n}"} for n in klan_world.HEURISTICS]
        arms: list[dict[str, Any]] = [
            {"label": "klan", "bundle": f"{self.runs}/klan"},
            {"label": "logging", "builtin": "logging"},
            {"label": "random", "builtin": "random"},
            {"label": "oracle", "builtin": "far_sighted_oracle"},
            *heuristics,
        ]
        for name, label in (("glan", "glan"), ("glan_rules", "glan, logs of the rules")):
            arms += [
                {
                    "label": f"{label}, w/o L-RTG",
                    "bundle": f"{self.runs}/{name}",
                    "options": {"rtg": "mean7"},
                },
                {"label": f"{label}, w/o HRM", "bundle": f"{self.runs}/{name}_duration"},
                {"label": label, "bundle": f"{self.runs}/{name}"},
            ]
        return arms


if __name__ == "__main__":
    main()
