"""A model of users' days on held-out days: its errors beside those of the seven-day mean, and whether its constraints hold.

R user-days. Intervals are 95 %, clustered by user.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from plpm_ray.evaluation.assess import HeldOut
from plpm_ray.evaluation.day_models import DECILES, WEEK, day_errors, mae_gain, seven_day_mean, tenths
from plpm_ray.evaluation.metrics import Mean, clustered_mean
from plpm_ray.evaluation.rank_correlation import clustered_spearman
from plpm_ray.navigators.base import Learner
from plpm_ray.nn.duals import HOLDS_WITHIN
from plpm_ray.training.constraints import Constrained

GROUPS = {"use": DECILES, "prediction": DECILES, "weekday": WEEK}
"""What the bias is shown by, and in how many groups."""


def judge_days(learner: Learner, rows: HeldOut, mean_day_s: float) -> dict[str, Any]:
    """What is to be said of a model of days, JSON-like.

    Args:
        mean_day_s: seconds of the mean day of the training window, what the seven-day mean says of users without any.

    Returns:
        "rows", "users"; "model", "reference" (the seven-day mean) and "constant" (the mean day of the training window for all),
        see `_errors`; "mae_gain", by how much the model's mean absolute error is smaller than that of the seven-day mean;
        "constraints", see `_constraints`; and, of a model that says them, "sessions".
    """
    use_s, said_s = rows.columns["use_s"].astype(np.float64), rows.of("use_s")
    mean_s = seven_day_mean(rows.columns["days"], mean_day_s)
    found: dict[str, Any] = {
        "rows": len(rows),
        "users": rows.users,
        "mean_s": float(use_s.mean()),
        "model": _errors(said_s, use_s, rows),
        "reference": _errors(mean_s, use_s, rows),
        "constant": _errors(np.full(len(rows), mean_day_s), use_s, rows),
        "mae_gain": asdict(mae_gain(said_s, mean_s, use_s, rows.user)),
        "constraints": _constraints(learner, rows),
    }
    if "sessions" in rows.names:
        error = rows.of("sessions") - rows.columns["sessions"]
        found["sessions"] = {
            "mean": float(rows.columns["sessions"].mean(dtype=np.float64)),
            "mae": asdict(clustered_mean(np.abs(error), rows.user)),
            "bias": asdict(clustered_mean(error, rows.user)),
        }
    return found


def _errors(said_s: np.ndarray, use_s: np.ndarray, rows: HeldOut) -> dict[str, Any]:
    """ "mae_s", "rmse_s", "spearman" and "bias_s" with intervals; "bias_by": what it is grouped by -> a `Mean` or None each."""
    errors = day_errors(said_s, use_s, rows.weekday)
    error = said_s - use_s
    square = clustered_mean(np.square(error), rows.user)
    low, high = (float(np.sqrt(max(v, 0.0))) for v in (square.low, square.high))
    groups = {"use": tenths(use_s), "prediction": tenths(said_s), "weekday": rows.weekday}
    return {
        "mae_s": asdict(clustered_mean(np.abs(error), rows.user)),
        "rmse_s": asdict(Mean(errors.rmse_s, low, high, len(error))),
        "spearman": _finite(clustered_spearman(said_s, use_s, rows.user)),
        "bias_s": asdict(clustered_mean(error, rows.user)),
        "bias_by": {name: _by(error, group, GROUPS[name], rows.user) for name, group in groups.items()},
    }


def _by(error: np.ndarray, group: np.ndarray, n_groups: int, user: np.ndarray) -> list[dict[str, Any] | None]:
    rows = [np.flatnonzero(group == i) for i in range(n_groups)]
    return [_finite(clustered_mean(error[r], user[r])) if len(r) else None for r in rows]


def _constraints(learner: Learner, rows: HeldOut) -> dict[str, dict[str, Any]]:
    """By constraint: "value" with "low" and "high" on these days, "bound", "lambda", whether it "holds" here, and whether it
    "held" at the end of training; nothing of a model without. A learner measures each as `excess_<name>`."""
    if not isinstance(learner, Constrained):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, at_end in learner.constraints().items():
        excess = rows.metrics.get(f"excess_{name}")
        if excess is None:
            continue
        mean, bound = clustered_mean(excess, rows.user), at_end["bound"]
        value, low, high = (v + bound for v in (mean.value, mean.low, mean.high))
        found[name] = {
            "value": value,
            "low": low,
            "high": high,
            "bound": bound,
            "lambda": at_end["lambda"],
            "holds": bool(value <= bound * (1 + HOLDS_WITHIN)),
            "held": at_end["holds"],
        }
    return found


def _finite(mean: Mean) -> dict[str, Any]:
    """As a record, nan as None."""
    return {name: v if np.isfinite(v) else None for name, v in asdict(mean).items()}
