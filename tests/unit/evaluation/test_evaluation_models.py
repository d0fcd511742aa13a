"""Propensity and reward models, and fitted Q evaluation, on small exact cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation import fqe_fit
from plpm_ray.evaluation.fitting import user_folds
from plpm_ray.evaluation.fqe import FQEConfig, fitted_q
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.propensity import (
    PropensityConfig,
    clip_from_below,
    cross_fit_propensities,
    fit_temperature,
    softmax,
)
from plpm_ray.evaluation.reward_model import RewardConfig, cross_fit_rewards
from plpm_ray.evaluation.ridge import ActionRidge


def test_folds_keep_users_together_and_are_even():
    users = np.repeat(np.arange(5000), 2)
    folds = user_folds(users, 5)
    assert (folds[::2] == folds[1::2]).all()
    assert np.bincount(folds).min() > 1800
    assert (folds == user_folds(users, 5)).all()
    assert (folds != user_folds(users, 5, seed=1)).any()
    assert user_folds(np.array(["x", "y", "x"]), 4)[[0]] == user_folds(np.array(["x"]), 4)


def test_clip_keeps_rows_summing_to_one():
    probs, share = clip_from_below(np.array([[0.0, 0.2, 0.8], [0.3, 0.3, 0.4]]), 0.05)
    assert probs[0] == pytest.approx([0.05, 0.19, 0.76])
    assert probs[1] == pytest.approx([0.3, 0.3, 0.4])
    assert share == pytest.approx(1 / 6)


def test_temperature_is_recovered():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3)) * 1.5
    draws = (softmax(logits).cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    assert fit_temperature(logits, draws) == pytest.approx(1, abs=0.05)
    assert fit_temperature(logits * 3, draws) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_propensities_are_learned(hidden):
    rng = np.random.default_rng(1)
    n = 6000
    x = rng.normal(size=(n, 4)).astype(np.float32)
    mu = softmax(x @ rng.normal(size=(4, 3)))
    action = (mu.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    config = PropensityConfig(hidden=hidden, folds=3, batch_size=512, learning_rate=1e-2)
    result = cross_fit_propensities(x, action, rng.integers(2000, size=n), 3, config)
    entropy = -(mu * np.log(mu)).sum(axis=1).mean()
    assert result.modelled
    assert result.log_loss < entropy + 0.03 < result.marginal_log_loss
    assert np.abs(result.probs - mu).mean() < 0.035
    assert result.calibration_error < 0.03
    assert result.probs.sum(axis=1) == pytest.approx(np.ones(n))
    assert result.probs.min() >= config.clip_floor * 0.999
    assert "probs" not in result.as_dict()


def test_propensity_input_is_checked():
    with pytest.raises(DataError, match="feature column 1"):
        cross_fit_propensities(np.array([[0, np.nan]] * 4), np.zeros(4, int), np.arange(4), 2)
    with pytest.raises(DataError, match="outside"):
        cross_fit_propensities(np.zeros((4, 1)), np.full(4, 2), np.arange(4), 2)
    with pytest.raises(DataError, match="too few users"):
        cross_fit_propensities(np.zeros((4, 1)), np.zeros(4, int), np.zeros(4, int), 2)


def test_ridge_matches_the_joint_normal_equations():
    rng = np.random.default_rng(2)
    n, d, k = 60, 2, 3
    x, action, y = rng.normal(size=(n, d)), rng.integers(k, size=n), rng.normal(size=n)
    weights = rng.integers(1, 4, size=n).astype(float)
    ridge = ActionRidge(x, action, k, weights)
    z = ridge.design(x)
    wide = np.concatenate([z, *(z * (action == a)[:, None] for a in range(k))], axis=1)
    penalty = np.diag([0.0] + [2.0] * d + [5.0] * (k * (d + 1)))
    solution = np.linalg.solve(wide.T @ (wide * weights[:, None]) + penalty, wide.T @ (weights * y))
    expected = solution[: d + 1, None] + solution[d + 1 :].reshape(k, d + 1).T
    assert ridge.solver(2.0, 5.0)(y) == pytest.approx(expected, abs=1e-6)


def test_ridge_gives_unseen_actions_the_shared_prediction():
    x, y = np.array([[0.0], [1.0], [2.0]]), np.array([0.0, 1.0, 2.0])
    action = np.zeros(3, dtype=int)
    ridge = ActionRidge(x, action, 2)
    assert (ridge.design(x) @ ridge.solver(1e-9, 1e6)(y))[:, 1] == pytest.approx(y, abs=1e-3)


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_reward_model_learns_interactions(kind):
    rng = np.random.default_rng(3)
    n = 3000
    x, action = rng.normal(size=(n, 2)), rng.integers(2, size=n)
    truth = np.stack([x[:, 0], 5 - 2 * x[:, 1]], axis=1)
    reward = truth[np.arange(n), action] + rng.normal(size=n) * 0.3
    config = RewardConfig(kind=kind, folds=2, batch_size=256, learning_rate=1e-2)
    result = cross_fit_rewards(x, action, reward, rng.integers(800, size=n), 2, config)
    assert np.sqrt(np.mean((result.q - truth) ** 2)) < (0.1 if kind == "ridge" else 0.35)
    assert result.as_dict()["r2"] > 0.9


def test_reward_model_of_noise_falls_back_on_means():
    rng = np.random.default_rng(4)
    n = 2000
    result = cross_fit_rewards(
        rng.normal(size=(n, 20)), rng.integers(8, size=n), rng.normal(size=n), np.arange(n), 8
    )
    assert result.mse < result.baseline_mse * 1.02


def chain(n_days: int, kind: str = "linear", **options):
    """Two entries a day; action 1 earns 1 now, action 0 leads to a second entry that earns 4 whatever is done."""
    day = np.repeat(np.arange(n_days), 2)
    step = np.tile([0, 1], n_days)
    action = np.where(step == 0, (day // 2) % 2, day % 2)
    keep = (step == 0) | (np.repeat(action[::2], 2) == 0)
    x = np.eye(2, dtype=np.float32)[step]
    reward = np.where(step == 0, action * 1.0, 4.0)
    data = LoggedData(
        action[keep],
        reward[keep],
        day[keep] // 2 * 2 + day[keep] % 2,
        behaviour=np.full((keep.sum(), 2), 0.5),
        episode=day[keep],
        step=step[keep],
    )
    pi = np.tile([0.75, 0.25], (len(data), 1))
    config = FQEConfig(
        **{
            "kind": kind,
            "shared_penalty": 1e-6,
            "action_penalty": 1e-6,
            "correction": False,
            "refits": 0,
            **options,
        }
    )
    return x[keep], data, pi, config


@pytest.mark.parametrize("folds", [1, 2])
def test_linear_fqe_is_exact_on_a_chain(folds):
    x, data, pi, config = chain(400, gamma=0.5, folds=folds)
    result = fitted_q(x, data, pi, config)
    # second entry 4; first entry: action 0 earns 0 + .5 * 4, action 1 earns 1 and the day ends
    assert result.q[data.step == 0][0] == pytest.approx([2, 1], abs=1e-4)
    assert result.q[data.step == 1][0] == pytest.approx([4, 4], abs=1e-4)
    assert result.estimate.value == pytest.approx(0.75 * 2 + 0.25, abs=1e-4)
    assert result.bellman_rmse == pytest.approx(0, abs=1e-4)
    assert len(result.first_rows) == 400
    assert "not the error" in result.estimate.note


def test_mlp_fqe_comes_close_on_a_chain():
    x, data, pi, config = chain(400, "mlp", folds=1, hidden=(16,), batch_size=128, learning_rate=1e-2)
    result = fitted_q(x, data, pi, config)
    assert result.estimate.value == pytest.approx(0.75 * 4 + 0.25, abs=0.15)
    again = fitted_q(x, data, pi, config)
    assert (again.q == result.q).all()


def long_day(entries: int, n_days: int = 100):
    """One action, 1 a decision, one indicator a step; days of two entries, and one of many."""
    lengths = np.array([2] * n_days + [entries])
    day = np.repeat(np.arange(n_days + 1), lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    pi = np.ones((len(day), 1))
    data = LoggedData(np.zeros(len(day), int), np.ones(len(day)), day, behaviour=pi, episode=day, step=step)
    return np.eye(entries, dtype=np.float32)[step], data, pi


def test_fqe_stops_at_its_bound_on_a_day_of_very_many_entries():
    exact = {
        "folds": 1,
        "correction": False,
        "shared_penalty": 1e-6,
        "action_penalty": 1e-6,
        "bootstrap": 0,
    }
    x, data, pi = long_day(40)
    whole = fitted_q(x, data, pi, FQEConfig(**exact))
    cut = fitted_q(x, data, pi, FQEConfig(max_iterations=10, **exact))
    assert cut.capped and "cut after 10 iterations" in cut.estimate.note
    assert "not the error" in cut.estimate.note
    assert not whole.capped and "cut" not in whole.estimate.note
    # the last ten entries of the long day are exact all the same
    assert cut.q[-10:, 0] == pytest.approx(np.arange(10, 0, -1), abs=1e-3)
    assert whole.q[-30:, 0] == pytest.approx(np.arange(30, 0, -1), abs=1e-3)


def test_fqe_stops_where_q_has_settled(monkeypatch):
    solves = []
    genuine = fqe_fit.moment_solver

    def counted(*what):
        solve = genuine(*what)
        return lambda moments: solves.append(1) or solve(moments)

    monkeypatch.setattr(fqe_fit, "moment_solver", counted)
    _, data, pi = long_day(1000, 2000)
    x = np.zeros((len(data), 1), dtype=np.float32)  # one value for all states: it settles geometrically
    config = FQEConfig(gamma=0.5, folds=1, correction=False, bootstrap=0)
    result = fitted_q(x, data, pi, config)
    assert not result.capped and 5 < len(solves) < 30
    going_on = (2000 + 999) / len(data)
    assert result.q[0, 0] == pytest.approx(1 / (1 - 0.5 * going_on), rel=2e-2)
    solves.clear()
    fitted_q(x, data, pi, replace(config, iterations=40))
    assert len(solves) == 40


def test_fqe_refuses_what_the_log_does_not_take():
    x, data, _, config = chain(400)
    log = LoggedData(
        data.action,
        data.reward,
        data.cluster,
        propensity=np.full(len(data), 0.5),
        behaviour=np.tile([0.995, 0.005], (len(data), 1)),
        episode=data.episode,
        step=data.step,
    )
    result = fitted_q(x, log, np.tile([0.0, 1.0], (len(data), 1)), config)
    assert result.estimate.value is None
    assert "100% of the policy's choices" in result.estimate.refused


def test_refits_widen_the_interval():
    x, data, pi, config = chain(100, folds=1)
    noisy = LoggedData(
        data.action,
        data.reward + np.random.default_rng(0).normal(size=len(data)),
        data.cluster,
        behaviour=data.behaviour,
        episode=data.episode,
        step=data.step,
    )
    narrow = fitted_q(x, noisy, pi, config).estimate
    wide = fitted_q(x, noisy, pi, FQEConfig(folds=1, correction=False, refits=20)).estimate
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert "users in states and fit" in wide.note


def test_the_level_of_the_interval_is_the_one_asked_for():
    x, data, pi, _ = chain(100, folds=1)
    wide, narrow = (
        fitted_q(x, data, pi, FQEConfig(folds=1, correction=False, refits=5, level=level)).estimate
        for level in (0.95, 0.6)
    )
    assert (wide.level, narrow.level) == (0.95, 0.6)
    assert narrow.high - narrow.low < wide.high - wide.low
