"""The statistics of an A/B experiment from its per-user table.

One call, `analyse`, gives the effect of every arm on every metric with its interval and p-value, the share
of the gap between the random and the oracle arm, and the sample ratio check. How effects and intervals are
computed stands in `experiment_effects`, the metrics in `experiment_metrics`.

The random unit is the user, in every metric: sessions and days of one user depend on each other, users do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import ConfigError
from plpm_ray.evaluation.experiment_checks import Adjustment, adjusted_p_values, sample_ratio
from plpm_ray.evaluation.experiment_effects import Effects, ratio_interval, split_effects, twin_effects
from plpm_ray.evaluation.experiment_gap import Gap
from plpm_ray.evaluation.experiment_metrics import Metric, metric_catalogue
from plpm_ray.evaluation.experiment_users import Design, UserTable, user_table


def analyse(
    users: pa.Table,
    pages: Sequence[str],
    *,
    control: str,
    aa_days: int,
    ab_days: int,
    arms: Sequence[str] | None = None,
    design: Design = "split",
    random: str = "random",
    oracle: str = "oracle",
    expected_shares: Mapping[str, float] | None = None,
    adjustment: Adjustment = "holm",
) -> dict[str, Any]:
    """Effects of every arm against the control.

    Args:
        users: one row a user: `user_id`, `arm`, and for each total m the columns `aa_<m>` and `ab_<m>`; m in
            active_days, last7_active_days, use_s, watch_s, video_views, sessions, drop_offs and, for every
            page, effective_<page> and assigned_<page>. Users who were not active have zeros. With "twins" a
            row is a user under an arm, and every user has a row under every arm.
        pages: names of the pages, in order.
        control: the arm the others are compared with.
        aa_days, ab_days: lengths of the periods; with 0 AA days there is no variance reduction.
        arms: the arms to analyse, in the order of the result; all in the table where not given.
        design: "split" for users in one arm each, "twins" for the same users with the same luck under every arm.
        random, oracle: labels of the arms between which the gap lies; without them there are no shares of it.
        expected_shares: users of the arms in proportion; equal where not given.
        adjustment: for `p_adjusted`, over the main metrics of all arms together.

    Returns:
        Plain dicts, lists, strings and finite numbers: {"design", "control", "arms", "pages", "users",
        "aa_days", "ab_days", "random", "oracle", "adjustment", "metrics": rows, "sample_ratio"}. A row has
        "metric", "title", "unit", "better", "page", "arm" and

        - "control": the control's value as it is; "value": that plus the estimated difference, so adjusted for what
          the arm's users did in the AA period; "unadjusted": the arm's value as it is;
        - "difference", and "relative" = difference / control with its 95 % interval "low", "high";
        - "p_value" of the difference; "p_adjusted" of main metrics;
        - "variance_reduction" of the difference, by the AA period (split) or by the pairing (twins);
        - "gap_share" = (value - random) / (oracle - random) with "gap_low", "gap_high". None for metrics without a
          good direction, and where the oracle is not significantly (p < 0.05) better than random.

        Numbers that are not defined are None: intervals and p-values where no user differs from another,
        relative changes of a control of 0.

    Raises:
        ConfigError: unknown control, design or shares.
        DataError: the table breaks the contract.
    """
    table = user_table(users, control=control, arms=arms, aa_days=aa_days, ab_days=ab_days, design=design)
    rows = [
        row
        for metric in metric_catalogue(pages)
        for row in _rows(table, metric, control, design, random, oracle)
    ]
    _adjust(rows, pages, adjustment)
    return {
        "design": design,
        "control": control,
        "arms": list(table.arms),
        "pages": list(pages),
        "users": sum(table.counts.values()) if design == "split" else table.counts[control],
        "aa_days": aa_days,
        "ab_days": ab_days,
        "random": random,
        "oracle": oracle,
        "adjustment": adjustment,
        "metrics": rows,
        "sample_ratio": _sample_ratio(table, control, design, expected_shares),
    }


def _sample_ratio(
    table: UserTable, control: str, design: Design, expected_shares: Mapping[str, float] | None
) -> dict[str, Any]:
    if design == "split":
        # the control first: with two arms it is the first of the pair
        counts = {arm: table.counts[arm] for arm in sorted(table.arms, key=lambda arm: arm != control)}
        return sample_ratio(counts, expected_shares)
    counts = table.counts
    return {
        "p_value": None,
        "counts": counts,
        "expected": {arm: float(n) for arm, n in counts.items()},
        "ok": True,
        "message": "twins: every user is under every arm, there is no ratio to check",
    }


def _rows(
    table: UserTable, metric: Metric, control: str, design: Design, random: str, oracle: str
) -> Iterator[dict[str, Any]]:
    base = table.arms.index(control)
    estimate = split_effects if design == "split" else twin_effects
    effects = estimate(table, table.columns(metric), base)
    gap = Gap.of(table, metric, effects, random, oracle)
    for a, arm in enumerate(table.arms):
        share, gap_low, gap_high = gap.share(a) if gap else (None, None, None)
        row = {
            "metric": metric.key,
            "title": metric.title,
            "unit": metric.unit,
            "better": metric.better,
            "page": metric.page,
            "arm": arm,
            **_effect(effects, a, base),
            "p_value": float(effects.p_value[a]),
            "p_adjusted": None,
            "variance_reduction": float(effects.variance_reduction[a]),
            "gap_share": share,
            "gap_low": gap_low,
            "gap_high": gap_high,
        }
        yield {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _effect(effects: Effects, arm: int, control: int) -> dict[str, float | None]:
    """The values of an arm and its difference to the control, absolute and relative."""
    base, difference = float(effects.plain[control]), float(effects.difference[arm])
    plain, quantile = float(effects.plain[arm]), float(effects.quantile[arm])
    interval = None
    if math.isfinite(quantile):
        pick = [arm, -1]
        interval = ratio_interval(difference, base, effects.covariance[np.ix_(pick, pick)], quantile)
    low, high = interval or (None, None)
    return {
        "value": base + difference if math.isfinite(difference) else plain,
        "control": base,
        "unadjusted": plain,
        "difference": difference,
        "relative": difference / base if base else None,
        "low": low,
        "high": high,
    }


def _adjust(rows: list[dict[str, Any]], pages: Sequence[str], method: Adjustment) -> None:
    """Sets `p_adjusted` of the main metrics."""
    main = {metric.key for metric in metric_catalogue(pages) if metric.main}
    family = [row for row in rows if row["metric"] in main and row["p_value"] is not None]
    adjusted = adjusted_p_values({(row["arm"], row["metric"]): row["p_value"] for row in family}, method)
    for row in family:
        row["p_adjusted"] = adjusted[row["arm"], row["metric"]]


def reassigned_p_values(
    users: pa.Table,
    pages: Sequence[str],
    *,
    aa_days: int,
    ab_days: int,
    experiments: int,
    seed: int,
) -> dict[str, list[float | None]]:
    """p-values of A/A experiments that differ only in how the users are split, for `false_positives`.

    All users lived under one policy; each experiment assigns every user to one of two arms by a fair coin.
    Given the users, the experiments are independent. They check the statistics on the world's true distributions
    (skew, zeros, dependence of the periods); an error that reaches an arm in the simulation itself shows
    only where every experiment is simulated anew.

    Args:
        users: as in `analyse`; its `arm` is not looked at.
        experiments: how many times to split.

    Returns:
        {metric key: p-value of each experiment, None where the metric had no variance}.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[float | None]] = {}
    bare = users.drop_columns("arm") if "arm" in users.column_names else users
    for _ in range(experiments):
        side = pa.DictionaryArray.from_arrays(rng.integers(2, size=users.num_rows, dtype=np.int8), ["a", "b"])
        result = analyse(
            bare.append_column("arm", side),
            pages,
            control="a",
            arms=["a", "b"],
            aa_days=aa_days,
            ab_days=ab_days,
        )
        for key, p_value in treatment_p_values(result).items():
            found.setdefault(key, []).append(p_value)
    return found


def treatment_p_values(result: Mapping[str, Any]) -> dict[str, float | None]:
    """p-values by metric of the only arm beside the control in a result of `analyse`.

    Raises:
        ConfigError: more than one such arm: their p-values share the control and are not independent.
    """
    if len(result["arms"]) != 2:
        raise ConfigError(
            f"an A/A experiment with {len(result['arms'])} arms",
            hint="use two: tests of several arms against one control are not independent of one another",
        )
    return {row["metric"]: row["p_value"] for row in result["metrics"] if row["arm"] != result["control"]}
