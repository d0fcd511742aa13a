"""DQN: Q-learning from the logs without a conservative penalty (Mnih et al. 2015); KLAN-IIT with alpha = 0."""

from __future__ import annotations

from typing import ClassVar

from plpm_ray.core.registry import register
from plpm_ray.navigators.q_learning import QConfig, QLearner


class DQNConfig(QConfig):
    """Plain TD learning on logged transitions; here to show how it overestimates pages that the logs rarely hold."""


@register("learner", "reference.dqn")
class DQN(QLearner):
    """The TD loss alone (KLAN eq. 8)."""

    Config: ClassVar[type[QConfig]] = DQNConfig
