"""Spearman's rank correlation with an interval over users, whose rows hang together."""

from __future__ import annotations

import numpy as np

from plpm_ray.evaluation.inference import cluster_codes
from plpm_ray.evaluation.metrics import Mean
from plpm_ray.evaluation.uplift_bootstrap import draw_counts, percentile_interval
from plpm_ray.evaluation.uplift_ranking import SpearmanDraws, spearman

DRAWS = 200


def clustered_spearman(
    first: np.ndarray, second: np.ndarray, user: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> Mean:
    """Correlation of (N,) with (N,) values, and its 95 % bootstrap interval over the (N,) users; nan where one is constant.

    The draws depend on the users and the seed alone: correlations of the same rows see the same draws.
    """
    return Mean(spearman(first, second), *_interval(_draws(first, second, user, draws, seed)), len(first))


def spearman_gain(
    first: np.ndarray,
    other: np.ndarray,
    truth: np.ndarray,
    user: np.ndarray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Mean:
    """How much better `first` correlates with the truth than `other` does, all (N,); the interval is of the paired draws."""
    value = spearman(first, truth) - spearman(other, truth)
    drawn = [_draws(score, truth, user, draws, seed) for score in (first, other)]
    return Mean(value, *_interval(drawn[0] - drawn[1]), len(first))


def _draws(first: np.ndarray, second: np.ndarray, user: np.ndarray, draws: int, seed: int) -> np.ndarray:
    codes, users = cluster_codes(user)
    table = SpearmanDraws(first, second)
    together = np.zeros(users, dtype=np.int64)  # all users are drawn from one group
    found = [table.of(counts[:, codes]) for counts in draw_counts(together, draws, seed)]
    return np.concatenate(found)


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = percentile_interval(drawn, 0.95)
    return float(low), float(high)
