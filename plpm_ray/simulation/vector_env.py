"""Many landing-page environments as one batch: n users side by side in one simulation."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from plpm_ray.simulation.config import WorldConfig
from plpm_ray.simulation.encoding import WorldFeatures
from plpm_ray.simulation.env import draw_stream, observation_spaces
from plpm_ray.simulation.episodes import LandingTask, UserEpisodes


class LandingPageVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """n environments like `LandingPageEnv` with the same arguments, and the same episodes as those with the same seeds.

    Autoreset is that of the next step (`AutoresetMode.NEXT_STEP`): where an episode ended, the next `step` ignores the action
    and returns the first observation of the next episode with reward 0.

    Args:
        num_envs: n, users side by side.
        world, features, horizon_days, warmup_days, reward_scale_s: as for `LandingPageEnv`.
    """

    metadata: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "render_modes": [],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        world: str | dict[str, Any] | WorldConfig = "kuaishou",
        features: str | WorldFeatures | None = None,
        horizon_days: int = 1,
        warmup_days: int = 14,
        reward_scale_s: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = LandingTask.of(world, features, horizon_days, warmup_days, reward_scale_s)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = observation_spaces(
            self.task.encoder, len(self.task.world)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = render_mode
        self._episodes = UserEpisodes(self.task, num_envs)
        self._every = np.arange(num_envs)
        self._seeded = False
        self._over = np.ones(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins a new episode everywhere.

        Args:
            seed: environment i is seeded with `seed + i`, or with `seed[i]`; None goes on with the next users.

        Raises:
            ValueError: as many seeds as environments are wanted.
        """
        if isinstance(seed, int):
            super().reset(seed=seed)
            seeds: list[int | None] = [seed + i for i in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds were given for {self.num_envs} environments")
        for slot, own in enumerate(seeds):
            if own is not None or not self._seeded:
                stream = draw_stream(self.np_random if own is None else seeding.np_random(own)[0])
                self._episodes.seed(self._every[slot : slot + 1], stream)
        self._seeded = True
        self._over[:] = False
        self._episodes.begin(self._every)
        return self._episodes.observations(), self._begun(self._every)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Lets every user land on a page, (n,); begins a new episode where the last one is over.

        Raises:
            ValueError: not n pages, one that there is not, or `reset` was never called.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not self._seeded:
            raise ValueError(
                f"after a reset, actions are {self.num_envs} pages; given was an array of {actions.shape}"
            )
        reward, seconds = np.zeros((2, self.num_envs))
        under_way = np.flatnonzero(~self._over)
        if len(under_way):
            sessions = self._episodes.land(actions[under_way])
            seconds[under_way] = sessions.use_ms / 1000
            reward[under_way] = seconds[under_way] / self.task.reward_scale_s
        new = np.flatnonzero(self._over)
        if len(new):
            self._episodes.begin(new)
        info = {"seconds": seconds, "_seconds": ~self._over, **self._begun(new)}
        self._over = self._episodes.ended(self._every)
        return (
            self._episodes.observations(),
            reward,
            self._over.copy(),
            np.zeros(self.num_envs, dtype=bool),
            info,
        )

    def _begun(self, slots: np.ndarray) -> dict[str, Any]:
        """What `reset` of single environments would tell about the given ones."""
        if not len(slots):
            return {}
        simulation = self._episodes.simulation
        mask = np.zeros(self.num_envs, dtype=bool)
        mask[slots] = True
        told = {"user_id": simulation.users.user_id, "day": simulation.day}
        return {
            name: value
            for key, values in told.items()
            for name, value in ((key, np.where(mask, values, 0)), (f"_{key}", mask.copy()))
        }
