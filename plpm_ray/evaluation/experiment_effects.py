"""The effect of every arm on one metric, and how sure it is.

Write Y_a for the value of the metric in arm a (a mean or a ratio of means) and X_a for its value in the AA
period. In a split experiment the difference to the control c is the CUPED estimate of Deng et al. (2013),

    D_a = (Y_a - theta X_a) - (Y_c - theta X_c),    theta = cov(Y, X) / var(X) over the users of both arms, (1)

with the delta method's variances and covariances for ratios (Deng, Knoblich and Lu 2018). tea-tasting's
`RatioOfMeans` computes D_a, Welch's t test of it, and its interval. What it does not give is here: the joint
covariance of all D_a with Y_c, which relative changes and shares of a gap need, since both are ratios of
dependent estimates. For b != a,

    cov(D_a, D_b) = v_c(theta_a, theta_b) / n_c,   cov(D_a, Y_c) = -v_c(theta_a, 0) / n_c,
    v_c(s, t) = cov_c(Y - s X, Y - t X).                                                                  (2)

Intervals of such ratios are Fieller's (1954), the set of r that a t test of `numerator - r denominator = 0`
does not reject. For a relative change D_a / Y_c that set contains 0 exactly when the test of D_a has
p >= 0.05, so the interval and the p-value never disagree; and it is bounded exactly when the denominator
itself differs significantly from 0. tea-tasting's interval on the log scale agrees for effects of a few per
cent. For larger ones it is off, since it takes two adjusted means for independent although both contain the
covariate's overall mean: where an arm more than doubles a value it covers between 80 and 99.8 % instead of
95 %, depending on how the arm changes users of different habits. And it is not defined for an arm at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import stats
from tea_tasting.aggr import Aggregates
from tea_tasting.metrics import RatioOfMeans
from tea_tasting.metrics.mean import MeanResult

from plpm_ray.evaluation.experiment_users import Columns, UserTable

LEVEL = 0.95
_NO_VARIANCE = 1e-12
"""Below this part of the squared values a variance is rounding error."""
_Y, _D, _X, _E = "y", "d", "x", "e"


@dataclass(frozen=True)
class Effects:
    """One metric over A arms; nan where something is undefined.

    Attributes:
        plain: float [A], the value in each arm as it is.
        difference: float [A], estimated effect against the control, 0 for the control itself.
        covariance: float [A + 1, A + 1], of the differences and, last, the control's plain value.
        quantile: float [A], half-width of the difference's 95 % interval in standard errors; nan where it
            has no variance.
        p_value: float [A], two-sided.
        variance_reduction: float [A], 1 - variance of the difference / variance of a plain difference.
    """

    plain: np.ndarray
    difference: np.ndarray
    covariance: np.ndarray
    quantile: np.ndarray
    p_value: np.ndarray
    variance_reduction: np.ndarray


def ratio_interval(
    numerator: float, denominator: float, covariance: np.ndarray, quantile: float
) -> tuple[float, float] | None:
    """Fieller's interval of numerator / denominator; None where it is unbounded or undefined.

    Args:
        covariance: [2, 2], of the two estimates.
        quantile: of Student's distribution, e.g. 1.96.
    """
    (s11, s12), (_, s22) = covariance
    q2 = quantile**2
    a = denominator**2 - q2 * s22
    if not (math.isfinite(numerator) and a > 0):
        return None
    b = numerator * denominator - q2 * s12
    spread = numerator**2 * s22 - 2 * numerator * denominator * s12 + denominator**2 * s11
    root = quantile * math.sqrt(max(spread - q2 * (s11 * s22 - s12**2), 0.0))
    return (b - root) / a, (b + root) / a


def split_effects(users: UserTable, columns: Columns, control: int) -> Effects:
    """Effects with users in one arm each, equation (1); the covariate is the metric in the AA period."""
    parts = pairwise(users.bounds)
    arms = [_aggregates(columns, slice(low, high)) for low, high in parts]
    base = arms[control]
    plain = np.array([_value(arm) for arm in arms])
    pairs = [_Pair(0.0) if arm is base else _Pair.of(base, arm, columns.has_aa) for arm in arms]
    theta = np.array([pair.theta for pair in pairs] + [0.0])
    if math.isnan(plain[control]):
        covariance = np.full((len(arms) + 1, len(arms) + 1), np.nan)
    else:
        y, xy, x = _moments(base, columns.has_aa)
        covariance = y - (theta[:, None] + theta) * xy + theta[:, None] * theta * x
        covariance /= base.count()
    covariance[-1, :-1] *= -1
    covariance[:-1, -1] *= -1
    covariance[range(len(arms)), range(len(arms))] += [pair.arm_variance for pair in pairs]
    covariance[control] = covariance[:, control] = 0.0
    result = np.array([(p.difference, p.quantile, p.p_value, p.variance_reduction) for p in pairs])
    return Effects(plain, result[:, 0], covariance, *result[:, 1:].T)


@dataclass(frozen=True)
class _Pair:
    """An arm against the control; `arm_variance` is the arm's part of the difference's variance."""

    difference: float
    theta: float = 0.0
    arm_variance: float = math.nan
    quantile: float = math.nan
    p_value: float = math.nan
    variance_reduction: float = math.nan

    @classmethod
    def of(cls, base: Aggregates, arm: Aggregates, has_aa: bool) -> _Pair:
        difference = _value(arm) - _value(base)
        if math.isnan(difference):
            return cls(difference)
        if _constant(base, _Y, _D) and _constant(arm, _Y, _D):
            return cls(difference, arm_variance=0.0)
        theta = _theta(base, arm) if has_aa else 0.0
        plain = _moments(arm, False)[0] / arm.count(), _moments(base, False)[0] / base.count()
        adjusted = _variance(arm, theta) / arm.count(), _variance(base, theta) / base.count()
        if sum(adjusted) <= _NO_VARIANCE * sum(plain):
            return cls(difference, arm_variance=0.0)
        try:
            result = _test(base, arm, covariate=theta != 0.0)
        except OverflowError:
            # an adjusted mean next to 0 breaks tea-tasting's interval on the log scale; a plain one is never so near
            return replace(cls.of(base, arm, False), variance_reduction=0.0)
        half = (result.effect_size_ci_upper - result.effect_size_ci_lower) / 2
        return cls(
            difference=float(result.effect_size),
            theta=theta,
            arm_variance=adjusted[0],
            quantile=float(half) / math.sqrt(sum(adjusted)),
            p_value=float(result.pvalue),
            variance_reduction=1 - sum(adjusted) / sum(plain) if has_aa else math.nan,
        )


def _test(base: Aggregates, arm: Aggregates, covariate: bool) -> MeanResult:
    denominator = _D if _D in base.mean_ else None
    if not covariate:
        metric = RatioOfMeans(_Y, denominator, confidence_level=LEVEL, equal_var=False, use_t=True)
    else:
        below = _E if _E in base.mean_ else None
        metric = RatioOfMeans(_Y, denominator, _X, below, confidence_level=LEVEL, equal_var=False, use_t=True)
    return metric.analyze_aggregates(base, arm)


def _aggregates(columns: Columns, rows: slice) -> Aggregates:
    """Count, means, variances and covariances of the columns of one arm."""
    named = {
        _Y: columns.numerator,
        _D: columns.denominator,
        _X: columns.aa_numerator,
        _E: columns.aa_denominator,
    }
    used = {name: column[rows] for name, column in named.items() if column is not None}
    values = np.stack(list(used.values()))
    mean = values.mean(axis=1)
    values -= mean[:, None]
    cov = values @ values.T / (values.shape[1] - 1)
    names = list(used)
    return Aggregates(
        values.shape[1],
        dict(zip(names, mean.tolist(), strict=True)),
        dict(zip(names, np.diagonal(cov).tolist(), strict=True)),
        {(names[i], names[j]): float(cov[i, j]) for i in range(len(names)) for j in range(i)},
    )


def _value(arm: Aggregates, numerator: str = _Y, denominator: str = _D) -> float:
    below = arm.mean(denominator if denominator in arm.mean_ else None)
    return arm.mean(numerator) / below if below else math.nan


def _constant(arm: Aggregates, numerator: str, denominator: str) -> bool:
    """Whether the ratio has no variance between users, or no denominator."""
    below = denominator if denominator in arm.mean_ else None
    ratio, mean = _value(arm, numerator, denominator), arm.mean(below)
    if math.isnan(ratio):
        return True
    size = arm.var(numerator) + arm.mean(numerator) ** 2 + ratio**2 * (arm.var(below) + mean**2)
    return arm.ratio_var(numerator, below) * mean**2 <= _NO_VARIANCE * size


def _moments(arm: Aggregates, has_aa: bool) -> tuple[float, float, float]:
    """Per-user variance of Y, covariance of Y and X, variance of X; 0 for what the AA period does not give."""
    d, e = (name if name in arm.mean_ else None for name in (_D, _E))
    y = arm.ratio_var(_Y, d)
    if not has_aa or _constant(arm, _X, _E):
        return y, 0.0, 0.0
    return y, arm.ratio_cov(_Y, d, _X, e), arm.ratio_var(_X, e)


def _variance(arm: Aggregates, theta: float) -> float:
    """Per-user variance of Y - theta X."""
    y, xy, x = _moments(arm, theta != 0.0)
    return y - 2 * theta * xy + theta**2 * x


def _theta(base: Aggregates, arm: Aggregates) -> float:
    """theta of equation (1); 0 where an arm or its covariate is the same for all users, which CUPED would only blur."""
    if any(_constant(side, _Y, _D) or _constant(side, _X, _E) for side in (base, arm)):
        return 0.0
    _, xy, x = _moments(base + arm, True)
    return xy / x


def twin_effects(users: UserTable, columns: Columns, control: int) -> Effects:
    """Effects with the same users under every arm: paired by user.

    A user's part in a ratio is its influence (n_u - Y d_u) / mean(d), so the difference of two arms has one
    value a user and the paired t test applies. The AA period is the same under every arm and tells nothing
    more; `variance_reduction` is what the pairing gains against two groups of other users.
    """
    n_arms, n = len(users.arms), int(users.bounds[1])
    numerator = columns.numerator.reshape(n_arms, n)
    denominator = np.ones((n_arms, n))
    if columns.denominator is not None:
        denominator = columns.denominator.reshape(n_arms, n)
    below = denominator.mean(axis=1)
    below[below == 0] = np.nan
    plain = numerator.mean(axis=1) / below
    influence = (numerator - plain[:, None] * denominator) / below[:, None]
    values = np.concatenate([influence - influence[control], influence[control][None]])
    values -= values.mean(axis=1, keepdims=True)
    covariance = values @ values.T / (n - 1) / n
    variance = np.diagonal(covariance)[:-1]
    unpaired = influence.var(axis=1, ddof=1) / n
    unpaired = unpaired + unpaired[control]
    difference = plain - plain[control]
    with np.errstate(invalid="ignore"):
        known = variance > _NO_VARIANCE * (unpaired + np.square(plain) / n)
    error = np.sqrt(np.where(known, variance, np.nan))
    return Effects(
        plain=plain,
        difference=difference,
        covariance=covariance,
        quantile=np.where(known, stats.t.ppf(0.5 + LEVEL / 2, n - 1), np.nan),
        p_value=2 * stats.t.sf(np.abs(difference) / error, n - 1),
        variance_reduction=np.where(known, 1 - variance / np.where(known, unpaired, np.nan), np.nan),
    )
