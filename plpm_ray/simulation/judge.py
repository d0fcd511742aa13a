"""What a navigator brings on the episodes of the environments, beside the same users' same luck under other policies."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from plpm_ray.core.errors import ConfigError
from plpm_ray.navigators.base import Navigator
from plpm_ray.simulation.choosers import LoggingPolicy, MyopicOracle, RandomPage
from plpm_ray.simulation.episodes import Cohort, LandingTask, Returns
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.simulation.simulation import Chooser, Entries, Simulation

_Z95 = 1.959964


class Judge:
    """Plays one episode of each of some users under a navigator's best pages, and under random, logging and oracle policy.

    Args:
        task, users, seed: as of `Cohort`; no environment ever meets those users.
    """

    def __init__(self, task: LandingTask, users: int, seed: int = 0) -> None:
        self.task, self.users, self.seed = task, users, seed

    @cached_property
    def _cohort(self) -> Cohort:
        return Cohort(self.task, self.users, self.seed)

    @cached_property
    def yardsticks(self) -> dict[str, Returns]:
        """Outcomes of the policies to compare with, by name."""
        choosers: list[Chooser] = [RandomPage(), LoggingPolicy(), MyopicOracle()]
        return {str(getattr(c, "name", "")): self._chooser(c) for c in choosers}

    def _chooser(self, chooser: Chooser) -> Returns:
        def choose(simulation: Simulation, entries: Entries, online: OnlineFeatures) -> np.ndarray:
            return chooser.choose(simulation, entries).page

        return self._cohort.play(choose)

    def play(self, navigator: Navigator) -> Returns:
        """Outcomes under the navigator's best pages.

        Raises:
            ConfigError: it keeps a state of the day, which episodes of the environments do not carry.
        """
        if navigator.state_size:
            raise ConfigError(
                f"{navigator.name} keeps a state of the day, and is asked about single decisions here",
                hint="judge it by an experiment in the world: `plpm simulate`",
            )

        def choose(simulation: Simulation, entries: Entries, online: OnlineFeatures) -> np.ndarray:
            return navigator.scores(online.features(entries, navigator.reads_days)).argmax(axis=1)

        return self._cohort.play(choose)

    def judge(self, navigator: Navigator) -> dict[str, Any]:
        """Mean seconds an episode, and how much of the way from random to the myopic oracle that is.

        Returns:
            "episodes"; "return_s" and "return_se_s" by policy, the navigator's under "trained"; "gain_s" over random with
            "gain_low_s" and "gain_high_s", the 95 % interval of the paired difference; "gap_share".
        """
        outcomes = {**self.yardsticks, "trained": self.play(navigator)}
        difference = outcomes["trained"].use_s - outcomes["random"].use_s
        gain, half = float(difference.mean()), _Z95 * _error(difference)
        gap = outcomes["oracle (myopic)"].mean_s - outcomes["random"].mean_s
        return {
            "episodes": len(difference),
            "return_s": {name: round(found.mean_s, 3) for name, found in outcomes.items()},
            "return_se_s": {name: round(_error(found.use_s), 3) for name, found in outcomes.items()},
            "gain_s": round(gain, 3),
            "gain_low_s": round(gain - half, 3),
            "gain_high_s": round(gain + half, 3),
            "gap_share": round(gain / gap, 4) if gap > 0 else None,
        }


def _error(values: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
