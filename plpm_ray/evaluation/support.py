"""When an off-policy estimate must be refused: what the log can say about a policy, and what it cannot."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from plpm_ray.evaluation.inference import cluster_codes, clustered_standard_error, kish


@dataclass(frozen=True)
class SupportThresholds:
    """Limits below which an estimate is refused. The defaults are conventions, not theorems.

    Attributes:
        min_effective_samples: least effective sample size (Kish) of the importance weights; with 100 the
            width of the interval is itself known to about 7 %.
        min_effective_share: least effective sample size as a share of the samples; under 1 % a handful of
            rows speaks for all, and Kish's formula is itself too optimistic.
        min_effective_clusters: least effective number of users (Kish of the weights summed by user; of
            the users' numbers of samples for estimators without weights); clustered errors are too small
            with few clusters.
        propensity_floor: an action is unsupported in a row if the logging policy takes it with less
            probability. Keep it above the clip floor of a modelled propensity, else clipped actions pass as
            supported.
        max_mass_below_floor: largest share of the evaluation policy's probability on unsupported actions;
            this share of the value is extrapolated or missing.
        max_weight_gap: largest |mean weight - 1| beyond three standard errors. The expectation of the
            weights is 1 if the propensities are right and every action that the policy takes had a chance.
    """

    min_effective_samples: float = 100.0
    min_effective_share: float = 0.01
    min_effective_clusters: float = 30.0
    propensity_floor: float = 0.01
    max_mass_below_floor: float = 0.10
    max_weight_gap: float = 0.20


@dataclass(frozen=True)
class Support:
    """How much of the log speaks about the policy.

    Attributes:
        samples, clusters: number of samples (rows or episodes) and of users.
        effective_samples: Kish of the weights; `samples` where the estimator uses none.
        effective_clusters: Kish of the weights summed by user.
        mean_weight, max_weight: of the importance weights; None without weights.
        weight_error: clustered standard error of the mean weight; None without weights.
        mass_below_floor: share of the policy's probability on actions with a propensity below the floor;
            None where the behaviour of the other actions is not known.
    """

    samples: int
    clusters: int
    effective_samples: float
    effective_clusters: float
    mean_weight: float | None = None
    max_weight: float | None = None
    weight_error: float | None = None
    mass_below_floor: float | None = None

    def as_dict(self) -> dict:
        return asdict(self)


def measure_support(
    cluster: np.ndarray,
    weights: np.ndarray | None,
    pi: np.ndarray | None,
    behaviour: np.ndarray | None,
    thresholds: SupportThresholds,
) -> Support:
    """Support of S samples.

    Args:
        cluster: [S] user of each sample.
        weights: float [S] importance weights, or None for an estimator that uses none.
        pi, behaviour: float [N, K] of the evaluation and logging policy, or None where not known.
    """
    codes, n_clusters = cluster_codes(cluster)
    mass = None
    if pi is not None and behaviour is not None:
        mass = float(np.where(behaviour < thresholds.propensity_floor, pi, 0.0).sum(axis=1).mean())
    if weights is None:
        size = np.bincount(codes, minlength=n_clusters).astype(np.float64)
        return Support(len(codes), n_clusters, float(len(codes)), kish(size), mass_below_floor=mass)
    by_cluster = np.bincount(codes, weights=weights, minlength=n_clusters)
    return Support(
        samples=len(codes),
        clusters=n_clusters,
        effective_samples=kish(weights),
        effective_clusters=kish(by_cluster),
        mean_weight=float(weights.mean()),
        max_weight=float(weights.max()),
        weight_error=clustered_standard_error(weights, codes, n_clusters),
        mass_below_floor=mass,
    )


def refusal(support: Support, thresholds: SupportThresholds) -> str | None:
    """Why the estimate must be refused, or None; the first of: uncovered mass, mean weight, sizes."""
    limit = thresholds
    if support.mass_below_floor is not None and support.mass_below_floor > limit.max_mass_below_floor:
        return (
            f"{support.mass_below_floor:.0%} of the policy's choices fall on actions that the logs "
            f"take with probability below {limit.propensity_floor:g} (limit {limit.max_mass_below_floor:.0%})"
        )
    if support.mean_weight is not None and support.weight_error is not None:
        slack = 3 * support.weight_error if np.isfinite(support.weight_error) else 0.0
        if abs(support.mean_weight - 1) > limit.max_weight_gap + slack:
            return (
                f"importance weights average {support.mean_weight:.2f} instead of 1: the log lacks choices "
                f"of the policy, or the propensities are wrong (limit 1 +- {limit.max_weight_gap:g})"
            )
    if support.effective_samples < limit.min_effective_samples:
        return (
            f"effective sample size {support.effective_samples:.1f} is below {limit.min_effective_samples:g}"
        )
    share = support.effective_samples / support.samples
    if share < limit.min_effective_share:
        return f"effective sample size is {share:.2%} of the samples, below {limit.min_effective_share:.2%}"
    if support.effective_clusters < limit.min_effective_clusters:
        return (
            f"effective number of users {support.effective_clusters:.1f} is below "
            f"{limit.min_effective_clusters:g}"
        )
    return None
