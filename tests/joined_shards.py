"""What several workers do together, for one process: the reference of data-parallel training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plpm_ray.navigators.base import Learner
from plpm_ray.training.callbacks import FitResult
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.loop import fit_learner


class Joined:
    """Shards whose batches are joined; `sizes` are the lengths of the shards' parts in the last one."""

    def __init__(self, shards: Sequence[Any]) -> None:
        self.shards, self.sizes = shards, [0] * len(shards)
        self.rows = len(shards) * max(shard.rows for shard in shards)

    def batches(
        self, epoch: int, seed: int, batch_size: int, steps: int, start: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        share = batch_size // len(self.shards)
        for parts in zip(*(s.batches(epoch, seed, share, steps, start) for s in self.shards), strict=True):
            self.sizes = [len(part["dense"]) for part in parts]
            yield {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def fit_joined(learner: Learner, shards: Sequence[Any], training: TrainingConfig) -> FitResult:
    """Trains in one process, each shard's mean loss weighed by its rows (and, of trajectories, the batch's sessions)."""
    joined, own = Joined(shards), learner.losses

    def losses(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ends = torch.tensor(joined.sizes).cumsum(0).tolist()
        terms = [
            own({name: values[end - size : end] for name, values in batch.items()})
            for size, end in zip(joined.sizes, ends, strict=True)
        ]
        sizes = joined.sizes if learner.grain == "trajectory" else [1] * len(shards)
        weights = [size * shard.rows for size, shard in zip(sizes, shards, strict=True)]
        total = sum(weights)
        return {
            name: sum((w / total * t[name] for w, t in zip(weights, terms, strict=True)), torch.zeros(()))
            for name in terms[0]
        }

    learner.losses = losses  # type: ignore[method-assign]
    return fit_learner(learner, joined, None, training)
