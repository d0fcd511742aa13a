"""Training and inference of KLAN-ISP beside the uplift baselines, in CPU seconds of one thread, and what each has found.

    OMP_NUM_THREADS=1 python benchmarks/train_isp.py                   500,000 users x 40 features, 3 pages and a control
    OMP_NUM_THREADS=1 python benchmarks/train_isp.py --users 100000 --learners klan.isp reference.tarnet
    OMP_NUM_THREADS=1 python benchmarks/train_isp.py --peer-python ~/peers/bin/python

Every learner passes `--epochs` times over the same trial through the training loop, batches drawn and gathered from a table
included; then all arms of all users are predicted. The effects are known, and judged on users held out: PEHE is the root
mean squared error of a page's effect as a share of that effect's spread (1 = the mean effect for everyone); gain is what
showing everyone the page predicted best brings, 1 being the best that is possible and 0 the best single page. The T-learners
of causalml and econml, over scikit-learn's histogram gradient boosting, are fitted on the same users in the same run where
they are installed (they are no dependencies), here or under another interpreter (`--peer-python`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from plpm_ray.core.feature_fitting import SpecFitter
from plpm_ray.core.features import FeatureSchema, FeatureSpec, RawFeatures
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.inputs import encoded_tensors
from plpm_ray.navigators.uplift import UpliftLearner
from plpm_ray.training.comm import Comm
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.job import build_learner
from plpm_ray.training.loop import Loop
from plpm_ray.training.table import TensorTable

LEARNERS = ("klan.isp", "reference.tarnet", "reference.t_learner", "reference.s_learner", "reference.efin")
HELD_OUT, CALL = 50_000, 16_384


@dataclass
class Trial:
    """Users of a synthetic trial: features (n, F), arm and response (n,), and the truth of all arms (n, K + 1)."""

    x: np.ndarray
    arm: np.ndarray
    response: np.ndarray
    outcomes: np.ndarray

    def __getitem__(self, rows: slice) -> Trial:
        return Trial(self.x[rows], self.arm[rows], self.response[rows], self.outcomes[rows])

    @classmethod
    def draw(cls, n: int, features: int, pages: int, seed: int) -> Trial:
        """Skewed responses in seconds; a page's effect is steps, curves and signs of four features of its own."""
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, features)).astype(np.float32)
        x[:, 1::4] = np.exp(0.5 * x[:, 1::4])
        base = 600 * np.exp(0.4 * x[:, 0] + 0.3 * np.tanh(x[:, 2] * x[:, 3]) - 0.2 * (x[:, 4] > 0.5))
        lift = np.empty((n, pages))
        for k in range(pages):
            a, b, c, d = rng.choice(features, 4, replace=False)
            lift[:, k] = 0.15 * np.tanh(x[:, a]) + 0.15 * (x[:, b] > 0.3) * np.sign(x[:, c])
            lift[:, k] += 0.1 * np.sin(2 * x[:, d]) - 0.02 * k
        outcomes = np.column_stack([base, base[:, None] * (1 + lift)])
        arm = rng.integers(0, pages + 1, n)
        response = outcomes[np.arange(n), arm] * rng.gamma(4, 1 / 4, n)
        return cls(x, arm, response.astype(np.float32), outcomes)


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    whole = Trial.draw(args.users + HELD_OUT, args.features, args.pages, seed=0)
    train, test = whole[slice(args.users)], whole[slice(args.users, None)]
    print(
        f"{args.users:,} users x {args.features} features, {args.pages} pages and a control, {args.epochs} epochs"
    )
    print(f"batches of {args.batch}, torch {torch.__version__}, one thread, CPU seconds\n")
    print(
        "| learner | parameters | s an epoch | x first | trained rows/s | predicted rows/s | PEHE / spread | gain |"
    )
    print("|---|---|---|---|---|---|---|---|")
    fitted = Fitted.of(train, args.pages)
    first = 0.0
    for name in args.learners:
        seconds, rows_s, effects, size = ours(name, fitted, train, test, args)
        first = first or seconds
        line = f"| {name} | {size:,} | {seconds:.2f} | {seconds / first:.2f} | {args.users / seconds:,.0f} | {rows_s:,.0f} |"
        print(f"{line} {judged(effects, test)} |", flush=True)
    for name, fit_s, predict_s, effects in peers(args.peer_python, train, test):
        line = f"| {name} | | {fit_s:.2f} (a fit) | {fit_s / first if first else 1:.2f}"
        line += f" | {args.users / fit_s:,.0f} | {HELD_OUT / predict_s:,.0f} |"
        print(f"{line} {judged(effects, test)} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--features", type=int, default=40)
    parser.add_argument("--pages", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--learners", nargs="*", default=LEARNERS)
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        help="interpreter that has causalml or econml; default: this one",
    )
    return parser.parse_args()


