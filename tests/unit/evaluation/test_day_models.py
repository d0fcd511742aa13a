from __future__ import annotations

import json
import math

import numpy as np
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.day_models import (
    constraint_losses,
    day_errors,
    day_report,
    mae_gain,
    seven_day_mean,
    tenths,
)


def test_errors_by_hand():
    found = day_errors(np.array([10.0, 20.0, 60.0]), np.array([20.0, 10.0, 30.0]), np.array([0, 6, 6]))
    assert found.days == 3
    assert found.mae_s == pytest.approx(50 / 3)
    assert found.rmse_s == pytest.approx(math.sqrt((100 + 100 + 900) / 3))
    assert found.bias_s == pytest.approx(10.0)
    # ranks 1 2 3 against 2 1 3: 1 - 6 * (1 + 1) / (3 * 8)
    assert found.spearman == pytest.approx(0.5)
    assert found.bias_by_weekday_s[[0, 6]].tolist() == [-10.0, 20.0]
    assert np.isnan(found.bias_by_weekday_s[1:6]).all()


def test_bias_by_tenths():
    use = np.arange(100.0)
    found = day_errors(np.full(100, 49.5), use, np.zeros(100, dtype=int))
    # the mean of every tenth is 4.5, 14.5, ...
    np.testing.assert_allclose(found.bias_by_use_s, 45.0 - 10 * np.arange(10))
    assert found.bias_by_prediction_s[0] == pytest.approx(0.0)
    assert np.isnan(found.bias_by_prediction_s[1:]).all()
    calibrated = day_errors(use, use, np.zeros(100, dtype=int))
    assert not calibrated.bias_by_prediction_s.any()


def test_equal_values_are_in_one_tenth():
    assert tenths(np.array([0.0] * 5 + [1.0] * 5)).tolist() == [0] * 5 + [5] * 5
    assert tenths(np.array([3.0])).tolist() == [0]


def test_the_seven_day_mean_counts_active_days_only():
    days = np.zeros((3, 30, 2), dtype=np.float32)
    days[0, [0, 6], 0], days[0, [0, 6], 1] = (100.0, 300.0), 1
    # active long ago only
    days[1, 7:] = (900.0, 2.0)
    # a session of no seconds is a day too
    days[2, 0], days[2, 1] = (0.0, 1.0), (50.0, 1.0)
    assert seven_day_mean(days, 77.0).tolist() == [200.0, 77.0, 25.0]


def test_constraint_losses_by_hand():
    predicted, came = np.array([[120.0, math.e - 1]]), np.array([[50.0, 2.0]])
    found = constraint_losses(predicted, came, unit=(100.0, 2.0), law=(60.0, 10.0))
    assert found["se"] == pytest.approx(((math.e - 3) / 2) ** 2)
    assert found["rel"] == pytest.approx(0.5**2)


def test_the_gain_takes_a_users_days_as_one():
    use, user = np.zeros(4), np.array([1, 1, 2, 2])
    found = mae_gain(np.array([1.0, 1.0, 3.0, 3.0]), np.full(4, 4.0), use, user)
    assert found.value == pytest.approx(2.0)
    assert found.low < 2.0 < found.high
    alone = mae_gain(np.array([1.0, 1.0, 3.0, 3.0]), np.full(4, 4.0), use, np.arange(4))
    assert found.high - found.low > 2 * (alone.high - alone.low)


def test_a_report_can_be_written():
    values = np.array([5.0, 5.0])
    report = day_report({"lrtg": values, "mean7": values + 1}, np.array([5.0, 9.0]), np.array([2, 3]))
    assert json.loads(json.dumps(report, allow_nan=False))["mean7"]["bias_s"] == -1.0
    assert report["lrtg"]["spearman"] is None


@pytest.mark.parametrize("rows", [(0, 0, 0), (2, 3, 3)])
def test_columns_must_fit(rows):
    with pytest.raises(DataError):
        day_errors(*(np.zeros(n, dtype=np.int64) for n in rows))
