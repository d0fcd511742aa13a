"""The same users with the same luck under several policies, from the same evening on.

What comes before that evening does not depend on the policies: it is simulated once, and every run begins with a copy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from plpm_ray.policies.base import Choice
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.experiment import live
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.simulation.simulation import Chooser, Entries, Sessions, Simulation, copied
from plpm_ray.simulation.totals import Recorder
from plpm_ray.simulation.world import World

CONTROL = "logging"


class Twins:
    """Users on the evening before the AB days, after warm-up and AA days under the world's logging policy.

    Args:
        world: the world.
        user_id: (U,) distinct ids.
        warmup_days, aa_days, ab_days: lengths of the periods; no AA days give AA totals of zero.

    Attributes:
        control: the users' totals (`Recorder.users`) under the logging policy, arm `CONTROL`.
    """

    def __init__(
        self, world: World, user_id: np.ndarray, warmup_days: int, aa_days: int, ab_days: int
    ) -> None:
        self.world, self.ab_days = world, ab_days
        self._simulation = Simulation(world, user_id)
        self._online = OnlineFeatures(world, self._simulation.users.profile())
        self._recorder = Recorder(world, self._simulation, (aa_days, ab_days))
        control = _Watched(self._online)
        live(self._simulation, warmup_days, control, (control,), None)
        live(self._simulation, aa_days, control, (control,), self._recorder)
        self.control = self.run(lambda online: LoggingPolicy(), CONTROL)

    def __len__(self) -> int:
        return len(self._simulation)

    def run(self, chooser: Callable[[OnlineFeatures], Chooser], arm: str) -> pa.Table:
        """The AB days under another policy; nothing here is changed.

        Args:
            chooser: makes what chooses, given what is known of the users on that evening.
            arm: label in the table.

        Returns:
            The users' totals (`Recorder.users`), their AA days included.
        """
        simulation, recorder = copied(self._simulation, self._recorder)
        own = chooser(self._online.copied())
        live(simulation, self.ab_days, own, (own,), recorder)
        return recorder.users(arm)


class _Watched:
    """The logging policy, and the features of its users beside it."""

    def __init__(self, online: OnlineFeatures) -> None:
        self._inner, self._online = LoggingPolicy(), online

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        return self._inner.choose(simulation, entries)

    def observe(self, simulation: Simulation, sessions: Sessions) -> None:
        self._online.observe(sessions)
