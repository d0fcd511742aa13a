"""How well a session's worth was judged once it had ended: the risk that its landing page was left at once, and the seconds
on each page (GLAN 4.2).

N held-out sessions, K pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.propensity import calibration_error


@dataclass(frozen=True)
class DropOffQuality:
    """How well chances of a drop-off met what came.

    Attributes:
        sessions: N.
        share, mean_chance: share of sessions that had one, and the mean chance given to it.
        auc: chance that a session with a drop-off was given a higher one than a session without, a tie counting half.
        pr_auc: average precision, the area under precision over recall; `share` is what a blind guess has.
        brier: mean squared error of the chance.
        log_loss: mean cross entropy; a chance of 0 or 1 counts as 1e-7 away from it.
        calibration_error: mean over sessions of the gap between chance and share within ten equal bins of the chance.
        bins: of each bin that is not empty: mean chance, share, and sessions.

    `auc` and `pr_auc` are None where all sessions are of one kind.
    """

    sessions: int
    share: float
    mean_chance: float
    auc: float | None
    pr_auc: float | None
    brier: float
    log_loss: float
    calibration_error: float
    bins: tuple[tuple[float, float, int], ...]

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "bins": [list(row) for row in self.bins]}


@dataclass(frozen=True)
class PageErrors:
    """Errors of the seconds on one page, over all sessions: mean seconds that came, mean absolute error, and mean of foretold
    minus came."""

    page: str
    mean_s: float
    mae_s: float
    bias_s: float


def drop_off_quality(chance: np.ndarray, dropped: np.ndarray, bins: int = 10) -> DropOffQuality:
    """Quality of (N,) chances in [0, 1] against (N,) labels, 1 or True where the landing page was left at once.

    Raises:
        DataError: there is no session, or the columns have different lengths.
    """
    if not len(chance) or len(chance) != len(dropped):
        raise DataError(
            f"{len(chance)} chances cannot be compared with {len(dropped)} sessions",
            hint="give one chance for every held-out session, and at least one",
        )
    p, label = chance.astype(np.float64), (np.asarray(dropped) > 0.5).astype(np.int64)
    kept = np.clip(p, 1e-7, 1 - 1e-7)
    return DropOffQuality(
        sessions=len(p),
        share=float(label.mean()),
        mean_chance=float(p.mean()),
        auc=auc(p, label),
        pr_auc=average_precision(p, label),
        brier=float(np.square(p - label).mean()),
        log_loss=float(-np.log(np.where(label == 1, kept, 1 - kept)).mean()),
        calibration_error=calibration_error(p[:, None], 1 - label, bins),
        bins=_reliability(p, label, bins),
    )


def page_errors(predicted_s: np.ndarray, came_s: np.ndarray, pages: Sequence[str]) -> list[PageErrors]:
    """Errors of (N, K) seconds on each page."""
    error = predicted_s.astype(np.float64) - came_s
    columns = came_s.mean(0, dtype=np.float64), np.abs(error).mean(0), error.mean(0)
    return [
        PageErrors(page, *map(float, row))
        for page, row in zip(pages, zip(*columns, strict=True), strict=True)
    ]


def auc(score: np.ndarray, label: np.ndarray) -> float | None:
    """Area under the ROC curve of (N,) scores for (N,) labels 0 and 1; None where one of them is absent."""
    ones, zeros = _counts(score, label)
    if not ones.sum() or not zeros.sum():
        return None
    above = np.cumsum(ones) - ones
    # a zero loses to the ones that come before it, and half to those of its own score
    return float((zeros * (above + ones / 2)).sum() / (ones.sum() * zeros.sum()))


def average_precision(score: np.ndarray, label: np.ndarray) -> float | None:
    """Precision at each distinct score, weighted by the recall gained there; None where one of the labels is absent."""
    ones, zeros = _counts(score, label)
    if not ones.sum() or not zeros.sum():
        return None
    precision = np.cumsum(ones) / np.cumsum(ones + zeros)
    return float((precision * ones).sum() / ones.sum())


def _counts(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ones and zeros at each distinct score, the highest first."""
    values, place = np.unique(score, return_inverse=True)
    ones = np.bincount(place, weights=label, minlength=len(values))[::-1]
    return ones, np.bincount(place, minlength=len(values))[::-1] - ones


def _reliability(p: np.ndarray, label: np.ndarray, bins: int) -> tuple[tuple[float, float, int], ...]:
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    chance, share = (np.bincount(place, weights=v, minlength=bins) for v in (p, label))
    return tuple(
        (float(chance[i] / counts[i]), float(share[i] / counts[i]), int(counts[i]))
        for i in np.flatnonzero(counts)
    )
