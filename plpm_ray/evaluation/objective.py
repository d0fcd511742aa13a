"""The policy value of a navigator on held-out days, cheap enough to ask after every epoch of every trial.

What all policies share, the models of behaviour and reward, is in a `HeldOutLog`, fitted once; then a policy costs its
scores and a few sums. Rows are decisions (one app entry each); N rows, K pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from plpm_ray.evaluation.config import ModelsConfig
from plpm_ray.evaluation.estimators import DR, SNIPS, Estimate, Estimator
from plpm_ray.evaluation.fqe import FittedQ, FQEConfig, QFits, fitted_q
from plpm_ray.evaluation.held_out import HeldOutLog
from plpm_ray.evaluation.inference import Terms
from plpm_ray.evaluation.metrics import realised_return
from plpm_ray.policies.base import PolicyConfig

UNITS: Mapping[str, str] = {"dr": "s per session", "snips": "s per session", "fqe": "s per user-day"}
ESTIMATORS: Mapping[str, type[Estimator]] = {"dr": DR, "snips": SNIPS, "fqe": FittedQ}


class ObjectiveConfig(ModelsConfig):
    """What is maximised: a policy value on validation days, never the training loss.

    `objective: snips` is short for `objective: {estimator: snips}`.
    """

    estimator: Literal["dr", "snips", "fqe"] = Field(
        default="dr",
        description="dr and snips: seconds of use per session; fqe: seconds per user-day, by fitted Q evaluation",
    )
    policy: PolicyConfig = Field(
        default_factory=lambda: PolicyConfig.model_validate({}),
        description="how pages are drawn from the scores that are judged",
    )
    baseline: str | None = Field(
        default="logged",
        description="what gains are measured against, on the same rows: logged (what the logs earned), "
        "a navigator without training, or null",
    )
    rank_by: Literal["lower", "value"] = Field(
        default="lower",
        description="lower: the lower end of the interval, of the gain where there is a baseline, else of the value, so that "
        "no policy wins by being uncertain; value: the estimate itself",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"estimator": data} if isinstance(data, str) else data


class PolicyValue:
    """Judges policies on one held-out log.

    Args:
        log: the held-out rows.
        config: estimator, thresholds, level.
        baseline: (N, K) probabilities of the baseline policy; None with `config.baseline` "logged" takes what the logs
            earned.
    """

    def __init__(self, log: HeldOutLog, config: ObjectiveConfig, baseline: np.ndarray | None = None) -> None:
        self.log = log
        self.config = config
        self._estimator: Estimator = ESTIMATORS[config.estimator](config.thresholds(), level=config.level)
        self._samples_of_baseline: np.ndarray | None = None
        self._fit_error_of_baseline = 0.0
        self._fits: QFits | None = None
        self.baseline: Estimate | None = None
        if baseline is not None:
            self.baseline, self._samples_of_baseline, self._fit_error_of_baseline = self._judge(baseline)
            if self.baseline.refused is not None:
                self._samples_of_baseline = None
        elif config.baseline == "logged":
            self._samples_of_baseline = self._logged_samples()

    @property
    def unit(self) -> str:
        return UNITS[self.config.estimator]

    @property
    def baseline_value(self) -> float | None:
        """Value of the baseline; None where there is none, or it was refused."""
        return None if self._samples_of_baseline is None else float(self._samples_of_baseline.mean())

    def estimate(self, pi: np.ndarray) -> tuple[Estimate, Estimate | None]:
        """Value of a policy, and its gain over the baseline paired on the same rows (None without one).

        Args:
            pi: (N, K) probabilities in every row of the log.
        """
        value, samples, fit_error = self._judge(pi)
        if self._samples_of_baseline is None:
            return value, None
        terms = Terms(samples - self._samples_of_baseline)
        clusters = self._estimator.sample_clusters(self.log.data)
        error = float(np.hypot(fit_error, self._fit_error_of_baseline))
        return value, self._estimator.summarise(
            terms, clusters, value.support, self.log.data, fit_error=error
        )

    def goal(self, value: Estimate, gain: Estimate | None) -> float | None:
        """What policies are ranked by, as `config.rank_by` says; None where the estimate was refused.

        The lower bound is the pessimistic choice: a policy that the logs hardly support has a wide interval, and the
        highest of many such estimates is high by luck.
        """
        if self.config.rank_by == "value":
            return value.value
        return value.low if gain is None else gain.low

    def _judge(self, pi: np.ndarray) -> tuple[Estimate, np.ndarray, float]:
        """Estimate, samples whose mean it is, and the standard error that fits add beside these."""
        data, q_hat = self.log.data, self.log.q_hat
        if self.config.estimator == "fqe":
            settings = FQEConfig(level=self.config.level)
            self._fits = self._fits or QFits(self.log.x, data, settings)
            fitted = fitted_q(self.log.x, data, pi, settings, self.config.thresholds(), self._fits)
            return fitted.estimate, fitted.per_episode, fitted.fit_error
        return self._estimator.estimate(data, pi, q_hat), self._estimator.per_sample(data, pi, q_hat), 0.0

    def _logged_samples(self) -> np.ndarray:
        data = self.log.data
        if self.config.estimator != "fqe":
            return data.reward
        assert data.episode is not None and data.step is not None
        return realised_return(data.reward, data.episode, data.step, 1.0)[data.grid.first]
