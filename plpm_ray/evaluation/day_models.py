"""How well a day's use was foretold: errors of a model of days beside those of the mean of the last seven days (GLAN 5.4.2).

N held-out user-days. Two groupings of the bias tell different things. By what was foretold it is calibration, and a good
model has none anywhere. By what came it never vanishes: no model knows which of two like days will be the long one, so
short days are foretold too long and long ones too short; there models are compared with each other, not with 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.metrics import Mean, clustered_mean
from plpm_ray.evaluation.uplift_ranking import spearman

DECILES = 10
WEEK = 7


@dataclass(frozen=True)
class DayErrors:
    """Errors of foretold seconds of N user-days.

    Attributes:
        days: N.
        mae_s, rmse_s: mean absolute error, and root of the mean squared one.
        spearman: rank correlation of what was foretold with what came; nan where one of them is constant.
        bias_s: mean of foretold minus came.
        bias_by_use_s: (10,) the same in tenths of the days by what came, the shortest first; nan where there are too few days.
        bias_by_prediction_s: (10,) in tenths by what was foretold.
        bias_by_weekday_s: (7,) by day of the week, Monday first; nan where there is none.
    """

    days: int
    mae_s: float
    rmse_s: float
    spearman: float
    bias_s: float
    bias_by_use_s: np.ndarray
    bias_by_prediction_s: np.ndarray
    bias_by_weekday_s: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """JSON-like, nan as None."""
        return {name: _plain(value) for name, value in vars(self).items()}


def day_errors(predicted_s: np.ndarray, use_s: np.ndarray, weekday: np.ndarray) -> DayErrors:
    """Errors of (N,) foretold seconds against the (N,) that came, with (N,) weekdays from Monday = 0.

    Raises:
        DataError: there is no day, or the columns have different lengths.
    """
    if not len(use_s) or not len(predicted_s) == len(use_s) == len(weekday):
        raise DataError(
            f"{len(predicted_s)} predictions, {len(use_s)} days and {len(weekday)} weekdays cannot be compared",
            hint="give one of each for every held-out user-day, and at least one",
        )
    error = predicted_s.astype(np.float64) - use_s
    return DayErrors(
        days=len(error),
        mae_s=float(np.abs(error).mean()),
        rmse_s=float(np.sqrt(np.square(error).mean())),
        spearman=spearman(predicted_s, use_s),
        bias_s=float(error.mean()),
        bias_by_use_s=_means(error, tenths(use_s), DECILES),
        bias_by_prediction_s=_means(error, tenths(predicted_s), DECILES),
        bias_by_weekday_s=_means(error, weekday, WEEK),
    )


def mae_gain(predicted_s: np.ndarray, reference_s: np.ndarray, use_s: np.ndarray, user: np.ndarray) -> Mean:
    """How much smaller the mean absolute error is than that of a reference on the same days, seconds; its interval
    takes the days of a user as one."""
    smaller = np.abs(reference_s.astype(np.float64) - use_s) - np.abs(predicted_s.astype(np.float64) - use_s)
    return clustered_mean(smaller, user)


def seven_day_mean(days_N2: np.ndarray, otherwise_s: float) -> np.ndarray:
    """(N,) mean seconds of the active ones of the last seven days, the rule that a model of days replaces.

    Args:
        days_N2: (N, T, 2) seconds and sessions of the days before, yesterday first.
        otherwise_s: for who was not active on any of them: the mean day of the training window.
    """
    week = days_N2[:, :WEEK].astype(np.float64)
    active = (week[..., 1] > 0).sum(1)
    return np.where(active > 0, week[..., 0].sum(1) / np.maximum(active, 1), otherwise_s)


def constraint_losses(
    predicted_N2: np.ndarray, came_N2: np.ndarray, unit: tuple[float, float], law: tuple[float, float]
) -> dict[str, float]:
    """The held-out losses that L-RTG's bounds are set on: "se" (GLAN eq. 16) and "rel" (eq. 17), in its units.

    Args:
        predicted_N2, came_N2: (N, 2) seconds and sessions.
        unit: seconds and sessions of the mean day of the training window.
        law: a and b in seconds, `TableStats.day_law`.
    """
    predicted, came = predicted_N2.astype(np.float64), came_N2.astype(np.float64)
    distance_s = predicted[:, 0] - law[0] * np.log1p(predicted[:, 1]) - law[1]
    return {
        "se": float(np.square((predicted[:, 1] - came[:, 1]) / unit[1]).mean()),
        "rel": float(np.square(distance_s / unit[0]).mean()),
    }


def day_report(
    predicted_s: Mapping[str, np.ndarray], use_s: np.ndarray, weekday: np.ndarray
) -> dict[str, dict[str, Any]]:
    """`DayErrors` of several models on the same days, JSON-like."""
    return {name: day_errors(values, use_s, weekday).to_dict() for name, values in predicted_s.items()}


def tenths(values: np.ndarray) -> np.ndarray:
    """(N,) int64 0 to 9: the tenth of the rows that each belongs to by its value; equal values stay in one tenth."""
    order = np.sort(values)
    return np.searchsorted(order, values, side="left") * DECILES // max(len(values), 1)


def _means(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    counts = np.bincount(group, minlength=n_groups).astype(np.float64)
    sums = np.bincount(group, weights=values, minlength=n_groups)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    return None if isinstance(value, float) and np.isnan(value) else value
