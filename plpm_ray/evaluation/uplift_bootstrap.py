"""Bootstrap over the users of a trial, for metrics that need an order of all users.

A draw with replacement is a whole number of copies of every user. Where the propensities are the shares of the
trial's arms, users are drawn within their arm; where they are given, from all users, because plain inverse
propensity then also varies with the sizes of the arms. No draw ever lacks an arm. The numbers depend on the arms
and the seed only, so all models see the same draws and differences between them are paired. No draw sorts: a
model's order is found once (`PairDraws`), and counts are summed along it.

The intervals are percentile intervals (Efron and Tibshirani 1993, ch. 13). They cover the sampling of the
held-out users, not the training of the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from plpm_ray.evaluation.uplift_ranking import descending_order, group_ends
from plpm_ray.evaluation.uplift_sums import CumulativeSums
from plpm_ray.evaluation.uplift_trial import Trial

MOST_GROUPS = 2000
"""Points of a drawn curve. Between them it is straight, which moves an area by about (1 / points)^2 of itself."""
_AT_ONCE = 500_000
_MOST_MISSING = 0.05


def draw_counts(arm: np.ndarray, repeats: int, seed: int, *, stratified: bool = True) -> Iterator[np.ndarray]:
    """Copies of every user in `repeats` draws; yields float64 [R, U], R a few at a time.

    Args:
        arm: int [U], 0..K.
        stratified: draw within the arms. Otherwise from all users at once, so that the sizes of the arms vary as in
            a trial that throws dice for every user; a draw that loses an arm is replaced by a stratified one.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(arm == k) for k in np.unique(arm)]
    most = max(1, _AT_ONCE // len(arm))
    for start in range(0, repeats, most):
        size = min(most, repeats - start)
        if stratified:
            yield _draw_within(members, size, rng)
            continue
        counts = _draw_within([np.arange(len(arm))], size, rng)
        lost = np.any([counts[:, users].sum(axis=1) == 0 for users in members], axis=0)
        counts[lost] = _draw_within(members, int(lost.sum()), rng)
        yield counts


def _draw_within(members: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` draws with replacement within each set of users, the sets making up all users; float64 [size, U]."""
    counts = np.empty((size, sum(map(len, members))))
    for users in members:
        n = len(users)
        picks = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts[:, users] = np.bincount(picks.ravel(), minlength=size * n).reshape(size, n)
    return counts


def percentile_interval(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of draws [R, ...] at the level; nan where more than a twentieth of the draws has no value."""
    missing = np.isnan(draws).mean(axis=0)
    # a value for the columns without any, which are nan in the end: nanquantile would warn of them
    filled = np.where(missing == 1, 0.0, draws)
    tails = [0.5 - level / 2, 0.5 + level / 2]
    quantile = np.nanquantile if missing.any() else np.quantile  # the former is much slower
    low, high = np.where(missing > _MOST_MISSING, np.nan, quantile(filled, tails, axis=0))
    return low, high


class PairDraws:
    """The users of one arm and of control in the order of a score, to be counted again and again.

    Args:
        score: float [U], of all users of the trial.
        trial: the trial.
        k: the arm, 1..K.
    """

    def __init__(self, score: np.ndarray, trial: Trial, k: int) -> None:
        users = np.flatnonzero((trial.arm == k) | (trial.arm == 0))
        users = users[descending_order(score[users])]
        ends = group_ends(score[users], MOST_GROUPS)
        treated = trial.arm[users] == k
        # a group's position among the treated users and among the control users
        before = np.concatenate([[0], np.cumsum(treated)])[ends + 1]
        self._sides = [
            _Side(users[treated], before, trial),
            _Side(users[~treated], ends + 1 - before, trial),
        ]

    def sums(self, counts: np.ndarray) -> CumulativeSums:
        """The sums of each draw, counts [R, U]; [R, groups + 1]."""
        (n_treated, y_treated), (n_control, y_control) = (side.cumulative(counts) for side in self._sides)
        return CumulativeSums(n_treated, n_control, y_treated, y_control)


class _Side:
    """Treated or control users [n] in the order of the score, and the number of them up to each group's end."""

    def __init__(self, users: np.ndarray, ends: np.ndarray, trial: Trial) -> None:
        self._users = users
        self._inverse = None if trial.inverse is None else trial.inverse[users]
        self._weight = None if trial.weight is None else trial.weight[users]
        self._response = trial.response[users]
        starts = np.concatenate([[0], ends[:-1]])
        self._filled = ends > starts  # reduceat would give the next value for an empty slice
        self._starts = starts[self._filled]

    def cumulative(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = np.take(counts, self._users, axis=1)
        if self._inverse is not None:  # scaled anew, as `stabilised` would with the users of this draw
            total = weight.sum(axis=1) if self._weight is None else weight @ self._weight
            weight *= self._inverse
            with np.errstate(invalid="ignore", divide="ignore"):  # a draw without any weight has no value
                weight *= (total / weight.sum(axis=1))[:, None]
        return self._by_group(weight), self._by_group(weight * self._response)

    def _by_group(self, values: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(values), len(self._filled) + 1))
        sums[:, 1:][:, self._filled] = np.add.reduceat(values, self._starts, axis=1)
        return np.cumsum(sums, axis=1)
