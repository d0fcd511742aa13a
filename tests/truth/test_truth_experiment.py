"""Do the experiment's intervals cover known effects at 95 %, and are its p-values uniform when nothing differs?"""

from __future__ import annotations

from math import sqrt

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from plpm_ray.evaluation.experiment import reassigned_p_values
from plpm_ray.evaluation.experiment_checks import false_positives
from plpm_ray.evaluation.experiment_effects import Effects, ratio_interval, split_effects, twin_effects
from plpm_ray.evaluation.experiment_gap import Gap
from plpm_ray.evaluation.experiment_metrics import metric_catalogue
from plpm_ray.evaluation.experiment_users import Columns, UserTable
from tests.experiment_tables import DAYS, PAGES, split_table

REPEATS, USERS = 300, 300
METRICS = {metric.key: metric for metric in metric_catalogue(PAGES)}


def arms_of(n_arms: int, n: int = USERS) -> UserTable:
    """n users in each arm, already in order; only the bounds are read from it."""
    names = ("control", "random", "oracle", "model")[:n_arms]
    return UserTable(pa.table({}), names, np.arange(n_arms * n), np.arange(n_arms + 1) * n, DAYS, DAYS)


def relative(effects: Effects, arm: int = 1) -> tuple[float, float]:
    pick = np.ix_([arm, -1], [arm, -1])
    interval = ratio_interval(
        effects.difference[arm], effects.plain[0], effects.covariance[pick], effects.quantile[arm]
    )
    assert interval is not None
    return interval


def assert_covers(hits: list[bool], slack: float = 0.01) -> None:
    """Coverage within 3.5 binomial deviations of 95 %, `slack` allowed for skewed users."""
    margin = 3.5 * sqrt(0.95 * 0.05 / len(hits)) + slack
    assert 0.95 - margin <= np.mean(hits) <= 0.95 + margin, f"coverage {np.mean(hits):.3f}"


EFFECTS = {
    "2 % more of everything": (lambda x, noise: 1.02 * (x + noise), 0.02),
    "2.5 times as much": (lambda x, noise: 2.5 * (x + noise), 1.5),
    "the same on top for all": (lambda x, noise: x + noise + 5.0, 5 / 2.8),
    "nothing left of the habit": (lambda x, noise: 6.0 + noise, 6.8 / 2.8 - 1),
    "almost nothing left": (lambda x, noise: 0.02 * (x + noise), -0.98),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_intervals_of_means_with_cuped_cover(name: str) -> None:
    """AA period x and what is new since are gamma with means 2 and 0.8; the control does x + new."""
    outcome, truth = EFFECTS[name]
    rng, arms = np.random.default_rng(7), arms_of(2)
    hits, reductions = [], []
    for _ in range(REPEATS):
        x, noise = rng.gamma(2, 1, 2 * USERS), rng.gamma(2, 0.4, 2 * USERS)
        y = np.where(np.arange(2 * USERS) < USERS, x + noise, outcome(x, noise))
        effects = split_effects(arms, Columns(y, None, x, None), 0)
        low, high = relative(effects)
        hits.append(low <= truth <= high)
        reductions.append(effects.variance_reduction[1])
    assert_covers(hits)
    if name.startswith("2 %"):
        assert np.mean(reductions) == pytest.approx(2 / (2 + 0.32), abs=0.02)  # the squared correlation


def ratio_columns(rng: np.random.Generator, n_arms: int, factors: list[float]) -> Columns:
    """Drop-offs out of sessions of users whose own rates last from AA to AB; arms change the drop-off rate."""
    n = n_arms * USERS
    rate, drop = 1 + rng.gamma(2.0, 4.0, n), 0.8 * rng.beta(2, 6, n)
    before, after = rng.poisson(rate), rng.poisson(rate)
    changed = drop * np.repeat(factors, USERS)
    return Columns(
        rng.binomial(after, changed).astype(float),
        after.astype(float),
        rng.binomial(before, drop).astype(float),
        before.astype(float),
    )


@pytest.mark.parametrize("factor", [0.97, 0.6])
def test_intervals_of_ratios_with_cuped_cover(factor: float) -> None:
    rng, arms = np.random.default_rng(8), arms_of(2)
    hits, reductions = [], []
    for _ in range(REPEATS):
        effects = split_effects(arms, ratio_columns(rng, 2, [1.0, factor]), 0)
        low, high = relative(effects)
        hits.append(low <= factor - 1 <= high)
        reductions.append(effects.variance_reduction[1])
    assert_covers(hits)
    assert np.mean(reductions) > 0.2


@pytest.mark.parametrize("oracle", [0.6, 0.85])
def test_intervals_of_the_gap_share_cover(oracle: float) -> None:
    """Also where the gap is only a few standard errors wide: over the experiments that do show a share."""
    factors = [1.0, 1.1, oracle, 0.9]
    truth = (0.9 - 1.1) / (oracle - 1.1)
    rng, arms = np.random.default_rng(9), arms_of(4)
    hits = []
    for _ in range(REPEATS):
        effects = split_effects(arms, ratio_columns(rng, 4, factors), 0)
        gap = Gap.of(arms, METRICS["pdr"], effects, "random", "oracle")
        if gap is not None:
            _, low, high = gap.share(3)
            assert low is not None and high is not None
            hits.append(low <= truth <= high)
    assert len(hits) > 0.9 * REPEATS
    assert_covers(hits)


def test_intervals_of_twins_cover_and_are_narrower() -> None:
    """Both arms of a user share habit and luck; a tenth of the noise is the arm's own."""
    rng, arms = np.random.default_rng(10), arms_of(2)
    hits, widths = [], []
    for _ in range(REPEATS):
        user = np.tile(rng.gamma(2, 1, USERS) + rng.gamma(2, 0.4, USERS), 2)
        own = rng.gamma(2, 0.1, 2 * USERS)
        columns = Columns((user + own) * np.repeat([1, 1.05], USERS), None, None, None)
        (low, high), (wide_low, wide_high) = (
            relative(estimate(arms, columns, 0)) for estimate in (twin_effects, split_effects)
        )
        hits.append(low <= 0.05 <= high)
        widths.append((high - low) / (wide_high - wide_low))
    assert_covers(hits)
    assert np.mean(widths) < 0.25


def test_p_values_are_uniform_when_nothing_differs() -> None:
    """200 A/A experiments: every metric's p-values are uniform, and their rejections within the family's range."""
    users = split_table(12, 2_000, {"a": 0.0, "b": 0.0})
    p_values = reassigned_p_values(users, PAGES, aa_days=DAYS, ab_days=DAYS, experiments=200, seed=2)
    found = false_positives(p_values, list(METRICS.values()))
    assert found["metrics"] == len(METRICS) and found["family_ok"], found
    for key, values in p_values.items():
        uniform = stats.kstest(np.array(values, dtype=float), "uniform").pvalue
        assert uniform > 0.05 / 20 / len(METRICS), f"{key}: {uniform}"
