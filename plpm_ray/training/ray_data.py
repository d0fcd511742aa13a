"""Ray Data feeds the workers: parts are read and encoded by its tasks, and every worker gets whole parts.

**Exactness.** A worker that was killed must find the very rows it had before. `streaming_split` hands blocks to
whichever worker asks first, so a second attempt may deal them otherwise even with `preserve_order`; `equal=True` drops
rows. Here each part is one block, blocks are kept in part order, and worker r of W always gets the r-th of W runs of
parts. In memory mode they lie in the object store, outside the workers: a restart maps them again and reads nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from ray.train import DataConfig

from plpm_ray.training.data import Part, TableSource, to_table
from plpm_ray.training.table import TensorTable, assemble

if TYPE_CHECKING:
    import ray.data

NO_ROWS = {"none": torch.empty(0)}


class PartRuns(DataConfig):
    """Worker r of W gets the r-th of W runs of consecutive parts, the same in every attempt."""

    def configure(
        self,
        datasets: dict[str, Any],
        world_size: int,
        worker_handles: Any = None,
        worker_node_ids: Any = None,
        **kwargs: Any,
    ) -> list[dict[str, ray.data.DataIterator]]:
        shards: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            for shard, split in zip(shards, dataset.split(world_size), strict=True):
                shard[name] = split.iterator()
        return shards


def run_of(parts: Sequence[Part], rank: int, world: int) -> list[Part]:
    """The parts of one worker, as `PartRuns` deals them."""
    return [parts[i] for i in np.array_split(np.arange(len(parts)), world)[rank]]


def encoded_parts(source: TableSource, parts: Sequence[Part], num_cpus: float = 1) -> ray.data.Dataset:
    """A lazy dataset of one Arrow block a part, in the order of the parts; each is made by a task of `num_cpus`."""
    import ray

    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    dataset = ray.data.from_items([{"part": i} for i in range(len(parts))], override_num_blocks=len(parts))
    context = dataset.context
    context.execution_options.preserve_order = True
    context.target_max_block_size = None  # a part must not be cut: its next rows are positions in it
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # an unreadable file is to name itself
    cpus = min(num_cpus, largest) if largest else num_cpus
    return dataset.map_batches(
        _Encode(source, list(parts)), batch_size=None, batch_format="pyarrow", num_cpus=cpus
    )


def materialised(source: TableSource, parts: Sequence[Part]) -> ray.data.Dataset:
    """The encoded parts in the object store."""
    with _quiet():
        return encoded_parts(source, parts).materialize()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass
class _Encode:
    source: TableSource
    parts: list[Part]

    def __call__(self, batch: pa.Table) -> pa.Table:
        (number,) = batch["part"].to_pylist()
        return to_arrow(self.source.read(self.parts[number]), number)


def to_arrow(arrays: dict[str, np.ndarray], number: int) -> pa.Table:
    """Arrays of a part as Arrow columns (FixedSizeLists where they have more dimensions), with the part's number."""
    columns: dict[str, pa.Array] = {
        "part": pa.array(np.full(len(next(iter(arrays.values()))), number, dtype=np.int32))
    }
    for name, values in arrays.items():
        column = pa.array(values.reshape(-1))
        for width in values.shape[:0:-1]:
            column = pa.FixedSizeListArray.from_arrays(column, width)
        columns[name] = column
    return pa.table(columns)


def from_arrow(table: pa.Table) -> TensorTable:
    """Inverse of `to_arrow`, without a copy where a column is one chunk of numbers."""
    arrays: dict[str, np.ndarray] = {}
    for name in table.column_names:
        if name == "part":
            continue
        arrays[name] = _numbers(table[name].combine_chunks())
    return to_table(arrays)


def _numbers(column: pa.Array) -> np.ndarray:
    """A column of numbers, or of FixedSizeLists of them, of any depth."""
    shape, kind = [len(column)], column.type
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        column, kind = column.flatten(), kind.value_type
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def load_shard(shard: ray.data.DataIterator | None, parts: Sequence[Part]) -> TensorTable:
    """All rows of a worker's shard; without a copy if it is a single part.

    Raises:
        RuntimeError: the blocks are not the parts, in their order.
    """
    if not parts or shard is None:
        return TensorTable(dict(NO_ROWS))
    return assemble(_checked(shard, parts), sum(part.rows for part in parts))


def _checked(shard: Any, parts: Sequence[Part]) -> Iterator[TensorTable]:
    last = -1
    for block in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        if not block.num_rows:
            continue
        number = block["part"][0].as_py()
        if number <= last or block["part"][-1].as_py() != number:
            raise RuntimeError(f"Ray Data delivered part {number} after {last}; their order must be kept")
        last = number
        yield from_arrow(block)


@dataclass
class RayReader:
    """Reads parts in order by Ray Data tasks, ahead of the training step and on any node of the cluster.

    Attributes:
        num_cpus: of a task; what the workers leave free must hold one, or they wait for ever.
    """

    source: TableSource
    num_cpus: float

    def __call__(self, parts: Sequence[Part]) -> Iterator[TensorTable]:
        if parts:
            with _quiet():
                yield from _checked(encoded_parts(self.source, parts, self.num_cpus).iterator(), parts)
