"""`plpm/LandingPage-v0`: the world as a Gymnasium environment; a step is an app entry, an action a landing page.

    from plpm_ray.simulation.env import register
    register()
    env = gymnasium.make("plpm/LandingPage-v0", world="kuaishou")
    envs = gymnasium.make_vec("plpm/LandingPage-v0", num_envs=256)

Gymnasium 1.x looks for no plugins, so an environment is known once `register` was called in the process.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from plpm_ray.simulation.config import WorldConfig
from plpm_ray.simulation.encoding import ObservationEncoder, WorldFeatures
from plpm_ray.simulation.episodes import LandingTask, UserEpisodes

ENV_ID = "plpm/LandingPage-v0"
_ONLY = np.zeros(1, dtype=np.int64)


def register() -> None:
    """Makes the environment known to `gymnasium.make` and `gymnasium.make_vec`; once is enough, again does no harm."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            ENV_ID,
            entry_point="plpm_ray.simulation.env:LandingPageEnv",
            vector_entry_point="plpm_ray.simulation.vector_env:LandingPageVectorEnv",
        )


def observation_spaces(encoder: ObservationEncoder, n_pages: int) -> tuple[spaces.Box, spaces.Discrete]:
    """Observation and action space of one environment."""
    return spaces.Box(encoder.low, encoder.high, dtype=np.float32), spaces.Discrete(n_pages)


def draw_stream(rng: np.random.Generator) -> np.ndarray:
    """(1,) uint64: which users an environment meets, drawn from its generator."""
    return rng.integers(1 << 62, size=1, dtype=np.uint64)


class LandingPageEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One user-day after the other, each of another user.

    Observation: (W,) float32, the features at the entry, encoded (see `encoding`). Reward: seconds of the session over
    `reward_scale_s`. `terminated` with the last session of the episode; the observation is then all zeros. `truncated` never.
    `info` after `reset` has "user_id" and "day" (of the world), after `step` "seconds" of the session.

    Args:
        world: shipped world, path of a YAML file, or the world itself.
        features: bundle or run folder, warehouse, or file in its `fitted` folder, whose encoder makes the observations, so
            that they are those of a bundle; by default one is fitted on simulated logs of this world, the same everywhere.
        horizon_days: days of an episode; 1 is the user-day.
        warmup_days: days under the logging policy before an episode (and up to six more, so that any weekday occurs).
        reward_scale_s: seconds that give a reward of 1; by default the mean session of the logs.

    Raises:
        ConfigError: unknown world, or features that are not this world's.
        ValueError: a number is out of bounds.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        world: str | dict[str, Any] | WorldConfig = "kuaishou",
        features: str | WorldFeatures | None = None,
        horizon_days: int = 1,
        warmup_days: int = 14,
        reward_scale_s: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = LandingTask.of(world, features, horizon_days, warmup_days, reward_scale_s)
        self.observation_space, self.action_space = observation_spaces(
            self.task.encoder, len(self.task.world)
        )
        self.render_mode = render_mode
        self._episodes = UserEpisodes(self.task, 1)
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins the episode of a new user: the first of those that the seed stands for, or the next one of them."""
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._episodes.seed(_ONLY, draw_stream(self.np_random))
            self._seeded = True
        self._episodes.begin(_ONLY)
        simulation = self._episodes.simulation
        info = {"user_id": int(simulation.users.user_id[0]), "day": int(simulation.day[0])}
        return self._episodes.observations()[0], info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Lets the user land on page `action`.

        Raises:
            ValueError: there is no such page, or no entry waits because the episode is over.
        """
        sessions = self._episodes.land(np.array([action]))
        seconds = float(sessions.use_ms[0]) / 1000
        observation = self._episodes.observations()[0]
        ended = bool(self._episodes.ended(_ONLY)[0])
        return observation, seconds / self.task.reward_scale_s, ended, False, {"seconds": seconds}
