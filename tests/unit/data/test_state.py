"""The online state: replaying a log gives the batch features exactly; order, repeats, skewed clocks, bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plpm_ray.core.errors import StateError
from plpm_ray.core.features import FeatureSchema
from plpm_ray.data.contract import DAY_MS, TIMESTAMP
from plpm_ray.data.features import state
from plpm_ray.data.features.batch import batch_features, batch_features_and_days
from plpm_ray.data.features.layout import DAY
from plpm_ray.data.features.sessions import EntryArrays, SessionArrays, user_codes
from tests.unit.data.feature_logs import START, assert_same, random_log, schema_of

HOUR = 3_600_000
MINUTE = 60_000


@dataclasses.dataclass
class Log:
    """A log as both kinds of feature code read it; `due` is the order in which its sessions end."""

    schema: FeatureSchema
    users: np.ndarray
    sessions: SessionArrays
    entries: EntryArrays

    @classmethod
    def of(cls, table: pa.Table, k: int) -> Log:
        schema = FeatureSchema(schema_of(k).pages)
        (users,) = user_codes(table["user_id"])
        return cls(schema, users, SessionArrays.from_table(table), EntryArrays.from_table(table))

    @property
    def due(self) -> np.ndarray:
        return np.lexsort((self.sessions.key, self.sessions.entry_ms, self.sessions.exit_ms))

    def empty(self, nav_size: int = 0) -> np.ndarray:
        return state.empty_states(state.state_dtype(self.schema, nav_size), self.users.max() + 1)

    def observed(self, rows: np.ndarray) -> np.ndarray:
        states = self.empty()
        state.observe(states, self.users[rows], self.sessions.take(rows))
        return states

    def batch(self):
        every = np.ones(len(self.users), dtype=bool)
        raw, raw_days = batch_features_and_days(
            self.users, self.sessions, self.users, self.entries, self.schema, every
        )
        raw.days = raw_days
        return raw


def replay(log: Log) -> None:
    """Event by event: before each moment of entry observe what has ended, then compare with the batch features."""
    expected, states, due, done = log.batch(), log.empty(), log.due, 0
    for moment in np.unique(log.entries.entry_ms):
        ended = int(np.searchsorted(log.sessions.exit_ms[due], moment))
        if ended > done:
            rows = due[done:ended]
            state.observe(states, log.users[rows], log.sessions.take(rows))
            done = ended
        now = np.flatnonzero(log.entries.entry_ms == moment)
        assert_same(
            state.features(states, log.entries.take(now), log.schema, rows=log.users[now], days=True),
            expected.take(now),
        )


visits = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.sampled_from([0.0, 0.0005, 1.5, 61.7, 5000.0])),
    min_size=1,
    max_size=4,
)
session = st.tuples(
    st.integers(0, 2),
    st.one_of(st.integers(0, 40 * 24 * 60), st.integers(0, 200), st.sampled_from([1439, 1440])),
    st.sampled_from([0, 0, 1, 30, 1500, 5000]),
    st.sampled_from([0, 480, -720, 840]),
    visits,
    st.one_of(st.none(), st.integers(0, 50)),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 32), st.lists(session, min_size=1, max_size=30))
def test_replaying_any_log_gives_the_batch_features(k: int, rows: list) -> None:
    table = pa.table(
        {
            "user_id": pa.array([r[0] for r in rows]),
            "session_id": pa.array(range(len(rows))),
            "entry_time": pa.array([START * DAY_MS + r[1] * MINUTE for r in rows], pa.int64()).cast(
                TIMESTAMP
            ),
            "exit_time": pa.array([START * DAY_MS + (r[1] + r[2]) * MINUTE for r in rows], pa.int64()).cast(
                TIMESTAMP
            ),
            "utc_offset_min": pa.array([r[3] for r in rows], pa.int16()),
            "landing_page": pa.array([r[4][0][0] % k for r in rows], pa.int16()),
            "pages": pa.array([[p % k for p, _ in r[4]] for r in rows], pa.list_(pa.int16())),
            "dwell_s": pa.array([[d for _, d in r[4]] for r in rows], pa.list_(pa.float32())),
            "video_views": pa.array(
                [None if r[5] is None else [r[5]] * len(r[4]) for r in rows], pa.list_(pa.int32())
            ),
        }
    )
    replay(Log.of(table, k))


@pytest.mark.parametrize(
    ("seed", "k", "users", "days"), [(0, 3, 50, 40), (1, 2, 3, 120), (2, 32, 20, 20), (3, 5, 4, 3)]
)
def test_replaying_a_large_log_gives_the_batch_features(seed: int, k: int, users: int, days: int) -> None:
    table = random_log(
        np.random.default_rng(seed),
        3000,
        k,
        users=users,
        days=days,
        offsets=(480, -300, 840),
        grid_ms=1 + seed % 2 * HOUR,
    )
    replay(Log.of(table, k))


@pytest.mark.parametrize("seed", range(4))
def test_order_of_observing_does_not_matter_with_a_constant_offset(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log = Log.of(random_log(rng, 300, 3, users=4, days=(3, 100)[seed % 2], grid_ms=HOUR), 3)
    expected = log.observed(log.due)
    states = log.empty()
    for rows in np.array_split(rng.permutation(300), (1, 7, 60, 300)[seed]):
        state.observe(states, log.users[rows], log.sessions.take(rows))
    assert states.tobytes() == expected.tobytes()


def test_late_sessions_with_changing_offsets_keep_days_in_order() -> None:
    rng = np.random.default_rng(1)
    log = Log.of(random_log(rng, 500, 3, users=4, days=10, offsets=(-720, 840)), 3)
    states = log.empty()
    for rows in np.array_split(rng.permutation(500), 100):
        state.observe(states, log.users[rows], log.sessions.take(rows))
        days = states["recent"][:, :, DAY]  # newest first
        assert (np.diff(days, axis=1) <= 0).all()


def test_repeated_sessions_are_ignored() -> None:
    log = Log.of(random_log(np.random.default_rng(2), 8, 3, users=1), 3)
    once = log.observed(log.due)
    again = log.observed(np.concatenate([log.due, log.due[::-1]]))
    state.observe(again, log.users, log.sessions)
    assert again.tobytes() == once.tobytes()


def test_sessions_that_end_after_the_entry_do_not_count() -> None:
    rng = np.random.default_rng(4)
    log = Log.of(random_log(rng, 400, 3, users=10, days=2.0, grid_ms=1000), 3)
    expected, due = log.batch(), log.due
    exits = log.sessions.exit_ms[due]
    checked = 0
    for i in rng.permutation(400)[:120]:
        mine = due[log.users[due] == log.users[i]]
        ahead = np.searchsorted(log.sessions.exit_ms[mine], log.entries.entry_ms[i]) + 1 + i % state.SPARE
        seen = mine[: min(ahead, len(mine))]
        if log.sessions.exit_day[seen].max(initial=0) < log.entries.local_day[i] + 2:
            row = np.array([i])
            entry, user = log.entries.take(row), log.users[row]
            one = state.features(log.observed(seen), entry, log.schema, rows=user, days=True)
            assert_same(one, expected.take(row))
            checked += 1
    assert checked > 100
    assert (np.diff(exits) >= 0).all()


def test_totals_stay_exact_until_all_last_sessions_lie_ahead() -> None:
    log = Log.of(random_log(np.random.default_rng(7), 30, 3, users=1, days=0.5), 3)
    due = log.due
    expected = batch_features(
        log.users[due[:15]],
        log.sessions.take(due[:15]),
        np.zeros(1, np.int64),
        entry := EntryArrays(log.sessions.exit_ms[due[15:16]], np.array([480])),
        log.schema,
    )
    seen = state.features(log.observed(due[: 15 + state.KEPT - 1]), entry, log.schema)
    assert seen.numeric.tobytes() == expected.numeric.tobytes()
    assert (~np.isnan(seen.sequences["recent_use_s"])).sum() == 1


def test_reading_changes_no_state() -> None:
    log = Log.of(random_log(np.random.default_rng(7), 50, 3, users=5), 3)
    states = log.observed(log.due)
    before = states.tobytes()
    state.features(states, log.entries, log.schema, rows=log.users)
    assert states.tobytes() == before


def test_context_and_profile_stand_beside_history() -> None:
    schema = schema_of(2)
    states = state.empty_states(state.state_dtype(schema), 2)
    entries = EntryArrays(np.array([0, HOUR]), np.array([0, 0]))
    raw = state.features(
        states, entries, schema, {"live": [1.5, None], "device": ["a", None]}, {"age": np.array([3, 4])}
    )
    np.testing.assert_array_equal(raw.column("context.live"), np.array([1.5, np.nan], np.float32))
    np.testing.assert_array_equal(raw.column("profile.age"), np.array([3, 4], np.float32))
    assert raw.categorical["context.device"].to_pylist() == ["a", None]
    assert raw.categorical["profile.city"].to_pylist() == [None, None]


def test_rows_are_plain_bytes() -> None:
    log = Log.of(random_log(np.random.default_rng(8), 50, 3, users=5), 3)
    states = log.observed(log.due)
    blobs = state.to_bytes(states)
    assert len({len(b) for b in blobs}) == 1
    back = state.from_bytes([*blobs, None], states.dtype)
    assert back[:-1].tobytes() == states.tobytes()
    assert back[-1:].tobytes() == state.empty_states(states.dtype, 1).tobytes()
    state.observe(back, log.users[:1], log.sessions.take(np.array([0])))  # writable


def test_other_layouts_are_refused() -> None:
    two, three = (state.state_dtype(schema_of(k)) for k in (2, 3))
    with pytest.raises(StateError, match="bytes"):
        state.from_bytes(state.to_bytes(state.empty_states(two, 1)), three)
    newer = state.empty_states(three, 1)
    newer["version"] += 1
    with pytest.raises(StateError, match="version"):
        state.from_bytes(state.to_bytes(newer), three)
    with pytest.raises(StateError, match="2 pages, the schema 3"):
        state.features(
            state.empty_states(two, 1), EntryArrays(np.zeros(1, int), np.zeros(1, int)), schema_of(3)
        )


def test_navigator_state_lives_for_a_local_day() -> None:
    states = state.empty_states(state.state_dtype(schema_of(2), nav_size=3), 2)
    days = np.array([START, START + 1])
    assert (state.nav_state(states, days, 3) == 0).all()
    state.set_nav_state(states, np.array([0, 1]), days, np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(
        state.nav_state(states, np.array([START, START]), 3), [[1, 1, 1], [0, 0, 0]]
    )
