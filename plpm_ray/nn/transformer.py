"""Transformers: a plain encoder of padded sequences.

Letters: B batch, T steps, D width, H heads, P width of a head, W width of the feed-forward layer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Sequential):
    """The second half of a block: normalised, widened, ReLU, narrowed."""

    def __init__(self, width: int, ff_width: int, dropout: float) -> None:
        # in place: the backward pass of a linear layer needs its input only, which ReLU leaves alone
        layers = [
            nn.LayerNorm(width),
            nn.Linear(width, ff_width),
            nn.ReLU(inplace=True),
            nn.Linear(ff_width, width),
        ]
        super().__init__(*layers, *([nn.Dropout(dropout)] if dropout else []))


class TransformerEncoder(nn.Module):
    """Steps that see each other, in pre-norm blocks: x + attention(norm x), then x + feed-forward(norm x).

    Positions are the caller's: add their embeddings to x.

    Args:
        width: D.
        heads: H; it must divide D.
        layers: number of blocks.
        ff_width: W.
        dropout: share of each block's outputs that is dropped in training.
    """

    def __init__(self, width: int, heads: int, layers: int, ff_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.blocks = nn.ModuleList(_EncoderBlock(width, heads, ff_width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, D) and (B, T) bool, True where a step is real -> (B, T, D).

        Only real steps are seen; what comes out at others is finite and means nothing. Where a row has no real step at all,
        its steps see each other, so that no softmax is over nothing.
        """
        seen_B11T = (mask_BT | ~mask_BT.any(1, keepdim=True))[:, None, None, :]
        for block in self.blocks:
            x_BTD = block(x_BTD, seen_B11T)
        return self.norm(x_BTD)


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, ff_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = FeedForward(width, ff_width, dropout)

    def forward(self, x_BTD: Tensor, seen_B11T: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x_BTD)).chunk(3, dim=2)
        q_BHTP, k_BHTP, v_BHTP = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q_BHTP, k_BHTP, v_BHTP, attn_mask=seen_B11T)
        x_BTD = x_BTD + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x_BTD + self.feed_forward(x_BTD)
