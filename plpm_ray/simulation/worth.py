"""What logged landing decisions were truly worth: the expected seconds of the session on the chosen page against other pages.

Rewards of sessions that have ended are held against it. The luck of the session is no part of it, and neither is how long
this user would have stayed whatever the page. Only the session itself counts, not what it does to later ones.

Letters: K pages, B entries of a batch, N sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plpm_ray.core.errors import ConfigError
from plpm_ray.simulation.dataset import WorldLogs, WorldLogsConfig
from plpm_ray.simulation.logged_by import make_policy
from plpm_ray.simulation.sessions import Sessions
from plpm_ray.simulation.simulation import Simulation, run_days
from plpm_ray.simulation.walk import expected


@dataclass(frozen=True)
class Worths:
    """True worth of N decisions, in ascending order of `session_id`.

    Attributes:
        session_id: (N,) int64, as in the logs.
        over_mean_s: (N,) expected seconds of the session minus their mean over all pages.
        under_best_s: (N,) minus their maximum over all pages; 0 where the best page was chosen.
    """

    session_id: np.ndarray
    over_mean_s: np.ndarray
    under_best_s: np.ndarray

    def of(self, session_id: np.ndarray) -> Worths:
        """Those of given sessions, in their order.

        Raises:
            KeyError: a session is none of these.
        """
        at = np.searchsorted(self.session_id, session_id).clip(max=len(self.session_id) - 1)
        if (self.session_id[at] != session_id).any():
            raise KeyError("a session of other logs")
        return Worths(session_id, self.over_mean_s[at], self.under_best_s[at])


def decision_worths(config: WorldLogsConfig, user_id: np.ndarray) -> Worths:
    """Lives through the logs of (U,) users once more and looks at what is hidden in them.

    Raises:
        ConfigError: the logs hold a trial, whose pages are not chosen by the policy alone.
    """
    if config.trial is not None:
        raise ConfigError(
            "decisions of logs with a trial are not all those of the policy", hint="leave `trial` out"
        )
    logs = WorldLogs(config)
    simulation = Simulation(logs.world, user_id, config.replicate)
    chooser = make_policy(logs.world, config.policy, logs.plugins)
    run_days(simulation, config.warmup_days, chooser)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def look(sessions: Sessions) -> None:
        use_KB = expected(logs.world, sessions.entries.situation).use_KB
        chosen = use_KB[sessions.landing, np.arange(len(sessions))]
        found.append((sessions.session_id, chosen - use_KB.mean(axis=0), chosen - use_KB.max(axis=0)))

    run_days(simulation, config.days, chooser, look)
    session_id, over_mean, under_best = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(session_id)
    return Worths(session_id[order], over_mean[order], under_best[order])
