"""User-days as a small Markov decision process whose value is exact: fitted Q evaluation and sequential
estimators.

Four states, three pages; after each entry the day ends with a chance that depends on the state. The value
of a policy solves v = r_pi + gamma P_pi v.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from plpm_ray.evaluation.fqe import FQEConfig, fitted_q
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.metrics import overestimation_gap, realised_return
from plpm_ray.evaluation.sequential import PDIS, SequentialDR, logged_value

N_STATES, N_PAGES, GAMMA = 4, 3, 0.9
_RNG = np.random.default_rng(21)
START = _RNG.dirichlet(np.ones(N_STATES))
MOVE = _RNG.dirichlet(np.ones(N_STATES), size=(N_STATES, N_PAGES))
END = np.array([0.35, 0.45, 0.5, 0.6])
REWARD = _RNG.gamma(2.0, 50.0, size=(N_STATES, N_PAGES))  # seconds
BEHAVIOUR = _RNG.dirichlet([3, 3, 3], size=N_STATES) * 0.7 + 0.1
POLICY = 0.5 * BEHAVIOUR + 0.5 * _RNG.dirichlet([1, 1, 1], size=N_STATES)


def exact_q(policy: np.ndarray) -> np.ndarray:
    """Q [S, K] of a policy [S, K], by solving its linear system."""
    onward = GAMMA * (1 - END)[:, None, None] * MOVE
    p_pi = np.einsum("sk,skt->st", policy, onward)
    v = np.linalg.solve(np.eye(N_STATES) - p_pi, (policy * REWARD).sum(axis=1))
    return REWARD + onward @ v


TRUE_Q = exact_q(POLICY)
TRUTH = float(START @ (POLICY * TRUE_Q).sum(axis=1))


def draw(seed: int, n_days: int = 300, days_per_user: int = 2):
    """(state features, log, pi) of days under BEHAVIOUR; a user's days share a mood that shifts rewards."""
    rng = np.random.default_rng(seed)
    mood = np.repeat(rng.normal(0, 20, size=n_days // days_per_user), days_per_user)
    alive, state, step = np.arange(n_days), rng.choice(N_STATES, p=START, size=n_days), 0
    rows = []
    while len(alive):
        action = (BEHAVIOUR[state].cumsum(axis=1) < rng.random((len(alive), 1))).sum(axis=1)
        reward = REWARD[state, action] + mood[alive] + rng.normal(0, 10, size=len(alive))
        rows.append((alive, np.full(len(alive), step), state, action, reward))
        following = (MOVE[state, action].cumsum(axis=1) < rng.random((len(alive), 1))).sum(axis=1)
        stays = rng.random(len(alive)) >= END[state]
        alive, state, step = alive[stays], following[stays], step + 1
    day, step, state, action, reward = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    user = day // days_per_user
    data = LoggedData(action, reward, user, behaviour=BEHAVIOUR[state], episode=day, step=step)
    return np.eye(N_STATES, dtype=np.float32)[state], data, POLICY[state]


def config(**options) -> FQEConfig:
    return FQEConfig(
        **{"gamma": GAMMA, "shared_penalty": 1e-3, "action_penalty": 1e-3, "refits": 0, **options}
    )


def assert_covers(hits: int, repeats: int, level: float = 0.95, slack: float = 0.015) -> None:
    margin = 3.5 * sqrt(level * (1 - level) / repeats)
    assert level - slack - margin <= hits / repeats <= level + margin, f"coverage {hits / repeats:.3f}"


def assert_unbiased(values: list[float]) -> None:
    error = np.std(values, ddof=1) / sqrt(len(values))
    assert abs(np.mean(values) - TRUTH) < 4 * error, (
        f"{np.mean(values):.2f} against {TRUTH:.2f} +- {error:.2f}"
    )


def test_linear_fqe_converges_to_the_exact_q():
    x, data, pi = draw(0, n_days=60_000)
    result = fitted_q(x, data, pi, config(folds=1))
    first = [int(np.argmax(x[:, s] == 1)) for s in range(N_STATES)]
    assert result.q[first] == pytest.approx(TRUE_Q, rel=0.02)
    assert result.estimate.value == pytest.approx(TRUTH, rel=0.01)


def test_mlp_fqe_comes_close():
    x, data, pi = draw(1, n_days=6000)
    result = fitted_q(
        x,
        data,
        pi,
        config(kind="mlp", folds=1, hidden=(32,), learning_rate=5e-3, iterations=12, batch_size=512),
    )
    assert result.estimate.value == pytest.approx(TRUTH, rel=0.03)


@pytest.mark.parametrize("weighted", [True, False])
def test_sequential_estimators_are_unbiased_and_cover(weighted):
    found = {"pdis": [], "sequential_dr": []}
    hits = dict.fromkeys(found, 0)
    repeats = 200
    for seed in range(repeats):
        x, data, pi = draw(seed)
        q = fitted_q(x, data, pi, config()).q
        for estimator in (PDIS(gamma=GAMMA, weighted=weighted), SequentialDR(gamma=GAMMA, weighted=weighted)):
            result = estimator.estimate(data, pi, q).or_raise()
            found[estimator.name].append(result.value)
            hits[estimator.name] += result.low <= TRUTH <= result.high
    for name in found:
        assert_unbiased(found[name])
        assert_covers(hits[name], repeats)
    # normalised weights already take out part of what the model takes out
    assert np.std(found["sequential_dr"]) < (1.0 if weighted else 0.8) * np.std(found["pdis"])


def test_fqe_interval_needs_refits_to_cover():
    covered, narrow = 0, 0
    repeats = 100
    for seed in range(repeats):
        x, data, pi = draw(seed, n_days=200)
        plain = fitted_q(x, data, pi, config(folds=1, correction=False)).estimate.or_raise()
        refitted = fitted_q(x, data, pi, config(folds=1, correction=False, refits=25)).estimate.or_raise()
        narrow += plain.low <= TRUTH <= plain.high
        covered += refitted.low <= TRUTH <= refitted.high
    assert_covers(covered, repeats, slack=0.03)
    assert narrow < covered  # as its note says


def test_logged_value_per_day_covers_the_behaviours_value():
    truth = float(START @ (BEHAVIOUR * exact_q(BEHAVIOUR)).sum(axis=1))
    results = [logged_value(draw(seed)[1], "user-day", gamma=GAMMA) for seed in range(300)]
    assert_covers(sum(r.low <= truth <= r.high for r in results), 300)


def test_overestimation_gap_sees_an_inflated_q():
    x, data, _ = draw(3, n_days=4000)
    state = x.argmax(axis=1)
    returns = realised_return(data.reward, data.episode, data.step, GAMMA)
    true_q = exact_q(BEHAVIOUR)[state]
    honest = overestimation_gap(true_q, data.action, returns, data.cluster)
    assert honest.logged_action.low <= 0 <= honest.logged_action.high
    inflated = overestimation_gap(true_q + 25, data.action, returns, data.cluster)
    assert inflated.logged_action.value == pytest.approx(honest.logged_action.value + 25)
    assert inflated.logged_action.low > 0


def test_long_days_without_overlap_are_refused():
    x, data, _ = draw(4, n_days=2000)
    rarest = BEHAVIOUR.argmin(axis=1)[x.argmax(axis=1)]
    result = PDIS(gamma=GAMMA).estimate(data, np.eye(N_PAGES)[rarest])
    assert result.refused is not None
    assert result.value is None
