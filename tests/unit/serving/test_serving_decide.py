"""`plpm decide`: from a warehouse or from Parquet, equal to the batch features' scores, and to what a service would answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.core.hashing import bucket_of, user_hash
from plpm_ray.core.storage import write_parquet
from plpm_ray.data.contract import DatasetInfo, Warehouse
from plpm_ray.data.features.sessions import EntryArrays
from plpm_ray.navigators.bundle import save_bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.config import DecideConfig
from plpm_ray.serving.decide import decide_file, replay
from plpm_ray.serving.engine import load_policy
from plpm_ray.serving.history import load_history
from plpm_ray.serving.tables import read_entries
from tests.unit.serving.serving_world import (
    PAGES,
    SCHEMA,
    batch_of,
    bundle_of,
    entries_of,
    profiles_table,
    sessions_table,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decide")
    save_bundle(bundle_of(), root / "bundle")
    sessions = sessions_table(users=30, per_user=9)
    pq.write_table(
        sessions.take(pa.array(np.random.default_rng(0).permutation(len(sessions)))), root / "history.parquet"
    )
    pq.write_table(profiles_table(), root / "users.parquet")
    entries = entries_of(sessions).append_column(
        "entry_id", pa.array([f"e{i}" for i in range(len(sessions))])
    )
    pq.write_table(entries, root / "entries.parquet")
    _fill_warehouse(root / "warehouse", sessions)
    return root


def _fill_warehouse(root: Path, sessions: pa.Table) -> None:
    info = DatasetInfo("toy", PAGES, SCHEMA.context, SCHEMA.profile, n_buckets=3)
    warehouse = Warehouse.create(root, info)
    days = EntryArrays.from_table(sessions).local_day
    buckets = bucket_of(user_hash(sessions["user_id"]), 3)
    table = warehouse.sessions
    gen, rows = table.new_generation(), {}
    missing = [f for f in info.sessions_schema if f.name not in sessions.column_names]
    for field in missing:
        sessions = sessions.append_column(field, pa.nulls(len(sessions), field.type))
    for day in np.unique(days).tolist():
        for bucket in range(3):
            part = sessions.filter(pa.array((days == day) & (buckets == bucket)))
            rows.setdefault(day, {})[bucket] = table.write(day, gen, bucket, part)
    table.commit(gen, rows)
    profiles = profiles_table()
    where = bucket_of(user_hash(profiles["user_id"]), 3)
    for bucket in range(3):
        write_parquet(warehouse.users_file(bucket), profiles.filter(pa.array(where == bucket)))


@pytest.mark.parametrize("history", ["history.parquet", "warehouse"])
def test_decisions_equal_batch_scores(folder: Path, tmp_path: Path, history: str) -> None:
    config = DecideConfig(
        bundle=str(folder / "bundle"),
        policy=PolicyConfig(kind="softmax"),
        entries=str(folder / "entries.parquet"),
        history=str(folder / history),
        users=str(folder / "users.parquet") if history != "warehouse" else None,
        output=str(tmp_path / "out.parquet"),
    )
    summary = decide_file(config)
    made = pq.read_table(config.output)
    sessions = sessions_table(users=30, per_user=9)
    offline = bundle_of().navigator().scores(batch_of(sessions, profiles_table()))
    first = np.array([f == "unknown_user" for f in made["fallback"].to_pylist()])
    assert first.sum() == 30 == summary["fallbacks"]["unknown_user"]
    scores = np.array(made["scores"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(scores[~first], offline[~first], rtol=0, atol=1e-6)
    assert made["entry_id"].to_pylist() == [f"e{i}" for i in range(270)]
    assert made["user_id"].equals(sessions["user_id"])
    assert summary["rows"] == 270 and sum(summary["page_share"].values()) == pytest.approx(1, abs=1e-3)


def test_replay_equals_a_service_that_saw_the_same(folder: Path) -> None:
    sessions = sessions_table(users=20, per_user=7, string_ids=True)
    policy = load_policy(bundle_of(), PolicyConfig(kind="epsilon", epsilon=0.3))
    upto = 100
    policy.observe(sessions.slice(0, upto))
    ids = [f"user-{i}" for i in range(22)]
    later = pa.table({"user_id": ids, "entry_time": pa.array(["2030-06-01T00:00:00"] * 22)})
    online = policy.decide(later)
    fresh = load_policy(bundle_of(), PolicyConfig(kind="epsilon", epsilon=0.3))
    entries = read_entries(later, SCHEMA.context)
    offline = fresh.decision_table(
        entries, replay(fresh, entries, pa.concat_tables([sessions.slice(0, upto)] * 2))
    )
    assert offline.drop_columns(["scores", "probabilities"]).equals(
        online.drop_columns(["scores", "probabilities"])
    )
    np.testing.assert_allclose(
        np.array(offline["scores"].to_pylist()), np.array(online["scores"].to_pylist()), atol=1e-6
    )


def test_several_entries_between_two_sessions_and_equal_times() -> None:
    sessions = sessions_table(users=2, per_user=3)
    policy = load_policy(bundle_of())
    exits = sessions["exit_time"].cast(pa.int64()).to_pylist()
    users = sessions["user_id"].to_pylist()
    times = [(u, t + d) for u, t in zip(users, exits, strict=True) for d in (-1, 0, 1, 1, 2)]
    table = pa.table({"user_id": [u for u, _ in times], "entry_time": [t for _, t in times]})
    entries = read_entries(table, SCHEMA.context)
    offline = replay(policy, entries, sessions)
    for row, (user, time) in enumerate(times):
        alone = load_policy(bundle_of())
        alone.observe(
            sessions.filter(pa.array([u == user and e < time for u, e in zip(users, exits, strict=True)]))
        )
        expected = alone.decide(table.slice(row, 1))
        assert offline.reason[row] == (expected["fallback"][0].as_py() is not None)
        np.testing.assert_allclose(offline.scores[row], expected["scores"][0].as_py(), atol=1e-6)


def test_no_history_and_no_entries(folder: Path, tmp_path: Path) -> None:
    base = {"bundle": str(folder / "bundle"), "output": str(tmp_path / "out.parquet")}
    summary = decide_file(DecideConfig(**base, entries=str(folder / "entries.parquet")))
    assert summary["fallbacks"] == {"unknown_user": 270}
    pq.write_table(pq.read_table(folder / "entries.parquet").slice(0, 0), tmp_path / "none.parquet")
    summary = decide_file(
        DecideConfig(**base, entries=str(tmp_path / "none.parquet"), history=str(folder / "warehouse"))
    )
    assert summary["rows"] == 0 and pq.read_table(base["output"]).num_rows == 0


def test_a_column_that_some_files_lack_is_missing_there(folder: Path, tmp_path: Path) -> None:
    entries = pq.read_table(folder / "entries.parquet")
    (tmp_path / "entries").mkdir()
    pq.write_table(entries.slice(0, 5), tmp_path / "entries" / "a.parquet")
    pq.write_table(entries.slice(5, 5).drop_columns(["push"]), tmp_path / "entries" / "b.parquet")
    config = DecideConfig(
        bundle=str(folder / "bundle"), output=str(tmp_path / "out.parquet"), entries=str(tmp_path / "entries")
    )
    assert decide_file(config)["rows"] == 10
    strings = entries.slice(5, 5).set_column(0, "user_id", pa.array(["a"] * 5))
    pq.write_table(strings.select(["user_id", "entry_time"]), tmp_path / "entries" / "b.parquet")
    with pytest.raises(DataError, match="differ.*user_id"):
        decide_file(config)


def test_wrong_files_are_named(folder: Path, tmp_path: Path) -> None:
    base = {"bundle": str(folder / "bundle"), "output": str(tmp_path / "out.parquet")}
    with pytest.raises(DataError, match="nowhere"):
        decide_file(DecideConfig(**base, entries=str(tmp_path / "nowhere")))
    pq.write_table(
        pa.table({"user_id": ["a"], "entry_time": [1_700_000_000_000]}), tmp_path / "strings.parquet"
    )
    with pytest.raises(DataError, match="user_id"):
        decide_file(
            DecideConfig(**base, entries=str(tmp_path / "strings.parquet"), history=str(folder / "warehouse"))
        )


@pytest.mark.parametrize("source", ["history.parquet", "warehouse"])
def test_a_service_can_start_from_the_logs(folder: Path, source: str) -> None:
    policy = load_policy(bundle_of())
    assert load_history(policy, folder / source) == 270
    assert load_history(policy, folder / source) == 0
