"""The session kernel against a plain loop over events, and the bucket split."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plpm_ray.core.errors import DataError
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.data.contract import SESSION_COLUMNS, DatasetInfo
from plpm_ray.data.sessionise import bucketise, session_ids, sessionise

GAP = 1000


def events(rows, user_type=None, **more) -> pa.Table:
    """rows: (user, time_ms, page, duration_ms)."""
    users, times, pages, durations = zip(*rows, strict=True) if rows else ([], [], [], [])
    columns = {
        "user_id": pa.array(users, user_type or pa.int64()),
        "time_ms": pa.array(times, pa.int64()),
        "page": pa.array(pages, pa.int16()),
        "duration_ms": pa.array(durations, pa.int64()),
    }
    return pa.table({**columns, **more})


def by_loop(rows, gap_ms):
    """[(user, entry_ms, exit_ms, pages, dwell_ms)], the definition as a loop."""
    sessions = []
    ends: dict = {}
    open_session: dict = {}
    for user, at, page, duration in sorted(rows, key=lambda r: (r[0], r[1])):
        if user not in ends or at - ends[user] > gap_ms:
            open_session[user] = [user, at, at, [], []]
            sessions.append(open_session[user])
        session = open_session[user]
        if session[3] and session[3][-1] == page:
            session[4][-1] += duration
        else:
            session[3].append(page)
            session[4].append(duration)
        session[2] = max(session[2], at + duration)
        ends[user] = max(ends.get(user, at), at + duration)
    return [tuple(s) for s in sessions]


def as_tuples(table: pa.Table):
    columns = [table["user_id"].to_pylist()]
    columns += [table[c].cast(pa.int64()).to_pylist() for c in ("entry_time", "exit_time")]
    dwell = [[round(d * 1000) for d in row] for row in table["dwell_s"].to_pylist()]
    return list(zip(*columns, table["pages"].to_pylist(), dwell, strict=True))


ints = st.sampled_from([-(2**62), -3, 0, 5, 70_000, 2**40, 2**62 - 1])
names = st.sampled_from(["", "a", "b", "ab", "Ä", "zz", "user-0000000001"])


def rows_of(users):
    row = st.tuples(users, st.integers(0, 20_000), st.integers(0, 2), st.integers(0, 3000))
    return st.lists(row, max_size=40)


@settings(deadline=None)
@given(rows_of(ints), st.sampled_from([0, 1, GAP, 100_000]))
def test_equals_the_loop_for_integer_users(rows, gap_ms):
    assert as_tuples(sessionise(events(rows), gap_ms=gap_ms)) == by_loop(rows, gap_ms)


@settings(deadline=None)
@given(rows_of(names), st.booleans())
def test_equals_the_loop_for_string_users(rows, dictionary):
    kind = pa.dictionary(pa.int32(), pa.string()) if dictionary else pa.string()
    table = sessionise(events(rows, kind), gap_ms=GAP)
    assert table.schema.field("user_id").type == pa.string()
    assert as_tuples(table) == by_loop(rows, GAP)


def test_equals_the_loop_on_a_longer_log_whatever_the_order_of_rows():
    rng = np.random.default_rng(1)
    n, start = 20_000, 1_650_000_000_000
    times = start + rng.permutation(n) * 37_000  # no two alike
    users, pages = rng.integers(0, 900, n) * 123_457, rng.integers(0, 3, n)
    rows = list(
        zip(users.tolist(), times.tolist(), pages.tolist(), rng.integers(0, 900_000, n).tolist(), strict=True)
    )
    expected = by_loop(rows, 1_800_000)
    shuffled = sessionise(events(rows), gap_ms=1_800_000)
    in_order = sessionise(events(sorted(rows, key=lambda r: r[1])), gap_ms=1_800_000)
    assert as_tuples(shuffled) == expected
    assert shuffled.equals(in_order)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
@pytest.mark.parametrize("ids", [[1, 2, 2**40], list(range(500))])
def test_working_in_blocks_changes_nothing(monkeypatch, kind, ids):
    rng = np.random.default_rng(4)
    users = rng.choice(ids, 3000).tolist()
    rows = [
        (u, int(t), int(rng.integers(3)), 10) for u, t in zip(users, rng.permutation(3000) * 400, strict=True)
    ]
    table = events(
        [(str(u) if kind == pa.string() else u, *rest) for u, *rest in rows], kind, device=pa.array(users)
    )
    whole = sessionise(table, gap_ms=GAP)
    for block in (1, 100, 1000, 2999):
        monkeypatch.setattr("plpm_ray.data.sessionise._BLOCK", block)
        assert sessionise(table, gap_ms=GAP).equals(whole)


def test_the_gap_runs_from_the_latest_end_to_the_start():
    assert len(sessionise(events([(1, 0, 0, 500), (1, 500 + GAP, 1, 0)]), gap_ms=GAP)) == 1
    assert len(sessionise(events([(1, 0, 0, 500), (1, 501 + GAP, 1, 0)]), gap_ms=GAP)) == 2
    overlapping = events([(1, 0, 0, 5000), (1, 100, 1, 10), (1, 5900, 2, 50)])
    table = sessionise(overlapping, gap_ms=GAP)
    assert as_tuples(table) == [(1, 0, 5950, [0, 1, 2], [5000, 10, 50])]
    inside = sessionise(overlapping.slice(0, 2), gap_ms=GAP)
    assert as_tuples(inside) == [(1, 0, 5000, [0, 1], [5000, 10])]


def test_events_of_one_millisecond_keep_their_order():
    table = sessionise(events([(1, 5, 2, 1), (1, 5, 0, 2), (0, 5, 1, 3), (1, 5, 2, 4)]), gap_ms=GAP)
    assert table["pages"].to_pylist() == [[1], [2, 0, 2]]


def test_stored_form_and_columns():
    rows = [(7, 10, 1, 1500), (7, 20, 1, 500), (7, 30, 0, 250), (7, 50_000, 2, 100)]
    more = {
        "video_views": pa.array([1, 2, 3, 4], pa.int8()),
        "watch_ms": pa.array([1000, 0, 200, 100]),
        "utc_offset_min": pa.array([480, 0, 0, -60]),
        "device": pa.array(["phone", "x", None, None]),
        "policy": pa.array(["p", None, None, "q"]),
    }
    table = sessionise(events(rows, **more), gap_ms=GAP)
    assert tuple(table.column_names) == (*SESSION_COLUMNS, "device")
    first, second = table.to_pylist()
    assert first["pages"] == [1, 0] and first["landing_page"] == 1
    assert first["dwell_s"] == [2.0, 0.25] and first["video_views"] == [3, 3]
    assert first["watch_s"] == pytest.approx([1.0, 0.2])
    assert (first["utc_offset_min"], second["utc_offset_min"]) == (480, -60)
    assert (first["device"], second["device"]) == ("phone", None)
    assert (first["policy"], second["policy"]) == ("p", "q")
    assert first["propensity"] is None and first["experiment_arm"] is None
    info = DatasetInfo(
        "t", PageCatalogue(pages=["a", "b", "c"]), context={"device": "categorical", "live": "numeric"}
    )  # type: ignore[list-item]
    stored = sessionise(events(rows, **more), gap_ms=GAP, schema=info.sessions_schema)
    assert stored.schema == info.sessions_schema
    assert stored["live"].null_count == 2
    assert stored.drop_columns(["live"]).to_pylist() == table.to_pylist()


def test_timestamps_of_any_unit_are_understood():
    base = events([(1, 1000, 0, 10), (1, 9000, 1, 10)])
    expected = sessionise(base, gap_ms=GAP)
    for kind in (pa.timestamp("s"), pa.timestamp("us", "UTC"), pa.timestamp("ns")):
        times = base["time_ms"].cast(pa.timestamp("ms")).cast(kind)
        assert sessionise(base.set_column(1, "time_ms", times), gap_ms=GAP).equals(expected)


def test_session_ids_depend_on_user_and_entry_alone():
    rows = [(1, 0, 0, 10), (1, 50_000, 1, 10), (2, 0, 0, 10)]
    table = sessionise(events(rows), gap_ms=GAP)
    again = sessionise(events(rows[1:]), gap_ms=GAP)
    ids = table["session_id"].to_pylist()
    assert len(set(ids)) == 3 and min(ids) >= 0
    assert again["session_id"].to_pylist() == ids[1:]
    assert session_ids(pa.array([1]), np.array([0])).tolist() == [7_602_086_088_874_765_910]


def test_no_events_give_no_sessions():
    table = sessionise(events([]), gap_ms=GAP)
    assert table.num_rows == 0
    assert table.schema.equals(sessionise(events([(1, 0, 0, 1)]), gap_ms=GAP).schema)
    assert [len(b) for b in bucketise(events([]), 3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (events([(1, 0, 0, 1)]).drop_columns(["page"]), "no column 'page'"),
        (events([(1, 0, 0, None)]), "'duration_ms' of the events has 1 nulls"),
        (events([(None, 0, 0, 1)]), "'user_id' of the events has 1 nulls"),
        (events([(1, 0, 0, -4)]), "-4 ms"),
        (events([(1, -(2**61), 0, 1), (2, 2**61, 0, 1)]), "too far apart"),
        (events([(1, -(2**63) + 1, 0, 1), (2, 2**63 - 1, 0, 1)]), "too far apart"),
        (events([(1.0, 0, 0, 1)], pa.float64()), "'user_id' of the events is double"),
    ],
)
def test_bad_events_are_refused_with_the_column(table, message):
    with pytest.raises(DataError, match=message):
        sessionise(table, gap_ms=GAP)


def test_a_required_stored_column_that_is_missing_is_named():
    schema = pa.schema([pa.field("user_id", pa.int64()), pa.field("device", pa.string(), nullable=False)])
    with pytest.raises(DataError, match="'device'"):
        sessionise(events([(1, 0, 0, 1)]), gap_ms=GAP, schema=schema)


@pytest.mark.parametrize("n_buckets", [1, 5, 256, 400])
def test_buckets_partition_users_and_keep_the_order(n_buckets):
    rng = np.random.default_rng(2)
    users = rng.integers(0, 300, 5000)
    table = pa.table({"user_id": users, "row": np.arange(5000), "text": [f"t{u}" for u in users]})
    chunked = pa.concat_tables([table.slice(0, 1234), table.slice(1234)])
    parts = bucketise(chunked, n_buckets)
    assert len(parts) == n_buckets and sum(map(len, parts)) == 5000
    seen: set[int] = set()
    for part in parts:
        assert not seen & set(part["user_id"].to_pylist())
        seen |= set(part["user_id"].to_pylist())
        assert (np.diff(part["row"].to_numpy()) > 0).all()
        assert part["text"].to_pylist() == [f"t{u}" for u in part["user_id"].to_pylist()]
    assert all(a.equals(b) for a, b in zip(parts, bucketise(table, n_buckets), strict=True))


def test_sessions_of_buckets_together_are_the_sessions_of_all():
    rng = np.random.default_rng(3)
    rows = [
        (f"u{rng.integers(50)}", int(t), int(rng.integers(3)), int(rng.integers(2000)))
        for t in range(0, 900_000, 300)
    ]
    table = events(rows, pa.string())
    whole = sessionise(table, gap_ms=GAP)
    parts = pa.concat_tables([sessionise(b, gap_ms=GAP) for b in bucketise(table, 4)])
    order = [("user_id", "ascending"), ("entry_time", "ascending")]
    assert parts.sort_by(order).to_pylist() == whole.to_pylist()
