from __future__ import annotations

import dataclasses
from itertools import chain

import numpy as np
import pytest
import torch

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.stream import LocalReader, StreamTable
from tests.training_tables import make_warehouse

TRANSITION = Needs("transition", ("dense", "cat"), ("action", "use_s", "done", "hour", "step"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> TableSource:
    warehouse = make_warehouse(tmp_path_factory.mktemp("tables") / "warehouse")
    days = tuple(warehouse.transitions.days())
    spec, _ = fit_spec(warehouse, days)
    return TableSource(warehouse.root, days, spec, TRANSITION)


def with_needs(source: TableSource, **changes) -> TableSource:
    return dataclasses.replace(source, needs=dataclasses.replace(source.needs, **changes))


def all_rows(source: TableSource) -> list:
    table = Warehouse.open(source.root).transitions
    return [table.read(bucket, source.days) for bucket in range(4)]


def test_rows_come_by_bucket_and_day(source):
    table = source.load()
    wanted = np.concatenate([t["use_s"].to_numpy() for t in all_rows(source)])
    np.testing.assert_array_equal(table.columns["use_s"].numpy(), wanted)
    assert table.columns["dense"].shape == (len(wanted), source.spec.n_dense)
    assert table.columns["dense"].dtype == torch.float32


def test_next_row_is_the_users_next_session_of_the_day(source):
    table = source.load()
    users = np.concatenate([t["user_id"].to_numpy() for t in all_rows(source)])
    done, step = table.columns["done"].bool().numpy(), table.columns["step"].numpy()
    following = table.next_row.numpy()
    assert (following[done] == -1).all() and (following[~done] >= 0).all()
    rows = np.flatnonzero(~done)
    np.testing.assert_array_equal(users[following[rows]], users[rows])
    np.testing.assert_array_equal(step[following[rows]], step[rows] + 1)
    assert table.sampled is None


def test_continuing_goes_on_to_the_next_day_and_does_not_draw_the_last(source):
    continuing = with_needs(source, horizon="continuing")
    table = continuing.load()
    users = np.concatenate([t["user_id"].to_numpy() for t in all_rows(source)])
    assert not table.columns["done"].any()
    assert table.stored - table.rows == len(np.unique(users))
    rows = table.sampled.numpy()
    np.testing.assert_array_equal(users[table.next_row.numpy()[rows]], users[rows])
    assert sum(p.sampled for p in continuing.parts()) == table.rows


def test_learners_of_single_sessions_get_no_next_row(source):
    table = with_needs(source, grain="session", columns=("action", "propensity")).load()
    assert table.next_row is None
    assert set(table.columns) == {"dense", "cat", "action", "propensity"}
    assert torch.isnan(table.columns["propensity"]).all()


def test_any_numeric_column_of_the_table_may_be_a_label(source):
    table = with_needs(source, grain="session", columns=("session_id", "seq:recent_use_s")).load()
    wanted = np.concatenate([t["session_id"].to_numpy() for t in all_rows(source)])
    np.testing.assert_array_equal(table.columns["session_id"].numpy(), wanted)
    assert table.columns["seq:recent_use_s"].shape == (len(wanted), 8)


@pytest.mark.parametrize(
    ("column", "says"), [("use", "does not have.*\n.*'use_s'"), ("entry_time", "is timestamp")]
)
def test_a_column_that_is_no_label_is_named(source, column, says):
    with pytest.raises(ConfigError, match=says):
        with_needs(source, columns=(column,)).load()


def test_bins_and_sequences_are_read_where_they_are_wanted(source):
    table = with_needs(source, inputs=("bins", "sequences")).load()
    assert {"bins", "seq.recent_landing", "seq.recent_use_s"} <= set(table.columns)
    assert "dense" not in table.columns
    batch = table.gather(torch.tensor([0, 1]))
    assert {"next.bins", "next.seq.recent_use_s"} <= batch.keys() and batch["bins"].dtype == torch.int64


@pytest.mark.parametrize("horizon", ["day", "continuing"])
def test_more_parts_than_buckets_divide_the_users(source, horizon):
    source = with_needs(source, horizon=horizon)
    parts = source.parts(min_parts=10)
    assert len(parts) >= 10
    tables = [source.load([part]) for part in parts]
    assert [t.rows for t in tables] == [p.sampled for p in parts]
    whole = source.load()
    assert sum(t.rows for t in tables) == whole.rows
    joined = torch.cat([t.columns["use_s"] for t in tables])
    torch.testing.assert_close(joined.sort().values, whole.columns["use_s"].sort().values)


def test_part_size_can_be_bounded(source):
    assert max(p.rows for p in source.parts(max_rows=40)) < max(p.rows for p in source.parts())


def test_no_rows_is_an_error(source):
    with pytest.raises(DataError, match="no sessions"):
        dataclasses.replace(source, days=(1,)).parts()


def stream(source: TableSource, window_rows: int = 100) -> StreamTable:
    parts = source.parts(max_rows=60)
    return StreamTable(parts, LocalReader(source), window_rows, torch.device("cpu"))


def seconds(table: StreamTable, epoch: int, batch: int, steps: int, start: int = 0) -> list[list[float]]:
    return [b["use_s"].tolist() for b in table.batches(epoch, 0, batch, steps, start)]


@pytest.mark.parametrize("horizon", ["day", "continuing"])
def test_a_stream_draws_every_row_once_and_then_begins_again(source, horizon):
    source = with_needs(source, horizon=horizon)
    table, whole = stream(source), source.load()
    steps = -(-table.rows // 32) + 1
    flat = list(chain(*seconds(table, 0, 32, steps)))
    rows = whole.columns["use_s"] if whole.sampled is None else whole.columns["use_s"][whole.sampled]
    assert table.rows == whole.rows
    assert sorted(flat[: table.rows]) == sorted(rows.tolist())
    assert len(flat) == steps * 32


def test_a_stream_starts_anywhere_without_reading_what_lies_before(source):
    table = stream(source)
    steps = -(-table.rows // 32)
    read: list[int] = []

    class Counting(LocalReader):
        def __call__(self, parts):
            read.append(len(parts))
            return super().__call__(parts)

    wanted = seconds(table, 2, 32, steps)
    late = StreamTable(table.parts, Counting(source), table.window_rows, table.device)
    assert seconds(late, 2, 32, steps, start=steps - 2) == wanted[-2:]
    assert read[0] < len(table.parts)
    assert seconds(table, 1, 32, steps) != wanted


def test_a_stream_keeps_next_states(source):
    whole, table = source.load(), stream(source)
    pairs = {}
    for row in range(whole.stored):
        following = int(whole.next_row[row])
        if following >= 0:
            pairs[float(whole.columns["use_s"][row])] = whole.columns["dense"][following]
    for batch in table.batches(0, 0, 16, 5):
        for i in range(16):
            if not batch["done"][i]:
                assert torch.equal(batch["next.dense"][i], pairs[float(batch["use_s"][i])])
