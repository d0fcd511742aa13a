"""Transformers: a plain encoder of padded sequences, and a causal one of packed sequences that can also go step by step.

Letters: B batch, T steps of a sequence, S steps of all sequences, U tokens of a step, D width, H heads, G key heads, P width
of a head, C steps of a cache, W numbers that a cache holds of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plpm_ray.nn.packed_attention import packed_attention
from plpm_ray.nn.packing import Packing


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

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D); as a matrix inside, since a change in place of a view is copied three times."""
        return super().forward(x.reshape(-1, x.shape[-1])).view(x.shape)


class TransformerEncoder(nn.Module):
    """Steps that see each other, in pre-norm blocks: x + attention(norm x), then x + feed-forward(norm x).

    Positions are the caller's: add their embeddings to x.

    Args:
        width: D.
        heads: H; it must divide D.
        layers: number of blocks.
        ff_width: hidden units of a block.
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
        self.query = nn.Linear(width, width)
        # without bias: that of keys changes no softmax, and that of values ends up in the one of `out`
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.feed_forward = FeedForward(width, ff_width, dropout)

    def forward(self, x_BTD: Tensor, seen_B11T: Tensor) -> Tensor:
        normed = self.norm(x_BTD)
        parts = self.query(normed), *self.key_value(normed).chunk(2, dim=2)
        q_BHTP, k_BHTP, v_BHTP = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q_BHTP, k_BHTP, v_BHTP, attn_mask=seen_B11T)
        x_BTD = x_BTD + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x_BTD + self.feed_forward(x_BTD)


class CausalTransformer(nn.Module):
    """Steps of U tokens, of which each sees those before it in the last `window` steps of its sequence; one token is read.

    Pre-norm blocks, in which H query heads share G heads of keys and values (multi-query attention for G = 1), so that what
    has to be kept of a step is small. In evaluation mode keys and values are rounded to float16, as a cache keeps them; what
    is computed from a cache is then what is computed from the whole sequence. The last block works on the token that is read.

    Args:
        width: D.
        layers: number of blocks, at least 1.
        heads, kv_heads, head_width: H, G and P; G must divide H.
        ff_width: hidden units of a block.
        tokens: U.
        read: place of the token that is read; in a step that has just begun, later tokens need not exist.
        window: most steps seen, the present one included; C of a cache.
        dropout: share of each block's outputs that is dropped in training.

    Attributes:
        cache_width: W, numbers of a step in a cache: keys and values of its tokens in all layers.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        ff_width: int,
        *,
        tokens: int,
        read: int,
        window: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens, self.read, self.window = tokens, read, window
        shape = width, heads, kv_heads, head_width, ff_width
        self.blocks = nn.ModuleList(_CausalBlock(*shape, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.cache_width = layers * tokens * 2 * kv_heads * head_width

    def forward(self, x_SUD: Tensor, packing: Packing) -> Tensor:
        """(S, U, D) tokens in the order of the packing's groups -> (S, D) of the tokens that are read."""
        *first, last = self._layers
        for block in first:
            x_SUD = block(x_SUD, packing)
        return self.norm(last(x_SUD, packing, self.read).squeeze(1))

    def decide(self, x_BAD: Tensor, cache_BCW: Tensor, past_B: Tensor) -> Tensor:
        """What is read of a step that has just begun, from its tokens up to that one and the cache of the steps before.

        Args:
            x_BAD: (B, read + 1, D).
            cache_BCW: (B, C, W), as `entry` gave the steps before; slots without a step must be finite.
            past_B: (B,) int64, steps before this one.

        Returns:
            (B, D).
        """
        past, seen = self._past(cache_BCW, past_B, x_BAD.shape[1])
        *first, last = self._layers
        for block, kv in zip(first, past[:-1], strict=True):
            x_BAD, _ = block.step(x_BAD, kv, seen)
        read, _ = last.step(x_BAD, past[-1], seen, self.read)
        return self.norm(read.squeeze(1))

    def entry(self, x_BUD: Tensor, cache_BCW: Tensor, past_B: Tensor) -> Tensor:
        """(B, W) float16, what a cache keeps of a step that has ended; it belongs in slot `past % C`."""
        past, seen = self._past(cache_BCW, past_B, self.tokens)
        *first, last = self._layers
        kept = []
        for block, kv in zip(first, past[:-1], strict=True):
            x_BUD, own = block.step(x_BUD, kv, seen)
            kept.append(own)
        return torch.stack([*kept, last.keys_values(x_BUD)], dim=1).flatten(1).half()

    @property
    def _layers(self) -> list[_CausalBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _past(self, cache_BCW: Tensor, past_B: Tensor, own: int) -> tuple[list[Tensor], Tensor]:
        """Per layer (B, n U, 2 G P) keys and values of the slots in use, and what each of `own` tokens sees: (B, 1, own, keys).

        Of a full ring the slot that the present step will take holds the step that has just left the window.
        """
        n = min(int(past_B.max()), self.window) if len(past_B) else 0
        kept = cache_BCW[:, :n].float().unflatten(2, (len(self.blocks), self.tokens, -1))
        slot, past_B1 = torch.arange(n, device=past_B.device), past_B.unsqueeze(1)
        filled = (slot < past_B1) & ((past_B1 < self.window) | (slot != past_B1 % self.window))
        filled = filled.repeat_interleave(self.tokens, dim=1)[:, None, None, :].expand(-1, 1, own, -1)
        causal = torch.ones(own, own, dtype=torch.bool, device=past_B.device).tril()
        seen = torch.cat([filled, causal.expand(len(past_B), 1, own, own)], dim=3)
        return [kv.flatten(1, 2) for kv in kept.unbind(2)], seen


class _CausalBlock(nn.Module):
    def __init__(
        self, width: int, heads: int, kv_heads: int, head_width: int, ff_width: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, dropout
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, heads * head_width)
        # without bias: that of keys changes no softmax, and that of values ends up in the one of `out`
        self.key_value = nn.Linear(width, 2 * kv_heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)
        self.feed_forward = FeedForward(width, ff_width, dropout)

    def forward(self, x_SUD: Tensor, packing: Packing, read: int | None = None) -> Tensor:
        """(S, U, D) -> the same, or (S, 1, D) of the token at `read`."""
        normed = self.norm(x_SUD)
        kv = self._rounded(self.key_value(normed))
        if read is not None:
            x_SUD, normed = x_SUD[:, read : read + 1], normed[:, read : read + 1]
        mixed = packed_attention(self.query(normed), kv, packing, self.kv_heads, read or 0)
        return self._rest(x_SUD, mixed)

    def step(
        self, x_BAD: Tensor, past: Tensor, seen: Tensor, read: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, A, D) tokens of one step after (B, n U, 2 G P) of the past -> the same, and their own keys and values."""
        normed = self.norm(x_BAD)
        own = self._rounded(self.key_value(normed))
        if read is not None:
            x_BAD, normed, seen = (x[..., read : read + 1, :] for x in (x_BAD, normed, seen))
        q = self.query(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = torch.cat([past, own], dim=1).unflatten(2, (2, self.kv_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return self._rest(x_BAD, mixed.transpose(1, 2).flatten(2)), own

    def keys_values(self, x_BUD: Tensor) -> Tensor:
        """(B, U, D) -> (B, U, 2 G P)."""
        return self._rounded(self.key_value(self.norm(x_BUD)))

    def _rounded(self, kv: Tensor) -> Tensor:
        return kv if self.training else kv.half().to(kv.dtype)

    def _rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + F.dropout(self.out(mixed), self.dropout, self.training)
        return x + self.feed_forward(x)
