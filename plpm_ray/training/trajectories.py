"""Tables whose rows are trajectories: the sessions of whole local days, drawn together and never padded.

Letters: S sessions, R trajectories, B trajectories of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from plpm_ray.navigators.base import Grain
from plpm_ray.nn.packing import begins
from plpm_ray.training.table import TensorTable


@dataclass
class TrajectoryTable:
    """A `BatchSource` of trajectories.

    A batch is flat: {"dense": (S, N), "step": (S,), ...} holds the sessions of its trajectories one after the other, the
    shortest trajectory first, so that those of one length lie together. Where one begins follows from "step".

    Attributes:
        sessions: all sessions in (day, user, entry) order, with their column "step".
        trajectories: the columns "first" (R,) and "length" (R,): the sessions of each trajectory.
    """

    sessions: TensorTable
    trajectories: TensorTable

    @classmethod
    def of(cls, sessions: TensorTable) -> TrajectoryTable:
        """The trajectories of a table of sessions; it may be empty."""
        step = sessions.columns.get("step", torch.empty(0, dtype=torch.int64))
        first = torch.nonzero(begins(step)).squeeze(1)
        length = torch.diff(first, append=first.new_tensor([len(step)]))
        return cls(sessions, TensorTable({"first": first, "length": length}))

    @property
    def rows(self) -> int:
        """Trajectories."""
        return self.trajectories.rows

    @property
    def values(self) -> int:
        """Sessions, which is how many values a metric has."""
        return self.sessions.rows if self.rows else 0

    @property
    def nbytes(self) -> int:
        return self.sessions.nbytes + self.trajectories.nbytes

    @property
    def device(self) -> torch.device:
        return self.sessions.device

    def to(self, device: torch.device | str) -> TrajectoryTable:
        """The table on a device; itself if it is there already."""
        if self.device == torch.device(device):
            return self
        return TrajectoryTable(self.sessions.to(device), self.trajectories.to(device))

    def batches(
        self, epoch: int, seed: int, batch_size: int, steps: int, start: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Batches of `batch_size` shuffled trajectories, drawn as `TensorTable.batches` draws rows."""
        for rows in self.trajectories.draws(epoch, seed, batch_size, steps, start):
            yield self.gather(rows)

    def ordered(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """All sessions once, in table order; whole trajectories of `batch_size` sessions together, or a single longer one."""
        ends = (self.trajectories.columns["first"] + self.trajectories.columns["length"]).cpu()
        first = 0
        while first < self.values:
            whole = int(torch.searchsorted(ends, first + batch_size, right=True))
            following = int(torch.searchsorted(ends, first, right=True))
            last = int(ends[max(whole - 1, following)])
            yield self.sessions.gather(torch.arange(first, last, device=self.device))
            first = last

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """The flat batch of the given trajectories, (B,) int64, the shortest first; codes as int64."""
        length, order = self.trajectories.columns["length"][rows].sort(stable=True)
        first = self.trajectories.columns["first"][rows[order]]
        ends = length.cumsum(0)
        shift = torch.repeat_interleave(first - ends + length, length)
        return self.sessions.gather(shift + torch.arange(len(shift), device=self.device))


Rows = TensorTable | TrajectoryTable


def rows_of(grain: Grain, table: Rows) -> Rows:
    """A table as learners of that grain draw from it."""
    if grain == "trajectory" and isinstance(table, TensorTable):
        return TrajectoryTable.of(table)
    return table
