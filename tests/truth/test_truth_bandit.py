"""A contextual bandit with known value: are the estimators unbiased, do their intervals cover at the stated
rate?

Users have a type (the context), a number of rows, and a hidden mood that shifts all their rewards, so rows
of a user are correlated. Five types, three pages, everything drawn from tables: the value is a finite sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import pytest

from plpm_ray.evaluation.estimators import DM, DR, IPS, SNIPS
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.propensity import PropensityConfig, cross_fit_propensities
from plpm_ray.evaluation.reward_model import cross_fit_rewards

N_TYPES, N_PAGES, REPEATS = 5, 3, 400
ROWS_OF_TYPE = np.array([2, 3, 4, 5, 6])
_RNG = np.random.default_rng(11)
BEHAVIOUR = _RNG.dirichlet([3, 2, 1], size=N_TYPES) * 0.85 + 0.05
POLICY = _RNG.dirichlet([1, 1, 2], size=N_TYPES)
REWARD = _RNG.gamma(2.0, 100.0, size=(N_TYPES, N_PAGES))  # seconds
TYPE_SHARE = ROWS_OF_TYPE / ROWS_OF_TYPE.sum()  # of rows; types are equally common among users
TRUTH = float(TYPE_SHARE @ (POLICY * REWARD).sum(axis=1))


@dataclass(frozen=True)
class Draw:
    data: LoggedData
    pi: np.ndarray
    q: np.ndarray
    x: np.ndarray


def draw(seed: int, n_users: int = 400) -> Draw:
    rng = np.random.default_rng(seed)
    user_type = rng.integers(N_TYPES, size=n_users)
    user = np.repeat(np.arange(n_users), ROWS_OF_TYPE[user_type])
    kind = user_type[user]
    action = (BEHAVIOUR[kind].cumsum(axis=1) < rng.random((len(kind), 1))).sum(axis=1)
    mood = rng.normal(0, 60, size=n_users)[user]
    reward = REWARD[kind, action] + mood + rng.normal(0, 40, size=len(kind))
    data = LoggedData(action, reward, user, behaviour=BEHAVIOUR[kind])
    return Draw(data, POLICY[kind], REWARD[kind], np.eye(N_TYPES, dtype=np.float32)[kind])


def assert_covers(hits: int, repeats: int, level: float = 0.95, slack: float = 0.015) -> None:
    """Coverage within 3.5 binomial deviations of the level, `slack` allowed for skewed weights."""
    margin = 3.5 * sqrt(level * (1 - level) / repeats)
    assert level - slack - margin <= hits / repeats <= level + margin, f"coverage {hits / repeats:.3f}"


def assert_unbiased(values: np.ndarray, truth: float = TRUTH, sigmas: float = 4.0) -> None:
    error = values.std(ddof=1) / sqrt(len(values))
    assert abs(values.mean() - truth) < sigmas * error, (
        f"{values.mean():.2f} against {truth:.2f} +- {error:.2f}"
    )


ESTIMATORS = {
    "ips": IPS(),
    "snips": SNIPS(),
    "dr": DR(),
    "dr_self_normalised": DR(self_normalised=True),
    "snips_bootstrap": SNIPS(bootstrap=200),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_unbiased_and_covering(name):
    estimator = ESTIMATORS[name]
    repeats = REPEATS if name != "snips_bootstrap" else 200
    results = [estimator.estimate(d.data, d.pi, d.q * 0.7 + 20) for d in map(draw, range(repeats))]
    assert_unbiased(np.array([r.or_raise().value for r in results]))
    assert_covers(sum(r.low <= TRUTH <= r.high for r in results), repeats)


def test_intervals_that_ignore_users_cover_too_little():
    hits = 0
    for seed in range(REPEATS):
        d = draw(seed)
        rows = LoggedData(d.data.action, d.data.reward, np.arange(len(d.pi)), behaviour=d.data.behaviour)
        result = DR().estimate(rows, d.pi, d.q)
        hits += result.low <= TRUTH <= result.high
    assert hits / REPEATS < 0.85


def test_doubly_robust_forgives_one_wrong_model():
    draws = [draw(seed) for seed in range(REPEATS)]
    nonsense = np.array([[300.0, 0.0, 50.0]])
    wrong_q = [DR().estimate(d.data, d.pi, np.repeat(nonsense, len(d.pi), axis=0)).value for d in draws]
    assert_unbiased(np.array(wrong_q, dtype=float))
    wrong_mu = []
    for d in draws:
        uniform = LoggedData(
            d.data.action, d.data.reward, d.data.cluster, propensity=np.full(len(d.pi), 1 / 3)
        )
        wrong_mu.append((DR().estimate(uniform, d.pi, d.q).value, IPS().estimate(uniform, d.pi).value))
    wrong = np.array(wrong_mu, dtype=float)
    assert_unbiased(wrong[:, 0])
    assert abs(wrong[:, 1].mean() - TRUTH) > 5 * wrong[:, 1].std() / sqrt(REPEATS)


def test_paired_difference_covers():
    truth = TRUTH - float(TYPE_SHARE @ (BEHAVIOUR * REWARD).sum(axis=1))
    hits = 0
    for seed in range(REPEATS):
        d = draw(seed)
        result = SNIPS().difference(d.data, d.pi, d.data.behaviour)
        hits += result.low <= truth <= result.high
    assert_covers(hits, REPEATS)


def test_modelled_propensities_and_rewards_reach_the_truth():
    found = {"snips": [], "dr": [], "dm": []}
    hits = dict.fromkeys(found, 0)
    repeats = 100
    for seed in range(repeats):
        d = draw(1000 + seed)
        mu = cross_fit_propensities(
            d.x, d.data.action, d.data.cluster, N_PAGES, PropensityConfig(folds=2, iterations=25)
        )
        q = cross_fit_rewards(d.x, d.data.action, d.data.reward, d.data.cluster, N_PAGES).q
        data = LoggedData(
            d.data.action, d.data.reward, d.data.cluster, behaviour=mu.probs, modelled=mu.modelled
        )
        for estimator in (SNIPS(), DR(), DM()):
            result = estimator.estimate(data, d.pi, q).or_raise()
            found[estimator.name].append(result.value)
            hits[estimator.name] += result.low <= TRUTH <= result.high
    assert_unbiased(np.array(found["dr"]))
    assert_covers(hits["dr"], repeats)
    # estimating the propensities absorbs chance imbalance: weighting may cover more than stated, not less
    assert abs(np.mean(found["snips"]) - TRUTH) < 0.02 * TRUTH
    assert hits["snips"] >= 0.87 * repeats
    assert abs(np.mean(found["dm"]) - TRUTH) < 0.02 * TRUTH
    assert hits["dm"] < hits["dr"]  # which is why its interval carries a note


def test_refused_as_overlap_fades():
    """Shift the behaviour away from the policy's page step by step: accepted, then refused, never a wild value."""
    rng = np.random.default_rng(5)
    n = 5000
    reasons = []
    for rare in (0.3, 0.05, 0.005, 0.0005):
        behaviour = np.tile([1 - rare, rare], (n, 1))
        action = (rng.random(n) < rare).astype(int)
        data = LoggedData(
            action, rng.normal(size=n), np.arange(n), propensity=behaviour[np.arange(n), action]
        )
        known = LoggedData(action, data.reward, data.cluster, behaviour=behaviour)
        pi = np.tile([0.0, 1.0], (n, 1))
        reasons.append((SNIPS().estimate(data, pi).refused, SNIPS().estimate(known, pi).refused))
    assert reasons[0] == reasons[1] == (None, None)
    assert all(reason is not None for pair in reasons[2:] for reason in pair)
