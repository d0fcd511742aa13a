"""Rows by group, padded to the largest one, so that every group meets weights of its own in one batched product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Groups:
    """Rows of a batch by group.

    Letters: G groups, T rows of the largest one.

    Attributes:
        rows: (G, T) int64 positions in the batch; where a group has fewer than T rows, some row of the batch stands in.
        kept: (G, T) bool, False for those that stand in.
    """

    rows: Tensor
    kept: Tensor

    @classmethod
    def of(cls, group_B: Tensor, n_groups: int) -> Groups:
        """Groups of a batch by their (B,) codes 0 to `n_groups` - 1; rows with other codes are in none.

        The size of the result depends on the data, so a GPU has to wait for it.
        """
        known = torch.nonzero((group_B >= 0) & (group_B < n_groups)).squeeze(1)
        codes = group_B[known]
        counts = torch.bincount(codes, minlength=n_groups)
        step = torch.arange(int(counts.max()) if len(codes) else 0, device=group_B.device)
        kept = step < counts.unsqueeze(1)
        position = (counts.cumsum(0) - counts).unsqueeze(1) + step
        order = known[codes.argsort(stable=True)]
        return cls(order[position.clamp(max=max(len(order) - 1, 0))], kept)

    def take(self, x: Tensor) -> Tensor:
        """(B, ...) -> (G, T, ...)."""
        return x.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)
