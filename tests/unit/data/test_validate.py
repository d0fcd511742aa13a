"""Rules and conversions of raw rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.data.contract import TIMESTAMP
from plpm_ray.data.normalise import Origin
from plpm_ray.data.validate import Reading, check_events, check_profiles, check_sessions
from tests.unit.data.own_logs import INFO, PAGES, changed, sessions

READING = Reading(INFO)
ORIGIN = Origin("logs/part-0.parquet")
LONG_AGO = 1_000_000_000


def check(table: pa.Table, reading: Reading = READING):
    return check_sessions(table, reading, ORIGIN)


def test_good_rows_come_out_in_the_stored_form():
    raw = sessions(50)
    checked = check(raw)
    assert checked.table.schema == INFO.sessions_schema
    assert not checked.findings.bad.any()
    assert [[PAGES[p] for p in row] for row in checked.table["pages"].to_pylist()] == raw["pages"].to_pylist()
    assert [PAGES[p] for p in checked.table["landing_page"].to_pylist()] == raw["landing_page"].to_pylist()
    np.testing.assert_allclose(
        np.concatenate(checked.table["dwell_s"].to_pylist()), np.concatenate(raw["dwell_s"].to_pylist())
    )
    assert checked.table["entry_time"].to_pylist() == raw["entry_time"].to_pylist()
    assert checked.table["video_views"].to_pylist() == raw["video_views"].to_pylist()
    assert checked.table["watch_s"].null_count == 50
    assert checked.table["battery"].to_pylist() == [float(b) for b in raw["battery"].to_pylist()]


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("null_user", {"user_id": None}),
        ("null_session_id", {"session_id": None}),
        ("null_time", {"entry_time": None}),
        ("null_time", {"exit_time": None}),
        ("invalid_time", {"entry_time": LONG_AGO}),
        ("exit_before_entry", {"exit_time": "entry - 1"}),
        (
            "unknown_page",
            {"landing_page": "nowhere", "pages": ["nowhere"], "dwell_s": [1.0], "video_views": None},
        ),
        ("unknown_page", {"landing_page": None}),
        (
            "unknown_page",
            {"landing_page": "home", "pages": ["home", None], "dwell_s": [1, 2], "video_views": [1, 2]},
        ),
        ("empty_pages", {"pages": [], "dwell_s": [], "video_views": []}),
        ("empty_pages", {"pages": None, "dwell_s": None, "video_views": None}),
        (
            "landing_not_first",
            {"landing_page": "home", "pages": ["shop"], "dwell_s": [1], "video_views": [1]},
        ),
        ("unequal_lists", {"landing_page": "home", "pages": ["home"], "dwell_s": [1, 2], "video_views": [1]}),
        ("unequal_lists", {"landing_page": "home", "pages": ["home"], "dwell_s": None, "video_views": [1]}),
        ("unequal_lists", {"landing_page": "home", "pages": ["home"], "dwell_s": [1], "video_views": [1, 1]}),
        ("null_dwell", {"landing_page": "home", "pages": ["home"], "dwell_s": [None], "video_views": [1]}),
        (
            "excessive_dwell",
            {"landing_page": "home", "pages": ["home"], "dwell_s": [1e39], "video_views": [1]},
        ),
        (
            "excessive_views",
            {"landing_page": "home", "pages": ["home"], "dwell_s": [1.0], "video_views": [5_000_000_000]},
        ),
        (
            "negative_dwell",
            {"landing_page": "home", "pages": ["home"], "dwell_s": [-0.1], "video_views": [1]},
        ),
        (
            "non_finite",
            {"landing_page": "home", "pages": ["home"], "dwell_s": [float("nan")], "video_views": [1]},
        ),
        (
            "non_finite",
            {"landing_page": "home", "pages": ["home"], "dwell_s": [float("inf")], "video_views": [1]},
        ),
        ("negative_views", {"landing_page": "home", "pages": ["home"], "dwell_s": [1], "video_views": [-1]}),
        ("null_views", {"landing_page": "home", "pages": ["home"], "dwell_s": [1], "video_views": [None]}),
        ("propensity_range", {"propensity": 0.0}),
        ("propensity_range", {"propensity": 1.01}),
        ("propensity_range", {"propensity": float("nan")}),
    ],
)
def test_every_rule_finds_its_row_and_only_it(reason, values):
    raw, row = sessions(20), 7
    values = {k: raw["entry_time"][row].value - 1 if v == "entry - 1" else v for k, v in values.items()}
    checked = check(changed(raw, row, **values))
    assert np.flatnonzero(checked.findings.bad).tolist() == [row]
    assert checked.findings.reasons(np.array([row])).to_pylist() == [reason]
    untouched = check(raw).table
    assert checked.table.equals(pa.concat_tables([untouched.slice(0, row), untouched.slice(row + 1)]))


def test_a_row_with_two_faults_names_both():
    raw = changed(sessions(5), 2, user_id=None, propensity=2.0)
    assert check(raw).findings.reasons(np.array([2])).to_pylist() == ["null_user; propensity_range"]


def test_offsets_and_context_values_are_rules_too():
    raw = sessions(6)
    raw = raw.append_column("utc_offset_min", pa.array([0, 480, -720, 900, None, 840], pa.int32()))
    raw = raw.set_column(
        raw.column_names.index("battery"),
        "battery",
        pa.array([1.0, None, float("inf"), 1e39, 5.0, float("nan")]),
    )
    checked = check(raw)
    assert checked.findings.masks["invalid_utc_offset"].tolist() == [False, False, False, True, True, False]
    assert checked.findings.masks["non_finite"].tolist() == [False, False, True, True, False, True]
    assert checked.table["battery"].to_pylist() == [1.0, None]
    assert checked.start_ms[1] - raw["entry_time"][1].value == 480 * 60_000


def test_consecutive_equal_pages_become_one():
    raw = changed(
        sessions(3),
        1,
        landing_page="home",
        pages=["home", "home", "shop", "home", "home"],
        dwell_s=[1.0, 2.0, 3.0, 4.0, 5.0],
        video_views=[1, 1, 1, 0, 2],
    )
    row = check(raw).table.slice(1, 1).to_pylist()[0]
    assert row["pages"] == [0, 1, 0]
    assert row["dwell_s"] == [3.0, 3.0, 9.0]
    assert row["video_views"] == [2, 1, 2]
    without = check(changed(raw, 1, video_views=None)).table
    assert without["video_views"][1].as_py() is None
    assert without["video_views"][2].as_py() == raw["video_views"][2].as_py()


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("ms", "UTC")],
)
def test_any_timestamp_is_the_same_instant(kind):
    raw = sessions(10)
    whole = pa.array([t.value // 1000 * 1000 for t in raw["entry_time"]]).cast(TIMESTAMP)
    raw = raw.set_column(raw.column_names.index("entry_time"), "entry_time", whole)
    zoned = whole if kind.tz else whole.cast(pa.timestamp("ms"))  # without a zone: UTC
    other = raw.set_column(raw.column_names.index("entry_time"), "entry_time", zoned.cast(kind))
    assert check(other).table["entry_time"].to_pylist() == whole.to_pylist()


def test_integer_times_have_a_unit_and_a_wrong_one_is_noticed():
    raw = sessions(10)
    seconds = raw
    for name in ("entry_time", "exit_time"):
        ints = pa.array([t.value // 1000 for t in raw[name]])
        seconds = seconds.set_column(seconds.column_names.index(name), name, ints)
    assert not check(seconds, Reading(INFO, time_unit="s")).findings.bad.any()
    for unit in ("ms", "us"):
        assert check(seconds, Reading(INFO, time_unit=unit)).findings.masks["invalid_time"].all()


def test_other_list_string_and_number_types_are_read_alike():
    raw = sessions(12)
    other = raw
    for name, kind in {
        "pages": pa.large_list(pa.large_string()),
        "dwell_s": pa.large_list(pa.float32()),
        "video_views": pa.list_(pa.int8()),
        "landing_page": pa.dictionary(pa.int32(), pa.string()),
        "propensity": pa.float32(),
        "user_id": pa.int32(),
    }.items():
        other = other.set_column(other.column_names.index(name), name, other[name].cast(kind))
    expected, found = check(raw).table, check(other).table
    for name in expected.column_names:
        if name != "propensity":
            assert found[name].equals(expected[name]), name


def test_pages_may_be_integers_with_aliases():
    catalogue = {"pages": [{"name": "a", "values": [7]}, {"name": "b", "values": [9]}], "other": "b"}
    info = type(INFO)("x", type(INFO.pages).model_validate(catalogue))
    raw = pa.table(
        {
            "user_id": ["u1", "u2"],
            "session_id": ["s1", "s2"],
            "entry_time": pa.array([1_700_000_000_000] * 2),
            "exit_time": pa.array([1_700_000_100_000] * 2),
            "landing_page": [7, 1],
            "pages": [[7, 9], [1, 2, 9, 7]],
            "dwell_s": [[1, 2], [1, 2, 3, 4]],
        }
    )
    info = type(info)(info.name, info.pages, user_id="string", session_id="string")
    assert check(raw, Reading(info)).table["pages"].to_pylist() == [[0, 1], [1, 0]]
    assert check(raw, Reading(info)).table["dwell_s"].to_pylist() == [[1.0, 2.0], [6.0, 4.0]]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("dwell_s", pa.array(["a"] * 4), "must be a list"),
        ("user_id", pa.array([1.5] * 4), "Int64"),
        ("user_id", pa.array(["u"] * 4), "must be int64"),
        ("user_id", pa.array([2**63] * 4, pa.uint64()), "int64"),
        ("entry_time", pa.array(["2024-05-01"] * 4), "timestamps"),
        ("pages", pa.array([[1.5]] * 4), "page names"),
        ("battery", pa.array(["full"] * 4), "numeric"),
        ("device", pa.array([[1]] * 4), "strings"),
    ],
)
def test_wrong_types_name_file_column_and_what_is_needed(column, values, words):
    raw = sessions(4)
    raw = raw.set_column(raw.column_names.index(column), column, values)
    with pytest.raises(DataError) as error:
        check_sessions(raw, READING, Origin("logs/a.parquet", {column: "theirs"}))
    assert "logs/a.parquet" in str(error.value)
    assert "'theirs'" in str(error.value)
    assert words in str(error.value)


def test_a_missing_column_says_what_is_there_and_how_to_map_it():
    raw = sessions(4).rename_columns(
        [n if n != "exit_time" else "exit_tme" for n in sessions(4).column_names]
    )
    with pytest.raises(DataError, match="has no column 'exit_time'; it holds user_id") as error:
        check(raw)
    assert "columns: {exit_time: <your column>}" in str(error.value)
    assert "did you mean 'exit_tme'?" in str(error.value)


def test_events_and_their_rules():
    raw = pa.table(
        {
            "user_id": pa.array([1, None, 1, 1, 1, 1, 1, 1], pa.int64()),
            "time": pa.array([1_700_000_000_000] * 6 + [None, 5], pa.int64()),
            "page": ["home", "home", "nowhere", "shop", "shop", "shop", "shop", "shop"],
            "duration": pa.array([1.5, 1, 1, -1, None, float("inf"), 1, 1]),
            "watch": pa.array([1.0, 1, 1, 1, 1, 1, 1, 1]),
            "video_views": pa.array([0, 0, 0, 0, -1, 0, 0, 0]),
            "battery": pa.array([1] * 8),
            "device": pa.array(["phone"] * 8),
            "item": pa.array([5] * 8),
        }
    )
    checked = check_events(raw, Reading(INFO, utc_offset_min=60), ORIGIN, keys=("item", "time_ms"))
    assert checked.findings.reasons(np.arange(8)).to_pylist() == [
        "",
        "null_user",
        "unknown_page",
        "negative_dwell",
        "null_dwell; negative_views",
        "non_finite",
        "null_time",
        "invalid_time",
    ]
    row = checked.table.to_pylist()
    assert len(row) == 1
    assert (row[0]["duration_ms"], row[0]["watch_ms"], row[0]["page"], row[0]["item"]) == (1500, 1000, 0, 5)
    assert checked.end_ms[0] == 1_700_000_000_000 + 1500 + 3_600_000


def test_garbage_in_durations_and_counts_of_events_is_found():
    raw = pa.table(
        {
            "user_id": pa.array([1, 1, 1]),
            "time": pa.array([1_700_000_000_000] * 3),
            "page": ["home"] * 3,
            "duration": pa.array([4e7, 1.0, 1.0]),
            "watch": pa.array([1.0, 1e300, 1.0]),
            "video_views": pa.array([1, 1, 1 << 40]),
            "battery": pa.array([1] * 3),
            "device": pa.array(["phone"] * 3),
        }
    )
    reasons = check_events(raw, Reading(INFO), ORIGIN).findings.reasons(np.arange(3)).to_pylist()
    assert reasons == ["excessive_dwell", "excessive_watch", "excessive_views"]


def test_profiles_keep_their_kinds():
    info = type(INFO)("x", INFO.pages, profile={"age": "numeric", "city": "categorical"}, user_id="string")
    raw = pa.table({"user_id": ["a", "", None, "d"], "age": [1, 2, 3, None], "city": ["x", "y", "z", None]})
    checked = check_profiles(raw, Reading(info), ORIGIN)
    assert checked.findings.bad.tolist() == [False, True, True, False]
    assert checked.table.to_pylist() == [
        {"user_id": "a", "age": 1.0, "city": "x"},
        {"user_id": "d", "age": None, "city": None},
    ]


def test_empty_tables_pass():
    assert check(sessions(5).slice(0, 0)).table.num_rows == 0
