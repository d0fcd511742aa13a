"""Rank correlations and their intervals over users."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plpm_ray.evaluation.rank_correlation import clustered_spearman, spearman_gain


def drawn(users: int = 200, rows: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A truth, a score of it, and the users of both."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows)
    truth = rng.normal(size=len(user))
    return truth, truth + rng.normal(size=len(user)), user


def test_the_value_is_that_of_all_rows() -> None:
    truth, score, user = drawn()
    found = clustered_spearman(score, truth, user)
    assert found.value == pytest.approx(stats.spearmanr(score, truth).statistic)
    assert found.low < found.value < found.high and found.n == len(user)


def test_rows_of_a_user_that_are_one_count_once() -> None:
    truth, score, user = drawn(rows=1)
    once = clustered_spearman(score, truth, user)
    often = clustered_spearman(*(np.repeat(values, 9) for values in (score, truth, user)))
    assert often.value == pytest.approx(once.value)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.05)


def test_a_constant_has_no_correlation() -> None:
    truth, _, user = drawn()
    found = clustered_spearman(np.ones(len(user)), truth, user)
    assert np.isnan([found.value, found.low, found.high]).all()


def test_the_gain_is_of_paired_draws() -> None:
    truth, score, user = drawn()
    rng = np.random.default_rng(1)
    worse = score + rng.normal(size=len(user))
    same = spearman_gain(score, score, truth, user)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    found = spearman_gain(score, worse, truth, user)
    apart = [clustered_spearman(s, truth, user) for s in (score, worse)]
    assert found.value == pytest.approx(apart[0].value - apart[1].value)
    assert 0 < found.low < found.value < found.high
    assert found.high - found.low < sum(a.high - a.low for a in apart)
