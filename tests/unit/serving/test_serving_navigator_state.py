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
from plpm_ray.serving.engine import load_policy
from plpm_ray.serving.store import Users
from plpm_ray.serving.tables import read_entries
from tests.unit.serving.serving_world import SCHEMA, bundle_of, entries_of, profiles_table, sessions_table


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
