"""KLAN-ISP beside the uplift baselines on a real trial: 64,000 customers, two mails against none, judged on held-out ones.

    OMP_NUM_THREADS=1 python benchmarks/hillstrom.py hillstrom.csv                    response visit, ten seeds
    OMP_NUM_THREADS=1 python benchmarks/hillstrom.py hillstrom.csv --response spend
    OMP_NUM_THREADS=1 python benchmarks/hillstrom.py lbcf_rct --data lbcf --seeds 1   4,000 users: a smoke test only

A seed moves both the division of the customers (70 % train, 10 % valid, 20 % test) and the training. All learners go through
the same loop with the same settings and stop when the validation error has not fallen for `--patience` epochs. Each cell:
mean over the seeds and half of its 95 % Student interval. The divisions share customers, so the intervals tell how much a
result depends on division and training, and are too narrow as intervals of the population.

The baselines are made as wide as gives them the number of parameters of the first learner, or keep their own widths with
`--own-sizes`. Qini and AUUC of each arm, per user; policy value: mean response if everyone got the page of the largest delta
(the control is no page), by inverse propensity with self-normalised weights; over best: the same minus the page that is best
for all on the held-out customers.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import torch

from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.stats import TableStats
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit_trial import fit_trial
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import TEST, TRAIN, VALID, UserSplitConfig
from plpm_ray.evaluation.inference import t_quantile
from plpm_ray.evaluation.uplift import UpliftReport, UpliftSettings, uplift_report
from plpm_ray.navigators.uplift import UpliftLearner
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource, UserPart
from plpm_ray.training.job import build_learner
from plpm_ray.training.loop import fit_learner
from plpm_ray.training.table import TensorTable
from plpm_ray.training.uplift import predict_responses, uplift_class

# widths of the hidden layers of each baseline, all of which follow from one number
WIDTHS = {
    "reference.s_learner": lambda w: {"hidden": (w, w)},
    "reference.t_learner": lambda w: {"hidden": (w, w)},
    "reference.tarnet": lambda w: {"hidden": (2 * w,), "representation": 2 * w, "head_hidden": (w,)},
    "reference.efin": lambda w: {"control_hidden": (w, w), "uplift_hidden": (w, w)},
}
LEARNERS = ("klan.isp", "reference.s_learner", "reference.t_learner", "reference.tarnet", "reference.efin")
INPUTS = ("dense", "cat", "bins")


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset: dict[str, object] = {"name": args.data, "path": args.path}
        dataset |= {"response": args.response} if args.data == "hillstrom" else {"control": 0}
        settings = {"dataset": dataset, "output": folder, "n_buckets": 2, "max_bad_share": 0}
        ingest(IngestConfig.model_validate(settings))
        warehouse = Warehouse.open(folder)
        values: dict[str, list[dict[str, float]]] = {name: [] for name in args.learners}
        for seed in range(args.seeds):
            one_seed(warehouse, seed, args, values)
    what = f", response {args.response}" if args.data == "hillstrom" else ""
    print(f"{args.data}{what}, {args.seeds} seeds, {args.epochs} epochs at most\n")
    show(values)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="the CSV file of the challenge, or the folder of LBCF")
    parser.add_argument("--data", choices=("hillstrom", "lbcf"), default="hillstrom")
    parser.add_argument("--response", choices=("visit", "conversion", "spend"), default="visit")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--own-sizes", action="store_true", help="keep the default widths of all learners")
    parser.add_argument("--learners", nargs="+", default=LEARNERS, help="the first one is compared with")
    return parser.parse_args()


def one_seed(
    warehouse: Warehouse, seed: int, args: argparse.Namespace, values: dict[str, list[dict[str, float]]]
) -> None:
    """Trains and judges every learner on one division of the customers; appends to `values`."""
    split = UserSplitConfig(seed=seed)
    spec, stats = fit_trial(warehouse, split)
    needs = Needs("user", INPUTS, ("arm", "response"))
    parts = [
        TableSource(warehouse.root, tuple(warehouse.trial.days()), spec, needs, UserPart(split, part)).load()
        for part in (TRAIN, VALID, TEST)
    ]
    predicted, cost, size = {}, {}, None
    for name in args.learners:
        learner = sized(name, size, spec, stats, warehouse, seed)
        size = size or (None if args.own_sizes else parameters(learner))
        before = time.process_time()
        settings = {"epochs": args.epochs, "batch_size": args.batch, "lr": args.lr, "patience": args.patience}
        settings |= {"seed": seed, "device": "cpu", "num_threads": 1}
        training = TrainingConfig.model_validate(settings)
        found = fit_learner(learner, parts[0], parts[1], training)
        predicted[name] = predict_responses(learner, parts[2])
        seconds = time.process_time() - before
        cost[name] = {
            "parameters": float(parameters(learner)),
            "epochs": float(found.epochs),
            "CPU s": seconds,
        }
    report = judged(predicted, parts[2], warehouse)
    for name in args.learners:
        values[name].append(metrics(report, name) | cost[name])


def sized(
    name: str, size: int | None, spec: FeatureSpec, stats: TableStats, warehouse: Warehouse, seed: int
) -> UpliftLearner:
    """The learner with the width that comes closest to so many parameters; as it is by default where there is no size."""

    def build(options: dict[str, object]) -> UpliftLearner:
        cls = uplift_class(name)
        return build_learner(cls, options, spec, warehouse.info.pages, stats, seed)  # type: ignore[return-value]

    if size is None or name not in WIDTHS:
        return build({})
    made = (build(WIDTHS[name](width)) for width in range(4, 257, 2))
    return min(made, key=lambda learner: abs(parameters(learner) - size))


def parameters(learner: UpliftLearner) -> int:
    return sum(p.numel() for p in learner.parameters())


def judged(predicted: dict[str, np.ndarray], test: TensorTable, warehouse: Warehouse) -> UpliftReport:
    # intervals are over seeds here; two draws are the fewest that a report makes
    settings = UpliftSettings(repeats=2, control_is_choice=False, curve_points=2)
    return uplift_report(
        {name: y[:, 1:] - y[:, :1] for name, y in predicted.items()},
        test.columns["arm"].numpy(),
        test.columns["response"].numpy(),
        names=warehouse.info.pages.names,
        settings=settings,
    )


def metrics(report: UpliftReport, name: str) -> dict[str, float]:
    """Metric (and arm) -> value, of one learner."""
    labels = {"policy_value": "policy value", "policy_gain_best_arm": "over best"}
    found = {}
    for row in report.rows:
        if row["model"] != name:
            continue
        if row["metric"] in ("qini", "auuc"):
            found[f"{row['metric']} {row['arm']}"] = row["value"]
        elif row["metric"] in labels:
            found[labels[row["metric"]]] = row["value"]
    return found


def show(values: dict[str, list[dict[str, float]]]) -> None:
    """Prints the table of means, then that of the first learner minus each of the others, paired by seed."""
    first, *others = values
    names = list(values[first][0])
    tables = {name: np.array([[row[n] for n in names] for row in rows]) for name, rows in values.items()}
    header = f"| learner | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}"
    print(header)
    for name, table in tables.items():
        print(f"| {name} | {' | '.join(cells(table))} |")
    if not others:
        return
    kept = len(names) - 3
    print(f"\n| paired difference | {' | '.join(names[:kept])} |\n|{'---|' * (kept + 1)}")
    for name in others:
        print(f"| {first} - {name} | {' | '.join(cells((tables[first] - tables[name])[:, :kept]))} |")


def cells(table: np.ndarray) -> list[str]:
    """Mean and half width of the interval of each column."""
    mean, seeds = table.mean(0), len(table)
    if seeds < 2:
        return [f"{m:,.0f}" if m > 1000 else f"{m:.4g}" for m in mean]
    half = t_quantile(0.95, seeds - 1) * table.std(0, ddof=1) / np.sqrt(seeds)
    return [f"{m:.4g} ± {h:.2g}" if h else f"{m:,.0f}" for m, h in zip(mean, half, strict=True)]


if __name__ == "__main__":
    main()
