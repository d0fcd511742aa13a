"""The corrected value of fitted Q evaluation: what it equals exactly, how its parts are shared, when it is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plpm_ray.evaluation import fqe_fit
from plpm_ray.evaluation.estimators import DR
from plpm_ray.evaluation.fqe import FQEConfig, QFits, fitted_q
from plpm_ray.evaluation.inference import clustered_standard_error
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.metrics import realised_return

K = 3


def some_log(days: int = 200, longest: int = 4, seed: int = 0):
    """(features, log, policy): days of 1 to `longest` entries of users with two days each, rows shuffled."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, longest + 1, days)
    day = np.repeat(np.arange(days), length)
    step = np.concatenate([np.arange(n) for n in length])
    order = rng.permutation(len(day))
    day, step = day[order], step[order]
    x = rng.normal(size=(len(day), 4)).astype(np.float32)
    mu = rng.dirichlet([2, 2, 2], len(day)) * 0.7 + 0.1
    action = (mu.cumsum(axis=1) < rng.random((len(day), 1))).sum(axis=1)
    reward = 10 + x[:, 0] * (action + 1) + rng.normal(size=len(day))
    pi = rng.dirichlet([1, 1, 1], len(day)) * 0.6 + 0.4 * mu
    return x, LoggedData(action, reward, day // 2, behaviour=mu, episode=day, step=step), pi


def test_with_one_page_the_value_is_the_mean_return_whatever_the_model():
    x, data, _ = some_log()
    one = np.ones((len(data), 1))
    log = replace(data, action=np.zeros(len(data), dtype=int), behaviour=one, propensity=None)
    for gamma in (1.0, 0.6):
        result = fitted_q(x[:, :1] * 0, log, one, FQEConfig(gamma=gamma, iterations=1))
        returns = realised_return(log.reward, log.episode, log.step, gamma)
        assert result.estimate.value == pytest.approx(returns[log.grid.first].mean())
        assert result.fit_error == pytest.approx(0, abs=1e-9)


def test_on_days_of_one_entry_it_is_the_doubly_robust_estimator():
    x, data, pi = some_log(longest=1)
    result = fitted_q(x, data, pi, FQEConfig())
    robust = DR().estimate(data, pi, result.q)
    np.testing.assert_allclose(
        result.per_episode[data.grid.episode_of_row], DR().per_sample(data, pi, result.q)
    )
    assert result.estimate.value == pytest.approx(robust.value)
    assert result.estimate.standard_error == pytest.approx(robust.standard_error)
    assert result.estimate.support == robust.support


def test_the_correction_takes_the_logs_first_order():
    x, data, pi = some_log(days=60)
    gamma = 0.8
    result = fitted_q(x, data, pi, FQEConfig(gamma=gamma))
    of_log = QFits(x, data, FQEConfig(gamma=gamma)).fit_logged(K).cross_fitted(x, K)
    rows = np.arange(len(data))
    returns = realised_return(data.reward, data.episode, data.step, gamma)
    residual = returns - of_log[rows, data.action]
    weights = pi[rows, data.action] / data.behaviour[rows, data.action]
    for e in range(60):
        mine = rows[data.grid.episode_of_row == e]
        mine = mine[np.argsort(data.step[mine])]
        expected = (pi[mine[0]] * result.q[mine[0]]).sum()
        expected += weights[mine[0]] * residual[mine[0]]
        expected += sum(gamma**t * (weights[i] - 1) * residual[i] for t, i in enumerate(mine) if t)
        assert result.per_episode[e] == pytest.approx(expected)


def test_the_interval_holds_the_sampling_of_users_and_of_the_fits():
    x, data, pi = some_log()
    result = fitted_q(x, data, pi, FQEConfig())
    sampling = clustered_standard_error(result.per_episode, data.cluster[data.grid.first], 100)
    assert result.fit_error > 0
    assert result.estimate.standard_error == pytest.approx(np.hypot(sampling, result.fit_error))
    assert result.estimate.low < result.estimate.value < result.estimate.high
    assert "two or more changed decisions" in result.estimate.note


def test_fits_are_shared_among_policies():
    x, data, pi = some_log()
    fits = QFits(x, data, FQEConfig())
    for policy in (pi, data.behaviour):
        shared, alone = fitted_q(x, data, policy, FQEConfig(), fits=fits), fitted_q(x, data, policy)
        np.testing.assert_array_equal(shared.q, alone.q)
        assert shared.estimate == alone.estimate


@pytest.mark.parametrize("folds", [1, 3])
def test_sums_kept_and_sums_read_from_the_rows_agree(monkeypatch, folds):
    x, data, pi = some_log()
    monkeypatch.setattr(fqe_fit, "_CHUNK", 7)
    kept = fitted_q(x, data, pi, FQEConfig(folds=folds))
    monkeypatch.setattr(fqe_fit, "_KEPT_NUMBERS", 0)
    read = fitted_q(x, data, pi, FQEConfig(folds=folds))
    np.testing.assert_allclose(read.q, kept.q, rtol=1e-9)
    assert read.estimate.value == pytest.approx(kept.estimate.value)


def test_no_user_has_a_part_in_the_q_of_its_own_days():
    x, data, pi = some_log()
    config = FQEConfig(folds=3)
    fold = QFits(x, data, config).fold
    own = fold == fold[0]
    other = replace(data, reward=np.where(own, data.reward * 5, data.reward))
    before, after = fitted_q(x, data, pi, config).q, fitted_q(x, other, pi, config).q
    np.testing.assert_array_equal(after[own], before[own])
    assert np.abs(after[~own] - before[~own]).max() > 1


def test_thin_overlap_is_refused_even_where_the_other_pages_are_unknown():
    x, data, _ = some_log(days=2000)
    rare = np.where(data.action == 2, 0.004, data.logged_propensity)
    log = replace(data, behaviour=None, propensity=rare)
    result = fitted_q(x, log, np.tile([0.0, 0.0, 1.0], (len(log), 1)), FQEConfig())
    assert result.estimate.value is None and "weights average" in (result.estimate.refused or "")
    plug_in = fitted_q(x, log, np.tile([0.0, 0.0, 1.0], (len(log), 1)), FQEConfig(correction=False, refits=0))
    assert plug_in.estimate.value is not None
