"""The features of simulated entries, kept by the same code that serving keeps them with, all users at once."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow as pa

from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.data.features import state as online
from plpm_ray.data.features.sessions import EntryArrays
from plpm_ray.simulation.simulation import Entries, Sessions
from plpm_ray.simulation.world import CONTEXT, PROFILE, World

NO_PUSH = "none"


def world_schema(world: World) -> FeatureSchema:
    """The feature schema of a world's logs."""
    return FeatureSchema(world.pages.names, dict(CONTEXT), dict(PROFILE))


def context_columns(world: World, live_followed: np.ndarray, push: np.ndarray) -> dict[str, pa.Array]:
    """The visible context of B entries, from these columns of `Entries`."""
    return {
        "live_followed": pa.array(live_followed),
        "push": pa.array([*world.pages.names, NO_PUSH]).take(pa.array(push % (len(world) + 1))),
    }


class OnlineFeatures:
    """Online states of U users (4.4 KB each at 3 pages), positions as in the simulation.

    Args:
        world: the world.
        profile: the users' profile table, in the order of the simulation (`simulation.users.profile()`).
    """

    def __init__(self, world: World, profile: pa.Table) -> None:
        self.world = world
        self.schema = world_schema(world)
        self.states = online.empty_states(online.state_dtype(self.schema), len(profile))
        self._profile = {name: profile[name].combine_chunks() for name in PROFILE}

    def copied(self) -> OnlineFeatures:
        """The same users, with states of their own."""
        other = copy.copy(self)
        other.states = self.states.copy()
        return other

    def features(self, entries: Entries, days: bool = False) -> RawFeatures:
        """Features of B entries from what had ended before each; with the days before, if asked for."""
        rows = pa.array(entries.rows)
        return online.features(
            self.states,
            entries.arrays,
            self.schema,
            context_columns(self.world, entries.live_followed, entries.push),
            {name: column.take(rows) for name, column in self._profile.items()},
            rows=entries.rows,
            days=days,
        )

    def at(self, moments: EntryArrays) -> RawFeatures:
        """Features of all U users at U moments, one each, without context."""
        return online.features(self.states, moments, self.schema, profile=self._profile)

    def observe(self, sessions: Sessions) -> None:
        """Adds ended sessions."""
        online.observe(self.states, sessions.entries.rows, sessions.arrays(self.world))


def outcome(world: World, sessions: Sessions) -> dict[str, np.ndarray]:
    """What `Navigator.observe` is told of ended sessions."""
    arrays = sessions.arrays(world)
    return {
        "action": sessions.landing.astype(np.int64),
        "use_s": (sessions.use_ms / 1000).astype(np.float32),
        "landing_dwell_s": (sessions.landing_ms / 1000).astype(np.float32),
        "switches": sessions.count - 1,
        "views": arrays.views,
        **arrays.page_outcomes(len(world)),
    }
