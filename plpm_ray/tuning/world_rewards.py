"""Rewards of a trial's own reward model, in memory: what `reward_sessions` writes beside the transitions, and not on disk.

Trials at the same time so never meet in a folder, and a sweep leaves nothing behind. The sessions are judged in the batches
of `reward_sessions`, so that the numbers are those that `plpm train` finds again for the best point.

Letters: S sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from plpm_ray.core.errors import PlpmError
from plpm_ray.data.contract import Warehouse
from plpm_ray.navigators.base import Learner
from plpm_ray.training.data import REWARD_COLUMNS
from plpm_ray.training.rewards import JUDGED_AT_ONCE, REWARD
from plpm_ray.training.table import TensorTable

Blocks = tuple[tuple[int, ...], ...]
"""Sessions of each day of each bucket, in the order of the table."""


@dataclass(frozen=True)
class Judged:
    """What a reward model says of all sessions of a table.

    Attributes:
        columns: name -> (S,) float32, of `REWARD_COLUMNS`.
        total: sum of the rewards, seconds.
    """

    columns: Mapping[str, Tensor]
    total: float

    def beside(self, table: TensorTable) -> TensorTable:
        """A table of the same sessions, with the rewards as columns."""
        return TensorTable({**table.columns, **self.columns}, table.next_row, table.sampled)


def blocks_of(warehouse: Warehouse, days: Sequence[int]) -> Blocks:
    """How the sessions of some days lie in a table of all of them."""
    entries = warehouse.transitions.entries()
    of = [entries[day].rows for day in sorted(set(days) & entries.keys())]
    return tuple(tuple(rows.get(bucket, 0) for rows in of) for bucket in range(warehouse.info.n_buckets))


@torch.no_grad()
def judge(learner: Learner, table: TensorTable, blocks: Blocks) -> Judged:
    """Judges all sessions of a table.

    Args:
        learner: a reward model, on the table's device.
        table: what it learns from, or more.
        blocks: see `blocks_of`.

    Raises:
        PlpmError: it gives numbers that are not finite.
    """
    learner.eval()
    judged = [_said(learner, table.gather(rows)) for rows in _batches(blocks, table.device)]
    columns = {name: torch.cat([said[name] for said in judged]) for name in judged[0]}
    if not all(bool(column.isfinite().all()) for column in columns.values()):
        raise PlpmError(f"{learner.name} gives numbers that are not finite to sessions of the training days")
    ends = np.cumsum([sum(days) for days in blocks])[:-1]
    # bucket by bucket, as `reward_total` does: the same sessions then have the very same total
    totals = [part.sum(dtype=np.float64) for part in np.split(columns[REWARD].cpu().numpy(), ends)]
    return Judged(columns, float(np.sum(totals)))


def _batches(blocks: Blocks, device: torch.device) -> Iterator[Tensor]:
    first = 0
    for rows in chain.from_iterable(blocks):
        if rows:
            yield from torch.arange(first, first + rows, device=device).split(JUDGED_AT_ONCE)
        first += rows


def _said(learner: Learner, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    assert learner.says is not None
    numbers = learner.scores(batch).float().unbind(1)
    said = dict(zip(learner.says, numbers, strict=True)) | learner.labels(batch)
    return {name: values for name, values in said.items() if name in REWARD_COLUMNS}
