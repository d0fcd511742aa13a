"""Speed of the uplift metrics, in CPU seconds of this process, one thread.

    OMP_NUM_THREADS=1 python benchmarks/uplift.py                   # a million users
    OMP_NUM_THREADS=1 python benchmarks/uplift.py --users 200000 --repeats 100

The Qini coefficient against NumPy's argsort of the scores, and against causalml and scikit-uplift where they are
installed (they are no dependencies); the least of several runs, taken in turn. Then a whole report with intervals.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import time
from collections.abc import Callable
from types import ModuleType

import numpy as np

from plpm_ray.evaluation.uplift import UpliftSettings, uplift_report
from plpm_ray.evaluation.uplift_curves import auuc, qini_coefficient

RUNS = 5


def optional(name: str) -> ModuleType | None:
    """The module, or None with a line that says so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"  {name.split('.')[0]} is not installed: left out")
        return None


def least(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """CPU seconds of every call, the least of the runs; the calls take turns, so that load meets all of them."""
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(RUNS):
        for name, call in calls.items():
            before = time.process_time()
            call()
            seconds[name] = min(seconds[name], time.process_time() - before)
    return seconds


def compare(n: int) -> None:
    rng = np.random.default_rng(0)
    score, treated = rng.normal(size=n), rng.random(n) < 0.5
    response = rng.normal(size=n) + treated * 0.2 * (1 + score)
    single = score.astype(np.float32)
    calls: dict[str, Callable[[], object]] = {
        "argsort, float64": lambda: np.argsort(score),
        "argsort, float32": lambda: np.argsort(single),
        "Qini, float64 scores": lambda: qini_coefficient(score, treated, response),
        "Qini, float32 scores": lambda: qini_coefficient(single, treated, response),
        "AUUC, float64 scores": lambda: auuc(score, treated, response),
    }
    causalml, sklift = optional("causalml.metrics.visualize"), optional("sklift.metrics")
    if causalml is not None:
        import pandas as pd

        frame = pd.DataFrame({"model": score, "w": treated.astype(int), "y": response})
        calls["causalml qini_score"] = lambda: causalml.qini_score(frame)
    if sklift is not None:
        w, binary = treated.astype(int), (response > 0).astype(int)
        calls["scikit-uplift qini_auc_score"] = lambda: sklift.qini_auc_score(binary, score, w)
    seconds = least(calls)
    base = seconds["argsort, float64"]
    for name, value in seconds.items():
        print(f"  {name:<32}{value:>9.3f} s{value / base:>8.2f} x argsort")


def report(n: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(n, 3))
    outcomes = np.column_stack([rng.normal(size=n), effects])
    arm = rng.integers(0, 4, n)
    models = {name: effects + sd * rng.normal(size=effects.shape) for name, sd in (("one", 1), ("two", 2))}
    response = outcomes[np.arange(n), arm]
    settings = UpliftSettings(repeats=repeats)
    for name, truth in (("trial", None), ("trial and potential outcomes", outcomes)):
        before = time.process_time()
        uplift_report(models, arm, response, potential_outcomes=truth, settings=settings)
        seconds = time.process_time() - before
        print(f"  report, 2 models, 3 arms, {repeats} draws, {name}: {seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    print(f"{options.users:,} users, NumPy {np.__version__}")
    compare(options.users)
    report(options.users, options.repeats)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
