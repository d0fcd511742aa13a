"""The counts of an experiment against a plain recount of the sessions."""

from __future__ import annotations

import numpy as np
import pytest

from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.experiment import live
from plpm_ray.simulation.simulation import Sessions, Simulation
from plpm_ray.simulation.totals import STATES, Recorder
from plpm_ray.simulation.world import World

DAYS = (3, 9)


class _Keep(LoggingPolicy):
    """The logging policy, with all it was told."""

    def __init__(self) -> None:
        self.seen: list[Sessions] = []

    def observe(self, simulation: Simulation, sessions: Sessions) -> None:
        self.seen.append(sessions)


@pytest.fixture(scope="module")
def recorded() -> tuple[World, Recorder, list[Sessions]]:
    world = World(load_world("kuaishou"))
    simulation = Simulation(world, np.arange(300))
    keep, recorder = _Keep(), Recorder(world, simulation, DAYS)
    live(simulation, sum(DAYS), keep, (keep,), recorder)
    recorder.finish()
    return world, recorder, keep.seen


def _flat(seen: list[Sessions], name: str) -> np.ndarray:
    return np.concatenate(
        [getattr(s, name, None) if hasattr(s, name) else getattr(s.entries, name) for s in seen]
    )


def test_user_totals_are_those_of_the_sessions(recorded: tuple[World, Recorder, list[Sessions]]) -> None:
    world, recorder, seen = recorded
    users = recorder.users("a")
    day, row, use = _flat(seen, "day"), _flat(seen, "rows"), _flat(seen, "use_ms") / 1000
    for i, prefix in enumerate(("aa", "ab")):
        inside = (day < DAYS[0]) if i == 0 else (day >= DAYS[0])
        wanted = np.bincount(row[inside], weights=use[inside], minlength=300)
        np.testing.assert_allclose(users[f"{prefix}_use_s"].to_numpy(), wanted, rtol=1e-12)
        active = {(r, d) for r, d in zip(row[inside].tolist(), day[inside].tolist(), strict=True)}
        assert sum(users[f"{prefix}_active_days"].to_pylist()) == len(active)
        landings = np.bincount(_flat(seen, "landing")[inside], minlength=len(world))
        for k, page in enumerate(world.pages.names):
            assert sum(users[f"{prefix}_assigned_{page}"].to_pylist()) == landings[k]
    last = {(r, d) for r, d in zip(row.tolist(), day.tolist(), strict=True) if d >= sum(DAYS) - 7}
    assert sum(users["ab_last7_active_days"].to_pylist()) == len(last)
    assert sum(users["aa_last7_active_days"].to_pylist()) == sum(users["aa_active_days"].to_pylist())


def test_effective_entries_need_ten_seconds(recorded: tuple[World, Recorder, list[Sessions]]) -> None:
    world, recorder, seen = recorded
    wanted = np.zeros(len(world))
    for sessions in seen:
        long = sessions.walk.dwell_ms_PB >= 10_000
        wanted += np.bincount(sessions.walk.pages_PB[long], minlength=len(world))
    np.testing.assert_array_equal(recorder.counts.pages[:, :, 1].sum(axis=0), wanted)
    assert recorder.counts.pages[:, :, 3].sum() == pytest.approx(sum(s.use_ms.sum() for s in seen) / 1000)
    dropped = sum(int((s.landing_ms < 10_000).sum()) for s in seen)
    assert recorder.counts.pages[:, :, 2].sum() == dropped == recorder.counts.daily["drop_offs"].sum()


def test_moves_join_the_states_of_neighbouring_days(recorded: tuple[World, Recorder, list[Sessions]]) -> None:
    _, recorder, seen = recorded
    state = np.zeros((sum(DAYS), 300), dtype=int)
    pages: dict[tuple[int, int], set[int]] = {}
    for s in seen:
        for i in range(len(s)):
            key = (int(s.entries.day[i]), int(s.entries.rows[i]))
            long = s.walk.dwell_ms_PB[:, i] >= 10_000
            pages.setdefault(key, set()).update(s.walk.pages_PB[long, i].tolist())
    for (day, user), visited in pages.items():
        state[day, user] = 2 if len(visited) > 1 else 1
    assert recorder.counts.moves[0].sum() == 0
    for day in range(1, sum(DAYS)):
        for before in range(len(STATES)):
            for after in range(len(STATES)):
                both = ((state[day - 1] == before) & (state[day] == after)).sum()
                assert recorder.counts.moves[day, before, after] == both


def test_ever_active_grows_and_bounds_the_daily_users(
    recorded: tuple[World, Recorder, list[Sessions]],
) -> None:
    counts = recorded[1].counts
    assert (np.diff(counts.daily["ever_active"]) >= 0).all()
    assert (counts.daily["active_users"] <= counts.daily["ever_active"]).all()
    assert counts.hourly[:, :, 0].sum() == counts.daily["sessions"].sum()
    double = counts + counts
    assert double.users == 600
    np.testing.assert_array_equal(double.moves, 2 * counts.moves)
