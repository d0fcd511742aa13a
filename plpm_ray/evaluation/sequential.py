"""Off-policy value of a whole user-day: per-decision importance sampling and its doubly robust forms.

One sample is one episode (user-day). With rho_t = prod_{u <= t} w_u (the episode's weights so far) and
discount gamma:

    PDIS:   sum_t gamma^t rho_t r_t                              (Precup, Sutton and Singh 2000)
    WPDIS:  sum_t gamma^t sum_e rho_et r_et / sum_e rho_et       (same; ended episodes keep their last rho)
    DR:     v(x_0) + sum_t gamma^t rho_t [ r_t + gamma v(x_t+1) - q(x_t, a_t) ]      (Jiang and Li 2016)
    WDR:    the same with rho_t / mean_e rho_et in place of rho_t     (after Thomas and Brunskill 2016)

where q is an action value of the evaluation policy (fitted Q evaluation), v(x) = sum_a pi(a|x) q(x, a), 0
after the end. Weights are products over a day, so the support falls fast with the number of entries; the
estimates refuse when it does.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from plpm_ray.evaluation.estimators import Estimate, Estimator
from plpm_ray.evaluation.inference import Terms
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.support import SupportThresholds, measure_support


class _Sequential(Estimator):
    """Samples are episodes; the support is judged by the weight of the whole episode.

    Args:
        gamma: discount per step, 1 for the plain total of a day.
    """

    per = "user-day"

    def __init__(self, thresholds: SupportThresholds | None = None, *, gamma: float = 1.0, **options) -> None:
        super().__init__(thresholds, **options)
        self.gamma = gamma

    def sample_clusters(self, data: LoggedData) -> np.ndarray:
        return np.asarray(data.cluster)[data.grid.first]

    def sample_weights(self, data: LoggedData, pi: np.ndarray) -> np.ndarray | None:
        return self._cumulative(data, pi)[:, -1]

    def _cumulative(self, data: LoggedData, pi: np.ndarray) -> np.ndarray:
        """rho [E, T]; constant after an episode's end."""
        return np.cumprod(data.grid.gather(data.weights(pi), fill=1.0), axis=1)


class PDIS(_Sequential):
    """Per-decision importance sampling of the return of an episode.

    Args:
        weighted: normalise the weights of each step (WPDIS): slight bias, far less variance.
    """

    name = "pdis"

    def __init__(
        self, thresholds: SupportThresholds | None = None, *, weighted: bool = True, **options
    ) -> None:
        super().__init__(thresholds, **options)
        self.weighted = weighted

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        grid, rho = data.grid, self._cumulative(data, pi)
        gains = rho * grid.gather(data.reward) * self.gamma ** np.arange(rho.shape[1])
        if self.weighted:
            return Terms(np.zeros(len(rho)), gains, rho)
        return Terms(gains.sum(axis=1))


class SequentialDR(_Sequential):
    """Doubly robust return of an episode; q_hat [N, K] from `fqe.fitted_q` on other users (its default).

    Args:
        weighted: normalise the weights of each step (WDR).
    """

    name = "sequential_dr"
    needs_q = True

    def __init__(
        self, thresholds: SupportThresholds | None = None, *, weighted: bool = True, **options
    ) -> None:
        super().__init__(thresholds, **options)
        self.weighted = weighted

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        assert q_hat is not None
        grid, rho = data.grid, self._cumulative(data, pi)
        value = grid.gather((pi * q_hat).sum(axis=1))
        following = np.concatenate([value[:, 1:], np.zeros((len(value), 1))], axis=1)
        chosen = grid.gather(q_hat[np.arange(len(data)), data.action])
        error = grid.gather(data.reward) + self.gamma * following - chosen
        corrections = rho * error * self.gamma ** np.arange(rho.shape[1])
        if self.weighted:
            return Terms(value[:, 0], corrections, rho)
        return Terms(value[:, 0] + corrections.sum(axis=1))


class _Logged(_Sequential):
    """What the log earned, without weights."""

    name = "logged"
    uses_weights = False

    def sample_weights(self, data: LoggedData, pi: np.ndarray) -> np.ndarray | None:
        return None

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        gains = data.grid.gather(data.reward)
        return Terms((gains * self.gamma ** np.arange(gains.shape[1])).sum(axis=1))


class _LoggedDecision(_Logged):
    per = "decision"

    def sample_clusters(self, data: LoggedData) -> np.ndarray:
        return np.asarray(data.cluster)

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        return Terms(data.reward)


def logged_value(
    data: LoggedData, per: Literal["decision", "user-day"] = "decision", *, gamma: float = 1.0, **options
) -> Estimate:
    """Value of the logging policy itself, the mean of what was earned: the baseline of every table.

    Args:
        per: mean reward of a decision, or mean discounted return of an episode.
        options: of `Estimator` (thresholds, level, bootstrap, seed).
    """
    estimator = (_Logged if per == "user-day" else _LoggedDecision)(gamma=gamma, **options)
    terms, cluster = estimator.terms(data, np.empty((len(data), 0)), None), estimator.sample_clusters(data)
    support = measure_support(cluster, None, None, None, estimator.thresholds)
    return estimator.summarise(terms, cluster, support, data)
