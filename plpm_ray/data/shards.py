"""Staging between the two phases of every ingest: rows split by user bucket, one file per input file.

Phase 1 (one task per input file) reads the file, splits it with `bucketise` and writes `file-00003.arrow`: an Arrow
IPC file whose record batch k is bucket k. Phase 2 (one task per bucket) reads batch k of every file, in file order,
and hands the rows to a kernel. There are as many staging files as input files, whatever the number of buckets, and
a phase-2 task touches only its own part of each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa

from plpm_ray.core.errors import DataError, StorageError
from plpm_ray.core.storage import storage_errors


def write_shards(
    buckets: Sequence[pa.Table],
    staging: str | Path,
    index: int,
    *,
    compression: Literal["lz4", "zstd"] | None = None,
) -> list[int]:
    """Writes the buckets of one input file; a repeated task replaces the file as a whole.

    Args:
        buckets: one table per bucket, all of one schema, empty ones included (what `bucketise` returns).
        staging: folder, made if absent.
        index: position of the input file among all input files: the order in which phase 2 sees them.
        compression: None is fastest and lets phase 2 map the file instead of reading it; "lz4" or "zstd" for
            small disks.

    Returns:
        Rows per bucket.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    path = _path(staging, index)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                pa.OSFile(str(partial), "wb") as file,
                pa.ipc.new_file(file, buckets[0].schema, options=options) as writer,
            ):
                for table in buckets:
                    writer.write_batch(_one_batch(table))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return [table.num_rows for table in buckets]


def read_shards(staging: str | Path, bucket: int, n_files: int) -> pa.Table:
    """One bucket of all input files, in file order.

    Args:
        staging: the folder given to `write_shards`.
        bucket: 0 to n_buckets - 1.
        n_files: number of input files; their indices are 0 to n_files - 1.

    Returns:
        A table with a chunk per file that has rows for the bucket. A column that some files lack is null there, and
        one whose type differs has the widest. Uncompressed shards are mapped: do not change the files while the
        table lives.

    Raises:
        StorageError: a file is missing or damaged, or lacks the bucket.
        DataError: a column has types that do not go together, such as text in one file and numbers in another.
    """
    tables: list[pa.Table] = []
    for index in range(n_files):
        path = _path(staging, index)
        with storage_errors(f"reading {path}"):
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
                batch = reader.get_batch(bucket)
            except (pa.ArrowException, ValueError) as error:
                raise StorageError(
                    f"{path} is not a shard with bucket {bucket}: {error}", hint="run the build again"
                ) from error
        tables.append(pa.Table.from_batches([batch] if batch.num_rows else [], schema=reader.schema))
    if not tables:
        raise ValueError("n_files must be at least 1")
    if all(table.schema.equals(tables[0].schema) for table in tables):
        return pa.concat_tables(tables)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"the input files disagree on the type of a column: {error}",
            hint="use one type of each column in all files",
        ) from None


def _path(staging: str | Path, index: int) -> Path:
    return Path(staging) / f"file-{index:05d}.arrow"


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if batches:
        return batches[0]
    return pa.RecordBatch.from_arrays([pa.array([], type=f.type) for f in table.schema], schema=table.schema)
