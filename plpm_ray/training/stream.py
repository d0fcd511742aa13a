"""Training on tables larger than memory: a window of parts is shuffled and drawn from while the next one is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from plpm_ray.navigators.base import Grain
from plpm_ray.training.data import Part, PartReader, TableSource, to_table
from plpm_ray.training.table import TensorTable, assemble, concatenate
from plpm_ray.training.trajectories import Rows, rows_of


@dataclass
class LocalReader:
    """Reads parts in this process, one ahead in a thread."""

    source: TableSource

    def __call__(self, parts: Sequence[Part]) -> Iterator[TensorTable]:
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for part in (*parts, None):
                coming = pool.submit(self.source.read, part) if part is not None else None
                if ahead is not None:
                    yield to_table(ahead.result())
                ahead = coming


@dataclass
class StreamTable:
    """A `BatchSource` that holds one window of rows at a time.

    Parts are drawn in a random order, the rows of a window in a random order; what does not fill a batch goes into the
    next window's first one. Order and content depend on seed and epoch alone, so a run resumes anywhere: parts before
    the position are not read.

    Attributes:
        parts: the parts of this worker.
        reader: reads parts in order.
        window_rows: rows shuffled together, at least; a window is closed by the part that reaches them.
        device: where batches are wanted.
        grain: what a row is; trajectories are drawn whole, and `window_rows` counts their sessions.
    """

    parts: Sequence[Part]
    reader: PartReader
    window_rows: int
    device: torch.device
    grain: Grain = "session"

    @property
    def rows(self) -> int:
        return sum(part.sampled for part in self.parts)

    def batches(
        self, epoch: int, seed: int, batch_size: int, steps: int, start: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """See `BatchSource`; after the last row the epoch's order begins again."""
        skip = start * batch_size
        pending: list[dict[str, Tensor]] = []
        filled = 0
        for table, order in self._windows(epoch, seed, skip, steps * batch_size):
            at = 0
            while at < len(order):
                rows = order[at : at + batch_size - filled]
                pending.append(table.gather(rows.to(table.device)))
                at, filled = at + len(rows), filled + len(rows)
                if filled == batch_size:
                    batch = pending[0] if len(pending) == 1 else concatenate(pending)
                    yield {name: values.to(self.device) for name, values in batch.items()}
                    pending, filled = [], 0

    def _windows(self, epoch: int, seed: int, skip: int, until: int) -> Iterator[tuple[Rows, Tensor]]:
        """Windows and the rows to draw from each, for the rows `skip` to `until` - 1 of the epoch's endless order."""
        plan = self._plan(epoch, seed)
        turns, at = -(-until // self.rows), 0
        wanted: list[tuple[list[Part], int, int, int]] = []
        for turn in range(turns):
            for index, window in enumerate(plan):
                count = sum(part.sampled for part in window)
                first, last = max(skip - at, 0), min(until - at, count)
                if first < last:
                    wanted.append((window, turn * len(plan) + index, first, last))
                at += count
        tables = self.reader([part for window, *_ in wanted for part in window])
        for window, number, first, last in wanted:
            whole = assemble((next(tables) for _ in window), sum(part.rows for part in window))
            table = rows_of(self.grain, whole)
            generator = torch.Generator().manual_seed(
                (seed * 1_000_003 + epoch * 7_919 + number + 1) % (1 << 63)
            )
            order = torch.randperm(table.rows, generator=generator)
            if isinstance(table, TensorTable) and table.sampled is not None:
                order = table.sampled[order]
            yield table, order[first:last]

    def _plan(self, epoch: int, seed: int) -> list[list[Part]]:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
        windows: list[list[Part]] = [[]]
        for index in torch.randperm(len(self.parts), generator=generator).tolist():
            if sum(self._held(part) for part in windows[-1]) >= self.window_rows:
                windows.append([])
            windows[-1].append(self.parts[index])
        return windows

    def _held(self, part: Part) -> int:
        return part.rows if self.grain == "trajectory" else part.sampled
