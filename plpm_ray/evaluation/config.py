"""How policies are judged on held-out days."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plpm_ray.core.config import StrictConfig
from plpm_ray.evaluation.support import SupportThresholds

EstimatorName = Literal["snips", "ips", "dr", "dm", "fqe"]


class JudgeConfig(StrictConfig):
    """Estimators, the models they lean on, and when an estimate is refused."""

    estimators: tuple[EstimatorName, ...] = Field(
        default=("snips", "dr", "fqe"),
        description="snips, ips, dr, dm: seconds of use per session; fqe: seconds of use per user-day",
    )
    behaviour_model: Literal["logistic", "mlp"] = Field(
        default="logistic",
        description="model of the logging policy; its propensities are used where none are logged",
    )
    reward_model: Literal["ridge", "mlp"] = Field(
        default="ridge", description="model of a session's seconds, for dr and dm"
    )
    level: float = Field(default=0.95, gt=0.5, lt=1, description="coverage of the intervals")
    min_effective_samples: float = Field(
        default=100.0, ge=1, description="below this effective sample size: refused"
    )
    min_effective_users: float = Field(
        default=30.0, ge=1, description="below this effective number of users: refused"
    )
    max_unsupported: float = Field(
        default=0.10,
        ge=0,
        le=1,
        description="refused above this share of choices that the logs take with probability < 0.01",
    )
    max_sessions: int = Field(
        default=1_000_000,
        ge=1,
        description="most held-out (and training) sessions judged on; above it whole users are sampled",
    )
    seed: int = Field(default=0, ge=0, description="seed of models and bootstraps")

    def thresholds(self) -> SupportThresholds:
        """When an estimate is refused."""
        return SupportThresholds(
            min_effective_samples=self.min_effective_samples,
            min_effective_clusters=self.min_effective_users,
            max_mass_below_floor=self.max_unsupported,
        )
