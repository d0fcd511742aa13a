"""Off-policy estimators of a policy's value per decision: DM, IPS, SNIPS, DR.

Notation: rows i with context x_i, logged action a_i, reward r_i, logging policy mu, evaluation policy pi,
weight w_i = pi(a_i|x_i) / mu(a_i|x_i), reward model q(x, a), and q(x_i, pi) = sum_a pi(a|x_i) q(x_i, a).

A subclass says what one sample contributes (`terms`); the base class gives the mean, the interval clustered
by user, the support, and refuses where the log holds too little of what the policy does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np

from plpm_ray.core.errors import DataError, SupportError
from plpm_ray.evaluation.inference import Terms, clustered_interval
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.support import Support, SupportThresholds, measure_support, refusal

MODEL_NOTE = "the interval covers the sampling of contexts, not the error of the reward model"


@dataclass(frozen=True)
class Estimate:
    """A policy value with its interval and support, or the reason why there is none.

    Attributes:
        estimator: registered name, e.g. "snips".
        value, low, high, standard_error: in `unit`; None where refused.
        level: nominal coverage of [low, high].
        unit: unit of the reward.
        per: what one sample is, "decision" or "user-day"; the value is `unit` per this.
        support: sizes and weights that the refusal is judged by.
        modelled: the propensities were estimated from the log.
        refused: the reason, or None.
        note: what the interval does not cover, or None.
    """

    estimator: str
    value: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    level: float
    unit: str
    per: str
    support: Support
    modelled: bool
    refused: str | None = None
    note: str | None = None

    def or_raise(self) -> Estimate:
        """This estimate, or SupportError where it was refused."""
        if self.refused is not None:
            raise SupportError(
                f"{self.estimator}: {self.refused}",
                hint="evaluate a policy closer to the logging policy, randomise some traffic, or add days",
            )
        return self

    def as_dict(self) -> dict:
        """Plain values only, ready for JSON."""
        return asdict(self)


class Estimator(ABC):
    """Base of the off-policy estimators.

    Args:
        thresholds: when to refuse.
        level: nominal coverage of the interval.
        bootstrap: 0 for the linearised clustered interval, else the number of cluster bootstrap draws.
        seed: of the bootstrap.
    """

    name: ClassVar[str]
    needs_q: ClassVar[bool] = False
    uses_weights: ClassVar[bool] = True
    per: ClassVar[str] = "decision"
    note: ClassVar[str | None] = None

    def __init__(
        self,
        thresholds: SupportThresholds | None = None,
        *,
        level: float = 0.95,
        bootstrap: int = 0,
        seed: int = 0,
    ) -> None:
        self.thresholds = thresholds or SupportThresholds()
        self.level = level
        self.bootstrap = bootstrap
        self.seed = seed

    @abstractmethod
    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        """What each sample contributes; pi and q_hat are checked float64 [N, K]."""

    def sample_clusters(self, data: LoggedData) -> np.ndarray:
        """User of each sample, [S]; samples are rows unless a subclass says otherwise."""
        return np.asarray(data.cluster)

    def sample_weights(self, data: LoggedData, pi: np.ndarray) -> np.ndarray | None:
        """Importance weight of each sample, [S], that the support is judged by."""
        return data.weights(pi) if self.uses_weights else None

    def per_sample(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None = None) -> np.ndarray:
        """One value per sample, float [S]; the mean is the estimate."""
        return self._checked_terms(data, pi, q_hat)[0].per_sample()

    def support(self, data: LoggedData, pi: np.ndarray) -> Support:
        """What the log can say about pi [N, K]."""
        pi = data.check_policy(pi)
        clusters, weights = self.sample_clusters(data), self.sample_weights(data, pi)
        return measure_support(clusters, weights, pi, data.behaviour, self.thresholds)

    def estimate(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None = None) -> Estimate:
        """Value of pi.

        Args:
            data: the log.
            pi: float [N, K], the evaluation policy's probabilities in each row.
            q_hat: float [N, K], predicted reward of each action, for DM and DR; in the unit of the reward.

        Returns:
            The estimate; with `refused` set and no value where the support is too thin (`or_raise()` to
            raise).

        Raises:
            DataError: wrong shapes, or q_hat missing where the estimator needs it.
        """
        terms, pi = self._checked_terms(data, pi, q_hat)
        return self.summarise(terms, self.sample_clusters(data), self.support(data, pi), data)

    def difference(
        self, data: LoggedData, pi: np.ndarray, baseline: np.ndarray, q_hat: np.ndarray | None = None
    ) -> Estimate:
        """Value of pi minus value of baseline [N, K], paired on the same rows; refused where either is.

        The interval is the linearised one. The support shown is the thinner of the two.
        """
        first, pi = self._checked_terms(data, pi, q_hat)
        second, baseline = self._checked_terms(data, baseline, q_hat)
        supports = (self.support(data, pi), self.support(data, baseline))
        reasons = [refusal(support, self.thresholds) for support in supports]
        thinner = 0 if supports[0].effective_samples <= supports[1].effective_samples else 1
        if reasons[1 - thinner] and not reasons[thinner]:
            thinner = 1 - thinner
        terms = Terms(first.per_sample() - second.per_sample())
        estimate = self.summarise(terms, self.sample_clusters(data), supports[thinner], data, bootstrap=0)
        return replace(estimate, estimator=f"{self.name} difference")

    def summarise(
        self,
        terms: Terms,
        cluster: np.ndarray,
        support: Support,
        data: LoggedData,
        bootstrap: int | None = None,
        fit_error: float = 0.0,
    ) -> Estimate:
        """The estimate of given terms: refusal first, then value and interval.

        Args:
            fit_error: as in `clustered_interval`.
        """
        reason = refusal(support, self.thresholds)
        value = low = high = error = None
        if reason is None:
            value = terms.value()
            draws = self.bootstrap if bootstrap is None else bootstrap
            error, low, high = clustered_interval(
                terms, cluster, level=self.level, bootstrap=draws, seed=self.seed, fit_error=fit_error
            )
        return Estimate(
            estimator=self.name,
            value=value,
            low=low,
            high=high,
            standard_error=error,
            level=self.level,
            unit=data.unit,
            per=self.per,
            support=support,
            modelled=data.modelled,
            refused=reason,
            note=self.note,
        )

    def _checked_terms(
        self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None
    ) -> tuple[Terms, np.ndarray]:
        pi = data.check_policy(pi)
        if self.needs_q:
            if q_hat is None:
                raise DataError(f"{self.name} needs predicted rewards q_hat [N, K]")
            q_hat = np.asarray(q_hat, dtype=np.float64)
            if q_hat.shape != pi.shape or not np.isfinite(q_hat).all():
                raise DataError(f"q_hat must be finite with shape {pi.shape}, it has {q_hat.shape}")
        return self.terms(data, pi, q_hat), pi


class DM(Estimator):
    """Direct method: mean_i q(x_i, pi). As good as the reward model; refused where that would extrapolate."""

    name = "dm"
    needs_q = True
    uses_weights = False
    note = MODEL_NOTE

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        assert q_hat is not None
        return Terms((pi * q_hat).sum(axis=1))


class IPS(Estimator):
    """Inverse propensity score: mean_i w_i r_i (Horvitz and Thompson 1952). Unbiased with true mu."""

    name = "ips"

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        return Terms(data.weights(pi) * data.reward)


class SNIPS(Estimator):
    """Self-normalised IPS: sum_i w_i r_i / sum_i w_i (Swaminathan and Joachims 2015). Bias of order 1/N."""

    name = "snips"

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        weights = data.weights(pi)
        return Terms(np.zeros(len(data)), (weights * data.reward)[:, None], weights[:, None])


class DR(Estimator):
    """Doubly robust: mean_i [ q(x_i, pi) + w_i (r_i - q(x_i, a_i)) ] (Dudik, Langford and Li 2011).

    Right where either the propensities or the reward model are; q_hat should be cross-fitted.

    Args:
        self_normalised: weigh the correction as sum_i w_i (r_i - q_i) / sum_i w_i instead of its mean.
    """

    name = "dr"
    needs_q = True

    def __init__(
        self, thresholds: SupportThresholds | None = None, *, self_normalised: bool = False, **options
    ) -> None:
        super().__init__(thresholds, **options)
        self.self_normalised = self_normalised

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        assert q_hat is not None
        weights = data.weights(pi)
        model = (pi * q_hat).sum(axis=1)
        correction = weights * (data.reward - q_hat[np.arange(len(data)), data.action])
        if self.self_normalised:
            return Terms(model, correction[:, None], weights[:, None])
        return Terms(model + correction)
