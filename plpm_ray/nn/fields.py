"""Fields embedded to one width, and weighted sums of them for several selections at once.

Letters: B batch, N numeric fields, F all fields (numeric ones first, by their bins, then categorical ones), C codes of all
fields together, S selections, G groups of T rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plpm_ray.nn.embedding import FieldEmbedding


class FieldPool(nn.Module):
    """Embeds every field to D numbers, e_j = E[code_j] + x_j v_j, and takes weighted sums over the fields.

    The sums are made of the codes and the numbers themselves; the (B, F, D) embeddings are never written down, which is
    most of what attention over fields costs when its weights do not depend on the row.

    Args:
        sizes: (F,) number of codes of each field.
        n_numeric: N, how many of the fields, the first ones, also have a value x_j; 0 for codes only.
        width: D.
    """

    def __init__(self, sizes: Sequence[int], n_numeric: int, width: int) -> None:
        super().__init__()
        self.n_fields, self.n_numeric, self.width = len(sizes), n_numeric, width
        self.fields = FieldEmbedding(sizes, width)
        owner = torch.repeat_interleave(torch.tensor(list(sizes), dtype=torch.int64))
        self.owner: Tensor
        # follows from the sizes, so it need not travel with the weights
        self.register_buffer("owner", owner, persistent=False)
        self.slope = nn.Parameter(torch.empty(n_numeric, width)) if n_numeric else None
        if self.slope is not None:
            nn.init.normal_(self.slope, std=width**-0.5)

    @property
    def table(self) -> Tensor:
        """(C, D) embeddings of the codes of all fields."""
        assert self.fields.table is not None
        return self.fields.table.weight

    def embedded(self, codes_BF: Tensor, dense_BN: Tensor) -> Tensor:
        """(B, F) int64 codes and (B, N) values -> (B, F, D)."""
        e_BFD = self.fields(codes_BF).unflatten(1, (self.n_fields, self.width))
        if self.slope is None:
            return e_BFD
        linear = dense_BN.unsqueeze(2) * self.slope
        return e_BFD + F.pad(linear, (0, 0, 0, self.n_fields - self.n_numeric))

    def forward(self, codes_BF: Tensor, dense_BN: Tensor, weight_SF: Tensor) -> Tensor:
        """(B, F) codes, (B, N) values, (S, F) weights -> (B, S, D), each sum_j weight_s(j) e_j."""
        selections = len(weight_SF)
        table = weight_SF[:, self.owner].t().unsqueeze(2) * self.table.unsqueeze(1)
        pooled = bag_sum(codes_BF + self.fields.offsets, table.flatten(1))
        if self.slope is not None:
            slope = weight_SF[:, : self.n_numeric].t().unsqueeze(2) * self.slope.unsqueeze(1)
            pooled = torch.addmm(pooled, dense_BN, slope.flatten(1))
        return pooled.unflatten(1, (selections, self.width))

    def grouped(self, codes_GTF: Tensor, dense_GTN: Tensor, weight_GF: Tensor) -> Tensor:
        """The same for rows that come in groups, each under the weights of its group only -> (G, T, D)."""
        groups, rows, _ = codes_GTF.shape
        table = weight_GF[:, self.owner].unsqueeze(2) * self.table
        starts = torch.arange(groups, device=codes_GTF.device) * len(self.owner)
        codes = codes_GTF + (starts.unsqueeze(1) + self.fields.offsets).unsqueeze(1)
        pooled = bag_sum(codes.flatten(0, 1), table.flatten(0, 1)).unflatten(0, (groups, rows))
        if self.slope is None:
            return pooled
        return torch.baddbmm(pooled, dense_GTN, weight_GF[:, : self.n_numeric].unsqueeze(2) * self.slope)


def bag_sum(codes_BF: Tensor, table_CD: Tensor) -> Tensor:
    """(B, D) sums of the rows of a table that the (B, F) codes name."""
    if codes_BF.is_cpu and table_CD.requires_grad and not torch.compiler.is_compiling():
        return _BagSum.apply(codes_BF, table_CD)  # type: ignore[return-value]
    return F.embedding_bag(codes_BF, table_CD, mode="sum")


class _BagSum(torch.autograd.Function):
    """`F.embedding_bag`, whose backward pass is again one: of the gradients, by the rows that name a code.

    The built-in backward pass of a CPU takes several times as long, most of it in sorting 64-bit codes.
    """

    @staticmethod
    def forward(ctx: Any, codes_BF: Tensor, table_CD: Tensor) -> Tensor:
        ctx.save_for_backward(codes_BF)
        ctx.rows = len(table_CD)
        return F.embedding_bag(codes_BF, table_CD, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (codes_BF,) = ctx.saved_tensors
        codes = codes_BF.flatten()
        narrow = torch.int16 if ctx.rows <= torch.iinfo(torch.int16).max else torch.int32
        users = codes.to(narrow).argsort(stable=True).div_(codes_BF.shape[1], rounding_mode="floor")
        counts = torch.bincount(codes, minlength=ctx.rows)
        return None, F.embedding_bag(users, grads[0].contiguous(), counts.cumsum(0) - counts, mode="sum")
