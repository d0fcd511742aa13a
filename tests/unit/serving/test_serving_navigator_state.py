"""A navigator with intra-day state: it is kept by user and local day, online as offline, and never read by another one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.features import RawFeatures
from plpm_ray.core.registry import register
from plpm_ray.navigators.base import Heuristic
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.decide import replay
from plpm_ray.serving.engine import NavigationPolicy, load_policy
from plpm_ray.serving.store import Users
from plpm_ray.serving.tables import read_entries
from tests.unit.serving.glan_world import day_of, glan_bundle
from tests.unit.serving.serving_world import (
    SCHEMA,
    bundle_of,
    entries_of,
    profiles_table,
    sessions_table,
    travelling,
)


@register("navigator", "test.budget")
class Budget(Heuristic):
    """Scores show the state: seconds used today, sessions today, and what the features said at the last entry."""

    state_size = 3

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        assert state is not None and state.shape == (len(features), 3)
        return np.concatenate([state, np.ones((len(state), 1), np.float32)], axis=1)

    def observe(
        self, state: np.ndarray, features: RawFeatures, outcome: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        age = np.nan_to_num(features.column("profile.age"))
        return np.stack(
            [state[:, 0] + outcome["use_s"], state[:, 1] + 1, features.column("today_entries") + age], axis=1
        ).astype(np.float32)


@register("navigator", "test.counter")
class Counter(Budget):
    state_size = 3


def test_state_of_the_day() -> None:
    sessions, profiles = sessions_table(users=10, per_user=12), profiles_table()
    bundle = bundle_of("heuristic.popularity")
    bundle.name = "test.budget"
    policy = load_policy(bundle, PolicyConfig(kind="softmax"), users=profiles)
    entries = read_entries(entries_of(sessions), SCHEMA.context)
    offline = replay(policy, entries, sessions)
    day = (entries.entry_ms + entries.offset_min * 60_000) // 86_400_000
    user = sessions["user_id"].to_numpy()
    exits = sessions["exit_time"].cast(pa.int64()).to_numpy()
    for row in range(len(entries)):
        before = (user == user[row]) & (day == day[row]) & (exits < entries.entry_ms[row])
        if offline.reason[row]:
            continue
        assert offline.scores[row, 1] == before.sum()
        seconds = sum(sum(d) for d, mine in zip(sessions["dwell_s"].to_pylist(), before, strict=True) if mine)
        assert offline.scores[row, 0] == pytest.approx(seconds, abs=0.01)  # milliseconds are rounded


def test_online_equals_offline_in_any_batching() -> None:
    sessions = sessions_table(users=6, per_user=8)
    bundle = bundle_of("heuristic.popularity")
    bundle.name = "test.budget"
    one, many = load_policy(bundle, users=profiles_table()), load_policy(bundle, users=profiles_table())
    one.observe(sessions)
    for start in range(0, len(sessions), 5):
        many.observe(sessions.slice(start, 5))
    last = int(sessions["exit_time"].cast(pa.int64())[-1].as_py()) + 1
    entries = pa.table({"user_id": list(range(6)), "entry_time": [last] * 6, "utc_offset_min": [480] * 6})
    assert one.decide(entries).equals(many.decide(entries))


def test_another_navigator_begins_from_nothing() -> None:
    sessions = sessions_table(users=3, per_user=8)
    bundle = bundle_of("heuristic.popularity")
    bundle.name = "test.budget"
    policy = load_policy(bundle)
    policy.observe(sessions)
    exits = sessions["exit_time"].cast(pa.int64()).to_numpy()
    user = sessions["user_id"].to_numpy()
    times = [int(exits[user == u].max()) + 1 for u in range(3)]
    entries = pa.table({"user_id": [0, 1, 2], "entry_time": times, "utc_offset_min": [480] * 3})
    assert any(score[1] > 0 for score in policy.decide(entries)["scores"].to_pylist())
    other = bundle_of("heuristic.popularity")
    other.name = "test.counter"
    taken = policy.with_bundle(other)
    assert [score[:3] for score in taken.decide(entries)["scores"].to_pylist()] == [[0, 0, 0]] * 3
    assert taken.decide(entries)["fallback"].null_count == 3


def test_of_a_long_log_only_the_last_day_is_lived_through() -> None:
    """As at the start of a service: the days before it leave no state."""
    sessions = sessions_table(users=8, per_user=30)
    bundle = bundle_of("heuristic.popularity")
    bundle.name = "test.budget"
    at_once, in_turn = (load_policy(bundle, users=profiles_table()) for _ in range(2))
    asked: list[int] = []
    observe = at_once.navigator.observe

    def counted(state: np.ndarray, features: RawFeatures, outcome: Mapping[str, np.ndarray]) -> np.ndarray:
        asked.append(len(state))
        return observe(state, features, outcome)

    at_once.navigator.observe = counted  # type: ignore[method-assign]
    at_once.observe(sessions)
    for i in range(len(sessions)):
        in_turn.observe(sessions.slice(i, 1))
    users = Users.of(np.arange(8))
    one, other = (policy.store.load(users)[0] for policy in (at_once, in_turn))
    assert one.tobytes() == other.tobytes()
    assert sum(asked) == one["nav"][:, 1].sum() < len(sessions) / 4


def budget() -> NavigationPolicy:
    bundle = bundle_of("heuristic.popularity")
    bundle.name = "test.budget"
    return load_policy(bundle, users=profiles_table())


def today(policy: NavigationPolicy, user: int, at: str, offset_min: int) -> float:
    """Sessions of the day that the navigator knows of when the user enters."""
    entry = {"user_id": [user], "entry_time": [at], "utc_offset_min": [offset_min]}
    return policy.decide(pa.table(entry))["scores"].to_pylist()[0][1]


def one_by_one(policy: NavigationPolicy, sessions: pa.Table) -> None:
    """A call for each session, in the order in which they ended."""
    for i in np.argsort(sessions["exit_time"].cast(pa.int64()).to_numpy(), kind="stable"):
        policy.observe(sessions.slice(i, 1))


def ms(at: str) -> int:
    return int(np.datetime64(at, "ms").astype(np.int64))


def test_the_day_of_a_traveller_does_not_go_back() -> None:
    """Past midnight at +9, then half an hour before it at +8: the day that has begun goes on, there and after midnight."""
    parts = [day_of(1, [ms("2024-05-01T15:20")], 540), day_of(1, [ms("2024-05-01T15:45")], 480, first_id=5)]
    at_once, in_turn = budget(), budget()
    at_once.observe(pa.concat_tables(parts))
    in_turn.observe(parts[0])
    assert today(in_turn, 1, "2024-05-01T15:40", 480) == 1
    in_turn.observe(parts[1])
    for policy in (at_once, in_turn):
        assert today(policy, 1, "2024-05-01T15:55", 480) == 2
        assert today(policy, 1, "2024-05-01T16:10", 480) == 2
        assert today(policy, 1, "2024-05-02T16:10", 480) == 0


def test_a_clock_that_is_put_back_over_midnight_leaves_the_state() -> None:
    policy = budget()
    policy.observe(day_of(2, [ms("2024-05-01T14:00"), ms("2024-05-01T15:00")], 480))
    policy.observe(day_of(2, [ms("2024-05-01T15:10")], 600, first_id=5))  # the next day there
    assert today(policy, 2, "2024-05-01T15:20", 480) == 1
    policy.observe(day_of(2, [ms("2024-05-01T15:30")], 480, first_id=7))
    assert today(policy, 2, "2024-05-01T15:40", 480) == today(policy, 2, "2024-05-01T16:40", 480) == 2
    # of a session that comes too late for its day, nothing is known; nor of a wrong clock at the entries before it
    policy.observe(day_of(2, [ms("2024-04-30T12:00")], 480, first_id=9))
    assert today(policy, 2, "2024-05-01T16:40", 480) == 2
    policy.observe(day_of(2, [ms("2024-06-01T12:00")], 480, first_id=11))
    assert today(policy, 2, "2024-05-01T17:40", 480) == 0


@pytest.mark.parametrize("glan", [False, True])
def test_one_call_is_the_calls_in_turn(glan: bool) -> None:
    """Whatever the offsets, and whatever was observed before: byte for byte."""
    sessions = travelling(sessions_table(users=20, per_user=25, seed=4), 4)
    policies = [load_policy(glan_bundle(), users=profiles_table()) if glan else budget() for _ in range(3)]
    some = sessions.slice(0, 150), sessions.slice(150)
    policies[0].observe(sessions)
    for part in some:
        policies[1].observe(part)
    one_by_one(policies[2], sessions)
    records = [policy.store.load(Users.of(np.arange(20)))[0] for policy in policies]
    for name in records[0].dtype.names:
        if glan and name == "nav":  # a batch of another size may round otherwise
            heads = [record[name][:, :3] for record in records]
            np.testing.assert_allclose(heads[0], heads[2], rtol=1e-4)
            np.testing.assert_allclose(heads[1], heads[2], rtol=1e-4)
        else:
            assert all(record[name].tobytes() == records[2][name].tobytes() for record in records), name
    asked = entries_of(sessions).slice(len(sessions) - 60)
    later = pa.array(asked["entry_time"].cast(pa.int64()).to_numpy() + 3 * 86_400_000)
    tables = [policy.decide(asked.set_column(1, "entry_time", later)) for policy in policies]
    for table in tables[:2]:
        scores = [np.array(made["scores"].to_pylist()) for made in (table, tables[2])]
        np.testing.assert_allclose(*scores, rtol=1e-3, atol=2e-4)


def test_days_of_travellers_are_the_same_served_and_replayed() -> None:
    sessions = travelling(sessions_table(users=15, per_user=20, seed=5), 5)
    entries = read_entries(entries_of(sessions), SCHEMA.context)
    offline = replay(budget(), entries, sessions)
    served, held, count = budget(), {}, {}
    local = (entries.entry_ms + entries.offset_min * 60_000) // 86_400_000
    back = 0
    # nobody's session begins before his last one has ended
    for row, user in enumerate(sessions["user_id"].to_pylist()):
        day = max(int(local[row]), held.get(user, -1))
        back += day > local[row]
        count[user] = count.get(user, 0) if day == held.get(user) else 0
        held[user] = day
        made = served.decide(entries_of(sessions.slice(row, 1)))
        if not offline.reason[row]:
            assert offline.scores[row, 1] == made["scores"].to_pylist()[0][1] == count[user]
        served.observe(sessions.slice(row, 1))
        count[user] += 1
    assert back > 20
