"""The world's promises: the same sessions however users are cut, the truth in closed form, propensities that are true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plpm_ray.simulation import luck, walk
from plpm_ray.simulation.choosers import (
    FarSightedOracle,
    FixedPage,
    LoggingPolicy,
    MyopicOracle,
    RandomPage,
)
from plpm_ray.simulation.config import WorldConfig, load_world, shipped_worlds
from plpm_ray.simulation.simulation import Entries, Sessions, Simulation, run_days
from plpm_ray.simulation.world import World


def _of_pages(k: int, **sections: Any) -> World:
    pages = [
        {"name": f"page_{i}", "popularity": 1.0 / (1 + i), "dwell_s": 60.0 + 10 * i, "returning": 0.02 * i}
        for i in range(k)
    ]
    return World(WorldConfig.model_validate({"name": f"{k} pages", "pages": pages, **sections}))


def _rows(sessions: list[Sessions]) -> np.ndarray:
    """(S, columns) everything that a session is, sorted by session id."""
    parts = [
        np.column_stack(
            [s.session_id, s.entries.entry_ms, s.exit_ms, s.landing, s.walk.pages_PB.T, s.walk.dwell_ms_PB.T]
        )
        for s in sessions
    ]
    table = np.concatenate(parts)
    return table[np.argsort(table[:, 0])]


def _run(world: World, users: np.ndarray, days: int, chooser: Any = None) -> list[Sessions]:
    seen: list[Sessions] = []
    run_days(Simulation(world, users), days, chooser or LoggingPolicy(), seen.append)
    return seen


@pytest.mark.parametrize("name", ["kuaishou", "five_pages", "hard", "null"])
def test_sessions_do_not_depend_on_the_company(name: str) -> None:
    assert name in shipped_worlds()
    world = World(load_world(name))
    users = np.arange(90)
    together = _rows(_run(world, users, 6))
    mixed = np.random.default_rng(0).permutation(users)
    apart = _rows([s for part in np.array_split(mixed, 7) for s in _run(world, part, 6)])
    np.testing.assert_array_equal(together, apart)
    other = load_world(name).model_copy(update={"seed": 1})
    assert not np.array_equal(together[:50], _rows(_run(World(other), users, 6))[:50])


def test_sessions_are_those_of_users_on_days_of_their_own() -> None:
    world, users, days = World(load_world("kuaishou")), np.arange(60), 5
    wanted = _rows(_run(world, users, days))
    simulation, chooser = Simulation(world, users), LoggingPolicy()
    seen: list[Sessions] = []
    rng = np.random.default_rng(3)
    while (simulation.day < days - 1).any() or simulation.entries() is not None:
        idle = simulation.next_ms == np.iinfo(np.int64).max
        late = np.flatnonzero(idle & (simulation.day < days - 1) & (rng.random(len(users)) < 0.5))
        if len(late):
            simulation.begin_day(late)
        entries = simulation.entries()
        if entries is not None:
            choice = chooser.choose(simulation, entries)
            seen.append(simulation.land(choice.page, choice.propensity))
    np.testing.assert_array_equal(_rows(seen), wanted)


def test_entries_follow_each_other() -> None:
    world = World(load_world("kuaishou"))
    table = _rows(_run(world, np.arange(300), 10))
    user = table[:, 0] // (4096 * 256)
    same = user[1:] == user[:-1]
    assert (table[1:, 1][same] > table[:-1, 2][same]).all(), "an entry before the last exit"
    local_day = (table[:, 1] + 480 * 60_000) // 86_400_000 - world.first_day
    np.testing.assert_array_equal(local_day, table[:, 0] // 256 % 4096)


@pytest.mark.parametrize("k", [2, 3, 8, 32])
@pytest.mark.parametrize("off", [(), ("browsing",), ("landing",)])
def test_what_is_expected_is_what_is_drawn(k: int, off: tuple[str, ...]) -> None:
    world = _of_pages(k, **{section: {"enabled": False} for section in off})
    simulation = Simulation(world, np.arange(400))
    run_days(simulation, 2, LoggingPolicy())
    simulation.begin_day()
    entries = simulation.entries()
    assert entries is not None
    known = walk.expected(world, entries.situation)
    for page in {0, 1, k - 1}:
        landing = np.full(len(entries), page)
        drawn = np.array(
            [
                _outcomes(world, entries, landing, luck.child_keys(entries.key, 1000 + repeat))
                for repeat in range(60)
            ]
        )
        truth = np.array([known.use_KB[page].mean(), known.satisfaction_KB[page].mean()])
        error = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn))
        assert (np.abs(drawn.mean(axis=0) - truth) < 4.5 * error + 1e-9).all(), (
            page,
            drawn.mean(axis=0),
            truth,
        )


def _outcomes(world: World, entries: Entries, landing: np.ndarray, keys: np.ndarray) -> tuple[float, float]:
    """Mean seconds and satisfaction."""
    drawn = walk.draw(world, entries.situation, landing, keys)
    walked = world.config.retention.walked
    satisfied = np.where(drawn.reached, np.where(drawn.matched, 1.0, walked), 0.0)
    return float(drawn.use_ms.mean() / 1000), float(satisfied.mean())


def test_propensities_of_the_logs_are_true() -> None:
    world = World(load_world("five_pages"))
    seen = _run(world, np.arange(1500), 6)
    propensity = np.concatenate([s.propensity for s in seen])
    landing = np.concatenate([s.landing for s in seen])
    user = np.concatenate([s.entries.rows for s in seen])
    assert (propensity > 0).all() and (propensity <= 1).all()
    for page in range(len(world)):
        excess = np.where(landing == page, 1 / propensity, 0.0) - 1
        by_user = np.bincount(user, weights=excess, minlength=1500)
        assert abs(by_user.sum()) < 4 * np.sqrt((by_user**2).sum())


def test_oracles_are_the_ceiling_and_random_is_the_floor() -> None:
    world = World(load_world("hard"))
    users = np.arange(1500)

    def use(chooser: Any) -> np.ndarray:
        simulation, total = Simulation(world, users), np.zeros(len(users))
        run_days(simulation, 4, LoggingPolicy())

        def count(sessions: Sessions) -> None:
            total[sessions.entries.rows] += sessions.use_ms / 1000

        run_days(simulation, 10, chooser, count)
        return total

    floor, logged, myopic, far = (
        use(c) for c in (RandomPage(), LoggingPolicy(), MyopicOracle(), FarSightedOracle())
    )
    for low, high in ((floor, myopic), (logged, myopic), (myopic, far)):
        gain = high - low
        assert gain.mean() > 2 * gain.std() / np.sqrt(len(users))


def test_in_the_null_world_nothing_depends_on_the_landing_page() -> None:
    world, users = World(load_world("null")), np.arange(200)
    runs = [
        _run(world, users, 6, chooser)
        for chooser in (LoggingPolicy(), RandomPage(), FixedPage(world, 2), MyopicOracle())
    ]
    columns = [
        np.concatenate([[s.session_id, s.use_ms, s.exit_ms, s.count, s.dropped] for s in run], axis=1)
        for run in runs
    ]
    for other in columns[1:]:
        np.testing.assert_array_equal(columns[0], other)
    landings = [np.concatenate([s.landing for s in run]) for run in runs]
    assert not np.array_equal(landings[0], landings[1])


def test_wrong_pages_are_refused() -> None:
    simulation = Simulation(World(load_world("kuaishou")), np.arange(50))
    with pytest.raises(ValueError, match="0 entries wait"):
        simulation.land(np.zeros(3, dtype=np.int16))
    simulation.begin_day()
    entries = simulation.entries()
    assert entries is not None
    with pytest.raises(ValueError, match="wait for a landing page"):
        simulation.land(np.zeros(len(entries) + 1, dtype=np.int16))
    with pytest.raises(ValueError, match="pages lie between 0 and 2"):
        simulation.land(np.full(len(entries), 3, dtype=np.int16))
