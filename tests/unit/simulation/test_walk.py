"""The closed form of a session against drawn sessions: use, drop-offs, satisfaction and engaged visits, entry by entry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plpm_ray.simulation import luck, walk
from plpm_ray.simulation.simulation import Entries, Simulation, run_days
from plpm_ray.simulation.world import World
from tests.world_runs import FixedPage, plain_world

_MIXED: dict[str, Any] = {
    "population": {},
    "day_intent": {"sd": 1.5},
    "live": {},
    "unfinished": {},
    "satiation": {},
}
_REPEATS = 80


def entries_of(world: World, users: int) -> Entries:
    """Entries of users in the middle of their second day."""
    simulation = Simulation(world, np.arange(users))
    run_days(simulation, 1, FixedPage(world, 0))
    simulation.begin_day()
    entries = simulation.entries()
    assert entries is not None
    simulation.land(np.zeros(len(entries), dtype=np.int64))
    entries = simulation.entries()
    assert entries is not None
    return entries


def drawn(world: World, entries: Entries, page: int) -> dict[str, np.ndarray]:
    """(repeats, B) of each thing that `expected` foretells."""
    found: dict[str, list[np.ndarray]] = {"use": [], "satisfaction": [], "reached": []}
    for repeat in range(_REPEATS):
        keys = luck.child_keys(entries.key, 1000 + repeat)
        sessions = walk.draw(world, entries.situation, np.full(len(entries), page), keys)
        found["use"].append(sessions.use_ms / 1000)
        walked = world.config.retention.walked
        found["satisfaction"].append(np.where(sessions.reached, np.where(sessions.matched, 1.0, walked), 0.0))
        found["reached"].append(sessions.reached)
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("k", [2, 3, 5, 32])
@pytest.mark.parametrize(
    "landing",
    [
        {},
        {"tolerance": 2.5, "leave": 0.6, "compensation": 1.4, "mismatch_dwell": 0.9, "walk_on": 0.2},
        {"drop_off": 1.0, "drop_off_matched": 0.0, "leave": 0.0},
    ],
    ids=["default", "other", "edge"],
)
def test_the_closed_form_is_the_mean_of_what_is_drawn(k: int, landing: dict[str, float]) -> None:
    visits = {"most_pages": 4 if k > 2 else 2, "dwell_sd": 0.7}
    world = plain_world(k, landing=landing, visits=visits, browsing={"multi": 0.6, "single": 0.3}, **_MIXED)
    entries = entries_of(world, 120)
    known = walk.expected(world, entries.situation)
    for page in (0, k - 1):
        found = drawn(world, entries, page)
        for name, truth in (("use", known.use_KB[page]), ("satisfaction", known.satisfaction_KB[page])):
            sample = found[name]
            error = sample.std(axis=0, ddof=1) / np.sqrt(_REPEATS)
            # over all entries together, paired ...
            gap = sample.mean(axis=0) - truth
            assert abs(gap.mean()) < 4.5 * np.sqrt((error**2).mean() / len(gap)) + 1e-6, (name, page)
            # ... and one by one: the closed form follows each situation, not only their mean
            sure = error > 1e-9
            assert ((gap / np.where(sure, error, np.inf)) ** 2).mean() < 1.6
        # every session of a matched and undropped landing, and all that walk on, reach the wanted page
        onward = found["satisfaction"] == world.config.retention.walked
        np.testing.assert_array_equal(found["reached"], onward | (found["satisfaction"] == 1.0))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_drop_offs_and_engaged_visits_are_as_foretold(k: int) -> None:
    pages = [{"name": f"page_{i}", "popularity": 0.4 * i, "dwell_s": 2000.0} for i in range(k)]
    # visits of half an hour without spread, so that only drop-offs are short
    world = plain_world(pages, visits={"dwell_sd": 0.0, "most_pages": 2}, landing={"drop_off_s": 0.5})
    entries = entries_of(world, 3000)
    known = walk.expected(world, entries.situation)
    n = len(entries)
    for landing in range(k):
        sessions = walk.draw(world, entries.situation, np.full(n, landing), luck.child_keys(entries.key, 7))
        short = sessions.dwell_ms_PB[0] < 100_000
        assert short.mean() == pytest.approx(known.drop_off_KB[landing].mean(), abs=4.5 * 0.5 / np.sqrt(n))
        long_PB = sessions.dwell_ms_PB > 100_000
        for page in range(k):
            visits = ((sessions.pages_PB == page) & long_PB).any(axis=0).mean()
            assert visits == pytest.approx(
                known.engaged_KKB[landing, page].mean(), abs=4.5 * 0.5 / np.sqrt(n)
            )


def test_sessions_are_walks_on_the_pages() -> None:
    world = plain_world(4, browsing={"multi": 0.9, "single": 0.9}, visits={"most_pages": 6}, **_MIXED)
    entries = entries_of(world, 800)
    landing = np.arange(len(entries)) % 4
    sessions = walk.draw(world, entries.situation, landing, entries.key)
    pages, there = sessions.pages_PB, sessions.pages_PB >= 0
    np.testing.assert_array_equal(pages[0], landing)
    np.testing.assert_array_equal(sessions.matched, landing == sessions.wanted)
    assert (there[:-1] >= there[1:]).all(), "a gap between two visits"
    assert not ((pages[1:] == pages[:-1]) & there[1:]).any(), "a page follows itself"
    assert (sessions.dwell_ms_PB[there] >= 500).all() and not sessions.dwell_ms_PB[~there].any()
    walked = sessions.reached & ~sessions.matched
    np.testing.assert_array_equal(pages[1, walked], sessions.wanted[walked])
    np.testing.assert_array_equal(sessions.use_ms, sessions.dwell_ms_PB.sum(axis=0))


def test_the_same_luck_wants_the_same_page_wherever_it_lands() -> None:
    world = plain_world(5, **_MIXED)
    entries = entries_of(world, 500)
    one, other = (walk.draw(world, entries.situation, np.full(len(entries), p), entries.key) for p in (0, 3))
    np.testing.assert_array_equal(one.wanted, other.wanted)
    # what a landing page is better for is also what its closed form says
    known = walk.expected(world, entries.situation).use_KB
    gain = (one.use_ms - other.use_ms) / 1000 - (known[0] - known[3])
    assert abs(gain.mean()) < 4.5 * gain.std() / np.sqrt(len(gain))
