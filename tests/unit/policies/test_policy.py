"""Policies: distributions by hand, draws that follow them, draws that do not depend on order."""

import numpy as np
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.core.hashing import splitmix64
from plpm_ray.policies.base import Policy, PolicyConfig, uniforms


def test_distributions_by_hand():
    scores = np.array([[0.0, np.log(3.0)], [1.0, 1.0]], dtype=np.float64)
    greedy = Policy().probabilities(scores)
    assert greedy.tolist() == [[0, 1], [1, 0]]
    epsilon = Policy(PolicyConfig(kind="epsilon", epsilon=0.2)).probabilities(scores)
    np.testing.assert_allclose(epsilon, [[0.1, 0.9], [0.9, 0.1]])
    softmax = Policy(PolicyConfig(kind="softmax")).probabilities(scores)
    np.testing.assert_allclose(softmax, [[0.25, 0.75], [0.5, 0.5]])
    sharp = Policy(PolicyConfig(kind="softmax", temperature=0.5)).probabilities(scores)
    np.testing.assert_allclose(sharp[0], [0.1, 0.9])
    by_share = Policy(PolicyConfig(kind="proportional")).probabilities(np.array([[0.2, 0.6], [0.0, 0.0]]))
    np.testing.assert_allclose(by_share, [[0.25, 0.75], [0.5, 0.5]])
    squared = Policy(PolicyConfig(kind="proportional", temperature=0.5)).probabilities(np.array([[1.0, 3.0]]))
    np.testing.assert_allclose(squared, [[0.1, 0.9]])


def test_epsilon_without_effect_is_refused():
    with pytest.raises(ValueError, match="write kind: epsilon"):
        PolicyConfig.model_validate({"epsilon": 0.1})


def test_draws_follow_the_distribution_and_report_its_propensity():
    n = 200_000
    users = splitmix64(np.arange(n))
    scores = np.tile(np.log([[0.2, 0.5, 0.3]]), (n, 1))
    choice = Policy(PolicyConfig(kind="softmax")).draw(scores, users, np.full(n, 1_650_000_000_000))
    shares = np.bincount(choice.page, minlength=3) / n
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.3], atol=4 * np.sqrt(0.25 / n))
    np.testing.assert_allclose(choice.propensity, np.array([0.2, 0.5, 0.3])[choice.page])
    inverse = np.mean((choice.page == 2) / choice.propensity)
    assert abs(inverse - 1) < 0.02


def test_a_draw_depends_on_user_time_and_seed_alone():
    users, times = splitmix64(np.arange(1000)), np.arange(1000) * 977
    all_at_once = uniforms(7, users, times)
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(uniforms(7, users[order], times[order]), all_at_once[order])
    assert not np.allclose(uniforms(8, users, times), all_at_once)
    assert abs(all_at_once.mean() - 0.5) < 0.05 and all_at_once.min() >= 0 and all_at_once.max() < 1


def test_greedy_never_draws_a_page_of_probability_zero():
    scores = np.random.default_rng(0).normal(size=(5000, 4))
    choice = Policy().draw(scores, splitmix64(np.arange(5000)), np.arange(5000))
    assert (choice.propensity == 1).all() and (choice.page == scores.argmax(1)).all()


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="row 1"):
        Policy().probabilities(np.array([[0.0, 1.0], [np.nan, 0.0]]))
    with pytest.raises(DataError, match="row 0 are negative"):
        Policy(PolicyConfig(kind="proportional")).probabilities(np.array([[-0.1, 1.0]]))
