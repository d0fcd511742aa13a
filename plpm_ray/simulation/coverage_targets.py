"""The policies whose values are estimated: each gives probabilities of pages for any logged or simulated decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from plpm_ray.core.config import ConfigSource
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.evaluation.held_out import model_features
from plpm_ray.evaluation.replay import replayed
from plpm_ray.evaluation.reward_model import (
    MlpRewardModel,
    RewardConfig,
    RidgeRewardModel,
    fit_reward_model,
)
from plpm_ray.navigators.base import Navigator
from plpm_ray.policies.base import Policy
from plpm_ray.policies.entry import PolicyEntry
from plpm_ray.simulation.arms import ArmConfig, check_arm, make_chooser
from plpm_ray.simulation.coverage_logs import Log, Moment
from plpm_ray.simulation.navigated import NavigatorChooser
from plpm_ray.simulation.world import World


class TargetConfig(PolicyEntry):
    """One policy to evaluate: exactly one of `builtin`, `page`, `navigator` and `bundle`."""

    ways: ClassVar[tuple[str, ...]] = ("builtin", "page", "navigator", "bundle")

    builtin: Literal["logging", "random", "regression", "myopic_oracle"] | None = Field(
        default=None,
        description="logging: the policy that made the logs; random: any page; regression: by the seconds that a linear "
        "regression on other users' logs expects; myopic_oracle: by the seconds that are truly to be expected",
    )
    page: str | None = Field(default=None, description="always this page")
    logged_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of decisions left to the logging policy, as in a partial roll-out",
    )

    @property
    def arm(self) -> ArmConfig:
        """The same as an arm of an experiment; for navigators and bundles."""
        return ArmConfig(
            label=self.title,
            navigator=self.navigator,
            bundle=self.bundle,
            options=self.options,
            policy=self.policy,
        )


@dataclass(frozen=True)
class Regression:
    """Expected seconds of every page, linear in the features.

    Attributes:
        spec: encoder; coefficients come with the model.
    """

    spec: FeatureSpec
    model: RidgeRewardModel | MlpRewardModel

    @classmethod
    def of(cls, log: Log, k: int) -> Regression:
        """Fitted on a log."""
        spec, held = log.fit_spec(), log.decisions
        x = model_features(spec, held.features)
        return cls(spec, fit_reward_model(x, held.action, held.use_s, held.user, k, RewardConfig()))

    def scores(self, moment: Moment) -> np.ndarray:
        """(N, K) seconds."""
        return self.model.predict(model_features(self.spec, moment.features))


class Target:
    """A policy that can be asked for its probabilities.

    Args:
        config: what it is.
        world: its world.
        regression: what `builtin: regression` scores with.
        plugins: that register navigators.

    Raises:
        ConfigError: a navigator that keeps a state of the day, or reads the days before it.
    """

    def __init__(
        self,
        config: TargetConfig,
        world: World,
        regression: Regression | None = None,
        plugins: tuple[str, ...] = (),
    ) -> None:
        self.config, self.title, self.k = config, config.title, len(world)
        self.policy = Policy(config.policy)
        self._page = None if config.page is None else world.pages.index(config.page)
        self._regression = regression
        self._navigator: Navigator | None = None
        if config.navigator is not None or config.bundle is not None:
            check_arm(world.config, config.arm, plugins, ConfigSource({}, "config", {}, {}), ())
            chooser = make_chooser(world, config.arm, plugins)
            assert isinstance(chooser, NavigatorChooser)
            self._navigator = chooser.navigator
            if replayed(self._navigator):
                raise ConfigError(
                    f"{self.title} decides from the day so far, and here every decision is asked about alone",
                    hint="leave it out; `plpm evaluate` judges it on logs, `plpm simulate` in the world",
                )

    def probabilities(self, moment: Moment) -> np.ndarray:
        """(N, K) float64."""
        share = self.config.logged_share
        own = self._own(moment)
        return share * moment.logging + (1 - share) * own if share else own

    def _own(self, moment: Moment) -> np.ndarray:
        builtin = self.config.builtin
        if builtin == "logging":
            return moment.logging
        if builtin == "random":
            return np.full((len(moment), self.k), 1 / self.k)
        if self._page is not None:
            return np.tile(np.eye(self.k)[self._page], (len(moment), 1))
        return self.policy.probabilities(self._scores(moment))

    def _scores(self, moment: Moment) -> np.ndarray:
        if self._navigator is not None:
            return self._navigator.scores(moment.features)
        if self.config.builtin == "myopic_oracle":
            return moment.use_s
        assert self._regression is not None
        return self._regression.scores(moment)