@dataclass
class Fitted:
    """What is found on the training users: the encoder, the catalogue, the arms' totals."""

    spec: FeatureSpec
    pages: PageCatalogue
    stats: TableStats

    @classmethod
    def of(cls, trial: Trial, pages: int) -> Fitted:
        names = tuple(f"page_{k}" for k in range(pages))
        profile = {f"x{i}": "numeric" for i in range(trial.x.shape[1])}
        schema = FeatureSchema(names, profile=profile, history=False)  # type: ignore[arg-type]
        fitter = SpecFitter(schema)
        fitter.update(RawFeatures(schema, trial.x, {}, {}))
        none = np.zeros(0, dtype=np.int64)
        stats = TableStats.of(pages, landing=none, use_s=none, landing_dwell_s=none, hour=none, step=none)
        stats.arm_users = np.bincount(trial.arm, minlength=pages + 1).astype(float)
        stats.arm_response = np.bincount(trial.arm, weights=trial.response, minlength=pages + 1)
        return cls(fitter.finish(), PageCatalogue(pages=names), stats)  # type: ignore[arg-type]

    def table(self, trial: Trial) -> TensorTable:
        tensors = encoded_tensors(self.spec.encode(RawFeatures(self.spec.schema, trial.x, {}, {}), bins=True))
        tensors["bins"], tensors["arm"] = tensors["bins"].to(torch.int16), torch.from_numpy(trial.arm).short()
        return TensorTable(tensors | {"response": torch.from_numpy(trial.response)})


def ours(
    name: str, fitted: Fitted, train: Trial, test: Trial, args: argparse.Namespace
) -> tuple[float, float, np.ndarray, int]:
    """CPU seconds an epoch, users a second with all arms, effects on the held-out users, and parameters."""
    learner = build_learner(lookup("learner", name), {}, fitted.spec, fitted.pages, fitted.stats, seed=0)
    config = TrainingConfig(
        epochs=args.epochs + 1, batch_size=args.batch, lr=args.lr, device="cpu", num_threads=1
    )
    table = fitted.table(train)
    loop = Loop(learner, table, None, config, Comm())
    for step, batch in zip(range(3), table.batches(0, 1, args.batch, 3), strict=True):
        del step
        loop.train_step(batch)  # the first steps load code and fill the allocator
    loop.epoch = 1
    before = time.process_time()
    loop.run()
    seconds = (time.process_time() - before) / args.epochs
    rows_s = max(speed(learner, table) for _ in range(2))  # type: ignore[arg-type]
    y = responses(learner, fitted.table(test))  # type: ignore[arg-type]
    return seconds, rows_s, y[:, 1:] - y[:, :1], sum(p.numel() for p in learner.parameters())


def speed(learner: UpliftLearner, table: TensorTable) -> float:
    before = time.process_time()
    responses(learner, table)
    return table.rows / (time.process_time() - before)


@torch.inference_mode()
def responses(learner: UpliftLearner, table: TensorTable) -> np.ndarray:
    """(n, K + 1), batches gathered from the table as a daily job would."""
    return torch.cat([learner.responses(batch) for batch in table.ordered(CALL)]).numpy()


def judged(effects: np.ndarray, test: Trial) -> str:
    truth = test.outcomes[:, 1:] - test.outcomes[:, :1]
    error = np.sqrt(((effects - truth) ** 2).mean(0)) / truth.std(0)
    choice = np.column_stack([np.zeros(len(effects)), effects]).argmax(1)
    single = test.outcomes.mean(0).max()
    found = test.outcomes[np.arange(len(choice)), choice].mean()
    return f"{error.mean():.3f} | {(found - single) / (test.outcomes.max(1).mean() - single):.3f}"


def peers(python: str, train: Trial, test: Trial) -> Iterator[tuple[str, float, float, np.ndarray]]:
    """Of every library that the interpreter has: name, CPU seconds of fit and of prediction, effects on the held-out users."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "trial.npz", Path(folder) / "effects.npz"
        np.savez(given, x=train.x, arm=train.arm, response=train.response, test_x=test.x)
        script = Path(__file__).with_name("train_isp_peers.py")
        command = [python, "-W", "ignore", str(script), str(given), str(made)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        effects = np.load(made)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                found = json.loads(line)
                yield found["name"], found["fit_s"], found["predict_s"], effects[found["name"]]


if __name__ == "__main__":
    main()
