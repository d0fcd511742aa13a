from __future__ import annotations

import json
import math

import numpy as np
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.session_models import auc, average_precision, drop_off_quality, page_errors


def test_auc_and_precision_by_hand():
    score, label = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    # of four pairs (0.9, 0.8), (0.9, 0.6), (0.7, 0.8), (0.7, 0.6) three are in order
    assert auc(score, label) == pytest.approx(3 / 4)
    # precision 1 where the first is found, 2/3 where the second is
    assert average_precision(score, label) == pytest.approx((1 + 2 / 3) / 2)


def test_a_tie_counts_half():
    score, label = np.array([0.5, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 0])
    assert auc(score, label) == pytest.approx((2 * 0.5 + 2 * 1) / 4)
    assert average_precision(score, label) == pytest.approx(2 / 3)
    blind = np.full(4, 0.3)
    assert auc(blind, label) == 0.5 and average_precision(blind, label) == 0.5


def test_auc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    score, label = np.round(rng.random(300), 2), (rng.random(300) < 0.3).astype(int)
    ones, zeros = score[label == 1][:, None], score[label == 0][None, :]
    assert auc(score, label) == pytest.approx(((ones > zeros) + 0.5 * (ones == zeros)).mean())


def test_one_kind_of_session_has_no_ranking():
    found = drop_off_quality(np.array([0.2, 0.4]), np.array([0, 0]))
    assert found.auc is None and found.pr_auc is None
    assert found.brier == pytest.approx((0.04 + 0.16) / 2)


def test_quality_by_hand():
    chance, dropped = np.array([0.15, 0.15, 0.15, 0.15, 0.95]), np.array([False, False, False, True, True])
    found = drop_off_quality(chance, dropped)
    assert (found.sessions, found.share) == (5, pytest.approx(0.4))
    assert found.mean_chance == pytest.approx(0.31)
    assert found.calibration_error == pytest.approx(4 / 5 * 0.10 + 1 / 5 * 0.05)
    assert found.brier == pytest.approx((3 * 0.15**2 + 0.85**2 + 0.05**2) / 5)
    assert found.log_loss == pytest.approx(-(3 * math.log(0.85) + math.log(0.15) + math.log(0.95)) / 5)
    np.testing.assert_allclose(found.bins, [(0.15, 0.25, 4), (0.95, 1.0, 1)])
    json.dumps(found.to_dict(), allow_nan=False)


def test_chances_of_nothing_and_of_certainty_are_judged():
    found = drop_off_quality(np.array([0.0, 1.0, 1.0]), np.array([0, 1, 0]))
    assert np.isfinite(found.log_loss) and found.bins[-1] == (1.0, 0.5, 2)


def test_errors_by_page():
    predicted, came = np.array([[1.0, 10.0], [3.0, 0.0]]), np.array([[2.0, 4.0], [0.0, 0.0]])
    featured, following = page_errors(predicted, came, ("featured", "following"))
    assert (featured.page, featured.mean_s, featured.mae_s, featured.bias_s) == ("featured", 1.0, 2.0, 1.0)
    assert (following.mean_s, following.mae_s, following.bias_s) == (2.0, 3.0, 3.0)


@pytest.mark.parametrize("rows", [(0, 0), (2, 3)])
def test_columns_must_fit(rows):
    with pytest.raises(DataError):
        drop_off_quality(*(np.zeros(n) for n in rows))
