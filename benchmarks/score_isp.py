"""The daily scoring job: KLAN-ISP for every user of a simulated app, with what comes before it.

    python benchmarks/score_isp.py                    # 1,000,000 users, two processes; some 1.5 GB of disk
    python benchmarks/score_isp.py --users 50000      # a quick look

The logs (three days, a trial on the last two) are simulated into `--folder` once, and found there by later calls. Then every
step runs in a process of its own: the trial table, one epoch of ISP on it, and `plpm score` into an empty folder, which is
what a day costs. Columns: wall seconds, CPU seconds of all processes of the step (imports included), and users per CPU second.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = {
    "trial table": """
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.trials import build_trial
build_trial(Warehouse.open(tables), backend="processes", workers=workers)
""",
    "one epoch of ISP": """
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train
settings = TrainingConfig.model_validate({"epochs": 1, "batch_size": 8192, "device": "cpu"})
train("klan.isp", {}, settings, tables, run_dir=folder / "isp")
""",
    "plpm score": """
from plpm_ray.serving.score import ScoreConfig, score_users
settings = {"bundle": str(folder / "isp"), "tables": str(tables), "output": str(folder / "deltas")}
print(score_users(ScoreConfig.model_validate(settings | {"backend": "processes", "workers": workers})), file=sys.stderr)
""",
    "plpm score, done before": """
from plpm_ray.serving.score import ScoreConfig, score_users
settings = {"bundle": str(folder / "isp"), "tables": str(tables), "output": str(folder / "deltas")}
score_users(ScoreConfig.model_validate(settings))
""",
}
_HEAD = """
import sys
from pathlib import Path
if __name__ == "__main__":
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    tables = folder / "warehouse"
"""


def main() -> None:
    args = arguments()
    folder = Path(args.folder or Path(tempfile.gettempdir()) / f"plpm-score-{args.users}").absolute()
    make_logs(folder / "warehouse", args.users)
    for made in ("isp", "deltas", "warehouse/trial"):
        shutil.rmtree(folder / made, ignore_errors=True)
    print(f"{args.users:,} users, {args.workers} processes, {os.cpu_count()} cores\n")
    print("| step | wall s | CPU s | users / CPU s |\n|---|---|---|---|")
    for name, code in STEPS.items():
        wall, cpu = measured(folder, code, args.workers)
        print(f"| {name} | {wall:.0f} | {cpu:.0f} | {args.users / cpu:,.0f} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="for the tables; default: a folder for temporary files")
    return parser.parse_args()


def make_logs(root: Path, users: int) -> None:
    if (root / "manifest.json").exists():
        return
    from plpm_ray.data.ingest import IngestConfig, ingest

    world = {"name": "world", "world": "kuaishou", "users": users, "days": 3, "warmup_days": 1}
    dataset = world | {"users_per_slice": 8000, "trial": {"start_day": 1, "days": 2}}
    ingest(IngestConfig.model_validate({"dataset": dataset, "output": str(root), "n_buckets": 16}))


def measured(folder: Path, code: str, workers: int) -> tuple[float, float]:
    """Wall and CPU seconds of a step with all its processes."""
    script = folder / "step.py"
    script.write_text(_HEAD + "\n".join(f"    {line}" for line in code.strip().splitlines()) + "\n")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, str(script), str(folder), str(workers)], check=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


if __name__ == "__main__":
    main()
