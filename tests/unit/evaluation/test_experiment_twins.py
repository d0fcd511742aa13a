"""The same users under every arm: paired by user."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.experiment import analyse
from plpm_ray.evaluation.experiment_table import format_experiment
from tests.experiment_tables import DAYS, PAGES, twin_table, with_columns

ARMS = {"control": 0.0, "random": -0.1, "oracle": 0.2, "model": 0.1}


def run(users: pa.Table, **options) -> dict:
    options = {"design": "twins", "aa_days": DAYS, "ab_days": DAYS, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = analyse(users, PAGES, control="control", **options)
    json.dumps(result, allow_nan=False)
    return result


def pick(result: dict, metric: str, arm: str) -> dict:
    (row,) = [row for row in result["metrics"] if (row["metric"], row["arm"]) == (metric, arm)]
    return row


def side(users: pa.Table, arm: str, name: str) -> np.ndarray:
    return users.column(name).to_numpy()[users.column("arm").to_numpy() == arm].astype(float)


@pytest.fixture(scope="module")
def users() -> pa.Table:
    return twin_table(5, 1_500, ARMS)


@pytest.fixture(scope="module")
def result(users: pa.Table) -> dict:
    return run(users)


def test_a_mean_is_the_paired_t_test(users: pa.Table, result: dict) -> None:
    arm, control = side(users, "model", "ab_sessions") / DAYS, side(users, "control", "ab_sessions") / DAYS
    paired = stats.ttest_rel(arm, control)
    row = pick(result, "sessions", "model")
    assert row["p_value"] == pytest.approx(float(paired.pvalue), rel=1e-6)
    assert row["difference"] == pytest.approx((arm - control).mean())
    unpaired = (arm.var(ddof=1) + control.var(ddof=1)) / len(arm)
    expected = 1 - np.var(arm - control, ddof=1) / len(arm) / unpaired
    assert row["variance_reduction"] == pytest.approx(expected)


def test_a_ratio_agrees_with_the_bootstrap_over_users(users: pa.Table, result: dict) -> None:
    drops = np.stack([side(users, arm, "ab_drop_offs") for arm in ("model", "control")])
    sessions = np.stack([side(users, arm, "ab_sessions") for arm in ("model", "control")])
    counts = np.random.default_rng(0).multinomial(1_500, np.full(1_500, 1 / 1_500), size=2_000).T
    arm, control = (drops @ counts) / (sessions @ counts)
    low, high = np.quantile(arm / control - 1, [0.025, 0.975])
    row = pick(result, "pdr", "model")
    assert row["relative"] == pytest.approx(float((arm / control - 1).mean()), abs=0.1 * (high - low))
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_gap_share_agrees_with_the_bootstrap_over_users(users: pa.Table, result: dict) -> None:
    counts = np.random.default_rng(1).multinomial(1_500, np.full(1_500, 1 / 1_500), size=2_000).T
    means = {arm: side(users, arm, "ab_sessions") @ counts for arm in ARMS}
    draws = (means["model"] - means["random"]) / (means["oracle"] - means["random"])
    low, high = np.quantile(draws, [0.025, 0.975])
    row = pick(result, "sessions", "model")
    assert (row["gap_low"], row["gap_high"]) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_narrower_than_users_in_one_arm(users: pa.Table, result: dict) -> None:
    """As many rows, each with a user of its own, and without the AA period."""
    apart = with_columns(users, user_id=np.arange(users.num_rows))
    split = run(apart, design="split", aa_days=0)
    for metric in ("sessions", "pdr"):
        twin, other = (pick(found, metric, "oracle") for found in (result, split))
        assert twin["unadjusted"] == pytest.approx(other["unadjusted"])
        assert twin["high"] - twin["low"] < 0.75 * (other["high"] - other["low"])


def test_what_the_arms_share_exactly_has_no_p_value(result: dict) -> None:
    """The effect leaves activity alone, and the same luck makes it identical under all arms."""
    row = pick(result, "dau", "model")
    assert (row["difference"], row["relative"]) == (0, 0)
    assert (row["low"], row["p_value"], row["gap_share"]) == (None, None, None)


def test_users_are_matched_by_name(users: pa.Table, result: dict) -> None:
    shuffled = users.take(np.random.default_rng(0).permutation(users.num_rows))
    again = run(shuffled, arms=result["arms"])
    assert pick(again, "pdr", "model")["p_value"] == pytest.approx(pick(result, "pdr", "model")["p_value"])
    assert (again["users"], again["sample_ratio"]["p_value"], again["sample_ratio"]["ok"]) == (
        1500,
        None,
        True,
    )
    assert "the same users" in format_experiment(again)


def test_a_missing_twin_is_an_error(users: pa.Table) -> None:
    with pytest.raises(DataError, match="every user once in every arm"):
        run(users.slice(1))
    doubled = np.where(np.arange(users.num_rows) % 1500 == 0, 1, users.column("user_id").to_numpy())
    with pytest.raises(DataError, match="every user once in every arm"):
        run(with_columns(users, user_id=doubled))
