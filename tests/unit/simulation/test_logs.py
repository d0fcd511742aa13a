"""Sessions as canonical tables: against a plain row-by-row reading of the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.storage import write_parquet
from plpm_ray.simulation.choosers import LoggingPolicy, RandomPage
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.logged_by import Explored
from plpm_ray.simulation.logs import SessionLog, content_hash
from plpm_ray.simulation.simulation import Sessions, Simulation, run_days
from plpm_ray.simulation.world import World

USERS, DAYS = 60, 3


def world_of(**changes: Any) -> World:
    config = load_world("kuaishou")
    plain = config.model_dump(mode="json")
    if "pages" in changes:
        plain["logging"]["default_page"] = None
    return World(config.model_validate({**plain, **changes}))


def logged(world: World, *sinks: Any) -> pa.Table:
    log = SessionLog(world, USERS, ["logging"])
    run_days(Simulation(world, np.arange(USERS) + 5), DAYS, LoggingPolicy(), log, *sinks)
    return log.table()


def by_hand(world: World, s: Sessions, i: int) -> dict[str, Any]:
    """Row i of a batch, as somebody would write it who has all the time of the world."""
    names, e = world.pages.names, s.entries
    on = [p for p in range(len(s.walk.pages_PB)) if s.walk.pages_PB[p, i] >= 0]
    ms = [int(s.walk.dwell_ms_PB[p, i]) for p in on]
    pages = [world.config.pages[s.walk.pages_PB[p, i]] for p in on]
    return {
        "user_id": int(e.user_id[i]),
        "session_id": int(s.session_id[i]),
        "entry_time": int(e.entry_ms[i]),
        "exit_time": int(e.entry_ms[i]) + sum(ms),
        "utc_offset_min": int(e.utc_offset_min[i]),
        "landing_page": names[s.landing[i]],
        "pages": [page.name for page in pages],
        "dwell_s": [float(np.float32(t / 1000)) for t in ms],
        "video_views": [
            int(t // (1000 * page.view_s)) + (t >= 1000) for t, page in zip(ms, pages, strict=True)
        ],
        "watch_s": [
            float(np.float32(round(t * p.watch_share) / 1000)) for t, p in zip(ms, pages, strict=True)
        ],
        "policy": "logging",
        "propensity": float(s.propensity[i]),
        "experiment_arm": None,
        "live_followed": int(e.live_followed[i]),
        "push": names[e.push[i]] if e.push[i] >= 0 else "none",
    }


MANY = {
    "pages": [{"name": f"page {i}", "view_s": 3.0 + i, "watch_share": i / 31} for i in range(32)],
    "visits": {"most_pages": 12},
    "browsing": {"multi": 0.8},
    "targets": {},
}


@pytest.mark.parametrize("changes", [{}, MANY], ids=["kuaishou", "32 pages"])
def test_rows_are_those_of_the_batches_by_user_and_time(changes: dict[str, Any]):
    world = world_of(**changes)
    seen: list[Sessions] = []
    table = logged(world, seen.append)
    expected = [by_hand(world, s, i) for s in seen for i in range(len(s))]
    expected.sort(key=lambda row: (row["user_id"], row["entry_time"]))
    for name in ("entry_time", "exit_time"):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.int64()))
    assert table.num_rows > 300 and max(len(p) for p in table["pages"].to_pylist()) >= 3 + 9 * bool(changes)
    assert table.to_pylist() == expected


def test_times_are_in_order_and_add_up():
    table = logged(world_of())
    entry, leave = (table[name].cast(pa.int64()).to_numpy() for name in ("entry_time", "exit_time"))
    user = table["user_id"].to_numpy()
    same = user[1:] == user[:-1]
    assert (np.diff(user) >= 0).all() and (entry[1:] > leave[:-1])[same].all()
    assert len(np.unique(table["session_id"].to_numpy())) == table.num_rows
    dwell = np.array([round(sum(1000 * d for d in row)) for row in table["dwell_s"].to_pylist()])
    assert np.array_equal(leave - entry, dwell)


def test_stays_of_many_hours_keep_their_milliseconds():
    """From 4.6 hours on float32 seconds are more than a millisecond apart."""
    pages = [{"name": name, "dwell_s": 90_000.0} for name in ("a", "b")]
    seen: list[Sessions] = []
    table = logged(world_of(pages=pages, targets={}), seen.append)
    stored = pa.concat_arrays([c.flatten() for c in table["dwell_s"].chunks]).to_numpy()
    ms = np.concatenate([s.walk.dwell_ms_PB[s.walk.pages_PB >= 0] for s in seen])
    assert ms.max() > 40_000_000
    again = np.rint(stored.astype(np.float64) * 1000).astype(np.int64)
    assert np.array_equal(np.sort(again), np.sort(ms))


def test_a_log_of_nobody_has_the_same_columns():
    world = world_of()
    empty = SessionLog(world, 0, ["logging"]).table()
    assert empty.num_rows == 0 and empty.schema == logged(world).schema


def test_the_hash_is_of_the_content_alone(tmp_path: Path):
    table = logged(world_of())
    wanted = content_hash(table)
    chunked = pa.concat_tables([table.slice(0, 11), table.slice(11, 200), table.slice(211)])
    write_parquet(tmp_path / "a.parquet", table, row_group_size=50)
    pq.write_table(table, tmp_path / "b.parquet", compression="snappy", use_dictionary=False)
    files = [pq.read_table(tmp_path / f"{name}.parquet") for name in "ab"]
    assert [content_hash(t) for t in (chunked, *files)] == [wanted] * 3
    assert content_hash(table.slice(3).slice(0, 9)) == content_hash(
        pq.read_table(tmp_path / "a.parquet").slice(3, 9)
    )


@pytest.mark.parametrize(
    "column", ["pages", "dwell_s", "propensity", "policy", "entry_time", "experiment_arm", "push"]
)
def test_the_hash_sees_every_value(column: str):
    table = logged(world_of()).slice(0, 50)
    at, kind = table.column_names.index(column), table.schema.field(column).type
    values = table[column].to_pylist()
    for changed in ([values[-1], *values[1:-1], values[0]], [None, *values[1:]], ["x", *values[1:]]):
        if changed == values or (changed[0] == "x" and not pa.types.is_string(kind)):
            continue
        other = table.set_column(at, column, pa.array(changed, kind))
        assert content_hash(other) != content_hash(table)
    assert content_hash(table.rename_columns([*table.column_names[:-1], "other"])) != content_hash(table)


def test_even_draws_in_a_known_share_of_entries():
    world = world_of()
    chooser = Explored(LoggingPolicy(), 0.5)
    simulation = Simulation(world, np.arange(3000))
    simulation.begin_day()
    entries = simulation.entries()
    assert entries is not None
    inner, choice = LoggingPolicy().choose(simulation, entries), chooser.choose(simulation, entries)
    np.testing.assert_allclose(choice.probabilities, 0.5 * inner.probabilities + 0.5 / 3)
    assert np.array_equal(choice.propensity, choice.probabilities[np.arange(len(entries)), choice.page])
    moved = choice.page != inner.page
    assert (
        0.25 < moved.mean() < 0.42
    )  # half of the entries are drawn anew, a third of these meets the same page
    every = Explored(LoggingPolicy(), 1.0).choose(simulation, entries)
    assert np.allclose(every.propensity, 1 / 3) and (np.bincount(every.page) > 0.28 * len(entries)).all()
    assert not np.array_equal(every.page, RandomPage().choose(simulation, entries).page)
