"""What picks landing pages in the world: the logging policy, fixed and random pages, and the two oracles.

Navigators (heuristics and trained bundles) come in `plpm_ray.simulation.navigated`, through the feature code of serving.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from plpm_ray.policies.base import Choice, Policy, PolicyConfig, uniforms
from plpm_ray.simulation.simulation import Entries, Sessions, Simulation
from plpm_ray.simulation.walk import Expected, expected
from plpm_ray.simulation.world import World

Builtin = Literal["logging", "random", "myopic_oracle", "far_sighted_oracle"]
BUILTINS: tuple[str, ...] = get_args(Builtin)
_HOUR_MS = 3_600_000
_LOGGING_SEED = 7


class _Forgetful:
    """Base of choosers that learn nothing from sessions."""

    def observe(self, simulation: Simulation, sessions: Sessions) -> None:
        """Nothing."""


class LoggingPolicy(_Forgetful):
    """The biased policy that makes the logs; see config.Logging. Its propensities are the true ones."""

    name = "logging"

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        probs_KB = self.probabilities(simulation, entries)
        u = uniforms(_LOGGING_SEED, entries.user_hash, entries.entry_ms)
        page = (u >= probs_KB.cumsum(axis=0)[:-1]).sum(axis=0)
        return Choice(page.astype(np.int16), probs_KB[page, np.arange(len(page))], probs_KB.T)

    def probabilities(self, simulation: Simulation, entries: Entries) -> np.ndarray:
        """(K, B) probabilities of the landing pages."""
        world, config = simulation.world, simulation.world.config.logging
        k, rows, state = len(world), entries.rows, simulation.state
        known = state.last_exit_page[rows] >= 0
        longest = state.seconds_KU[:, rows].argmax(axis=0)
        frequent = state.visits_KU[:, rows].argmax(axis=0)
        recent = entries.entry_ms - state.last_exit_ms[rows] <= config.restore_h * _HOUR_MS
        ruled = np.where(entries.step == 0, longest, np.where(recent, state.last_exit_page[rows], frequent))
        ruled = np.where(known, ruled, world.default_page)
        probs = np.full((k, len(rows)), config.explore / k)
        probs[world.default_page] += config.default_share
        probs[ruled, np.arange(len(rows))] += 1 - config.explore - config.default_share
        return probs


class FixedPage(_Forgetful):
    """The same page for everybody: an arm of the randomised trial."""

    def __init__(self, world: World, page: int) -> None:
        self.name, self.page, self.k = f"always {world.pages.names[page]}", page, len(world)

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        b = len(entries)
        probs = np.zeros((b, self.k))
        probs[:, self.page] = 1.0
        return Choice(np.full(b, self.page, dtype=np.int16), np.ones(b), probs)


class RandomPage(_Forgetful):
    """Every page with the same probability: the floor."""

    name = "random"

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        k = len(simulation.world)
        u = uniforms(_LOGGING_SEED, entries.user_hash, entries.entry_ms)
        shape = (len(entries), k)
        page = np.minimum((u * k).astype(np.int16), k - 1)
        return Choice(page, np.full(len(entries), 1 / k), np.full(shape, 1 / k))


class MyopicOracle(_Forgetful):
    """Knows the hidden situation and takes the page with the longest expected session."""

    name = "oracle (myopic)"

    def __init__(self, policy: PolicyConfig | None = None) -> None:
        self.policy = Policy(policy)

    def values(self, simulation: Simulation, entries: Entries) -> np.ndarray:
        """(K, B) seconds."""
        return expected(simulation.world, entries.situation).use_KB

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        values = self.values(simulation, entries)
        return self.policy.draw(values.T, entries.user_hash, entries.entry_ms)


class FarSightedOracle(MyopicOracle):
    """Also knows the delayed effects: what a page does to the rest of the evening and to the days after.

    It adds to the session's seconds, to first order, (1) the further entries of this evening that engaged visits bring, each
    worth what the last entry of such a day is worth, and (2) the active days that satisfaction brings, each worth an average
    day of this user. What goes through satiation, unfinished interest and the time that a longer session takes is left
    out, so the true optimum is higher still.
    """

    name = "oracle (far-sighted)"

    def values(self, simulation: Simulation, entries: Entries) -> np.ndarray:
        known = expected(simulation.world, entries.situation)
        # what the first entry of a day is worth to this user under the best page; later ones are shorter
        fatigue = simulation.world.config.entries.fatigue
        first_s = known.use_KB.max(axis=0) * (entries.step + 1.0) ** fatigue
        return (
            known.use_KB
            + self._evening(simulation, entries, known, first_s)
            + self._days(simulation, entries, known, first_s)
        )

    def _evening(
        self, simulation: Simulation, entries: Entries, known: Expected, first_s: np.ndarray
    ) -> np.ndarray:
        world, rows = simulation.world, entries.rows
        config, boost = world.config, simulation.state.boost[rows]
        midnight = world.day_start_ms(entries.day, entries.utc_offset_min)
        rest_h = config.entries.rest_min / 60
        after_h = (entries.entry_ms - midnight) / _HOUR_MS + known.use_KB.max(axis=0) / 3600 + rest_h
        begin = np.clip(after_h, config.returning.evening_hour, 24.0 - 1e-3)
        left, rate = 1 - world.tide_before(begin), simulation.state.rate_today[rows]
        before = rate * np.maximum(
            world.tide_before(begin) - world.tide_before(np.minimum(after_h, 24.0)), 0.0
        )
        wished = rate * np.exp(boost) * left
        count = np.minimum(entries.step + 2.0 + before + wished, config.entries.most)
        last_s = first_s * count**-config.entries.fatigue
        # sessions and rests take time in which no other begins: what they would take of the evening if all came about
        busy = wished * (last_s / 3600 + rest_h) / (24.0 - begin)
        more = wished / (1 + busy) ** 2 * (boost < config.returning.most) * (count < config.entries.most)
        return np.einsum("awb,w->ab", known.engaged_KKB, world.returning) * more * last_s

    def _days(
        self, simulation: Simulation, entries: Entries, known: Expected, first_s: np.ndarray
    ) -> np.ndarray:
        world, rows, state, users = simulation.world, entries.rows, simulation.state, simulation.users
        config = world.config.retention
        if not config.enabled:
            return np.zeros_like(known.use_KB)
        now = users.active_logit[rows] + config.logit * (state.satisfaction[rows] - config.reference)
        rate = state.rate_today[rows]
        today = np.maximum(rate / -np.expm1(-rate), entries.step + 1)
        # a session moves the day's mean by 1 / entries of it, the memory keeps a share of that and lets it fade with every
        # active day: summed over the days to come a change by x is logit p (1 - p) x / p more active days
        gained_days = config.logit / (1 + np.exp(now)) / today
        usual = users.rate[rows]
        worth = np.cumsum(np.arange(1.0, world.config.entries.most + 2) ** -world.config.entries.fatigue)
        count = np.minimum(usual / -np.expm1(-usual), world.config.entries.most)
        day_s = first_s * np.interp(count, np.arange(1, len(worth) + 1), worth)
        return known.satisfaction_KB * gained_days * day_s


def builtin_chooser(
    name: str, policy: PolicyConfig | None = None
) -> LoggingPolicy | RandomPage | MyopicOracle:
    """The chooser of a name in BUILTINS; `policy`: how an oracle's pages are drawn from its seconds."""
    if name == "logging":
        return LoggingPolicy()
    if name == "random":
        return RandomPage()
    return FarSightedOracle(policy) if name == "far_sighted_oracle" else MyopicOracle(policy)
