"""Effects of an A/B experiment against closed forms, and where nothing can be said."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tea_tasting as tt
from scipy import stats

from plpm_ray.core.errors import ConfigError
from plpm_ray.evaluation.experiment import reassigned_p_values, treatment_p_values
from plpm_ray.evaluation.experiment_effects import ratio_interval, split_effects
from plpm_ray.evaluation.experiment_metrics import metric_catalogue
from plpm_ray.evaluation.experiment_users import Columns, user_table
from tests.experiment_tables import ARMS, DAYS, PAGES, pick, run, split_table, with_columns

METRICS = {metric.key: metric for metric in metric_catalogue(PAGES)}


@pytest.fixture(scope="module")
def users() -> pa.Table:
    return split_table(3, 4_000, ARMS)


@pytest.fixture(scope="module")
def result(users: pa.Table) -> dict:
    return run(users)


def side(users: pa.Table, arm: str, name: str) -> np.ndarray:
    return users.column(name).to_numpy()[users.column("arm").to_numpy() == arm].astype(float)


def test_values_by_hand() -> None:
    users = pa.table(
        {
            "user_id": ["u", "v", "w", "x"],
            "arm": ["a", "a", "b", "b"],
            **{f"{p}_{m}": [0, 1, 2, 3] for p in ("aa", "ab") for m in ("watch_s", "video_views")},
            **{f"{p}_effective_{page}": [0, 1, 0, 0] for p in ("aa", "ab") for page in PAGES},
            **{f"{p}_assigned_{page}": [0, 2, 1, 2] for p in ("aa", "ab") for page in PAGES},
            "aa_active_days": [0, 3, 1, 2],
            "ab_active_days": [0, 8, 10, 1],
            "aa_last7_active_days": [0, 3, 1, 2],
            "ab_last7_active_days": [0, 5, 7, 0],
            "aa_use_s": [0.0, 30.0, 10.0, 50.0],
            "ab_use_s": [0.0, 400.0, 100.0, 500.0],
            "aa_sessions": [0, 4, 2, 4],
            "ab_sessions": [0, 4, 2, 4],
            "aa_drop_offs": [0, 1, 0, 0],
            "ab_drop_offs": [0, 1, 0, 3],
        }
    )
    found = run(users, control="a", aa_days=5, ab_days=10)
    values = {
        (row["metric"], row["arm"]): row["unadjusted"]
        for row in found["metrics"]
        if row["metric"] in ("dau", "lt", "use_s", "pdr", "epef_following", "assigned_featured")
    }
    assert values == pytest.approx(
        {
            ("dau", "a"): 100 * 8 / 20,
            ("dau", "b"): 100 * 11 / 20,
            ("lt", "a"): 5 / 1,  # of the two users one was ever active
            ("lt", "b"): 7 / 2,  # the second was active, but not in the last seven days
            ("use_s", "a"): 400 / 20,
            ("use_s", "b"): 600 / 20,
            ("pdr", "a"): 100 / 4,
            ("pdr", "b"): 100 * 3 / 6,
            ("epef_following", "a"): 1 / 20,
            ("epef_following", "b"): 0,
            ("assigned_featured", "a"): 50,
            ("assigned_featured", "b"): 50,
        }
    )


def test_rows_cover_metrics_and_arms(result: dict) -> None:
    assert [row["arm"] for row in result["metrics"][:4]] == result["arms"]
    assert list(dict.fromkeys(row["metric"] for row in result["metrics"])) == list(METRICS)
    assert pick(result, "assigned_following", "model")["page"] == "following"
    control = pick(result, "use_s", "control")
    assert (control["difference"], control["relative"], control["p_value"], control["low"]) == (
        0,
        0,
        None,
        None,
    )
    row = pick(result, "use_s", "model")
    assert row["value"] - row["control"] == pytest.approx(row["difference"])
    assert row["relative"] == pytest.approx(row["value"] / row["control"] - 1)


def test_without_aa_days_it_is_welch(users: pa.Table) -> None:
    found = run(users, aa_days=0)
    row = pick(found, "use_s", "model")
    arm, control = side(users, "model", "ab_use_s") / DAYS, side(users, "control", "ab_use_s") / DAYS
    welch: Any = stats.ttest_ind(arm, control, equal_var=False)
    assert row["p_value"] == pytest.approx(float(welch.pvalue), rel=1e-9)
    assert row["difference"] == pytest.approx(arm.mean() - control.mean())
    assert row["value"] == pytest.approx(row["unadjusted"])
    assert row["variance_reduction"] is None


def test_cuped_by_hand(users: pa.Table, result: dict) -> None:
    y1, x1 = side(users, "model", "ab_use_s") / DAYS, side(users, "model", "aa_use_s") / DAYS
    y0, x0 = side(users, "control", "ab_use_s") / DAYS, side(users, "control", "aa_use_s") / DAYS
    cov = np.cov(np.concatenate([y0, y1]), np.concatenate([x0, x1]))
    theta = cov[0, 1] / cov[1, 1]
    welch: Any = stats.ttest_ind(y1 - theta * x1, y0 - theta * x0, equal_var=False)
    plain = y1.var(ddof=1) / len(y1) + y0.var(ddof=1) / len(y0)
    adjusted = np.var(y1 - theta * x1, ddof=1) / len(y1) + np.var(y0 - theta * x0, ddof=1) / len(y0)
    row = pick(result, "use_s", "model")
    assert row["p_value"] == pytest.approx(float(welch.pvalue), rel=1e-9)
    assert row["difference"] == pytest.approx((y1 - theta * x1).mean() - (y0 - theta * x0).mean())
    assert row["variance_reduction"] == pytest.approx(1 - adjusted / plain)


@pytest.mark.parametrize("key", ["dau", "lt", "pdr", "assigned_featured"])
def test_agrees_with_tea_tasting_on_the_rows(users: pa.Table, result: dict, key: str) -> None:
    """The library reads the table itself; ratios and their covariates included."""
    metric = METRICS[key]
    for period in ("aa", "ab"):
        active = users.column(f"{period}_active_days").to_numpy() > 0
        users = users.append_column(f"{period}_any_active", pa.array(active.astype(float)))
    below = metric.denominator
    test = tt.RatioOfMeans(
        f"ab_{metric.numerator}",
        below and f"ab_{below}",
        f"aa_{metric.numerator}",
        below and f"aa_{below}",
    )
    expected = test.analyze(users, "control", "model", variant="arm")
    row = pick(result, key, "model")
    assert row["p_value"] == pytest.approx(float(expected.pvalue), rel=1e-6)
    assert row["difference"] == pytest.approx(float(expected.effect_size) * metric.factor(DAYS), rel=1e-6)
    width = expected.rel_effect_size_ci_upper - expected.rel_effect_size_ci_lower
    assert row["high"] - row["low"] == pytest.approx(float(width), rel=0.05)


def test_covariance_is_that_of_the_per_user_terms(users: pa.Table) -> None:
    sorted_users = user_table(
        users, control="control", arms=list(ARMS), aa_days=DAYS, ab_days=DAYS, design="split"
    )
    columns = sorted_users.columns(METRICS["use_s"])
    effects = split_effects(sorted_users, columns, 0)
    y, x = columns.numerator, columns.aa_numerator
    assert x is not None
    groups = [slice(a, b) for a, b in pairwise(sorted_users.bounds)]
    theta = []
    for group in groups[1:]:
        cov = np.cov(np.concatenate([y[groups[0]], y[group]]), np.concatenate([x[groups[0]], x[group]]))
        theta.append(cov[0, 1] / cov[1, 1])
    control = np.stack([-(y - t * x)[groups[0]] for t in theta] + [y[groups[0]]])
    expected = np.cov(control) / control.shape[1]
    for i, (t, group) in enumerate(zip(theta, groups[1:], strict=True)):
        expected[i, i] += np.var((y - t * x)[group], ddof=1) / len(y[group])
    np.testing.assert_allclose(effects.covariance[1:, 1:], expected, rtol=1e-9)
    assert not effects.covariance[0].any()


def test_interval_excludes_no_change_exactly_when_significant(result: dict) -> None:
    tested = [row for row in result["metrics"] if row["p_value"] is not None]
    assert {row["p_value"] < 0.05 for row in tested} == {True, False}
    for row in tested:
        assert (row["low"] <= 0 <= row["high"]) == (row["p_value"] >= 0.05), row


def test_fieller_inverts_the_t_test() -> None:
    cov, quantile = np.array([[0.04, 0.01], [0.01, 0.09]]), 1.96
    low, high = ratio_interval(1.5, 2.0, cov, quantile) or (np.nan, np.nan)
    for ratio in (low, high):
        error = np.sqrt(cov[0, 0] - 2 * ratio * cov[0, 1] + ratio**2 * cov[1, 1])
        assert abs(1.5 - ratio * 2.0) / error == pytest.approx(quantile)
    assert low < 0.75 < high
    assert ratio_interval(1.5, 0.58, cov, quantile) is None  # 0.58 is less than 1.96 errors from 0
    assert ratio_interval(float("nan"), 2.0, cov, quantile) is None


def test_rows_in_any_order_and_names_as_text(users: pa.Table, result: dict) -> None:
    shuffled = users.take(np.random.default_rng(0).permutation(users.num_rows))
    names = pa.array([f"user {i}" for i in shuffled.column("user_id").to_pylist()])
    labels = [*result["arms"], "an arm of nobody"]
    arm = pa.DictionaryArray.from_arrays(
        pa.array(map(labels.index, shuffled.column("arm").to_pylist())), labels
    )
    again = run(shuffled.set_column(0, "user_id", names).set_column(1, "arm", arm))
    assert sorted(again["arms"]) == sorted(result["arms"])
    again = run(shuffled.set_column(0, "user_id", names).set_column(1, "arm", arm), arms=result["arms"])
    for row, other in zip(result["metrics"], again["metrics"], strict=True):
        for key, value in row.items():
            assert other[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)


class TestNothingToSay:
    def test_no_variance(self, users: pa.Table) -> None:
        nothing = np.zeros(users.num_rows, dtype=np.int64)
        found = run(with_columns(users, ab_assigned_featured=nothing, aa_assigned_featured=nothing))
        row = pick(found, "assigned_featured", "model")
        assert (row["value"], row["control"], row["difference"]) == (0, 0, 0)
        for key in ("relative", "low", "high", "p_value", "variance_reduction", "gap_share"):
            assert row[key] is None

    def test_everybody_the_same(self, users: pa.Table) -> None:
        same = np.full(users.num_rows, 0.1 * DAYS)
        row = pick(run(with_columns(users, ab_use_s=same)), "use_s", "model")
        assert row["value"] == pytest.approx(0.1)
        assert (row["low"], row["p_value"], row["gap_share"]) == (None, None, None)

    def test_control_of_zero_still_has_a_difference(self, users: pa.Table) -> None:
        arm = users.column("arm").to_numpy()
        views = np.where(arm == "control", 0, users.column("ab_video_views").to_numpy())
        row = pick(run(with_columns(users, ab_video_views=views)), "video_views", "model")
        assert row["difference"] == pytest.approx(row["unadjusted"])
        assert row["p_value"] < 1e-6
        assert (row["relative"], row["low"], row["high"]) == (None, None, None)

    def test_an_arm_that_never_uses_a_page(self, users: pa.Table) -> None:
        arm, sessions = users.column("arm").to_numpy(), users.column("ab_sessions").to_numpy()
        featured = np.where(arm == "model", 0, users.column("ab_assigned_featured").to_numpy())
        found = run(
            with_columns(users, ab_assigned_featured=featured, ab_assigned_following=sessions - featured)
        )
        row = pick(found, "assigned_featured", "model")
        assert (row["value"], row["relative"]) == (0, -1)
        assert (row["low"], row["high"]) == pytest.approx((-1, -1))
        assert row["p_value"] < 1e-6
        assert pick(found, "assigned_following", "model")["value"] == pytest.approx(100)

    def test_a_constant_covariate_is_left_out(self, users: pa.Table) -> None:
        constant = np.full(users.num_rows, 0.1)
        row = pick(run(with_columns(users, aa_use_s=constant)), "use_s", "model")
        assert row["variance_reduction"] == 0
        assert row["p_value"] == pytest.approx(pick(run(users, aa_days=0), "use_s", "model")["p_value"])

    def test_the_aa_period_explains_everything(self, users: pa.Table) -> None:
        found = run(with_columns(users, aa_use_s=users.column("ab_use_s").to_numpy()))
        assert pick(found, "use_s", "model")["p_value"] is None

    def test_nobody_ever_active(self, users: pa.Table) -> None:
        nothing = np.zeros(users.num_rows, dtype=np.int64)
        found = run(with_columns(users, ab_active_days=nothing, ab_last7_active_days=nothing))
        row = pick(found, "lt", "model")
        assert row["value"] is None and row["difference"] is None and row["p_value"] is None

    def test_one_arm_without_sessions(self, users: pa.Table) -> None:
        arm = users.column("arm").to_numpy()
        sessions = np.where(arm == "model", 0, users.column("ab_sessions").to_numpy())
        found = run(with_columns(users, ab_sessions=sessions))
        assert pick(found, "pdr", "model")["value"] is None
        assert pick(found, "pdr", "oracle")["p_value"] is not None
        assert pick(found, "pdr", "model")["gap_share"] is None

    def test_an_adjusted_mean_next_to_zero(self) -> None:
        """tea-tasting's interval on the log scale overflows there; the plain test takes over."""
        n = 200
        habit = np.random.default_rng(0).gamma(1, 1, 2 * n)
        arm = np.repeat(["control", "model"], n)
        use = habit * np.where(arm == "model", 0.02, 1)
        library = tt.Mean("use", "habit")
        low, high = 0.1, 0.2  # lead of the arm in the AA period; between them its adjusted mean crosses 0
        with pytest.raises(OverflowError):
            for _ in range(60):
                lead = (low + high) / 2
                x = habit + lead * (arm == "model")
                table = pa.table({"arm": arm, "use": use, "habit": x})
                adjusted = library.analyze(table, "control", "model", variant="arm").treatment
                low, high = (lead, high) if adjusted > 0 else (low, lead)
        users = pa.table({"user_id": np.arange(2 * n), "arm": arm})
        sorted_users = user_table(users, control="control", arms=None, aa_days=1, ab_days=1, design="split")
        effects = split_effects(sorted_users, Columns(use, None, x, None), 0)
        assert effects.variance_reduction[1] == 0
        welch: Any = stats.ttest_ind(use[n:], use[:n], equal_var=False)
        assert effects.p_value[1] == pytest.approx(float(welch.pvalue))


