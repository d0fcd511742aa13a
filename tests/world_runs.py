"""Small worlds for tests: everything switched off but what a test switches on, and runs of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from plpm_ray.policies.base import Choice
from plpm_ray.simulation.choosers import FixedPage
from plpm_ray.simulation.config import WorldConfig
from plpm_ray.simulation.simulation import Chooser, Entries, Sessions, Simulation, run_days
from plpm_ray.simulation.world import World

_OFF = (
    "population",
    "tide",
    "week",
    "day_intent",
    "satiation",
    "unfinished",
    "live",
    "push",
    "browsing",
    "returning",
)
_ALIKE = {
    "active_sd": 0.0,
    "user_sd": 0.0,
    "day_sd": 0.0,
    "multi_active": 0.0,
    "fatigue": 0.0,
    "rest_min": 0.0,
}


def plain_world(pages: int | list[dict[str, Any]] = 3, **sections: dict[str, Any]) -> World:
    """A world of alike users in which nothing happens but landing, and what `sections` say (with enabled: true)."""
    if isinstance(pages, int):
        pages = [{"name": f"page_{k}", "popularity": 0.3 * k, "dwell_s": 60.0 + 10 * k} for k in range(pages)]
    described: dict[str, Any] = {name: {"enabled": False} for name in (*_OFF, "retention")}
    described["entries"] = dict(_ALIKE)
    for name, section in sections.items():
        on = {} if name in ("entries", "visits", "logging") else {"enabled": True}
        described[name] = {**described.get(name, {}), **on, **section}
    return World(WorldConfig.model_validate({"name": "plain", "pages": pages, **described}))


def sessions_of(world: World, users: int, days: int, chooser: Chooser | None = None) -> list[Sessions]:
    """All batches of sessions of users 0 to `users` - 1."""
    seen: list[Sessions] = []
    run_days(Simulation(world, np.arange(users)), days, chooser or FixedPage(world, 0), seen.append)
    return seen


def column(sessions: list[Sessions], name: str) -> np.ndarray:
    """One attribute of the sessions, or of their entries, of all batches in a row."""
    return np.concatenate([getattr(s if hasattr(s, name) else s.entries, name) for s in sessions])


def log_odds(entries: Entries, page: int, against: int = 0) -> np.ndarray:
    """(B,) ln of how much more often a page is wanted than another."""
    wanted = entries.situation.wanted_KB
    return np.log(wanted[page] / wanted[against])


class LongestOrWorst:
    """Knows what is wanted, and lands on the page wanted most, or on the one wanted least."""

    def __init__(self, worst: bool = False) -> None:
        self.name, self.worst = "worst" if worst else "best", worst

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        wanted = entries.situation.wanted_KB
        page = (wanted.argmin(axis=0) if self.worst else wanted.argmax(axis=0)).astype(np.int16)
        return Choice(page, np.ones(len(page)), np.eye(len(wanted))[page])

    def observe(self, simulation: Simulation, sessions: Sessions) -> None:
        """Nothing."""
