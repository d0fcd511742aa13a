"""The trial table: what its rows hold, and what is computed again when something changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import DataError, StorageError
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.storage import write_parquet
from plpm_ray.data.contract import DAY_MS, MINUTE_MS, Warehouse
from plpm_ray.data.features.sessions import EntryArrays
from plpm_ray.data.staging import write_lock
from plpm_ray.data.trials import build_trial
from tests.unit.data.feature_logs import START, assert_plain, plain_features, random_log, schema_of
from tests.unit.data.test_tables import put_days, put_profiles, warehouse_of

USERS = 12
FIRST, SECOND = START + 30, START + 33


def assign(warehouse: Warehouse, rows: list[tuple[int, str | None, int, int]]) -> None:
    """(user, arm, first day, last day)."""
    ids, arms, first, last = zip(*sorted(rows), strict=True)
    days = (pa.array(days, pa.int32()).cast(pa.date32()) for days in (first, last))
    table = pa.Table.from_arrays(
        [pa.array(ids), pa.array(arms, pa.string()), *days], schema=warehouse.info.assignments_schema
    )
    write_parquet(warehouse.assignments_file, table)


ROWS = [
    *((u, [None, "p0", "p2"][u % 3], FIRST, FIRST + 4) for u in range(8)),
    *((u, [None, "p1"][u % 2], SECOND, START + 60) for u in range(8, USERS)),
    (77, "p1", FIRST, FIRST + 4),  # never seen
    (78, None, START + 50, START + 60),  # begins after the logs
]


def made(root: Path, **log: object) -> tuple[Warehouse, pa.Table]:
    options = {"users": USERS, "offsets": (480, -300), **log}
    table = random_log(np.random.default_rng(1), 600, 3, **options)  # type: ignore[arg-type]
    warehouse = warehouse_of(root, table)
    put_profiles(warehouse, [0, 3, 9], 30.0)
    assign(warehouse, ROWS)
    return warehouse, table


def rows_of(warehouse: Warehouse) -> pa.Table:
    return pa.concat_tables([warehouse.trial.read(b) for b in range(warehouse.info.n_buckets)])  # type: ignore[misc]


def test_rows_hold_arm_response_and_the_features_of_the_midnight_before(tmp_path: Path):
    warehouse, log = made(tmp_path / "w")
    summary = build_trial(warehouse)
    assert summary.unlogged == 1 and summary.rows == USERS + 1
    assert summary.arm_users == {"control": 5, "p0": 3, "p1": 3, "p2": 2}
    days = EntryArrays.from_table(log).local_day
    last = int(days.max())
    raw_rows = {FIRST: [], SECOND: []}
    table = rows_of(warehouse)
    starts = {user: first for user, _, first, _ in ROWS}
    for i, row in enumerate(table.to_pylist()):
        user, arm, first, end = next(r for r in ROWS if r[0] == row["user_id"])
        assert row["arm"] == (0 if arm is None else int(arm[1]) + 1)
        mine = log["user_id"].to_numpy() == user
        inside = mine & (days >= first) & (days <= end)
        use = sum(
            round(float(np.float32(s)) * 1000)
            for r in log.filter(pa.array(inside)).to_pylist()
            for s in r["dwell_s"]
        )
        assert row["days"] == min(end, last) - first + 1
        assert row["response"] == np.float32(use / 1000 / row["days"])
        assert row["active_days"] == len(set(days[inside].tolist()))
        raw_rows[starts[user]].append(i)
    raw = RawFeatures.from_table(warehouse.info.features, table)
    for first, rows in raw_rows.items():
        expected = [_at_midnight(log, days, table["user_id"][i].as_py(), first) for i in rows]
        assert_plain(raw.take(np.array(rows)), expected)
    ages = dict(zip(table["user_id"].to_pylist(), raw.column("profile.age").tolist(), strict=True))
    assert ages[3] == 30.0 and np.isnan(ages[4])


def _at_midnight(log: pa.Table, days: np.ndarray, user: int, day: int) -> dict[str, object]:
    before = log.filter(pa.array((log["user_id"].to_numpy() == user) & (days < day)))
    before = before.sort_by([("entry_time", "ascending"), ("session_id", "ascending")])
    offset = before["utc_offset_min"][-1].as_py() if len(before) else 0
    entry = pa.array([day * DAY_MS - offset * MINUTE_MS]).cast(log["entry_time"].type)
    pseudo = log.slice(0, 1).to_pylist()[0] | {
        "user_id": user,
        "session_id": -1,
        "entry_time": entry[0].as_py(),
        "exit_time": entry[0].as_py(),
        "utc_offset_min": offset,
    }
    rows = pa.Table.from_pylist([*before.to_pylist(), pseudo], schema=log.schema)
    return plain_features(rows, schema_of(3))[-1]


def test_only_what_changed_is_computed_again(tmp_path: Path):
    warehouse, log = made(tmp_path / "w")
    assert build_trial(warehouse).recomputed == [FIRST, SECOND]
    before = repr(rows_of(warehouse).to_pylist())
    again = build_trial(warehouse)
    assert again.recomputed == [] and again.unchanged == [FIRST, SECOND] and again.arm_users["p0"] == 3
    put_days(warehouse, log, only={FIRST + 6})  # a day of the second period alone
    assert build_trial(warehouse).recomputed == [SECOND]
    assert repr(rows_of(warehouse).to_pylist()) == before
    assign(warehouse, [r for r in ROWS if r[2] != SECOND])
    summary = build_trial(warehouse)
    assert summary.recomputed == [] and summary.dropped == [SECOND] and warehouse.trial.days() == [FIRST]
    put_profiles(warehouse, [0, 3, 9], 31.0)
    assert build_trial(warehouse).recomputed == [FIRST]


def test_an_arm_that_is_no_page_is_named_with_the_nearest(tmp_path: Path):
    warehouse, _ = made(tmp_path / "w")
    build_trial(warehouse)
    before = repr(rows_of(warehouse).to_pylist())
    assign(warehouse, [*ROWS[:4], (5, "p22", FIRST, FIRST)])
    with pytest.raises(DataError, match="arm 'p22' is no page.*\n.*did you mean 'p2'.*control is null"):
        build_trial(warehouse)
    assert repr(rows_of(warehouse).to_pylist()) == before


def test_without_assignments_there_is_no_trial(tmp_path: Path):
    warehouse, _ = made(tmp_path / "w")
    warehouse.assignments_file.unlink()
    with pytest.raises(DataError, match="no assignments"):
        build_trial(warehouse)


def test_a_build_waits_for_no_other_writer(tmp_path: Path):
    warehouse, _ = made(tmp_path / "w")
    with write_lock(warehouse.root), pytest.raises(StorageError, match="another ingest or build"):
        build_trial(warehouse)
