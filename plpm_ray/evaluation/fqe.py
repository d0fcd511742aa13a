"""Fitted Q evaluation: value of a policy per user-day from logged transitions (Le, Voloshin and Yue 2019).

    Q_0 = 0,   Q_{k+1} = argmin_f sum_i ( r_i + gamma sum_a pi(a|x'_i) Q_k(x'_i, a) - f(x_i, a_i) )^2,     (1)

the bootstrap term being 0 at the end of a day. The **plug-in** value is the mean of v(x_0) = sum_a pi(a|x_0) Q(x_0, a)
over the days' first decisions. Later states are reached in the model only: little variance, and a bias as large as the
model's. That bias does not shrink with more data, and no interval of the fit covers it: features of the day so far are
partly made by the policy that showed the pages, so that under another policy the same features mean other users, however
well Q predicts on the log.

The **corrected** value (the default) therefore takes the first order of the change from the log itself. Writing mu for the
logging policy, w_t = pi/mu for the weight of decision t alone, G_t for the realised return from t on, and q_mu for the Q
of the logging policy by the same regression, the mean over days of

    v(x_0) + sum_t gamma^t (w_t - [t > 0]) (G_t - q_mu(x_t, a_t))                                          (2)

has the expectation of the policy's value where Q and q_mu are right; and, whatever they are, up to terms of second order in
pi - mu: by the performance difference lemma (Kakade and Langford 2002) V_pi - V_mu = E_pi sum gamma^t (w_t - 1) G_t, whose
first-order term (Tang, Valko and Munos 2020) draws the states from the log, so that (2) replaces Q's own first order by
the log's. Left to Q is only what *two or more* changed decisions of one day do together. No products of weights occur:
the support is that of single decisions. The interval clusters (2) by user, and adds the variance of Q's part over the
folds' fits (delete-a-group jackknife).

Without `correction` the plug-in's interval covers the sampling of first states, with `refits` also that of the fit; nothing
adds misspecification. `SequentialDR` needs no model to be right, but weights of whole days.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from plpm_ray.evaluation.estimators import Estimate, Estimator
from plpm_ray.evaluation.fqe_config import FQEConfig
from plpm_ray.evaluation.fqe_fit import FoldQ, QFits, next_value
from plpm_ray.evaluation.inference import Terms, cluster_codes, t_quantile
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.metrics import realised_return
from plpm_ray.evaluation.support import Support, SupportThresholds, measure_support

__all__ = ["FQEConfig", "FQEResult", "FittedQ", "QFits", "fitted_q"]

_CHUNK = 65_536


@dataclass(frozen=True)
class FQEResult:
    """What fitted Q evaluation found.

    Attributes:
        q: float64 [N, K], action values of the evaluation policy, in the unit of the reward.
        v: float64 [N], sum_a pi(a|x) q(x, a).
        first_rows: int64 [E], row of each episode's first decision.
        estimate: value per episode.
        per_episode: float64 [E], what each episode contributes; the mean is the value.
        fit_error: standard error of what the fits add to the value beside `per_episode`; 0 without correction.
        bellman_rmse: root mean square of r + gamma v(x') - q(x, a).
        capped: Q was still changing when `max_iterations` ended the fit; the estimate's note says so too.
    """

    q: np.ndarray
    v: np.ndarray
    first_rows: np.ndarray
    estimate: Estimate
    per_episode: np.ndarray
    fit_error: float
    bellman_rmse: float
    capped: bool = False


class FittedQ(Estimator):
    """The plug-in value; the Q comes from `fitted_q`."""

    name = "fqe"
    per = "user-day"
    needs_q = True
    uses_weights = False
    note = "the interval covers the sampling of first states, not the error of the fitted Q"

    def sample_clusters(self, data: LoggedData) -> np.ndarray:
        return np.asarray(data.cluster)[data.grid.first]

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        assert q_hat is not None
        first = data.grid.first
        return Terms((pi[first] * q_hat[first]).sum(axis=1))


class RefittedQ(FittedQ):
    """As FittedQ, its interval from repeated fits on resampled users."""

    note = "the interval covers the sampling of users in states and fit, not misspecification of the fitted Q"


class CorrectedQ(FittedQ):
    """As FittedQ, corrected as in equation (2); the support is that of single decisions."""

    uses_weights = True
    note = (
        "what two or more changed decisions of one day do together rests on the fitted Q, "
        "whose misspecification the interval does not cover"
    )

    def support(self, data: LoggedData, pi: np.ndarray) -> Support:
        pi = data.check_policy(pi)
        return measure_support(
            np.asarray(data.cluster), data.weights(pi), pi, data.behaviour, self.thresholds
        )


def fitted_q(
    x: np.ndarray,
    data: LoggedData,
    pi: np.ndarray,
    config: FQEConfig | None = None,
    thresholds: SupportThresholds | None = None,
    fits: QFits | None = None,
) -> FQEResult:
    """Evaluate pi on logged episodes.

    Args:
        x: float [N, D], features known before each decision.
        data: the log, with episode and step.
        pi: float [N, K], the policy's probabilities in every logged state.
        fits: of these x, data and config, to share what policies have in common.

    Returns:
        Q and the value per episode; refused where the log does not hold enough of what pi does (without `correction`
        judged by `data.behaviour` alone, where known).

    Raises:
        DataError: wrong shapes, non-finite features, or no episodes.
    """
    config = config or FQEConfig()
    if config.refits is None:
        config = replace(config, refits=20 if config.kind == "linear" and config.bootstrap else 0)
    pi = data.check_policy(pi)
    fits = fits or QFits(x, data, config)
    fitted = fits.fit(pi)
    q = fitted.cross_fitted(fits.x, pi.shape[1])
    v = (pi * q).sum(axis=1)
    error = data.reward + config.gamma * next_value(v, fits.following) - q[np.arange(len(data)), data.action]
    if config.correction:
        estimate, terms, fit_error = _corrected(fits, data, pi, v, fitted, config, thresholds)
    else:
        estimate, terms, fit_error = *_plug_in(fits, data, pi, q, config, thresholds), 0.0
    if fitted.capped:
        estimate = _with_cap_note(estimate, config)
    rmse = float(np.sqrt(np.mean(error**2)))
    return FQEResult(q, v, data.grid.first, estimate, terms.plain, fit_error, rmse, fitted.capped)


def _plug_in(
    fits: QFits,
    data: LoggedData,
    pi: np.ndarray,
    q: np.ndarray,
    config: FQEConfig,
    thresholds: SupportThresholds | None,
) -> tuple[Estimate, Terms]:
    estimator = (RefittedQ if config.refits else FittedQ)(
        thresholds, level=config.level, bootstrap=config.bootstrap, seed=config.seed
    )
    estimate = estimator.estimate(data, pi, q)
    if config.refits and estimate.value is not None:
        estimate = _with_refits(estimate, fits.x, data, pi, config, config.refits)
    return estimate, estimator.terms(data, pi, q)


def _corrected(
    fits: QFits,
    data: LoggedData,
    pi: np.ndarray,
    v: np.ndarray,
    fitted: FoldQ,
    config: FQEConfig,
    thresholds: SupportThresholds | None,
) -> tuple[Estimate, Terms, float]:
    """Equation (2): its estimate, its terms by episode, and the standard error of Q's part."""
    grid, k = data.grid, pi.shape[1]
    logged = fits.fit_logged(k)
    residual = realised_return(data.reward, grid.episode_of_row, grid.position, config.gamma)
    residual -= logged.cross_fitted(fits.x, k)[np.arange(len(data)), data.action]
    discount = config.gamma**grid.position
    change = discount * (data.weights(pi) - (grid.position > 0)) * residual
    terms = Terms(
        v[grid.first] + np.bincount(grid.episode_of_row, weights=change, minlength=len(grid.length))
    )
    fit_error = _jackknife(fits, data, pi, discount, fitted, logged)
    estimator = CorrectedQ(thresholds, level=config.level, seed=config.seed)
    clusters, support = estimator.sample_clusters(data), estimator.support(data, pi)
    return estimator.summarise(terms, clusters, support, data, fit_error=fit_error), terms, fit_error


def _jackknife(
    fits: QFits, data: LoggedData, pi: np.ndarray, discount: np.ndarray, fitted: FoldQ, logged: FoldQ
) -> float:
    """Standard error of what the models say beyond the first order, the one part of (2) that no residual corrects.

    It is, by the model of each fold, the mean over days of v(x_0) - q_mu(x_0, a_0) - sum_t gamma^t [sum_a pi q_mu - q_mu].
    """
    grid = data.grid
    found = []
    for of_policy, of_log in zip(fitted.models, logged.models, strict=True):
        if of_policy is None or of_log is None:
            continue
        total = 0.0
        for start in range(0, len(pi), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(pi)))
            q_mu = of_log(fits.x[rows])
            chosen = q_mu[np.arange(len(rows)), data.action[rows]]
            total -= float(discount[rows] @ ((pi[rows] * q_mu).sum(axis=1) - chosen))
            first = np.flatnonzero(grid.position[rows] == 0)
            total += float((pi[rows[first]] * of_policy(fits.x[rows[first]])).sum() - chosen[first].sum())
        found.append(total / len(grid.length))
    n = len(found)
    return float(np.sqrt((n - 1) / n * np.sum((np.array(found) - np.mean(found)) ** 2))) if n > 1 else 0.0


def _with_cap_note(estimate: Estimate, config: FQEConfig) -> Estimate:
    """The estimate, its note telling of a fit that `max_iterations` cut short."""
    cut = f"the fit was cut after {config.max_iterations} iterations, fewer than the longest day has entries"
    return replace(estimate, note="; ".join(filter(None, [estimate.note, cut])))


def _with_refits(
    estimate: Estimate, x: np.ndarray, data: LoggedData, pi: np.ndarray, config: FQEConfig, refits: int
) -> Estimate:
    """Replace the interval by value +- t s, s the deviation of the value over fits on resampled users."""
    codes, n_clusters = cluster_codes(np.asarray(data.cluster))
    first = data.grid.first
    rng = np.random.default_rng(config.seed)
    values = []
    for _ in range(refits):
        drawn = np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters)
        counts = drawn[codes].astype(float)
        q = QFits(x, data, config, counts).fit(pi).cross_fitted(x, pi.shape[1])
        values.append(np.average((pi[first] * q[first]).sum(axis=1), weights=counts[first]))
    error = float(np.std(values, ddof=1))
    half = t_quantile(estimate.level, refits - 1) * error
    assert estimate.value is not None
    return replace(estimate, standard_error=error, low=estimate.value - half, high=estimate.value + half)
