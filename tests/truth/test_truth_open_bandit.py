"""Real logs with true propensities: the Thompson policy's value from the uniform log against its own log.

10,000 rows each and a click rate near .5 % leave about 50 to 70 clicks per log: intervals are +-.0016 on
policy and +-.0025 off policy, half of the value itself. The test can show gross errors, not fine ones.
"""

from __future__ import annotations

from math import hypot

import numpy as np
import pytest

from plpm_ray.data.open_bandit import read_open_bandit
from plpm_ray.evaluation.estimators import DR, IPS, SNIPS, Estimate
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.reward_model import cross_fit_rewards
from plpm_ray.evaluation.sequential import logged_value

ROOT = "open_bandit"


@pytest.fixture(params=["men", "women"])
def logs(request, data_folder):
    root = data_folder(ROOT)
    return read_open_bandit(root, "random", request.param), read_open_bandit(root, "bts", request.param)


def logged(log, behaviour: np.ndarray | None = None) -> LoggedData:
    return LoggedData(
        log.action, log.reward, log.cluster, propensity=log.propensity, behaviour=behaviour, unit="clicks"
    )


def agree(off_policy: Estimate, on_policy: Estimate) -> bool:
    """|difference| within the 95 % interval of a difference of two independent logs."""
    combined = hypot(off_policy.or_raise().standard_error, on_policy.or_raise().standard_error)
    return abs(off_policy.value - on_policy.value) < 1.96 * combined


def test_uniform_log_knows_its_propensities(logs):
    uniform, _ = logs
    assert uniform.propensity == pytest.approx(np.full(len(uniform.action), 1 / uniform.n_items))
    counts = np.bincount(uniform.action, minlength=uniform.n_items)
    expected = len(uniform.action) / uniform.n_items
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < uniform.n_items + 4 * np.sqrt(2 * uniform.n_items)


def test_mean_propensity_overstates_a_changing_policy(logs):
    """Why `item_shares` counts: the mean of the logged propensities would not even sum to one."""
    _, thompson = logs
    first = thompson.position == 0
    count = np.bincount(thompson.action[first], minlength=thompson.n_items)
    total = np.bincount(
        thompson.action[first], weights=thompson.propensity[first], minlength=thompson.n_items
    )
    assert (total / np.maximum(count, 1)).sum() > 1.5
    assert thompson.item_shares().sum(axis=1) == pytest.approx(np.ones(3))


def test_thompson_value_from_the_uniform_log(logs):
    uniform, thompson = logs
    on_policy = logged_value(logged(thompson))
    data = logged(uniform, np.full((len(uniform.action), uniform.n_items), 1 / uniform.n_items))
    pi = thompson.item_shares()[uniform.position]
    q = cross_fit_rewards(
        uniform.context(), uniform.action, uniform.reward, uniform.cluster, uniform.n_items
    ).q
    for estimator in (IPS(), SNIPS(), DR(), DR(self_normalised=True)):
        result = estimator.estimate(data, pi, q)
        assert agree(result, on_policy), f"{result.estimator}: {result.value} against {on_policy.value}"
        assert 0.001 < result.standard_error < 0.002
        assert result.support.mean_weight == pytest.approx(1, abs=0.05)
        assert result.support.effective_samples > 2500
        assert result.low <= on_policy.value <= result.high


def test_uniform_value_from_the_thompson_log_holds_or_is_refused(logs):
    """The way back is harder: Thompson sampling almost never shows some items (propensity down to 1e-6)."""
    uniform, thompson = logs
    pi = np.full((len(thompson.action), thompson.n_items), 1 / thompson.n_items)
    result = SNIPS().estimate(logged(thompson), pi)
    if thompson.propensity.min() < 1e-5:
        assert "effective sample size" in result.refused
    else:
        assert agree(result, logged_value(logged(uniform)))
