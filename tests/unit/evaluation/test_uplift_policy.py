"""Value of the chosen arms by inverse propensity, and errors against potential outcomes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.evaluation.uplift_policy import PolicyTerms, best_arm, policy_value
from plpm_ray.evaluation.uplift_trial import Trial
from plpm_ray.evaluation.uplift_truth import effect_error

OUTCOMES = np.array([[1.0, 5, 2], [4, 0, 3], [2, 2, 9], [7, 1, 1]])  # [U, K + 1]


def test_ips_and_dr_are_unbiased_over_all_assignments():
    """Every assignment of four users to three arms, by its probability; shares that differ between users."""
    propensity = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.8, 0.1]])
    pi = np.array([[0.0, 1, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5], [1, 0, 0]])
    predicted = np.full((4, 3), 2.5) + np.arange(3)
    users = np.arange(4)
    mean = np.zeros(3)
    for assignment in itertools.product(range(3), repeat=4):
        arm = np.array(assignment)
        own = propensity[users, arm]
        trial = Trial(("a", "b"), "control", arm, OUTCOMES[users, arm], own)
        values = PolicyTerms(pi, trial, predicted).of(np.ones((1, 4)))[0]
        mean += own.prod() * np.nan_to_num(values)
    truth = (pi * OUTCOMES).sum() / 4
    assert mean[1:].tolist() == pytest.approx([truth, truth])


def test_snips_of_one_arm_is_its_mean_and_shares_are_the_default():
    arm, response = np.array([0, 1, 1, 2, 0, 1]), np.array([1.0, 2, 6, 5, 3, 4])
    trial = Trial.of(arm, response)
    assert trial.propensity.tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 2, 1 / 6, 1 / 3, 1 / 2])
    for k, mean in enumerate((2.0, 4.0, 5.0)):
        assert policy_value(np.full(6, k), trial) == pytest.approx(mean)
        assert policy_value(np.full(6, k), trial, method="ips") == pytest.approx(mean)
    assert policy_value(np.full((6, 3), 1 / 3), trial, method="ips") == pytest.approx(11 / 3)


def test_predictions_without_error_need_no_matching_users():
    arm = np.array([1, 0, 2, 0])
    trial = Trial.of(arm, OUTCOMES[np.arange(4), arm])
    choice = np.array([0, 1, 1, 2])  # nobody was given this
    assert np.isnan(policy_value(choice, trial))
    assert policy_value(choice, trial, method="ips") == 0
    truth = OUTCOMES[np.arange(4), choice].mean()
    assert policy_value(choice, trial, method="dr", predicted=OUTCOMES) == pytest.approx(truth)


def test_weights_count_users_again():
    rng = np.random.default_rng(0)
    arm, response, choice = rng.integers(0, 3, 50), rng.normal(size=50), rng.integers(0, 3, 50)
    copies = rng.integers(1, 4, 50)
    weighted = Trial.of(arm, response, weight=copies.astype(float))
    repeated = Trial.of(np.repeat(arm, copies), np.repeat(response, copies))
    for method in ("ips", "snips"):
        wanted = policy_value(np.repeat(choice, copies), repeated, method=method)
        assert policy_value(choice, weighted, method=method) == pytest.approx(wanted)


def test_best_arm_keeps_control_where_nothing_helps():
    effects = np.array([[1.0, 2], [-1, -2], [0, 0], [3, 3]])
    assert best_arm(effects).tolist() == [2, 0, 0, 1]
    assert best_arm(effects, control_is_choice=False).tolist() == [2, 1, 1, 1]


def test_errors_by_hand():
    true = np.array([[1.0, 2], [-1, -2], [0, 4], [2, 1]])
    predicted = np.array([[2.0, 1], [-1, 1], [0, 4], [5, 1]])
    found = effect_error(predicted, true)
    assert found.pehe.tolist() == pytest.approx([np.sqrt(10 / 4), np.sqrt(10 / 4)])
    assert found.bias.tolist() == [1.0, 0.5]
    assert found.spearman[0] == pytest.approx(1)
    # users 0 and 1 are given arm 1 and arm 2, best are arm 2 and control
    assert found.best_arm_share == 0.5
    assert found.regret == pytest.approx((1 + 2 + 0 + 0) / 4)
    assert effect_error(true, true).regret == 0
    assert effect_error(predicted, true, control_is_choice=False).regret == pytest.approx((1 + 1) / 4)


def test_trial_keeps_the_weight_of_every_arm():
    arm = np.array([0, 0, 1, 1, 2])
    trial = Trial.of(arm, np.ones(5), propensity=np.array([[0.5, 0.3, 0.2]] * 4 + [[0.1, 0.1, 0.8]]))
    assert trial.inverse is not None
    assert np.bincount(arm, weights=trial.inverse).tolist() == pytest.approx([2, 2, 1])
    assert trial.labels == ("control", "arm 1", "arm 2") and len(trial) == 5


ARM, RESPONSE = [0, 1, 2, 1], [1.0, 2, 3, 4]
BAD_TRIALS = {
    "no user is in control": {"arm": [1, 1, 2, 1]},
    r"no user is in arm 2 \(store\)": {"arm": [0, 1, 1, 1]},
    "a user is in arm 3, but there are 2": {"arm": [0, 1, 3, 2]},
    "arm 0.5 in row 1 is not a whole number": {"arm": [0, 0.5, 2, 1]},
    "arm -1 in row 2": {"arm": [0, 1, -1, 2]},
    "arm has 3 rows, but there are 4 users": {"arm": [0, 1, 2]},
    "response: 1 of 4 values are NaN": {"response": [1, np.nan, 2, 3]},
    r"propensity has shape \(2,\)": {"propensity": [0.5, 0.5]},
    "must sum to 1": {"propensity": [2, 1, 1]},
    "the user in row 2 is in arm 2, whose propensity is 0": {"propensity": [0.5, 0.5, 0.0]},
    "all weights of store are 0": {"weight": [1, 1, 0, 1]},
}


@pytest.mark.parametrize("message", BAD_TRIALS)
def test_bad_trials_are_named(message):
    given = {"arm": ARM, "response": RESPONSE, "names": ["featured", "store"]} | BAD_TRIALS[message]
    with pytest.raises(DataError, match=message) as raised:
        Trial.of(**given)
    assert raised.value.hint


BAD_CHOICES = {
    "choices have shape": np.zeros(3, int),
    "whole numbers": np.zeros(4),
    "choices lie in 0..3": np.array([0, 1, 2, 3]),
    "choice probabilities have shape": np.full((4, 2), 0.5),
    "row 1 are negative or do not sum to 1": np.array([[1.0, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 0, 0]]),
}


@pytest.mark.parametrize("message", BAD_CHOICES)
def test_bad_choices_are_named(message):
    with pytest.raises(DataError, match=message) as raised:
        policy_value(BAD_CHOICES[message], Trial.of(ARM, RESPONSE))
    assert raised.value.hint


def test_what_is_missing_is_named():
    trial = Trial.of(ARM, RESPONSE)
    with pytest.raises(ConfigError, match="pass `predicted`"):
        policy_value(np.zeros(4, int), trial, method="dr")
    with pytest.raises(ConfigError, match="ips, snips or dr"):
        policy_value(np.zeros(4, int), trial, method="magic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="predicted responses have shape"):
        policy_value(np.zeros(4, int), trial, method="dr", predicted=np.ones((4, 2)))
    with pytest.raises(DataError, match="both must be"):
        effect_error(np.ones((3, 2)), np.ones((4, 2)))
