"""Day tables: commits are atomic, and replace the days they name and nothing else."""

import pyarrow as pa
import pytest

from plpm_ray.core.errors import StorageError
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.data.contract import DatasetInfo, Warehouse
from plpm_ray.data.day_table import DayTable, day_name, day_number


def fill(table, days, value, buckets=2):
    gen = table.new_generation()
    rows = {
        d: {b: table.write(d, gen, b, pa.table({"v": [value] * (b + 1)})) for b in range(buckets)}
        for d in days
    }
    table.commit(gen, rows)
    return gen


def test_days_have_names():
    assert day_name(day_number("2022-04-25")) == "2022-04-25" and day_name(0) == "1970-01-01"


def test_replacing_a_day_leaves_the_others(tmp_path):
    table = DayTable(tmp_path)
    fill(table, [10, 11], 1)
    before, files = table.fingerprint([10]), table.files(0, [10])
    fill(table, [11], 2)
    assert table.days() == [10, 11]
    assert table.fingerprint([10]) == before and table.files(0, [10]) == files
    assert table.read(1)["v"].to_pylist() == [1, 1, 2, 2]


def test_what_a_commit_replaces_stays_readable_until_the_next(tmp_path):
    table = DayTable(tmp_path)
    fill(table, [10, 11], 1)
    held = table.files(0)
    fill(table, [11], 2)
    assert all(path.exists() for _, path in held)
    assert len(list(tmp_path.glob("day=*/gen=*"))) == 3
    table.remove_uncommitted()
    assert all(path.exists() for _, path in held)
    table.commit(table.new_generation(), {}, drop=[10])
    assert [path.exists() for _, path in held] == [True, False]
    fill(table, [11], 3)
    assert [p.name for p in sorted(tmp_path.glob("day=*"))] == ["day=1970-01-12"]
    assert len(list(tmp_path.glob("day=*/gen=*"))) == 2


def test_what_killed_writers_left_goes(tmp_path):
    table = DayTable(tmp_path)
    fill(table, [1], 1)
    for day in (1, 2):
        table.write(day, "dead", 0, pa.table({"v": [9]}))
    table.remove_uncommitted()
    assert table.read(0)["v"].to_pylist() == [1]
    assert not (tmp_path / "day=1970-01-03").exists()
    assert len(list(tmp_path.glob("day=*/gen=*"))) == 1


def test_an_uncommitted_generation_is_not_seen(tmp_path):
    table = DayTable(tmp_path)
    fill(table, [1], 1)
    gen = table.new_generation()
    table.write(1, gen, 0, pa.table({"v": [9]}))
    assert table.read(0)["v"].to_pylist() == [1]
    table.discard(gen)
    assert len(list(tmp_path.glob("day=*/gen=*"))) == 1
    with pytest.raises(StorageError, match="is committed"):
        table.discard(table.entries()[1].gen)


def test_empty_buckets_and_days(tmp_path):
    table = DayTable(tmp_path)
    assert table.days() == [] and table.read(0) is None
    gen = table.new_generation()
    table.commit(gen, {5: {0: table.write(5, gen, 0, pa.table({"v": [1]})), 1: 0}})
    assert table.files(1) == [] and table.entries()[5].total == 1
    table.commit(table.new_generation(), {}, drop=[5])
    assert table.days() == []


def test_a_warehouse_refuses_another_dataset(tmp_path):
    info = DatasetInfo("mine", PageCatalogue.model_validate(["a", "b"]), {"live": "numeric"})
    assert Warehouse.create(tmp_path, info).info == Warehouse.open(tmp_path).info == info
    other = DatasetInfo("mine", PageCatalogue.model_validate(["a", "c"]), {"live": "numeric"})
    with pytest.raises(StorageError, match="differs in pages"):
        Warehouse.create(tmp_path, other)
    with pytest.raises(StorageError, match="no tables"):
        Warehouse.open(tmp_path / "none")