class TestGap:
    def test_share(self, result: dict) -> None:
        rows = {arm: pick(result, "pdr", arm) for arm in ARMS}
        value = {arm: row["value"] for arm, row in rows.items()}
        expected = (value["model"] - value["random"]) / (value["oracle"] - value["random"])
        assert rows["model"]["gap_share"] == pytest.approx(expected)
        assert rows["model"]["gap_low"] < expected < rows["model"]["gap_high"]
        assert rows["control"]["gap_share"] is not None and rows["control"]["gap_low"] is not None
        assert (rows["random"]["gap_share"], rows["random"]["gap_low"]) == (0, None)
        assert (rows["oracle"]["gap_share"], rows["oracle"]["gap_high"]) == (1, None)

    def test_no_share_without_direction_arms_or_gain(self, users: pa.Table, result: dict) -> None:
        def shares(found: dict, metric: str) -> set:
            return {row["gap_share"] for row in found["metrics"] if row["metric"] == metric}

        assert shares(result, "assigned_featured") == {None}
        assert shares(run(users, arms=["control", "oracle", "model"]), "pdr") == {None}
        assert shares(run(users, random="oracle", oracle="random"), "pdr") == {None}  # the wrong way round
        assert shares(run(users, random="control", oracle="model"), "dau") == {None}  # not significant
        assert None not in shares(run(users, random="control", oracle="model"), "pdr")


def test_reassigned_experiments_are_repeatable(users: pa.Table) -> None:
    days = {"aa_days": DAYS, "ab_days": DAYS}
    first = reassigned_p_values(users, PAGES, experiments=3, seed=1, **days)
    assert first == reassigned_p_values(users.drop_columns("arm"), PAGES, experiments=3, seed=1, **days)
    assert set(first) == set(METRICS) and len(set(first["use_s"])) == 3


def test_treatment_p_values_need_one_treatment(users: pa.Table, result: dict) -> None:
    pair = run(users, arms=["control", "model"])
    assert treatment_p_values(pair)["pdr"] == pick(pair, "pdr", "model")["p_value"]
    with pytest.raises(ConfigError, match="use two"):
        treatment_p_values(result)
