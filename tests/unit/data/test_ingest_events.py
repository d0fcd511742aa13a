"""Ingest of page events, profiles and assignments: windows, joins of unlike files, their own quarantine reasons."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_number
from plpm_ray.data.ingest import ingest
from plpm_ray.data.quarantine import read_rows
from tests.unit.data import own_logs
from tests.unit.data.own_logs import config, sessions, snapshot, stored, write


def events(n: int = 400, seed: int = 0) -> pa.Table:
    """Page events of three days, dense around midnight."""
    rng = np.random.default_rng(seed)
    midnight = day_number("2024-05-02") * 86_400_000
    time = np.sort(midnight + rng.normal(0, 9 * 3_600_000, n).astype(np.int64))
    return pa.table(
        {
            "uid": [f"u{i}" for i in rng.integers(0, 8, n)],
            "ts": pa.array(time).cast(pa.timestamp("ms")),
            "where": rng.choice(own_logs.PAGES, n).tolist(),
            "ms": rng.integers(0, 2_400_000, n),
            "offset": pa.array(rng.choice([0, 60], n), pa.int32()),
        }
    )


EVENTS = {
    "form": "events",
    "context": {},
    "duration_unit": "ms",
    "columns": {
        "user_id": "uid",
        "time": "ts",
        "page": "where",
        "duration": "ms",
        "utc_offset_min": "offset",
    },
}


def test_events_become_sessions_and_a_window_gives_the_same_days_as_the_whole(tmp_path):
    logs = write(tmp_path / "logs", events().slice(0, 150), events().slice(150))
    whole = ingest(config(logs, tmp_path / "all", dataset=EVENTS))
    assert whole["rows_in"] == 400
    rows = stored(tmp_path / "all")
    assert sum(rows["dwell_s"].combine_chunks().flatten().to_numpy()) == pytest.approx(
        sum(events()["ms"].to_numpy()) / 1000
    )
    assert (rows["exit_time"].to_numpy() - rows["entry_time"].to_numpy()).max() > np.timedelta64(3, "h")
    for day in whole["days"]:
        ingest(config(logs, tmp_path / "some", dataset=EVENTS, days=[day, day]))
    every = snapshot(tmp_path / "all")
    some = snapshot(tmp_path / "some")
    assert sorted(every.values()) == sorted(some.values())


def test_repeated_events_are_quarantined_unless_allowed(tmp_path):
    table = events()
    logs = write(tmp_path / "logs", table, table.slice(7, 2))
    summary = ingest(config(logs, tmp_path / "a", dataset=EVENTS))
    assert summary["quarantined"] == {"duplicate_event": 2}
    bad = read_rows(tmp_path / "a").to_pylist()
    assert {Path(r["source_file"]).name for r in bad} == {"part-1.parquet"}
    assert {r["page"] for r in bad} <= set(own_logs.PAGES)
    assert ingest(config(logs, tmp_path / "b", dataset={**EVENTS, "unique_events": []}))["quarantined"] == {}


def test_event_files_may_differ_in_columns_and_integer_types(tmp_path):
    first, second = events().slice(0, 150), events().slice(150)
    first = first.append_column("policy", pa.array(["old"] * 150)).append_column(
        "item", pa.array(np.arange(150), pa.int32())
    )
    second = second.append_column("item", pa.array(np.arange(250) + 150)).select(
        [*reversed(second.column_names), "item"]
    )
    dataset = {**EVENTS, "unique_events": ["user_id", "item"]}
    summary = ingest(config(write(tmp_path / "logs", first, second), tmp_path / "w", dataset=dataset))
    assert summary["rows_in"] == 400 and summary["quarantined"] == {}
    assert set(stored(tmp_path / "w")["policy"].to_pylist()) == {"old", None}
    ingest(config(write(tmp_path / "plain", events()), tmp_path / "v", dataset=EVENTS))
    assert (
        stored(tmp_path / "w")
        .drop_columns(["policy"])
        .equals(stored(tmp_path / "v").drop_columns(["policy"]))
    )


def test_event_files_that_cannot_be_joined_are_refused(tmp_path):
    first, second = events().slice(0, 150), events().slice(150)
    watched = first.append_column("watch", pa.array([1] * 150))
    logs = write(tmp_path / "a", watched, second)
    with pytest.raises(DataError, match=r"part-1.parquet has no column 'watch', which .*part-0.parquet has"):
        ingest(config(logs, tmp_path / "w", dataset=EVENTS))
    texts = first.append_column("item", pa.array([str(i) for i in range(150)]))
    logs = write(tmp_path / "b", texts, second.append_column("item", pa.array(np.arange(250))))
    with pytest.raises(DataError, match="item"):
        ingest(config(logs, tmp_path / "w", dataset={**EVENTS, "unique_events": ["user_id", "item"]}))


def test_profiles_are_bucketed_checked_and_merged(tmp_path):
    users = pa.table(
        {"id": pa.array([3, 1, 2, 3, None]), "age": pa.array([30, 10, 20, 31, 5]), "city": list("cabdx")}
    )
    profiles = write(tmp_path / "logs" / "users", users)
    write(tmp_path / "logs" / "sessions", sessions(50))
    profile = {"path": str(profiles), "user_id": "id", "columns": {"age": "numeric", "city": "categorical"}}
    run = config(tmp_path / "logs", tmp_path / "w", dataset={"profile": profile}, max_bad_share=0.5)
    summary = ingest(run)
    assert summary["profiles"]["quarantined"] == {"null_user": 1, "duplicate_user": 1}
    assert summary["sessions"] == 50
    warehouse = Warehouse.open(tmp_path / "w")
    tables = [pq.read_table(warehouse.users_file(b)) for b in range(3)]
    assert all(t.schema.equals(warehouse.info.users_schema) for t in tables)
    assert sorted(pa.concat_tables(tables)["age"].to_pylist()) == [10, 20, 30]
    write(profiles, pa.table({"id": pa.array([2, 9]), "age": pa.array([21, 90]), "city": ["b", "z"]}))
    ingest(run)
    tables = [pq.read_table(warehouse.users_file(b)) for b in range(3)]
    assert sorted(pa.concat_tables(tables)["age"].to_pylist()) == [10, 21, 30, 90]


def test_assignments_are_checked_and_replaced_as_a_whole(tmp_path):
    def day(d):
        return None if d is None else dt.date(2024, 5, d)

    rows = [(1, "a", 1, 3), (2, None, 1, 9), (1, "b", 3, 5), (1, "b", 4, 6), (None, "a", 1, 2)]
    rows += [(3, "a", 5, 4), (4, "a", None, 4)]
    uid, arm, start, end = zip(*rows, strict=True)
    table = pa.table({"uid": pa.array(uid, pa.int32()), "arm": pa.array(arm)})
    table = table.append_column("start_day", pa.array(list(map(day, start))))
    table = table.append_column("end_day", pa.array(list(map(day, end))))
    write(tmp_path / "logs", sessions(50))
    trial = {"path": str(write(tmp_path / "logs" / "trial", table)), "columns": {"user_id": "uid"}}
    run = config(tmp_path / "logs", tmp_path / "w", dataset={"assignments": trial}, max_bad_share=0.6)
    summary = ingest(run)
    reasons = {"null_user": 1, "start_after_end": 1, "null_day": 1, "overlapping_assignment": 1}
    assert summary["assignments"] == {"rows_in": 7, "quarantined_rows": 4, "quarantined": reasons}
    assert summary["sessions"] == 50
    warehouse = Warehouse.open(tmp_path / "w")
    kept = pq.read_table(warehouse.assignments_file)
    assert kept.schema.equals(warehouse.info.assignments_schema)
    assert kept["user_id"].to_pylist() == [1, 1, 2] and kept["arm"].to_pylist() == ["a", "b", None]
    bad = {r["reason"]: r["source_row"] for r in read_rows(tmp_path / "w").to_pylist()}
    assert bad == {"overlapping_assignment": 2, "null_user": 4, "start_after_end": 5, "null_day": 6}
    with pytest.raises(DataError, match="assignment rows"):
        ingest(config(tmp_path / "logs", tmp_path / "w", dataset={"assignments": trial}))
    write(tmp_path / "logs" / "trial", table.slice(1, 1))
    ingest(run)
    assert pq.read_table(warehouse.assignments_file)["user_id"].to_pylist() == [2]
    write(tmp_path / "logs" / "trial", table.drop_columns(["arm"]))
    with pytest.raises(DataError, match="has no column 'arm'"):
        ingest(run)
