"""Means, ratios and clustered intervals against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from plpm_ray.evaluation.inference import (
    Terms,
    cluster_codes,
    clustered_interval,
    clustered_standard_error,
    kish,
    t_quantile,
)


def test_kish_of_equal_and_of_single_weights():
    assert kish(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert kish(np.array([5.0, 0.0, 0.0])) == pytest.approx(1)
    assert kish(np.array([1.0, 3.0])) == pytest.approx(16 / 10)
    assert kish(np.zeros(3)) == 0


@pytest.mark.parametrize(("dof", "expected"), [(10, 2.2281), (30, 2.0423), (99, 1.9842), (10**6, 1.95996)])
def test_t_quantile_matches_tables(dof, expected):
    assert t_quantile(0.95, dof) == pytest.approx(expected, abs=1e-3)


def test_standard_error_by_hand():
    values = np.array([1.0, 3.0, 5.0, 7.0])
    codes = np.array([0, 0, 1, 1])
    # residuals -3 -1 1 3; cluster totals -4 and 4; sqrt(2/1 * 32) / 4 = 2
    assert clustered_standard_error(values, codes, 2) == pytest.approx(2.0)
    # each row its own cluster: the usual s / sqrt(n)
    alone = clustered_standard_error(values, np.arange(4), 4)
    assert alone == pytest.approx(np.std(values, ddof=1) / 2)
    assert np.isnan(clustered_standard_error(values, np.zeros(4, dtype=int), 1))


def test_ratio_value_and_linearised_values():
    numerator, denominator = np.array([[1.0], [4.0], [1.0]]), np.array([[1.0], [2.0], [1.0]])
    terms = Terms(np.array([0.0, 1.0, 2.0]), numerator, denominator)
    assert terms.value() == pytest.approx(1 + 6 / 4)
    # R = 1.5, mean denominator 4/3, residuals -.5 1 -.5 times 3/4
    assert terms.per_sample() == pytest.approx([0 + 1.5 - 0.375, 1 + 1.5 + 0.75, 2 + 1.5 - 0.375])
    assert terms.per_sample().mean() == pytest.approx(terms.value())


def test_clusters_of_strings_and_integers_count_alike():
    codes, n = cluster_codes(np.array(["b", "a", "b"]))
    assert n == 2
    assert codes[0] == codes[2] != codes[1]


def test_bootstrap_agrees_with_linearised_error():
    rng = np.random.default_rng(3)
    cluster = rng.integers(300, size=1500)
    weights = rng.gamma(2.0, 0.5, size=1500)
    reward = rng.normal(size=300)[cluster] + rng.normal(size=1500)
    terms = Terms(np.zeros(1500), (weights * reward)[:, None], weights[:, None])
    linear = clustered_interval(terms, cluster)
    drawn = clustered_interval(terms, cluster, bootstrap=800, seed=1)
    assert drawn[0] == pytest.approx(linear[0], rel=0.12)
    assert drawn[1] == pytest.approx(linear[1], abs=0.3 * linear[0])
    assert drawn == clustered_interval(terms, cluster, bootstrap=800, seed=1)


def test_bootstrap_draws_whole_clusters():
    # two clusters of constant values: every draw is 0, 1/2 or 1, whatever the rows
    terms = Terms(np.array([0.0] * 10 + [1.0] * 10))
    draws = terms.bootstrap(np.repeat([0, 1], 10), 2, 200, seed=0)
    assert set(np.unique(draws)) == {0.0, 0.5, 1.0}
