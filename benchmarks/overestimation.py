"""How far Q lies above what held-out days returned: by the conservative penalty (alpha, constant or following the tide of the
day), and by hour; alpha = 0 is DQN.

    python benchmarks/overestimation.py                            logs of the simulated world
    python benchmarks/overestimation.py --tables warehouse/kuairand

Trains KLAN-IIT once per setting and seed on the training days and compares Q with the discounted return of the same
sessions on the test days, in seconds: for the logged page, and for the page that Q likes best, also by local hour of entry.
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

BANDS = (0, 6, 12, 18)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", help="warehouse with built transitions; default: logs of the world")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.1, 0.5, 2.0])
    parser.add_argument("--beta", type=float, nargs="+", default=[0.0, 1.0], help="0: the same alpha all day")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--gamma", type=float, default=0.9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tables = args.tables or simulated(scratch)
        bands = [f"best, {first}-{first + 5} h" for first in BANDS]
        titles = ["alpha", "beta", "logged page", "best page", "max Q / return", *bands]
        print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
        for alpha in args.alpha:
            for beta in args.beta if alpha else args.beta[:1]:
                gaps = np.array([gap(tables, scratch, alpha, beta, seed, args) for seed in range(args.seeds)])
                ratio = f"{gaps[:, 2].mean():.2f} ± {gaps[:, 2].std():.2f}"
                cells = [f"{m:.0f} ± {s:.0f}" for m, s in zip(gaps.mean(0), gaps.std(0), strict=True)]
                cells[2] = ratio
                print(f"| {alpha:g} | {beta:g} | {' | '.join(cells)} |", flush=True)
        print(
            f"\nQ - return in seconds; mean ± standard deviation over {args.seeds} seeds of training, {args.epochs} epochs, "
            f"gamma {args.gamma:g}"
        )


def simulated(scratch: str) -> str:
    """Tables of 1,500 users of the world, 125,000 sessions or so."""
    output = f"{scratch}/tables"
    dataset = Named.model_validate({"name": "world", "world": "kuaishou", "users": 1500, "days": 14})
    ingest(IngestConfig(dataset=dataset, output=output, n_buckets=4))
    build_transitions(Warehouse.open(output))
    return output


def gap(
    tables: str, scratch: str, alpha: float, beta: float, seed: int, args: argparse.Namespace
) -> tuple[float, ...]:
    """Gap of the logged and of the best page in seconds, the ratio of the mean best Q to the mean return, and the best page's
    gap in each band of hours."""
    warehouse = Warehouse.open(tables)
    split = split_days(warehouse.transitions.days())
    training = TrainingConfig(
        epochs=args.epochs, batch_size=512, seed=seed, num_threads=1, eval_every=args.epochs
    )
    learner = {"alpha": alpha, "beta": beta, "gamma": args.gamma}
    result = train("klan.iit", learner, training, tables, split.train, split.valid, Path(scratch) / "runs")
    held_out = read_decisions(warehouse, split.test)
    q = load_bundle(result.bundle_path).navigator().values(held_out.features)
    assert q is not None
    returns = realised_return(held_out.use_s, held_out.episode, held_out.step, args.gamma)
    found = overestimation_gap(q, held_out.action, returns, held_out.user)
    hour = np.asarray(held_out.features.categorical["hour"])
    over = q.max(axis=1) - returns
    by_hour = [float(over[(hour >= first) & (hour < first + 6)].mean()) for first in BANDS]
    ratio = found.best_ratio or float("nan")
    return found.logged_action.value, found.best_action.value, ratio, *by_hour


if __name__ == "__main__":
    main()
