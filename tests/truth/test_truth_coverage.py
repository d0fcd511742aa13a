"""Fitted Q evaluation with the wrong model: the plug-in misses the truth, the corrected value covers it.

The decision process of `test_truth_days`, seen through features that say nothing, so that Q is one number a page.
"""

from __future__ import annotations

import numpy as np
import pytest

from plpm_ray.evaluation.fqe import fitted_q
from tests.truth.test_truth_days import (
    BEHAVIOUR,
    N_PAGES,
    POLICY,
    START,
    assert_covers,
    config,
    draw,
    exact_q,
)

GREEDY = np.eye(N_PAGES)[exact_q(POLICY).argmax(axis=1)]


@pytest.mark.parametrize("policy", [0.5 * POLICY + 0.5 * BEHAVIOUR, GREEDY], ids=["near", "far"])
def test_the_correction_makes_up_for_a_wrong_model(policy):
    truth = float(START @ (policy * exact_q(policy)).sum(axis=1))
    plug_in, corrected, hits, repeats = [], [], 0, 100
    for seed in range(repeats):
        x, data, _ = draw(seed)
        pi, blind = policy[x.argmax(axis=1)], x * 0
        plug_in.append(fitted_q(blind, data, pi, config(correction=False, bootstrap=0)).estimate.value)
        estimate = fitted_q(blind, data, pi, config()).estimate.or_raise()
        corrected.append(estimate.value)
        hits += estimate.low <= truth <= estimate.high
    assert_covers(hits, repeats, slack=0.03)
    # what is left to the model is of second order in the change of policy
    assert abs(np.mean(corrected) - truth) < 0.25 * abs(np.mean(plug_in) - truth)
    assert abs(np.mean(plug_in) - truth) > np.std(plug_in)


def test_the_corrected_value_covers_with_the_right_model():
    truth = float(START @ (POLICY * exact_q(POLICY)).sum(axis=1))
    results = [fitted_q(*draw(seed), config()).estimate.or_raise() for seed in range(100)]
    assert_covers(sum(r.low <= truth <= r.high for r in results), 100, slack=0.03)
