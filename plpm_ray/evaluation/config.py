"""How policies are judged on held-out days; shared by evaluation and sweeps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plpm_ray.core.config import StrictConfig
from plpm_ray.evaluation.propensity import PropensityConfig
from plpm_ray.evaluation.reward_model import RewardConfig
from plpm_ray.evaluation.support import SupportThresholds

EstimatorName = Literal["snips", "ips", "dr", "dm", "fqe"]


class ModelsConfig(StrictConfig):
    """The models that off-policy estimates lean on, their intervals, and when an estimate is refused."""

    behaviour_model: Literal["logistic", "mlp"] = Field(
        default="logistic",
        description="model of the logging policy; its propensities are used where none are logged",
    )
    reward_model: Literal["ridge", "mlp"] = Field(
        default="ridge", description="model of a session's seconds, for dr and dm"
    )
    level: float = Field(default=0.95, gt=0.5, lt=1, description="coverage of the intervals")
    min_effective_samples: float = Field(
        default=100.0, ge=1, description="below this effective sample size an estimate is refused"
    )
    min_effective_users: float = Field(
        default=30.0, ge=1, description="below this effective number of users an estimate is refused"
    )
    max_unsupported: float = Field(
        default=0.10,
        ge=0,
        le=1,
        description="largest share of choices on pages that the logs take with probability below 0.01",
    )
    max_sessions: int = Field(
        default=1_000_000,
        ge=1,
        description="most held-out (and training) sessions judged on; above it whole users are sampled",
    )

    def thresholds(self) -> SupportThresholds:
        """When an estimate is refused."""
        return SupportThresholds(
            min_effective_samples=self.min_effective_samples,
            min_effective_clusters=self.min_effective_users,
            max_mass_below_floor=self.max_unsupported,
        )

    def propensity_config(self, seed: int = 0) -> PropensityConfig:
        """Settings of the behaviour model."""
        return PropensityConfig(hidden=(64,) if self.behaviour_model == "mlp" else (), seed=seed)

    def reward_config(self, seed: int = 0) -> RewardConfig:
        """Settings of the reward model."""
        return RewardConfig(kind=self.reward_model, seed=seed)


class JudgeConfig(ModelsConfig):
    """What `plpm evaluate` computes of every policy."""

    estimators: tuple[EstimatorName, ...] = Field(
        default=("snips", "dr", "fqe"),
        description="snips, ips, dr, dm: seconds of use per session; fqe: seconds of use per user-day",
    )
    seed: int = Field(default=0, ge=0, description="seed of models and bootstraps")
