"""What the processes of one training run tell each other; alone, they tell themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from plpm_ray.core.errors import PlpmError


class Comm:
    """A single process; also the interface of `ProcessGroup`."""

    rank = 0
    world = 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in float64."""
        return list(values)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over all processes of a tensor on the run's device."""
        return value

    def max(self, value: int) -> int:
        """Largest value of all processes."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Values of all processes by rank, in every process."""
        return [value]


class ProcessGroup(Comm):
    """The processes of torch.distributed's default group."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._device = device

    def sum(self, values: Sequence[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return total.tolist()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world

    def max(self, value: int) -> int:
        largest = torch.tensor(value, device=self._device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def together(comm: Comm, action: Callable[[], None]) -> None:
    """Runs an action that can fail in one process (a full disk in rank 0, say); the error is then raised in all.

    Raises:
        PlpmError: that of the lowest rank that had one, marked by `shared`.
    """
    error: PlpmError | None = None
    try:
        action()
    except PlpmError as found:
        error = found
    if comm.max(int(error is not None)):
        raise shared(next(e for e in comm.gather(error) if e is not None))


def shared(error: PlpmError) -> PlpmError:
    """Marks an error that every process of the group raises alike."""
    error.in_all_processes = True  # type: ignore[attr-defined]
    return error
