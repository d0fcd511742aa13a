"""Estimators and refusals against values worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plpm_ray.core.errors import DataError, SupportError
from plpm_ray.evaluation.estimators import DM, DR, IPS, SNIPS
from plpm_ray.evaluation.logged import EpisodeGrid, LoggedData
from plpm_ray.evaluation.sequential import PDIS, SequentialDR, logged_value
from plpm_ray.evaluation.support import SupportThresholds

NO_LIMITS = SupportThresholds(0, 0, 0, 0, 1, np.inf)

ACTION = np.array([0, 1, 1, 0])
REWARD = np.array([1.0, 2.0, 4.0, 3.0])
BEHAVIOUR = np.array([[0.5, 0.5], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
PI = np.array([[0.5, 0.5], [0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
WEIGHTS = np.array([1.0, 2.0, 1.5, 4.0])
Q = np.array([[1.0, 2.0], [0.0, 2.0], [4.0, 0.0], [2.0, 2.0]])


def small_log(**changes) -> LoggedData:
    fields = {"action": ACTION, "reward": REWARD, "cluster": np.array([1, 1, 2, 3]), "behaviour": BEHAVIOUR}
    return LoggedData(**{**fields, **changes})


def test_propensity_is_taken_from_the_behaviour():
    assert small_log().logged_propensity == pytest.approx([0.5, 0.25, 0.5, 0.25])
    assert small_log().weights(PI) == pytest.approx(WEIGHTS)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (IPS, (1 + 4 + 6 + 12) / 4),
        (SNIPS, (1 + 4 + 6 + 12) / 8.5),
        (DM, (1.5 + 1 + 1 + 2) / 4),
        (DR, (1.5 + 1 + 1 + 2) / 4 + (0 + 0 + 6 + 4) / 4),
    ],
)
def test_values_by_hand(estimator, expected):
    instance = estimator(NO_LIMITS)
    result = instance.estimate(small_log(), PI, Q)
    assert result.value == pytest.approx(expected)
    assert result.refused is None
    values = instance.per_sample(small_log(), PI, Q)
    assert values.shape == (4,)
    assert values.mean() == pytest.approx(expected)
    assert result.low < result.value < result.high


def test_self_normalised_dr_by_hand():
    result = DR(NO_LIMITS, self_normalised=True).estimate(small_log(), PI, Q)
    assert result.value == pytest.approx(5.5 / 4 + 10 / 8.5)


def test_support_by_hand():
    support = IPS(SupportThresholds(propensity_floor=0.3)).support(small_log(), PI)
    assert support.effective_samples == pytest.approx(8.5**2 / (1 + 4 + 2.25 + 16))
    assert support.effective_clusters == pytest.approx(8.5**2 / (9 + 2.25 + 16))
    assert (support.samples, support.clusters) == (4, 3)
    assert support.max_weight == 4
    assert support.mean_weight == pytest.approx(8.5 / 4)
    # below .3 lie: row 2 action 1 (pi .5), row 4 action 0 (pi 1)
    assert support.mass_below_floor == pytest.approx(1.5 / 4)


def test_the_logging_policy_itself_gives_the_mean_reward():
    data = small_log()
    for estimator in (IPS(NO_LIMITS), SNIPS(NO_LIMITS)):
        assert estimator.estimate(data, BEHAVIOUR).value == pytest.approx(REWARD.mean())
    assert logged_value(data, thresholds=NO_LIMITS).value == pytest.approx(REWARD.mean())


def test_difference_is_paired():
    data = small_log()
    difference = SNIPS(NO_LIMITS).difference(data, PI, PI)
    assert difference.value == pytest.approx(0)
    assert difference.standard_error == pytest.approx(0)
    difference = SNIPS(NO_LIMITS).difference(data, PI, BEHAVIOUR)
    assert difference.value == pytest.approx(23 / 8.5 - 2.5)


def _log_with_behaviour(behaviour_row, n=4000, seed=0):
    rng = np.random.default_rng(seed)
    behaviour = np.tile(behaviour_row, (n, 1))
    action = rng.choice(len(behaviour_row), size=n, p=behaviour_row)
    return LoggedData(action, rng.normal(size=n), rng.integers(n // 4, size=n), behaviour=behaviour)


@pytest.mark.parametrize("estimator", [IPS, SNIPS, DM, DR])
def test_refused_where_the_log_never_goes(estimator):
    data = _log_with_behaviour([0.999, 0.001])
    pi = np.tile([0.0, 1.0], (len(data), 1))
    result = estimator().estimate(data, pi, np.zeros((len(data), 2)))
    assert "100% of the policy's choices" in result.refused
    assert (result.value, result.low, result.high, result.standard_error) == (None, None, None, None)
    with pytest.raises(SupportError, match="randomise some traffic"):
        result.or_raise()


def test_refused_by_the_mean_weight_where_only_the_logged_propensity_is_known():
    full = _log_with_behaviour([0.5, 0.5, 0.0])
    data = LoggedData(full.action, full.reward, full.cluster, propensity=full.propensity)
    pi = np.tile([0.2, 0.2, 0.6], (len(data), 1))  # 60 % on an action that is never logged
    result = SNIPS().estimate(data, pi)
    assert "average 0.40 instead of 1" in result.refused


def test_refused_by_sizes():
    data = _log_with_behaviour([0.5, 0.5], n=150)
    pi = np.tile([1.0, 0.0], (150, 1))
    assert "effective sample size" in IPS().estimate(data, pi).refused
    few_users = LoggedData(data.action, data.reward, np.arange(150) % 5, behaviour=data.behaviour)
    assert "effective number of users" in IPS().estimate(few_users, data.behaviour).refused
    lax = SupportThresholds(min_effective_samples=1, min_effective_share=0.99)
    assert "of the samples" in IPS(lax).estimate(data, pi).refused


def test_accepted_where_overlap_is_good_and_serialisable():
    data = _log_with_behaviour([0.4, 0.6])
    result = SNIPS().estimate(data, np.tile([0.7, 0.3], (len(data), 1)))
    assert result.or_raise() is result
    record = json.loads(json.dumps(result.as_dict()))
    assert record["refused"] is None
    assert record["support"]["clusters"] == len(np.unique(data.cluster))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.array([0.0, 1, 1, 0])}, "integer"),
        ({"reward": REWARD[:3]}, "reward has shape"),
        ({"reward": np.array([1, np.nan, 1, 1])}, "not finite"),
        ({"behaviour": None}, "neither"),
        ({"behaviour": BEHAVIOUR * 2}, "no distribution"),
        ({"action": np.array([0, 1, 1, 2])}, "outside"),
        ({"propensity": np.array([0.0, 1, 1, 1])}, "propensity"),
        ({"episode": np.zeros(4)}, "together"),
    ],
)
def test_bad_logs_are_refused_with_a_reason(changes, message):
    with pytest.raises(DataError, match=message):
        small_log(**changes)


def test_bad_policies_are_refused_with_a_reason():
    with pytest.raises(DataError, match="row 3"):
        IPS().estimate(small_log(), PI - [[0, 0], [0, 0], [0, 0], [0, 0.5]])
    with pytest.raises(DataError, match="needs predicted rewards"):
        DR().estimate(small_log(), PI)
    with pytest.raises(DataError, match="shape"):
        DM().estimate(small_log(), PI, Q[:, :1])


def test_grid_orders_steps_and_links_rows():
    episode, step = np.array([7, 3, 7, 3, 3]), np.array([1, 5, 0, 2, 9])
    grid = EpisodeGrid.of(episode, step)
    assert grid.rows[0].tolist() == [3, 1, 4]
    assert grid.rows[1, :2].tolist() == [2, 0]
    assert grid.mask.tolist() == [[True, True, True], [True, True, False]]
    assert grid.next_index().tolist() == [-1, 4, 0, 1, -1]
    assert grid.gather(np.arange(5.0), fill=-1)[1].tolist() == [2.0, 0.0, -1.0]
    with pytest.raises(DataError, match="twice"):
        EpisodeGrid.of(np.array([1, 1]), np.array([0, 0]))


def episodes() -> LoggedData:
    """Two user-days: rows (0, 1) and row 2 alone; weights 2, .5 and 1."""
    return LoggedData(
        action=np.array([0, 0, 1]),
        reward=np.array([1.0, 3.0, 5.0]),
        cluster=np.array(["a", "a", "b"]),
        propensity=np.array([0.5, 1.0, 0.5]),
        episode=np.array([0, 0, 1]),
        step=np.array([0, 1, 0]),
    )


EPISODE_PI = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])


def test_per_decision_by_hand():
    # rho: episode 0: 2, 1; episode 1: 1, 1 (kept after its end); gamma .5
    plain = PDIS(NO_LIMITS, gamma=0.5, weighted=False).estimate(episodes(), EPISODE_PI)
    assert plain.value == pytest.approx((2 * 1 + 0.5 * 1 * 3 + 1 * 5) / 2)
    weighted = PDIS(NO_LIMITS, gamma=0.5).estimate(episodes(), EPISODE_PI)
    assert weighted.value == pytest.approx((2 + 5) / 3 + 0.5 * 3 / 2)
    assert weighted.per == "user-day"
    assert weighted.support.samples == 2


def test_sequential_dr_by_hand():
    q = np.array([[4.0, 9.0], [2.0, 4.0], [3.0, 5.0]])
    # v: 4, 3, 4; errors: 1 + .5*3 - 4 = -1.5; 3 - 2 = 1; 5 - 5 = 0
    plain = SequentialDR(NO_LIMITS, gamma=0.5, weighted=False).estimate(episodes(), EPISODE_PI, q)
    assert plain.value == pytest.approx((4 + 2 * -1.5 + 0.5 * 1 * 1 + 4) / 2)
    weighted = SequentialDR(NO_LIMITS, gamma=0.5).estimate(episodes(), EPISODE_PI, q)
    assert weighted.value == pytest.approx(4 + (2 * -1.5) / 3 + 0.5 * 1 / 2)


def test_logged_value_per_day_discounts():
    result = logged_value(episodes(), "user-day", gamma=0.5, thresholds=NO_LIMITS)
    assert result.value == pytest.approx((1 + 1.5 + 5) / 2)
    assert logged_value(episodes(), "user-day").refused is not None  # two days are no sample


def test_sequential_estimators_need_clean_episodes():
    with pytest.raises(DataError, match="no episode"):
        PDIS().estimate(small_log(), PI)
    mixed = LoggedData(
        np.array([0, 0]),
        np.ones(2),
        np.array([1, 2]),
        propensity=np.ones(2),
        episode=np.zeros(2),
        step=np.arange(2),
    )
    with pytest.raises(DataError, match="two clusters"):
        PDIS().estimate(mixed, np.ones((2, 1)))
