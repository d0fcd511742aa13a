"""The batch kernel against a plain implementation, and the point-in-time rules one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.data.contract import DAY_MS
from plpm_ray.data.features import batch
from plpm_ray.data.features.batch import batch_features, batch_features_and_days
from plpm_ray.data.features.sessions import EntryArrays, SessionArrays, milliseconds, session_keys, user_codes
from tests.unit.data.feature_logs import (
    START,
    assert_plain,
    assert_same,
    plain_features,
    random_log,
    schema_of,
)

HOUR = 3_600_000


def features_of(log: pa.Table, schema: FeatureSchema) -> RawFeatures:
    (codes,) = user_codes(log["user_id"])
    context = {name: log[name] for name in schema.context if name in log.column_names}
    return batch_features(
        codes, SessionArrays.from_table(log), codes, EntryArrays.from_table(log), schema, context
    )


def log_of(*rows: tuple[float, float], offset: int = 0, page: int = 0) -> pa.Table:
    """Sessions of one user from (entry, exit) in hours since the first midnight; dwell 10 s, landing `page`."""
    n = len(rows)
    times = (START * DAY_MS + np.array(rows) * HOUR).astype(np.int64)
    return pa.table(
        {
            "user_id": pa.array([7] * n),
            "session_id": pa.array(range(n)),
            "entry_time": pa.array(times[:, 0]).cast(pa.timestamp("ms", "UTC")),
            "exit_time": pa.array(times[:, 1]).cast(pa.timestamp("ms", "UTC")),
            "utc_offset_min": pa.array([offset] * n, pa.int16()),
            "landing_page": pa.array([page] * n, pa.int16()),
            "pages": pa.array([[page]] * n, pa.list_(pa.int16())),
            "dwell_s": pa.array([[10.0]] * n, pa.list_(pa.float32())),
        }
    )


@pytest.mark.parametrize("seed", range(8))
def test_kernel_gives_what_the_plain_implementation_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    schema = schema_of((3, 2, 7, 32)[seed % 4])
    log = random_log(
        rng,
        200,
        len(schema.pages),
        days=(40, 5, 100)[seed % 3],
        offsets=((480,), (480, -300), (0, 840, -720))[seed % 3],
        grid_ms=(1, HOUR)[seed % 2],
        string_ids=seed % 4 == 3,
    )
    keys = dict(zip(log["session_id"].to_pylist(), session_keys(log["session_id"]).tolist(), strict=True))
    raw = features_of(log, schema)
    expected = plain_features(log, schema, keys)
    assert_plain(raw, expected)
    wanted = rng.random(len(log)) < 0.4
    (codes,), entries = user_codes(log["user_id"]), EntryArrays.from_table(log)
    again, days = batch_features_and_days(
        codes, SessionArrays.from_table(log), codes, entries, schema, wanted
    )
    assert np.array_equal(again.column("use_s_30d"), raw.column("use_s_30d")) and again.days is None
    plain = np.array(
        [e["days"] for e, asked in zip(expected, wanted, strict=True) if asked], dtype=np.float32
    )
    np.testing.assert_array_equal(days, plain)
    np.testing.assert_array_equal(raw.column("context.live"), log["live"].to_numpy())
    assert raw.categorical["context.device"].to_pylist() == log["device"].to_pylist()
    assert np.isnan(raw.column("profile.age")).all()
    assert raw.categorical["profile.city"].null_count == 200


def test_result_does_not_depend_on_order_numbering_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    schema = schema_of(3)
    log = random_log(rng, 400, 3, users=40, grid_ms=HOUR)
    expected = features_of(log, schema)
    shuffled = rng.permutation(len(log))
    assert_same(features_of(log.take(pa.array(shuffled)), schema), expected.take(shuffled))
    monkeypatch.setattr(batch, "_BLOCK_CELLS", 25 * 16)
    assert_same(features_of(log, schema), expected)
    sessions, entries = SessionArrays.from_table(log), EntryArrays.from_table(log)
    other_codes = log["user_id"].to_numpy() * 1_000_003 + 5
    context = {"live": log["live"], "device": log["device"]}
    assert_same(batch_features(other_codes, sessions, other_codes, entries, schema, context), expected)
    # exits so far apart that users and times no longer fit one 64-bit key
    far = np.where(log["user_id"].to_numpy() == 0, 1 << 57, 0) + log["user_id"].to_numpy()
    assert_same(batch_features(far, sessions, far, entries, schema, context), expected)


def test_a_session_counts_only_after_it_has_ended() -> None:
    log = log_of((1, 2), (2, 3), (2 + 1 / HOUR, 4), (2.5, 2.5))
    raw = features_of(log, schema_of(2))
    np.testing.assert_array_equal(raw.column("today_entries"), [0, 0, 1, 1])
    np.testing.assert_array_equal(
        raw.column("since_exit_s"), np.array([np.nan, np.nan, 0.001, 1800], np.float32)
    )


def test_a_session_over_midnight_belongs_to_the_day_it_ends() -> None:
    raw = features_of(log_of((23, 25), (26, 27)), schema_of(2))
    np.testing.assert_array_equal(raw.column("today_entries"), [0, 1])
    np.testing.assert_array_equal(raw.column("entries_7d"), [0, 0])


def test_local_time_comes_from_the_offset() -> None:
    raw = features_of(log_of((20, 20.5), (23, 23.5), offset=120), schema_of(2))
    np.testing.assert_array_equal(raw.categorical["hour"], [22, 1])
    np.testing.assert_array_equal(raw.categorical["weekday"], [5, 6])  # the log begins on a Saturday
    np.testing.assert_array_equal(raw.column("today_entries"), [0, 0])
    np.testing.assert_array_equal(raw.column("entries_7d"), [0, 1])


def test_windows_end_the_day_before_and_old_sessions_are_forgotten() -> None:
    day = 24
    log = log_of(
        (1, 2),
        (7 * day, 7 * day + 1),
        (14 * day, 14 * day + 1),
        (30 * day + 3, 30 * day + 4),
        (61 * day, 61 * day),
    )
    raw = features_of(log, schema_of(2))
    np.testing.assert_array_equal(raw.column("entries_7d"), [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(raw.column("page_entries_14d.p0"), [0, 1, 2, 0, 0])
    np.testing.assert_array_equal(raw.column("entries_30d"), [0, 1, 2, 3, 0])
    np.testing.assert_array_equal(raw.categorical["last_exit_page"], [-1, 0, 0, 0, -1])
    np.testing.assert_array_equal((~np.isnan(raw.sequences["recent_use_s"])).sum(axis=1), [0, 1, 2, 3, 0])


def test_sums_of_milliseconds_do_not_depend_on_float_order() -> None:
    n = 200
    log = log_of(*((i / 100, i / 100) for i in range(n)))
    dwell = np.random.default_rng(0).exponential(1000, n).astype(np.float32)
    log = log.set_column(7, "dwell_s", pa.array(dwell[:, None].tolist(), pa.list_(pa.float32())))
    raw = features_of(log, schema_of(2))
    total = milliseconds(dwell).cumsum()
    np.testing.assert_array_equal(raw.column("today_use_s")[1:], (total[:-1] / 1000).astype(np.float32))


def test_no_history_and_no_entries() -> None:
    schema = schema_of(3)
    nothing = log_of((0, 0)).slice(0, 0)
    assert len(features_of(nothing, schema)) == 0
    entries = EntryArrays(np.array([START * DAY_MS + HOUR]), np.array([0]))
    one = batch_features(
        np.empty(0, np.int64), SessionArrays.from_table(nothing), np.array([4]), entries, schema
    )
    assert one.column("entries_30d")[0] == 0
    assert np.isnan(one.column("last_use_s")[0])
    assert one.categorical["last_exit_page"][0] == -1
    history = SessionArrays.from_table(log_of((-5, -4)))
    for stranger in (3, 9):  # before and after the only user with sessions
        assert_same(batch_features(np.array([7]), history, np.array([stranger]), entries, schema), one)


def test_arrays_can_be_sliced_joined_and_taken() -> None:
    log = random_log(np.random.default_rng(5), 60, 3)
    whole = SessionArrays.from_table(log)
    parts = SessionArrays.concat([SessionArrays.from_table(log.slice(i, 20)) for i in (0, 20, 40)])
    chunks = SessionArrays.from_table(pa.concat_tables([log.slice(0, 7), log.slice(7)]))
    rows = np.random.default_rng(6).permutation(60)
    back = whole.take(rows).take(np.argsort(rows))
    for other in (parts, chunks, back):
        for name, values in vars(whole).items():
            np.testing.assert_array_equal(getattr(other, name), values, err_msg=name)
    taken = SessionArrays.from_table(log.take(pa.array(rows)))
    np.testing.assert_array_equal(taken.per_page(3), whole.per_page(3)[rows])


def test_views_that_are_not_known_count_as_none() -> None:
    log = log_of((0, 1), (1, 2), (2, 3), (5, 6)).append_column(
        "video_views", pa.array([[3], None, [None], [2]], pa.list_(pa.int32()))
    )
    np.testing.assert_array_equal(SessionArrays.from_table(log).views, [3, 0, 0, 2])
    np.testing.assert_array_equal(features_of(log, schema_of(2)).column("today_views"), [0, 0, 3, 3])


def test_users_are_numbered_across_columns() -> None:
    one, other = user_codes(pa.array(["a", "b", "a"]), pa.chunked_array([["c"], ["b"]]))
    np.testing.assert_array_equal(one, [0, 1, 0])
    np.testing.assert_array_equal(other, [2, 1])
    first, second = user_codes(np.array([5, 3]), np.array([3, 9]))
    np.testing.assert_array_equal(np.concatenate([first, second]), [0, 1, 1, 2])
