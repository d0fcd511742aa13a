"""Embedding of typed categorical fields."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FieldEmbedding(nn.Module):
    """One table for all categorical fields: field f owns the rows from `offsets[f]` on.

    One lookup and one gradient serve all fields, whatever their number.

    Args:
        sizes: (F,) number of codes of each field, the unknown code 0 included.
        width: D, numbers per field.

    Attributes:
        out_features: F * D.
    """

    offsets: Tensor

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        starts = torch.tensor([0, *sizes[:-1]] if sizes else [], dtype=torch.int64).cumsum(0)
        # follows from the sizes, so it need not travel with the weights
        self.register_buffer("offsets", starts, persistent=False)
        self.table = nn.Embedding(sum(sizes), width) if sizes else None
        self.out_features = len(sizes) * width
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=width**-0.5)

    def forward(self, cat_BF: Tensor) -> Tensor:
        """(B, F) integer codes -> (B, F * D); (B, 0) where there is no field."""
        if self.table is None:
            return torch.empty(len(cat_BF), 0, device=cat_BF.device)
        return self.table(cat_BF + self.offsets).flatten(1)


class FieldInputs(nn.Module):
    """Numeric inputs beside embedded categorical fields: the input of a plain network.

    Args:
        n_numeric: N.
        sizes: (F,) number of codes of each categorical field.
        width: D, numbers per categorical field.

    Attributes:
        out_features: N + F * D.
    """

    def __init__(self, n_numeric: int, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.fields = FieldEmbedding(sizes, width)
        self.out_features = n_numeric + self.fields.out_features

    def forward(self, dense_BN: Tensor, cat_BF: Tensor) -> Tensor:
        """(B, N) float32 and (B, F) integers -> (B, N + F * D)."""
        if self.fields.table is None:
            return dense_BN
        return torch.cat([dense_BN, self.fields(cat_BF)], dim=1)
