"""The transition table: what its rows hold, and what is computed again when something changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from plpm_ray.core.errors import DataError, StorageError
from plpm_ray.core.feature_columns import unpack
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.hashing import bucket_of, user_hash
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.storage import write_parquet
from plpm_ray.data import tables
from plpm_ray.data.contract import DAY_MS, DatasetInfo, Warehouse
from plpm_ray.data.day_table import DayTable
from plpm_ray.data.features.batch import batch_features
from plpm_ray.data.features.sessions import EntryArrays, SessionArrays, user_codes
from plpm_ray.data.staging import write_lock
from plpm_ray.data.tables import build_transitions, next_rows, read_transitions
from tests.unit.data.feature_logs import START, random_log, schema_of

BUCKETS = 2


def warehouse_of(root: Path, log: pa.Table, k: int = 3, *, string_ids: bool = False) -> Warehouse:
    schema = schema_of(k)
    ids = "string" if string_ids else "int64"
    pages = PageCatalogue.model_validate({"pages": list(schema.pages)})
    warehouse = Warehouse.create(
        root, DatasetInfo("made", pages, schema.context, schema.profile, ids, ids, n_buckets=BUCKETS)
    )
    put_days(warehouse, log)
    return warehouse


def put_days(warehouse: Warehouse, log: pa.Table, only: set[int] | None = None) -> None:
    """Commits the log's sessions, each day as a new generation."""
    for name in warehouse.info.sessions_schema.names:
        if name not in log.column_names:
            log = log.append_column(name, pa.nulls(len(log), warehouse.info.sessions_schema.field(name).type))
    log = log.select(warehouse.info.sessions_schema.names).cast(warehouse.info.sessions_schema)
    log = log.sort_by([("user_id", "ascending"), ("entry_time", "ascending"), ("session_id", "ascending")])
    days = EntryArrays.from_table(log).local_day
    buckets = bucket_of(user_hash(log["user_id"]), BUCKETS)
    sessions, gen = warehouse.sessions, warehouse.sessions.new_generation()
    rows: dict[int, dict[int, int]] = {}
    for day in np.unique(days).tolist() if only is None else sorted(only):
        for bucket in range(BUCKETS):
            part = log.filter(pa.array((days == day) & (buckets == bucket)))
            if len(part):
                rows.setdefault(day, {})[bucket] = sessions.write(day, gen, bucket, part)
    sessions.commit(gen, rows)


def put_profiles(warehouse: Warehouse, users: list[int], age: float) -> None:
    for bucket in range(BUCKETS):
        mine = [u for u in users if bucket_of(user_hash(np.array([u])), BUCKETS)[0] == bucket]
        table = pa.table({"user_id": mine, "age": [age] * len(mine), "city": [f"c{u}" for u in mine]})
        write_parquet(warehouse.users_file(bucket), table.cast(warehouse.info.users_schema))


def digest(table: DayTable) -> dict[tuple[int, int], str]:
    """Content of every committed file."""
    return {
        (day, bucket): hashlib.sha256(path.read_bytes()).hexdigest()
        for bucket in range(BUCKETS)
        for day, path in table.files(bucket)
    }


def constant_log(seed: int = 0, n: int = 400, days: float = 40) -> pa.Table:
    return random_log(np.random.default_rng(seed), n, 3, users=12, days=days)


