"""Staging files between the phases."""

import errno

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import StorageError
from plpm_ray.data.sessionise import bucketise
from plpm_ray.data.shards import read_shards, write_shards


def table(seed: int, n: int) -> pa.Table:
    users = np.random.default_rng(seed).integers(0, 40, n)
    names = pa.array([f"u{u}" for u in users], pa.string())
    return pa.table({"user_id": names, "row": np.arange(n), "file": np.full(n, seed)})


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_buckets_come_back_in_file_order(tmp_path, compression):
    inputs = [bucketise(table(seed, n), 4) for seed, n in enumerate([300, 0, 120])]
    for index in (2, 0, 1):
        counts = write_shards(inputs[index], tmp_path / "staging", index, compression=compression)
        assert counts == [len(b) for b in inputs[index]]
    for bucket in range(4):
        expected = pa.concat_tables([buckets[bucket] for buckets in inputs])
        assert read_shards(tmp_path / "staging", bucket, 3).to_pylist() == expected.to_pylist()


def test_empty_buckets_keep_their_schema(tmp_path):
    write_shards(bucketise(table(0, 0), 3), tmp_path, 0)
    got = read_shards(tmp_path, 2, 1)
    assert got.num_rows == 0 and got.schema == table(0, 0).schema


def test_a_repeated_task_replaces_its_file(tmp_path):
    write_shards(bucketise(table(0, 50), 2), tmp_path, 0)
    write_shards(bucketise(table(1, 10), 2), tmp_path, 0)
    assert sum(len(read_shards(tmp_path, b, 1)) for b in range(2)) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["file-00000.arrow"]


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    write_shards(bucketise(table(0, 50), 2), tmp_path, 0)
    with pytest.raises(StorageError, match="file-00001"):
        read_shards(tmp_path, 0, 2)
    with pytest.raises(StorageError, match="file-00000.*bucket 2"):
        read_shards(tmp_path, 2, 1)
    (tmp_path / "file-00000.arrow").write_bytes(b"not arrow at all" * 10)
    with pytest.raises(StorageError, match="file-00000"):
        read_shards(tmp_path, 0, 1)


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("plpm_ray.data.shards.os.replace", full)
    with pytest.raises(StorageError, match="free space"):
        write_shards(bucketise(table(0, 50), 2), tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
