"""Means, ratios and their intervals when samples of one user are not independent.

Every off-policy estimator here has the form

    theta = mean(plain) + sum_j sum_i num_ij / sum_i den_ij                                        (1)

(IPS, DM, DR: no ratio; SNIPS: one; weighted per-decision: one per step). Linearising the ratios at the
estimate gives one value per sample whose mean is theta,

    v_i = plain_i + sum_j [ R_j + (num_ij - R_j den_ij) / mean(den_j) ],   R_j = sum num_j / sum den_j,   (2)

so that v_i - theta is the influence of sample i (Taylor linearisation; Owen, Monte Carlo theory, ch. 9.2),
and the cluster-robust variance of the mean of v (Liang and Zeger 1986) serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_BOOTSTRAP_CHUNK = 50


@dataclass(frozen=True)
class Terms:
    """What an estimator is made of, S samples and J ratios, equation (1).

    Attributes:
        plain: float [S].
        numerator, denominator: float [S, J], or None where there is no ratio.
    """

    plain: np.ndarray
    numerator: np.ndarray | None = None
    denominator: np.ndarray | None = None

    def value(self) -> float:
        """theta of equation (1); nan where a denominator is zero."""
        return float(_combine(self._columns().sum(axis=0)[None, :])[0])

    def per_sample(self) -> np.ndarray:
        """The linearised values of equation (2), float [S]; their mean is `value()`."""
        if self.numerator is None or self.denominator is None:
            return self.plain
        mean = self.denominator.mean(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = self.numerator.mean(axis=0) / mean
            residual = (self.numerator - ratio * self.denominator) / mean
        return self.plain + (ratio + residual).sum(axis=1)

    def _columns(self) -> np.ndarray:
        """[S, 2 + 2 J]: plain, one, numerators, denominators."""
        columns = [self.plain[:, None], np.ones((len(self.plain), 1))]
        if self.numerator is not None and self.denominator is not None:
            columns += [self.numerator, self.denominator]
        return np.concatenate(columns, axis=1)

    def bootstrap(self, codes: np.ndarray, n_clusters: int, repeats: int, seed: int) -> np.ndarray:
        """theta of `repeats` draws of whole clusters with replacement, float [repeats]."""
        columns = self._columns()
        sums = np.zeros((n_clusters, columns.shape[1]))
        np.add.at(sums, codes, columns)
        rng = np.random.default_rng(seed)
        drawn = []
        for start in range(0, repeats, _BOOTSTRAP_CHUNK):
            size = min(_BOOTSTRAP_CHUNK, repeats - start)
            picks = rng.integers(n_clusters, size=(size, n_clusters)) + n_clusters * np.arange(size)[:, None]
            counts = np.bincount(picks.ravel(), minlength=size * n_clusters).reshape(size, n_clusters)
            drawn.append(_combine(counts @ sums))
        return np.concatenate(drawn)


def _combine(sums: np.ndarray) -> np.ndarray:
    """Equation (1) from column sums [B, 2 + 2 J] -> [B]."""
    n_ratios = (sums.shape[1] - 2) // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        theta = sums[:, 0] / sums[:, 1]
        ratios = sums[:, 2 : 2 + n_ratios] / sums[:, 2 + n_ratios :]
    return theta + ratios.sum(axis=1)


def cluster_codes(cluster: np.ndarray) -> tuple[np.ndarray, int]:
    """Cluster numbers 0..C-1 of each sample, and C."""
    unique, codes = np.unique(np.asarray(cluster), return_inverse=True)
    return codes, len(unique)


def clustered_standard_error(values: np.ndarray, codes: np.ndarray, n_clusters: int) -> float:
    """Error of mean(values), sqrt( C/(C-1) sum_c (sum_{i in c} v_i - mean)^2 ) / N; nan for one cluster."""
    if n_clusters < 2:
        return float("nan")
    totals = np.bincount(codes, weights=values - values.mean(), minlength=n_clusters)
    return float(np.sqrt(n_clusters / (n_clusters - 1) * np.sum(totals**2)) / len(values))


def t_quantile(level: float, dof: int) -> float:
    """Two-sided Student quantile, e.g. 1.984 for level .95 and 99 degrees of freedom.

    Fisher's expansion in 1/dof (Abramowitz and Stegun 26.7.5), off by less than .01 from 6 degrees of
    freedom on at level .95.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    nu = max(dof, 1)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / nu + second / nu**2 + third / nu**3


def clustered_interval(
    terms: Terms,
    cluster: np.ndarray,
    *,
    level: float = 0.95,
    bootstrap: int = 0,
    seed: int = 0,
    fit_error: float = 0.0,
) -> tuple[float, float, float]:
    """Standard error, lower and upper bound of theta, clustered.

    Args:
        cluster: [S], the independent unit of each sample.
        bootstrap: 0 for the linearised interval theta +- t(C - 1) s; otherwise the number of cluster
            bootstrap draws, whose percentiles are the bounds and whose deviation is the standard error.
        fit_error: standard error of a part of theta that does not vary over the samples, such as that of a fitted model;
            s of the linearised interval holds it too, draws of clusters do not show it.
    """
    codes, n_clusters = cluster_codes(cluster)
    if bootstrap > 0:
        draws = terms.bootstrap(codes, n_clusters, bootstrap, seed)
        low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
        return float(np.std(draws, ddof=1)), float(low), float(high)
    theta = terms.value()
    error = float(np.hypot(clustered_standard_error(terms.per_sample(), codes, n_clusters), fit_error))
    half = t_quantile(level, n_clusters - 1) * error
    return error, theta - half, theta + half


def kish(weights: np.ndarray) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2; 0 where all weights are 0."""
    square = float(np.sum(np.square(weights)))
    return float(np.sum(weights)) ** 2 / square if square > 0 else 0.0
