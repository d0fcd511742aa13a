"""T-learners of other libraries on the trial of `train_isp.py`; called by it, in an interpreter that may be another one.

    python benchmarks/train_isp_peers.py TRIAL.npz EFFECTS.npz

Reads x (n, F), arm and response (n,) and test_x (m, F); writes the effects (m, K) of every library that is installed, and
prints a JSON line for each: CPU seconds of the fit and of the prediction. Only NumPy and scikit-learn are needed beside them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from types import ModuleType

import numpy as np

Predict = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Predict]


def peers() -> dict[str, Fit]:
    """Library -> its T-learner over the same base model, histogram gradient boosting with its defaults."""
    found: dict[str, Fit] = {}
    causalml, econml = optional("causalml.inference.meta"), optional("econml.metalearners")
    trees = optional("sklearn.ensemble")
    if trees is None:
        return {}
    if causalml is not None:

        def fit_causalml(x: np.ndarray, arm: np.ndarray, response: np.ndarray) -> Predict:
            model = causalml.BaseTRegressor(trees.HistGradientBoostingRegressor(), control_name=0)
            model.fit(x, arm, response)
            return lambda new: np.asarray(model.predict(new))

        found[f"causalml {version('causalml')} BaseTRegressor"] = fit_causalml
    if econml is not None:

        def fit_econml(x: np.ndarray, arm: np.ndarray, response: np.ndarray) -> Predict:
            model = econml.TLearner(models=trees.HistGradientBoostingRegressor())
            model.fit(response, arm, X=x)
            pages = range(1, int(arm.max()) + 1)
            return lambda new: np.column_stack([model.effect(new, T0=0, T1=k) for k in pages])

        found[f"econml {version('econml')} TLearner"] = fit_econml
    return found


def version(name: str) -> str:
    return importlib.metadata.version(name)


def optional(name: str) -> ModuleType | None:
    """The module, or None with a line that says so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name.split('.')[0]} is not installed: left out", file=sys.stderr)
        return None


def main(trial: str, output: str) -> None:
    data, effects = np.load(trial), {}
    x, arm, response, test_x = (data[name] for name in ("x", "arm", "response", "test_x"))
    for name, fit in peers().items():
        before = time.process_time()
        predict = fit(x, arm, response)
        fitted = time.process_time()
        effects[name] = predict(test_x)
        seconds = {"fit_s": fitted - before, "predict_s": time.process_time() - fitted}
        print(json.dumps({"name": name, **seconds}), flush=True)
    np.savez(output, **effects)


if __name__ == "__main__":
    main(*sys.argv[1:])
