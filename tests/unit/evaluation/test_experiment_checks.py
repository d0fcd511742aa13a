"""Sample ratio, adjusted p-values, false positives of A/A experiments, and the printed tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plpm_ray.core.errors import ConfigError
from plpm_ray.evaluation.experiment import analyse
from plpm_ray.evaluation.experiment_checks import adjusted_p_values, false_positives, sample_ratio
from plpm_ray.evaluation.experiment_metrics import metric_catalogue
from plpm_ray.evaluation.experiment_table import (
    WIDTH,
    format_experiment,
    format_experiment_long,
    format_false_positives,
)
from tests.experiment_tables import DAYS, PAGES, split_table

METRICS = metric_catalogue(PAGES)


class TestSampleRatio:
    def test_half_and_half(self) -> None:
        found = sample_ratio({"a": 9_950, "b": 10_050})
        z = (50 - 0.5) / np.sqrt(20_000 / 4)
        assert found["p_value"] == pytest.approx(2 * stats.norm.sf(z))
        assert found["ok"] and found["expected"] == {"a": 10_000, "b": 10_000}

    def test_52_to_48_is_a_mismatch(self) -> None:
        found = sample_ratio({"a": 9_600, "b": 10_400})
        assert not found["ok"] and found["p_value"] < 1e-6
        assert "MISMATCH" in found["message"] and "b 10,400 (expected 10,000)" in found["message"]

    def test_any_expected_shares(self) -> None:
        assert sample_ratio({"a": 18_050, "b": 1_950}, {"a": 0.9, "b": 0.1})["ok"]
        assert not sample_ratio({"a": 10_000, "b": 10_000}, {"a": 0.9, "b": 0.1})["ok"]

    def test_few_users_are_tested_exactly(self) -> None:
        exact = stats.binomtest(14, 20, 0.5).pvalue
        assert sample_ratio({"a": 6, "b": 14})["p_value"] == pytest.approx(exact)

    def test_many_arms_together(self) -> None:
        counts = {"a": 980, "b": 1_010, "c": 2_010}
        found = sample_ratio(counts, {"a": 1, "b": 1, "c": 2})
        chi_square = 20**2 / 1000 + 10**2 / 1000 + 10**2 / 2000
        assert found["p_value"] == pytest.approx(stats.chi2.sf(chi_square, 2))
        assert not sample_ratio({"a": 900, "b": 1_010, "c": 2_090}, {"a": 1, "b": 1, "c": 2})["ok"]

    @pytest.mark.parametrize("shares", [{"a": 1}, {"a": 1, "b": 0}, {"a": 1, "b": float("nan")}])
    def test_wrong_shares(self, shares: dict) -> None:
        with pytest.raises(ConfigError, match="one positive number"):
            sample_ratio({"a": 5, "b": 5}, shares)


P_VALUES = {("x", "dau"): 0.01, ("x", "lt"): 0.04, ("y", "dau"): 0.03, ("y", "lt"): 0.5}


class TestAdjusted:
    def test_holm(self) -> None:
        expected = {("x", "dau"): 0.04, ("x", "lt"): 0.09, ("y", "dau"): 0.09, ("y", "lt"): 0.5}
        assert adjusted_p_values(P_VALUES) == pytest.approx(expected)

    def test_benjamini_hochberg(self) -> None:
        expected = stats.false_discovery_control(list(P_VALUES.values()))
        assert list(adjusted_p_values(P_VALUES, "benjamini_hochberg").values()) == pytest.approx(
            list(expected)
        )

    def test_nothing_to_adjust(self) -> None:
        assert adjusted_p_values({}) == {}


class TestFalsePositives:
    def found(self, rejections: int, experiments: int = 200) -> dict:
        p = [0.01] * rejections + [0.5] * (experiments - rejections)
        return false_positives({metric.key: p for metric in METRICS}, METRICS)

    def test_exact_binomial_ranges(self) -> None:
        row = self.found(10)["rows"][0]
        low, high = round(200 * row["expected_low"]), round(200 * row["expected_high"])
        assert stats.binom.cdf(low - 1, 200, 0.05) <= 0.025 < stats.binom.cdf(low, 200, 0.05)
        assert stats.binom.sf(high, 200, 0.05) <= 0.025 < stats.binom.sf(high - 1, 200, 0.05)
        outside = (1 - 0.95 ** (1 / len(METRICS))) / 2
        low = round(200 * row["family_low"])
        assert stats.binom.cdf(low - 1, 200, 0.05) <= outside < stats.binom.cdf(low, 200, 0.05)

    @pytest.mark.parametrize(
        ("rejections", "ok", "family_ok"), [(10, True, True), (17, False, True), (30, False, False)]
    )
    def test_verdicts(self, rejections: int, ok: bool, family_ok: bool) -> None:
        found = self.found(rejections)
        assert {row["ok"] for row in found["rows"]} == {ok}
        assert found["family_ok"] is family_ok
        assert found["outside"] == (0 if ok else len(METRICS))
        assert found["rows"][0]["rate"] == rejections / 200

    def test_metrics_without_variance(self) -> None:
        found = false_positives({"dau": [None, None], "lt": [None, 0.2], "pdr": [0.01, 0.2]}, METRICS)
        rows = {row["metric"]: row for row in found["rows"]}
        assert found["metrics"] == 2 and list(rows) == ["dau", "lt", "pdr"]
        assert (rows["dau"]["experiments"], rows["dau"]["rate"], rows["dau"]["ok"]) == (0, None, None)
        assert rows["lt"]["experiments"] == 1 and rows["pdr"]["rate"] == 0.5
        assert "no variance" in format_false_positives(found)

    def test_table(self) -> None:
        text = format_false_positives(self.found(17))
        assert f"0 of {len(METRICS)} metrics lie within" in text and "outside one" in text
        assert "NOT all lie" in format_false_positives(self.found(30))
        assert max(map(len, text.splitlines())) <= WIDTH


@pytest.fixture(scope="module")
def result() -> dict:
    arms = {"control": 0.0, "random": -0.05, "oracle": 0.3, "a model with a long name [v2]": 0.1}
    return analyse(split_table(3, 4_000, arms), PAGES, control="control", aa_days=DAYS, ab_days=DAYS)


class TestTables:
    def test_short(self, result: dict) -> None:
        text = format_experiment(result)
        assert max(map(len, text.splitlines())) <= WIDTH
        for word in ("DAU", "LT", "PDR", "(control)", "[v2]", "% of sessions", "sample ratio ok", "gap 100%"):
            assert word in text
        row = next(r for r in result["metrics"] if (r["metric"], r["arm"]) == ("pdr", "oracle"))
        assert f"{100 * row['relative']:+.1f}% **" in text
        assert " !" in text and "…" not in text

    def test_more_metrics_than_fit_go_below(self, result: dict) -> None:
        text = format_experiment(result, metrics=[metric.key for metric in METRICS])
        assert max(map(len, text.splitlines())) <= WIDTH
        assert text.count("(control)") == 2 and "to following" in text
        with pytest.raises(ConfigError, match="unknown metrics"):
            format_experiment(result, metrics=["likes"])

    def test_long(self, result: dict) -> None:
        text = format_experiment_long(result)
        assert max(map(len, text.splitlines())) <= WIDTH
        assert len([line for line in text.splitlines() if line.startswith("  oracle")]) == len(METRICS)
        assert "Lifetime (LT), days" in text and "<0.001" in text and " ~" in text

    def test_a_mismatch_is_said_first(self) -> None:
        users = split_table(3, 4_000, {"a": 0.0, "b": 0.0}, shares=[0.4, 0.6])
        result = analyse(users, PAGES, control="a", aa_days=DAYS, ab_days=DAYS)
        assert not result["sample_ratio"]["ok"]
        assert format_experiment(result).splitlines()[1].startswith("SAMPLE RATIO MISMATCH")
        assert "gap" not in format_experiment(result)

    def test_what_is_unknown_shows_as_a_dash(self, result: dict) -> None:
        nothing = {"relative": None, "low": None, "high": None, "p_value": None, "gap_share": None}
        bare = {**result, "metrics": [{**row, **nothing} for row in result["metrics"]]}
        for text in (format_experiment(bare), format_experiment_long(bare)):
            assert "None" not in text and "nan" not in text and "**" not in text