@pytest.mark.parametrize(
    ("seed", "offsets", "days"), [(0, (480,), 40), (1, (480, -300), 36), (2, (-720, 840), 8)]
)
def test_rows_hold_the_features_of_the_whole_history(
    tmp_path: Path, seed: int, offsets: tuple[int, ...], days: int
) -> None:
    log = random_log(
        np.random.default_rng(seed), 500, 3, users=8, days=days, offsets=offsets, string_ids=seed == 1
    )
    long = log["exit_time"].to_numpy().astype("datetime64[ms]").astype(np.int64)
    long[::50] += 20 * DAY_MS  # sessions that outlast any margin
    log = log.set_column(
        log.column_names.index("exit_time"), "exit_time", pa.array(long).cast(log["exit_time"].type)
    )
    warehouse = warehouse_of(tmp_path, log, string_ids=seed == 1)
    summary = build_transitions(warehouse, chunk_days=9)
    assert summary.rows == len(log)
    assert summary.recomputed == warehouse.sessions.days()

    schema = warehouse.info.features
    (codes,) = user_codes(log["user_id"])
    expected = batch_features(
        codes,
        SessionArrays.from_table(log),
        codes,
        EntryArrays.from_table(log),
        schema,
        {"live": log["live"], "device": log["device"]},
    )
    row_of = {session: i for i, session in enumerate(log["session_id"].to_pylist())}
    for bucket in range(BUCKETS):
        table = read_transitions(warehouse, bucket)
        assert table is not None
        rows = np.array([row_of[s] for s in table["session_id"].to_pylist()])
        raw, right = RawFeatures.from_table(schema, table), expected.take(rows)
        assert raw.numeric.tobytes() == right.numeric.tobytes()
        assert all(
            np.array_equal(raw.sequences[s], right.sequences[s], equal_nan=True) for s in schema.sequences
        )
        assert raw.categorical["context.device"].equals(right.categorical["context.device"])
        np.testing.assert_array_equal(table["landing_page"].to_numpy(), log["landing_page"].to_numpy()[rows])
        use_s = [sum(log["dwell_s"][i].as_py()) for i in rows]
        np.testing.assert_allclose(table["use_s"].to_numpy(), use_s, atol=0.003)  # whole milliseconds
        assert_steps(table)
        assert_page_outcomes(table, log.take(pa.array(rows)))
    assert_user_days(warehouse, log, right_of=row_of, expected=expected)


def assert_page_outcomes(table: pa.Table, log: pa.Table) -> None:
    found = {name: unpack(table[name]) for name in ("page_dwell_s", "page_views", "page_visits")}
    for i, row in enumerate(log.to_pylist()):
        at = [[j for j, page in enumerate(row["pages"]) if page == k] for k in range(3)]
        dwell, views = row["dwell_s"], row["video_views"]
        np.testing.assert_allclose(
            found["page_dwell_s"][i], [sum(dwell[j] for j in js) for js in at], atol=0.003
        )
        np.testing.assert_array_equal(found["page_visits"][i], [len(js) for js in at])
        seen = [np.nan] * 3 if views is None else [sum(views[j] for j in js) for js in at]
        np.testing.assert_array_equal(found["page_views"][i], seen)


def assert_user_days(
    warehouse: Warehouse, log: pa.Table, right_of: dict[object, int], expected: RawFeatures
) -> None:
    """A row for the first session of each user's local day, with the features of that session and the day's totals."""
    schema, days = warehouse.info.features, 0
    for bucket in range(BUCKETS):
        sessions, found = read_transitions(warehouse, bucket), warehouse.user_days.read(bucket)
        assert sessions is not None and found is not None
        firsts = sessions.filter(pc.equal(sessions["step"], 0))
        assert found["user_id"].equals(firsts["user_id"])
        rows = np.array([right_of[s] for s in firsts["session_id"].to_pylist()])
        raw = RawFeatures.from_table(schema, found)
        assert raw.numeric.tobytes() == expected.numeric[rows].tobytes()
        assert raw.days is not None and raw.days.shape == (len(rows), 30, 2)
        np.testing.assert_allclose(raw.days[:, :, 0].sum(1), raw.column("use_s_30d"), rtol=1e-4, atol=0.01)
        np.testing.assert_array_equal(raw.days[:, :7, 1].sum(1), raw.column("entries_7d"))
        np.testing.assert_array_equal((raw.days[:, :, 1] > 0).sum(1), raw.column("active_days_30d"))
        group = np.cumsum(sessions["step"].to_numpy() == 0) - 1
        np.testing.assert_array_equal(found["sessions"].to_numpy(), np.bincount(group))
        use_s = np.bincount(group, weights=sessions["use_s"].to_numpy())
        np.testing.assert_allclose(found["use_s"].to_numpy(), use_s, rtol=1e-5, atol=0.01)
        days += len(found)
    assert 0 < days < len(log)


