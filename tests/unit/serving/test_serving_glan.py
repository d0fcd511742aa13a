"""GLAN's day in the records of serving: feedback early, late, twice and never; local midnight; bits and bytes of a record."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.data.contract import DAY_MS
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.decide import replay
from plpm_ray.serving.engine import NavigationPolicy, load_policy
from plpm_ray.serving.record_bytes import pack, unpack
from plpm_ray.serving.records import day_state, tag_of
from plpm_ray.serving.store import StateStore, Users
from plpm_ray.serving.tables import read_entries
from tests.unit.serving.glan_world import CONTEXT, day_of, glan_bundle
from tests.unit.serving.serving_world import SCHEMA, entries_of, profiles_table, sessions_table
from tests.unit.serving.test_serving_engine import replay as served_in_turn

HOUR = 3_600_000
NOON = 19_700 * DAY_MS + 12 * HOUR
FAST = {"dt": {"reward": "duration"}}


def asked(policy: NavigationPolicy, user: int, at: int, offset_min: int = 0) -> tuple[float, list[float]]:
    """R_t and the scores of an entry."""
    entry = pa.table({"user_id": [user], "entry_time": [at], "utc_offset_min": [offset_min]})
    row = policy.decide(entry).to_pylist()[0]
    assert row["fallback"] is None and len(set(row["rtg"])) == 1
    return row["rtg"][0], row["scores"]


def state_of(policy: NavigationPolicy, user: int, at: int) -> np.ndarray:
    records, _ = policy.store.load(Users.of([user]))
    day = np.array([at // DAY_MS])
    return day_state(records, day, policy.navigator.state_size, tag_of(policy.bundle.version))[0]


def test_feedback_moves_the_return_to_go(store: StateStore) -> None:
    policy = load_policy(glan_bundle(**FAST), store=store)
    first, scores = asked(policy, 3, NOON)
    policy.observe(day_of(3, [NOON]))
    left, then = asked(policy, 3, NOON + HOUR)
    assert left == pytest.approx(first - 60, abs=0.01) and then != scores
    # nobody reported what followed that decision: as if it had not been
    assert asked(policy, 3, NOON + 2 * HOUR)[0] == left
    policy.observe(day_of(3, [NOON + 3 * HOUR], first_id=50))
    assert asked(policy, 3, NOON + 4 * HOUR)[0] == pytest.approx(left - 60, abs=0.01)
    assert policy.observe(day_of(3, [NOON + 3 * HOUR], first_id=50)) == 0
    assert asked(policy, 3, NOON + 4 * HOUR)[0] == pytest.approx(left - 60, abs=0.01)


def test_repeats_leave_every_bit_of_the_state(store: StateStore) -> None:
    policy = load_policy(glan_bundle(), store=store)
    sessions = day_of(1, [NOON, NOON + HOUR, NOON + 2 * HOUR])
    policy.observe(sessions)
    before = state_of(policy, 1, NOON)
    assert before[0] == 3
    assert policy.observe(sessions) == 0
    assert np.array_equal(state_of(policy, 1, NOON).view(np.uint32), before.view(np.uint32))


def test_in_any_order_the_same_use_is_subtracted() -> None:
    """What HRM says of a session depends on what was known of the day then; its length does not."""
    sessions = day_of(2, [NOON, NOON + HOUR, NOON + 2 * HOUR])
    found = []
    for order in itertools.permutations(range(3)):
        policy = load_policy(glan_bundle(**FAST))
        for i in order:
            policy.observe(sessions.slice(i, 1))
        found.append(asked(policy, 2, NOON + 4 * HOUR)[0])
    np.testing.assert_allclose(found, found[0], rtol=1e-6)
    fresh = load_policy(glan_bundle(**FAST))
    assert found[0] == pytest.approx(asked(fresh, 2, NOON + 4 * HOUR)[0] - (60 + 70 + 80), abs=1.0)


def test_a_late_session_of_yesterday_changes_nothing_of_today(store: StateStore) -> None:
    policy = load_policy(glan_bundle(), store=store)
    policy.observe(day_of(1, [NOON - DAY_MS + i * HOUR for i in range(3)]))
    policy.observe(day_of(1, [NOON, NOON + HOUR], first_id=10))
    today = state_of(policy, 1, NOON)
    late = day_of(1, [NOON - DAY_MS + 6 * HOUR], first_id=20)
    assert policy.observe(late) == 1
    assert np.array_equal(state_of(policy, 1, NOON).view(np.uint32), today.view(np.uint32))
    assert today[0] == 2 and asked(policy, 1, NOON + 2 * HOUR)[0] == today[1]


def test_the_day_begins_anew_at_local_midnight(store: StateStore) -> None:
    """At one moment it is evening for one user and the next morning for another."""
    policy = load_policy(glan_bundle(**FAST), store=store)
    midnight_utc = 19_701 * DAY_MS
    offsets = {1: 0, 2: 600, 3: -480}  # UTC, UTC+10, UTC-8
    for user, offset in offsets.items():
        last = midnight_utc - offset * 60_000 - HOUR
        begun, _ = asked(policy, user, last - 2 * HOUR, offset)
        policy.observe(day_of(user, [last - HOUR, last], offset))
        still, _ = asked(policy, user, last + HOUR // 2, offset)
        anew, _ = asked(policy, user, last + HOUR, offset)
        fresh, _ = asked(policy, user, last + 3 * HOUR, offset)
        assert anew == fresh
        records, _ = policy.store.load(Users.of([user]))
        assert records["nav"][0, 0] == 2 and records["nav_day"][0] == 19_700
        assert still == float(records["nav"][0, 1]) and still == pytest.approx(begun - 60 - 70, abs=0.01)


def test_another_version_does_not_read_the_day() -> None:
    """A hot swap: the next decision begins a day, with R_1, and the sessions before the swap are not in its past."""
    policy = load_policy(glan_bundle(**FAST))
    first, _ = asked(policy, 1, NOON)
    policy.observe(day_of(1, [NOON, NOON + HOUR]))
    other = policy.with_bundle(glan_bundle(seed=5, **FAST))
    records, _ = policy.store.load(Users.of([1]))
    mine = day_state(records, np.array([19_700]), other.navigator.state_size, tag_of(other.bundle.version))
    assert not mine.any() and records["nav"][0, 0] == 2
    begun, _ = asked(other, 1, NOON + 2 * HOUR)
    other.observe(day_of(1, [NOON + 2 * HOUR], first_id=7))
    assert asked(other, 1, NOON + 3 * HOUR)[0] == pytest.approx(begun - 60, abs=0.01)
    # and back: what the other one left is not read either
    assert asked(policy, 1, NOON + 3 * HOUR)[0] > first - 120


def test_bits_that_are_no_numbers_come_back(store: StateStore) -> None:
    policy = load_policy(glan_bundle(), store=store)
    users = Users.of([4, 5])
    records = np.repeat(policy.layout.blank, 2)
    patterns = np.random.default_rng(0).integers(
        0, 1 << 16, (2, 2 * policy.navigator.state_size), dtype=np.uint16
    )
    patterns[0, 1::2] = 0x7F81  # a NaN as float32 that signals, whatever its lower half
    records["nav_day"], records["nav_tag"] = 19_700, tag_of(policy.bundle.version)
    records["nav"][:, : policy.navigator.state_size] = patterns.view(np.float32)
    assert np.isnan(records["nav"]).any()
    store.save(users, records)
    again, _ = store.load(users)
    assert again.tobytes() == records.tobytes()
    assert unpack(list(pack(records, policy.layout)), policy.layout).tobytes() == records.tobytes()
    day = np.array([19_700, 19_700])
    for some in (day, np.array([19_700, 19_699])):
        held = day_state(again, some, policy.navigator.state_size, tag_of(policy.bundle.version))
        assert np.array_equal(held[0].view(np.uint16), patterns[0])
    assert not held[1].any()


def test_bytes_of_a_user() -> None:
    """At the default size: 12 bytes and 384 a session up to the 32 that are seen; a server keeps what there is of them."""
    policy = load_policy(glan_bundle(dt={"width": 64, "context": 32}))
    assert policy.navigator.state_size * 4 == 12_300
    for user, n in enumerate([1, 5, 30, 40]):
        policy.observe(day_of(user, [NOON + i * 300_000 for i in range(n)]))
        records, _ = policy.store.load(Users.of([user]))
        without = records.copy()
        for name in ("nav", "nav_day", "nav_tag"):
            without[name] = policy.layout.blank[name]
        packed, bare = (len(pack(some, policy.layout)[0]) for some in (records, without))
        # day and tag stand beside the state, and a bit for each word up to its end; a word of it may be zero by chance
        seen, bits = min(n, 32), policy.layout.shared_bytes // 32
        assert 24 + 384 * seen - 8 - 0.002 * packed <= packed - bare <= 24 + (384 + 12) * seen + bits


def test_served_in_turn_and_replayed_alike(store: StateStore) -> None:
    sessions, profiles = sessions_table(users=6, per_user=14, seed=3), profiles_table()
    policy = load_policy(glan_bundle(), PolicyConfig(kind="softmax", seed=2), store=store, users=profiles)
    served = served_in_turn(policy, sessions)
    assert served["fallback"].null_count == len(served)
    fresh = load_policy(glan_bundle(), PolicyConfig(kind="softmax", seed=2), users=profiles)
    entries = read_entries(entries_of(sessions), SCHEMA.context)
    offline = fresh.decision_table(entries, replay(fresh, entries, sessions))
    for name in ("scores", "p", "stay", "rtg"):
        a, b = (np.array(table[name].to_pylist(), np.float32) for table in (served, offline))
        # a batch of another size rounds otherwise, and now and then to the neighbouring half-precision number
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)
    assert served["page"].equals(offline["page"])
    rtg = np.array(served["rtg"].to_pylist())[:, 0]
    assert len(np.unique(rtg.round(2))) > len(rtg) / 2
    assert policy.navigator.state_size == 3 + CONTEXT * 96
