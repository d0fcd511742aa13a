"""L-RTG against the seven-day mean and against itself without constraints, on held-out days of the world.

    python benchmarks/lrtg_days.py --worlds kuaishou hard five_pages --seeds 1 2 3 --out runs/lrtg_days

One set of logs for each world, under its logging policy; the last days are held out, and the days before them stop the training
early. A seed is that of the first weights and of the order of the rows. The table has mean and standard deviation over the seeds;
the seven-day mean has no seed. Errors are seconds of use of an active day. What is there already is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plpm_ray.core.storage import read_json, write_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import SplitConfig, split_days
from plpm_ray.data.tables import build_transitions
from plpm_ray.evaluation.assess import DAY, held_out
from plpm_ray.evaluation.assess_days import judge_days
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train

TRAINING = {"epochs": 20, "batch_size": 1024, "lr": 1e-3, "patience": 4, "num_threads": 1}
NUMBERS = ("mae_s", "rmse_s", "spearman", "bias_s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="+", default=["kuaishou", "hard", "five_pages"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of the training")
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--days", type=int, default=28, help="logged")
    parser.add_argument("--warmup-days", type=int, default=7, help="lived before, not logged")
    parser.add_argument("--valid-days", type=int, default=3)
    parser.add_argument("--test-days", type=int, default=7)
    parser.add_argument("--log-seed", type=int, default=0, help="of the users and their luck")
    parser.add_argument("--out", type=Path, default=Path("runs/lrtg_days"))
    given = parser.parse_args()
    for world in given.worlds:
        print(world_table(world, judged(world, given)), flush=True)


def judged(world: str, given: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Model -> what `judge_days` found for each seed."""
    root = given.out / world
    warehouse = logs(world, given, root / "tables")
    split = split_days(
        warehouse.transitions.days(), SplitConfig(valid_days=given.valid_days, test_days=given.test_days)
    )
    fitted = fit_spec(warehouse, split.train)
    found: dict[str, list[dict[str, Any]]] = {}
    for label, config in (("L-RTG", {}), ("L-RTG, unconstrained", {"constrained": False})):
        for seed in given.seeds:
            training = TrainingConfig.model_validate({**TRAINING, "seed": seed})
            name = f"{label.lower().replace(', ', '_')}-{seed}"
            run = train(
                "glan.lrtg",
                config,
                training,
                warehouse.root,
                split.train,
                split.valid,
                root / "runs",
                name,
                fitted=fitted,
            )
            path = run.run_dir / "held_out.json"
            if not path.exists():
                learner = load_bundle(run.bundle_path).learner()
                rows = held_out(learner, DAY, warehouse, fitted[0], split.test)
                write_json(path, judge_days(learner, rows, fitted[1].mean_day_use_s))
            found.setdefault(label, []).append(read_json(path))
    return found


def logs(world: str, given: argparse.Namespace, output: Path) -> Warehouse:
    """The world's logs as tables; made once."""
    if not (output / "summary.json").exists():
        dataset = {
            "name": "world",
            "world": world,
            "seed": given.log_seed,
            "users": given.users,
            "days": given.days,
            "warmup_days": given.warmup_days,
            "policy": "logging",
        }
        made = ingest(
            IngestConfig.model_validate({"dataset": dataset, "output": str(output), "n_buckets": 4})
        )
        build_transitions(Warehouse.open(output))
        write_json(output / "summary.json", {"command": "data", "sessions": made["sessions"]})
    return Warehouse.open(output)


def world_table(world: str, found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line a model."""
    first = next(iter(found.values()))[0]
    names = list(first["constraints"])
    head = [world, "MAE", "RMSE", "Spearman", "bias", "worst tenth by prediction", "worst weekday"]
    head += [f"{name} (bound {first['constraints'][name]['bound']:.3f})" for name in names]
    reference = [first["reference"]]
    lines = [head, ["seven-day mean", *errors(reference), *("-" for _ in names)]]
    for label, runs in found.items():
        values = [[run["constraints"][name] for run in runs] for name in names]
        held = [
            f"{spread([c['value'] for c in seeds], 3)}, holds {sum(c['holds'] for c in seeds)}/{len(seeds)}"
            for seeds in values
        ]
        lines.append([label, *errors([run["model"] for run in runs]), *held])
    about = f"{first['rows']:,} days of {first['users']:,} users, {first['mean_s']:,.0f} s on average; gain in MAE "
    gains = [[run["mae_gain"] for run in runs] for runs in found.values()]
    about += "; ".join(
        f"{label}: {spread([g['value'] for g in seeds])} s (first seed {seeds[0]['low']:.1f} to {seeds[0]['high']:.1f})"
        for label, seeds in zip(found, gains, strict=True)
    )
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:], "", about, ""])


def errors(models: Sequence[dict[str, Any]]) -> list[str]:
    """Cells of the errors, and of the largest bias of a tenth of the days by prediction and of a weekday."""
    cells = [spread([m[name]["value"] for m in models], 3 if name == "spearman" else 1) for name in NUMBERS]
    for by in ("prediction", "weekday"):
        worst = [max(abs(g["value"]) for g in m["bias_by"][by] if g is not None) for m in models]
        cells.append(spread(worst))
    return cells


def spread(values: Sequence[float], decimals: int = 1) -> str:
    """Mean and standard deviation."""
    mean = f"{np.mean(values):,.{decimals}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):,.{decimals}f}"


if __name__ == "__main__":
    main()