def test_a_table_of_user_days_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=5))
    build_transitions(warehouse)
    whole = digest(warehouse.user_days)
    (warehouse.user_days.root / "_manifest.json").unlink()
    assert build_transitions(warehouse).recomputed == warehouse.sessions.days()
    assert digest(warehouse.user_days) == whole


def assert_steps(table: pa.Table) -> None:
    frame = table.select(["day", "user_id", "entry_time", "session_id", "step", "done"]).to_pylist()
    order = [(r["day"], r["user_id"], r["entry_time"], r["session_id"]) for r in frame]
    assert order == sorted(order)
    for i, row in enumerate(frame):
        follows = i > 0 and (frame[i - 1]["day"], frame[i - 1]["user_id"]) == (row["day"], row["user_id"])
        assert row["step"] == (frame[i - 1]["step"] + 1 if follows else 0)
        ends = i + 1 == len(frame) or (frame[i + 1]["day"], frame[i + 1]["user_id"]) != (
            row["day"],
            row["user_id"],
        )
        assert row["done"] == ends


def test_a_second_build_does_nothing(tmp_path: Path) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=5))
    build_transitions(warehouse)
    before = (tmp_path / "transitions" / "_manifest.json").read_bytes()
    summary = build_transitions(warehouse)
    assert (summary.recomputed, summary.dropped, summary.rows) == ([], [], 0)
    assert summary.to_dict()["unchanged_days"] == len(warehouse.sessions.days())
    assert (tmp_path / "transitions" / "_manifest.json").read_bytes() == before


def test_a_new_day_is_the_only_one_computed(tmp_path: Path) -> None:
    log = constant_log()
    days = EntryArrays.from_table(log).local_day
    last = int(days.max())
    warehouse = warehouse_of(tmp_path, log.filter(pa.array(days < last)))
    build_transitions(warehouse)
    put_days(warehouse, log, {last})
    assert build_transitions(warehouse).recomputed == [last]
    again = warehouse_of(tmp_path / "whole", log)
    build_transitions(again)
    assert digest(warehouse.transitions) == digest(again.transitions)


def test_a_replaced_day_touches_what_looks_back_on_it(tmp_path: Path) -> None:
    log = constant_log()
    warehouse = warehouse_of(tmp_path, log)
    build_transitions(warehouse)
    changed = START + 5
    put_days(warehouse, log, {changed})
    recomputed = build_transitions(warehouse).recomputed
    assert recomputed[0] == changed
    # sessions of that day end up to two days later, and count for 30 days after that
    assert changed + 30 <= recomputed[-1] <= changed + 33
    assert recomputed == [d for d in warehouse.sessions.days() if changed <= d <= recomputed[-1]]


def test_only_the_days_asked_for_are_built(tmp_path: Path) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=6))
    some = warehouse.sessions.days()[2:4]
    assert build_transitions(warehouse, some).recomputed == some
    assert warehouse.transitions.days() == some
    rest = build_transitions(warehouse)
    assert rest.unchanged == some


def test_days_without_sessions_disappear(tmp_path: Path) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=5))
    build_transitions(warehouse)
    gone = warehouse.sessions.days()[-1]
    warehouse.sessions.commit(warehouse.sessions.new_generation(), {}, drop=[gone])
    summary = build_transitions(warehouse)
    assert (summary.recomputed, summary.dropped) == ([], [gone])
    assert gone not in warehouse.transitions.entries()


