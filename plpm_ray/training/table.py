"""Training rows as tensors, and batches of them: shuffled without copying the table, gathered into reused buffers.

Letters: R rows of a table, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from plpm_ray.core.errors import DataError


class BatchSource(Protocol):
    """What the loop trains on."""

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        ...

    def batches(
        self, epoch: int, seed: int, batch_size: int, steps: int, start: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Batches `start` to `steps` - 1 of an epoch; a function of its arguments alone, wherever it starts."""
        ...


@dataclass
class TensorTable:
    """Encoded rows in memory; trials of a sweep share one.

    Attributes:
        columns: name -> (R, ...) tensor, as `Learner` names them ("dense", "cat", "action", ...), without `next.*`.
        next_row: (R,) int64 row of the next state, -1 where there is none; None for learners of single sessions.
        sampled: rows that are drawn (rows whose successor is not known serve as next states only); None for all.
    """

    columns: dict[str, Tensor]
    next_row: Tensor | None = None
    sampled: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.stored if self.sampled is None else len(self.sampled)

    @property
    def values(self) -> int:
        """How many values a metric has over the table: one a row."""
        return self.rows

    @property
    def stored(self) -> int:
        """Rows kept, drawn or not."""
        return len(next(iter(self.columns.values())))

    @property
    def device(self) -> torch.device:
        return next(iter(self.columns.values())).device

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.columns.values()) + (
            self.next_row.nbytes if self.next_row is not None else 0
        )

    def to(self, device: torch.device | str) -> TensorTable:
        """The table on a device; itself if it is there already."""
        if self.device == torch.device(device):
            return self
        moved = {name: column.to(device) for name, column in self.columns.items()}
        rest = [None if t is None else t.to(device) for t in (self.next_row, self.sampled)]
        return TensorTable(moved, *rest)

    def order(self, epoch: int, seed: int) -> Tensor:
        """(rows,) int64, the rows in the order in which an epoch draws them."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
        shuffled = torch.randperm(self.rows, generator=generator).to(self.device)
        return shuffled if self.sampled is None else self.sampled[shuffled]

    def batches(
        self, epoch: int, seed: int, batch_size: int, steps: int, start: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Shuffled batches of equal size, every row at least once if steps * batch_size >= rows.

        The order is wrapped around to fill the last batches. The tensors are reused: a batch holds until the next one.
        """
        buffers: dict[str, Tensor] = {}
        for rows in self.draws(epoch, seed, batch_size, steps, start):
            yield self.gather(rows, buffers)

    def draws(self, epoch: int, seed: int, batch_size: int, steps: int, start: int = 0) -> Iterator[Tensor]:
        """The rows of each of those batches, (B,) int64."""
        order = self.order(epoch, seed)
        order = order.repeat(-(-steps * batch_size // len(order)))
        for step in range(start, steps):
            yield order[step * batch_size : (step + 1) * batch_size]

    def ordered(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """All rows once, in table order, for evaluation; the last batch may be smaller. Nothing if there are none."""
        if not self.rows:
            return
        rows = torch.arange(self.rows, device=self.device) if self.sampled is None else self.sampled
        for part in rows.split(batch_size):
            yield self.gather(part)

    def gather(self, rows: Tensor, buffers: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The batch of the given rows, `next.*` included; codes as int64.

        Args:
            rows: (B,) int64.
            buffers: an initially empty dict, kept by the caller for batches of one size, whose tensors are reused.
        """
        buffers = {} if buffers is None else buffers
        batch = {name: _take(name, column, rows, buffers) for name, column in self.columns.items()}
        if self.next_row is not None:
            following = _take("next_row", self.next_row, rows, buffers)
            # a row without successor stands in for its own; `done` keeps it out of the target
            following = torch.where(following < 0, rows, following)
            for name, column in self.columns.items():
                if name in _INPUTS or name.startswith("seq."):
                    batch[f"next.{name}"] = _take(f"next.{name}", column, following, buffers)
        return batch


_INPUTS = ("dense", "cat", "bins")
_CODES = (torch.int8, torch.int16, torch.int32)


def _take(name: str, column: Tensor, rows: Tensor, buffers: dict[str, Tensor]) -> Tensor:
    buffer = buffers.get(name)
    if buffer is None:
        buffer = buffers[name] = column.new_empty((len(rows), *column.shape[1:]))
    torch.index_select(column, 0, rows, out=buffer)
    return buffer.long() if buffer.dtype in _CODES else buffer


def assemble(tables: Iterable[TensorTable], stored: int) -> TensorTable:
    """Tables one below the other, `stored` rows in all; each is copied and let go before the next is asked for.

    Next rows are shifted to the new positions. A table that holds all rows already is returned as it is.
    """
    whole: TensorTable | None = None
    at, sampled = 0, []
    for table in tables:
        if table.stored == stored:
            return table
        if whole is None:
            columns = {
                name: column.new_empty((stored, *column.shape[1:])) for name, column in table.columns.items()
            }
            whole = TensorTable(columns, None if table.next_row is None else table.next_row.new_empty(stored))
        for name, column in table.columns.items():
            whole.columns[name][at : at + table.stored] = column
        if table.next_row is not None and whole.next_row is not None:
            whole.next_row[at : at + table.stored] = torch.where(table.next_row < 0, -1, table.next_row + at)
        sampled.append(at + (torch.arange(table.stored) if table.sampled is None else table.sampled))
        at += table.stored
    if whole is None or at != stored:
        raise ValueError(f"the tables hold {at} rows, not {stored}")
    drawn = torch.cat(sampled)
    whole.sampled = None if len(drawn) == stored else drawn
    return whole


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Steps that see every row once."""
    return -(-rows // batch_size)


def no_rows(who: str) -> DataError:
    """The error of a table from which nothing can be drawn; `who` ends in a verb."""
    return DataError(
        f"{who} nothing to learn from",
        hint="take more days, or fewer workers; with horizon continuing a user needs two sessions (set horizon to day)",
    )


def concatenate(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of several; the tensors are copied."""
    return {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
