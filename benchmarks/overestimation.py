"""How far Q lies above what held-out days returned, by the weight alpha of the conservative penalty; alpha = 0 is DQN.

    python benchmarks/overestimation.py                            logs of the simulated world
    python benchmarks/overestimation.py --tables warehouse/kuairand

Trains KLAN-IIT once per alpha and seed on the training days and compares Q with the discounted return of the same
sessions on the test days, in seconds: for the logged page, and for the page that Q likes best.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from plpm_ray.core.config import Named
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import split_days
from plpm_ray.data.tables import build_transitions
from plpm_ray.evaluation.held_out import read_decisions
from plpm_ray.evaluation.metrics import overestimation_gap, realised_return
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", help="warehouse with built transitions; default: logs of the world")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.1, 0.5, 2.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--gamma", type=float, default=0.9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tables = args.tables or simulated(scratch)
        print("| alpha | Q - return, logged page (s) | Q - return, best page (s) | max Q / return |")
        print("|---|---|---|---|")
        for alpha in args.alpha:
            gaps = np.array([gap(tables, scratch, alpha, seed, args) for seed in range(args.seeds)])
            cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(gaps.mean(0)[:2], gaps.std(0)[:2], strict=True)]
            print(f"| {alpha:g} | {cells[0]} | {cells[1]} | {gaps.mean(0)[2]:.2f} |", flush=True)
        print(
            f"\nmean ± standard deviation over {args.seeds} seeds of training, {args.epochs} epochs, gamma {args.gamma:g}"
        )


def simulated(scratch: str) -> str:
    """Tables of 1,500 users of the world, 125,000 sessions or so."""
    output = f"{scratch}/tables"
    dataset = Named.model_validate({"name": "world", "world": "kuaishou", "users": 1500, "days": 14})
    ingest(IngestConfig(dataset=dataset, output=output, n_buckets=4))
    build_transitions(Warehouse.open(output))
    return output


def gap(
    tables: str, scratch: str, alpha: float, seed: int, args: argparse.Namespace
) -> tuple[float, float, float]:
    """Gap of the logged and of the best page in seconds, and the ratio of the mean best Q to the mean return."""
    warehouse = Warehouse.open(tables)
    split = split_days(warehouse.transitions.days())
    training = TrainingConfig(
        epochs=args.epochs, batch_size=512, seed=seed, num_threads=1, eval_every=args.epochs
    )
    learner = {"alpha": alpha, "gamma": args.gamma}
    result = train("klan.iit", learner, training, tables, split.train, split.valid, Path(scratch) / "runs")
    held_out = read_decisions(warehouse, split.test)
    q = load_bundle(result.bundle_path).navigator().values(held_out.features)
    assert q is not None
    returns = realised_return(held_out.use_s, held_out.episode, held_out.step, args.gamma)
    found = overestimation_gap(q, held_out.action, returns, held_out.user)
    return found.logged_action.value, found.best_action.value, found.best_ratio or float("nan")


if __name__ == "__main__":
    main()
