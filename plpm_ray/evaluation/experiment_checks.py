"""Checks on an experiment and on the statistics themselves: sample ratio, many comparisons, A/A experiments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scipy import stats
from tea_tasting.aggr import Aggregates
from tea_tasting.experiment import ExperimentResult
from tea_tasting.metrics import SampleRatio
from tea_tasting.multiplicity import adjust_fdr, adjust_fwer

from plpm_ray.core.errors import ConfigError
from plpm_ray.evaluation.experiment_metrics import SIGNIFICANCE, Metric

SAMPLE_RATIO_LEVEL = 0.001
"""A sample ratio p-value below this is a mismatch; small, because the check runs on every experiment."""

Adjustment = Literal["holm", "benjamini_hochberg"]


def sample_ratio(
    counts: Mapping[str, int], expected_shares: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Whether the arms hold as many users as their shares say.

    Two arms: tea-tasting's `SampleRatio` (exact binomial below 1,000 users, else normal with continuity
    correction). More arms: Pearson's chi-square over all of them at once, which tea-tasting does not have.

    Args:
        counts: users of each arm.
        expected_shares: any positive numbers in the proportion of the arms; equal where not given.

    Returns:
        {"p_value", "counts": {arm: users}, "expected": {arm: users}, "ok", "message"}.

    Raises:
        ConfigError: the shares are not one positive number for each arm.
    """
    shares = dict.fromkeys(counts, 1.0) if expected_shares is None else dict(expected_shares)
    if set(shares) != set(counts) or not all(0 < share < math.inf for share in shares.values()):
        raise ConfigError(
            f"expected shares {shares} for the arms {list(counts)}", hint="give every arm one positive number"
        )
    users, total = sum(counts.values()), sum(shares.values())
    expected = {arm: users * shares[arm] / total for arm in counts}
    if len(counts) == 2:
        control, arm = counts
        sizes: dict[object, Aggregates] = {label: Aggregates(count_=n) for label, n in counts.items()}
        p_value = SampleRatio(ratio=shares[arm] / shares[control]).analyze(sizes, control, arm).pvalue
    else:
        p_value = float(stats.chisquare(list(counts.values()), list(expected.values())).pvalue)
    ok = p_value >= SAMPLE_RATIO_LEVEL
    found = ", ".join(f"{arm} {n:,} (expected {expected[arm]:,.0f})" for arm, n in counts.items())
    verdict = "no sign of a sample ratio mismatch" if ok else (
        "SAMPLE RATIO MISMATCH: users were lost or added unequally, do not trust the effects below"
    )  # fmt: skip
    return {
        "p_value": p_value,
        "counts": dict(counts),
        "expected": expected,
        "ok": ok,
        "message": f"{verdict} (p = {p_value:.3g}; {found})",
    }


def adjusted_p_values(
    p_values: Mapping[tuple[str, str], float], method: Adjustment = "holm"
) -> dict[tuple[str, str], float]:
    """p-values adjusted for all of them being looked at.

    "holm" bounds the chance of any false rejection, whatever the dependence; "benjamini_hochberg" bounds the
    share of rejections that are false, for non-negatively dependent tests.

    Args:
        p_values: by (arm, metric).
    """
    if method not in ("holm", "benjamini_hochberg"):
        raise ConfigError(f"unknown adjustment {method!r}", hint='it is "holm" or "benjamini_hochberg"')
    if not p_values:
        return {}
    results: dict[object, ExperimentResult] = {}
    for (arm, metric), p_value in p_values.items():
        results.setdefault(arm, ExperimentResult())[metric] = {"pvalue": p_value}
    if method == "holm":
        adjusted = adjust_fwer(results, alpha=SIGNIFICANCE, arbitrary_dependence=True, method="bonferroni")
    else:
        adjusted = adjust_fdr(results, alpha=SIGNIFICANCE)
    return {
        (arm, metric): float(adjusted[arm][metric]["pvalue_adj"])  # pyright: ignore[reportArgumentType, reportCallIssue]
        for arm, metric in p_values
    }


def false_positives(
    p_values: Mapping[str, Sequence[float | None]], metrics: Sequence[Metric], *, level: float = SIGNIFICANCE
) -> dict[str, Any]:
    """How often each metric is called significant when nothing differs.

    With E independent A/A experiments the number of rejections is Binomial(E, level) if the test is right.
    Two readings of "within its interval" are given:

    - `expected_low`, `expected_high`, `ok`: the central 95 % of that distribution, for one metric on its own.
      Of M metrics that are all right, about M / 20 still fall outside; that each of 15 lies inside happens
      only about every second time (more often when metrics are correlated).
    - `family_low`, `family_high`, `family_ok`: the central 0.95^(1/M) of it (Sidak), inside which all M
      lie together with at least 95 % chance, also for positively dependent metrics. The verdict on the
      whole table, `family_ok` at the top, is this one.

    Args:
        p_values: by metric key, one a experiment; None where a metric had no variance in an experiment,
            which then does not count as one.
        metrics: the metrics to list; those without p-values are left out.

    Returns:
        {"level", "metrics": M, "outside": rows not ok, "family_ok", "rows": [{"metric", "title", "page",
        "rejections", "experiments", "rate", "expected_low", "expected_high", "ok", "family_low",
        "family_high", "family_ok"}]}; rates and bounds are shares of experiments; they and the marks are
        None for a metric that never had variance.
    """
    listed = [(m, [p for p in p_values[m.key] if p is not None]) for m in metrics if m.key in p_values]
    n_tested = sum(bool(values) for _, values in listed)
    family = 0.95 ** (1 / max(n_tested, 1))
    rows = []
    for metric, values in listed:
        n, rejections = len(values), sum(p < level for p in values)
        low, high = _binomial_range(n, level, 0.95)
        family_low, family_high = _binomial_range(n, level, family)
        share = (lambda count, n=n: count / n) if n else (lambda count: None)
        rows.append(
            {
                "metric": metric.key,
                "title": metric.title,
                "page": metric.page,
                "rejections": rejections,
                "experiments": n,
                "rate": share(rejections),
                "expected_low": share(low),
                "expected_high": share(high),
                "ok": low <= rejections <= high if n else None,
                "family_low": share(family_low),
                "family_high": share(family_high),
                "family_ok": family_low <= rejections <= family_high if n else None,
            }
        )
    return {
        "level": level,
        "metrics": n_tested,
        "outside": sum(row["ok"] is False for row in rows),
        "family_ok": all(row["family_ok"] is not False for row in rows),
        "rows": rows,
    }


def _binomial_range(n: int, rate: float, mass: float) -> tuple[int, int]:
    """The central counts of Binomial(n, rate): at most (1 - mass) / 2 lies below, and above."""
    low, high = stats.binom.ppf([(1 - mass) / 2, (1 + mass) / 2], n, rate)
    return int(low), int(high)
