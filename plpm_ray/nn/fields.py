"""Fields embedded to one width, and weighted sums of them for several selections at once.

Letters: B batch, N numeric fields, F all fields (numeric ones first, then categorical ones), C codes of all fields together,
S selections, G groups of T rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plpm_ray.nn.embedding import FieldEmbedding

Numeric = Literal["both", "bins", "linear"]


class FieldPool(nn.Module):
    """Embeds every field to D numbers and takes weighted sums over the fields.

    A categorical field's embedding is that of its code. A numeric field's is that of its bin, or its value times a vector,
    or the sum of both: bins see any shape but not the order of the values, the vector sees the order only. Where both are
    summed the bins start at zero, so that training begins with the value and the bins bend it.

    The sums are made of the codes and the values themselves; the (B, F, D) embeddings are never written down, which is most
    of what attention over fields costs when its weights do not depend on the row.

    Args:
        bin_sizes: (N,) number of bins of each numeric field.
        cat_sizes: number of codes of each categorical field.
        width: D.
        numeric: what a numeric field is embedded by.

    Attributes:
        coded: fields that are read by codes: all of them, or with "linear" the categorical ones.
    """

    owner: Tensor

    def __init__(
        self, bin_sizes: Sequence[int], cat_sizes: Sequence[int], width: int, numeric: Numeric = "both"
    ) -> None:
        super().__init__()
        self.n_numeric, self.width = len(bin_sizes), width
        self.n_fields = self.n_numeric + len(cat_sizes)
        bins = [] if numeric == "linear" else list(bin_sizes)
        sizes = [*bins, *cat_sizes]
        self.coded = len(sizes)
        self.fields = FieldEmbedding(sizes, width)
        owner = torch.repeat_interleave(torch.tensor(sizes, dtype=torch.int64)) + self.n_fields - self.coded
        # follows from the sizes, so it need not travel with the weights
        self.register_buffer("owner", owner, persistent=False)
        linear = self.n_numeric and numeric != "bins"
        self.slope = nn.Parameter(torch.empty(self.n_numeric, width)) if linear else None
        if self.slope is not None:
            nn.init.normal_(self.slope, std=width**-0.5)
            if self.fields.table is not None:
                nn.init.zeros_(self.fields.table.weight.data[: sum(bins)])

    def embedded(self, codes_BF: Tensor, dense_BN: Tensor) -> Tensor:
        """(B, coded) int64 codes and (B, N) values -> (B, F, D)."""
        e_BFD = self.fields(codes_BF).unflatten(1, (self.coded, self.width))
        e_BFD = F.pad(e_BFD, (0, 0, self.n_fields - self.coded, 0))
        if self.slope is None:
            return e_BFD
        return e_BFD + F.pad(dense_BN.unsqueeze(2) * self.slope, (0, 0, 0, self.n_fields - self.n_numeric))

    def forward(self, codes_BF: Tensor, dense_BN: Tensor, weight_SF: Tensor) -> Tensor:
        """(B, coded) codes, (B, N) values, (S, F) weights -> (B, S, D), each sum_j weight_s(j) e_j."""
        pooled = dense_BN.new_zeros(1, len(weight_SF) * self.width)
        if self.fields.table is not None:
            table = weight_SF[:, self.owner].t().unsqueeze(2) * self.fields.table.weight.unsqueeze(1)
            pooled = bag_sum(codes_BF + self.fields.offsets, table.flatten(1))
        if self.slope is not None:
            slope = weight_SF[:, : self.n_numeric].t().unsqueeze(2) * self.slope.unsqueeze(1)
            pooled = torch.addmm(pooled, dense_BN, slope.flatten(1))
        return pooled.unflatten(1, (len(weight_SF), self.width))

    def grouped(self, codes_GTF: Tensor, dense_GTN: Tensor, weight_GF: Tensor) -> Tensor:
        """The same for rows that come in groups, each under the weights of its group only -> (G, T, D)."""
        groups, rows = codes_GTF.shape[:2]
        pooled = dense_GTN.new_zeros(1, 1, self.width)
        if self.fields.table is not None:
            table = weight_GF[:, self.owner].unsqueeze(2) * self.fields.table.weight
            starts = torch.arange(groups, device=codes_GTF.device) * len(self.owner)
            codes = codes_GTF + (starts.unsqueeze(1) + self.fields.offsets).unsqueeze(1)
            pooled = bag_sum(codes.flatten(0, 1), table.flatten(0, 1)).unflatten(0, (groups, rows))
        if self.slope is None:
            return pooled
        slope = weight_GF[:, : self.n_numeric].unsqueeze(2) * self.slope
        return torch.baddbmm(pooled, dense_GTN, slope)

    def picked(self, codes_BF: Tensor, dense_BN: Tensor, weight_SF: Tensor, pick_B: Tensor) -> Tensor:
        """The sum under one selection a row, that of (B,) position `pick_B` -> (B, D)."""
        pooled = dense_BN.new_zeros(1, self.width)
        if self.fields.table is not None:
            table = weight_SF[:, self.owner].unsqueeze(2) * self.fields.table.weight
            codes = codes_BF + self.fields.offsets + pick_B.unsqueeze(1) * len(self.owner)
            pooled = bag_sum(codes, table.flatten(0, 1))
        if self.slope is None:
            return pooled
        return torch.addmm(pooled, dense_BN * weight_SF[:, : self.n_numeric][pick_B], self.slope)


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