def test_profiles_are_joined_and_watched(tmp_path: Path) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=5))
    put_profiles(warehouse, [0, 1, 2], age=30)
    build_transitions(warehouse)
    for bucket in range(BUCKETS):
        table = read_transitions(warehouse, bucket)
        assert table is not None
        raw = RawFeatures.from_table(warehouse.info.features, table)
        users = table["user_id"].to_numpy()
        np.testing.assert_array_equal(raw.column("profile.age"), np.where(users < 3, np.float32(30), np.nan))
        city = raw.categorical["profile.city"].to_pylist()
        assert city == [f"c{u}" if u < 3 else None for u in users]
    put_profiles(warehouse, [0, 1, 2], age=30)
    assert not build_transitions(warehouse).recomputed
    put_profiles(warehouse, [0, 1, 2], age=31)
    assert build_transitions(warehouse).recomputed == warehouse.sessions.days()


def test_a_new_version_of_the_code_builds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=5))
    build_transitions(warehouse)
    monkeypatch.setattr(tables, "FEATURE_VERSION", tables.FEATURE_VERSION + 1)
    assert build_transitions(warehouse).recomputed == warehouse.sessions.days()


def test_chunks_do_not_change_a_byte(tmp_path: Path) -> None:
    log = random_log(np.random.default_rng(9), 300, 3, users=10, days=36, offsets=(480, -300))
    found = []
    for width in (2, 14, 100):
        warehouse = warehouse_of(tmp_path / str(width), log)
        build_transitions(warehouse, chunk_days=width)
        found.append(digest(warehouse.transitions))
    assert found[0] == found[1] == found[2]


def test_a_failed_build_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    log = constant_log(days=5)
    warehouse = warehouse_of(tmp_path, log)
    build_transitions(warehouse)
    before = digest(warehouse.transitions)
    put_days(warehouse, log, {warehouse.sessions.days()[2]})
    _, damaged = warehouse.sessions.files(1)[2]
    data = bytearray(damaged.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    damaged.write_bytes(data)
    with pytest.raises(DataError, match=damaged.name):
        build_transitions(warehouse)
    assert digest(warehouse.transitions) == before
    gens = {entry.gen for entry in warehouse.transitions.entries().values()}
    assert {p.name.removeprefix("gen=") for p in (tmp_path / "transitions").glob("day=*/gen=*")} == gens


def test_builds_keep_off_each_other_and_clean_up_after_a_killed_one(tmp_path: Path) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=3))
    with write_lock(tmp_path), pytest.raises(StorageError, match="another ingest or build"):
        build_transitions(warehouse)
    build_transitions(warehouse)
    before, day = digest(warehouse.transitions), warehouse.transitions.days()[0]
    warehouse.transitions.write(day, "dead", 0, pa.table({"v": [1]}))
    build_transitions(warehouse)
    assert digest(warehouse.transitions) == before
    assert not list((tmp_path / "transitions").glob("day=*/gen=dead"))


def test_next_rows() -> None:
    users = pa.array(["a", "a", "b", "a", "b", "c"])
    done = np.array([False, True, True, True, True, True])
    np.testing.assert_array_equal(next_rows(users, done), [1, -1, -1, -1, -1, -1])
    np.testing.assert_array_equal(next_rows(users, done, "continuing"), [1, 3, 4, -1, -1, -1])
    np.testing.assert_array_equal(next_rows(np.array([4, 4]), np.array([False, False])), [1, -1])
    assert len(next_rows(users[:0], done[:0])) == 0


def test_reading_chosen_days_and_columns(tmp_path: Path) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=5))
    build_transitions(warehouse)
    days = warehouse.sessions.days()[1:3]
    table = read_transitions(warehouse, 0, days, ["user_id", "done"])
    assert table is not None
    assert table.column_names == ["day", "user_id", "done"]
    assert set(table["day"].to_pylist()) == set(days)
    assert read_transitions(warehouse, 0, [1]) is None


def test_ray_writes_the_same_files(tmp_path: Path, ray_session: None) -> None:
    log = constant_log(days=10)
    local, spread = warehouse_of(tmp_path / "local", log), warehouse_of(tmp_path / "ray", log)
    assert build_transitions(local).to_dict() == build_transitions(spread, backend="ray").to_dict()
    assert digest(local.transitions) == digest(spread.transitions)
