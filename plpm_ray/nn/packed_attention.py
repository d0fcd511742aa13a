"""Causal attention over packed sequences.

Letters: S steps of all sequences together, U tokens of a step, A of them that ask, n sequences of a group, L steps of each,
G key heads, R query heads for each of them, P width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from plpm_ray.nn.packing import Group, Packing


def packed_attention(q_SAX: Tensor, kv_SUY: Tensor, packing: Packing, kv_heads: int, ask: int = 0) -> Tensor:
    """softmax(q k' / sqrt(P)) v, where a token sees itself and those before it in the last `packing.window` steps.

    Args:
        q_SAX: (S, A, G R P) queries of the tokens `ask` to `ask + A` - 1 of each step, in the order of the groups.
        kv_SUY: (S, U, 2 G P) keys, then values, of all tokens.
        kv_heads: G.

    Returns:
        (S, A, G R P).
    """
    return _PackedAttention.apply(q_SAX, kv_SUY, packing, kv_heads, ask)  # type: ignore[return-value]


class _PackedAttention(torch.autograd.Function):
    """Groups are written side by side into one tensor, in both directions; autograd would pad each slice to S steps.

    The keys come before the queries in the weights: on a CPU a softmax over a few neighbours is slow, and one over the rows
    of a matrix is not. With one key head nothing is copied but the results.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, packing: Packing, kv_heads: int, ask: int) -> Tensor:
        ctx.packing, ctx.types, ctx.shape = packing, (q.dtype, kv.dtype), kv.shape
        q, kv = q.float(), kv.float()
        ctx.heads = heads = _Heads(kv_heads, kv.shape[2] // (2 * kv_heads))
        out = torch.empty_like(q)
        saved: list[Tensor] = []
        with torch.autocast(q.device.type, enabled=False):
            for group in packing.groups:
                q_n, (k_n, v_n) = heads.asking(q, group), heads.read(kv, group)
                mask = _mask(
                    group, q.shape[1], kv.shape[1], ask, q.shape[2] // (kv_heads * heads.width), q.device
                )
                weight = torch.baddbmm(mask, k_n, q_n.transpose(1, 2), alpha=heads.scale).softmax(1)
                heads.write(out, group, torch.bmm(weight.transpose(1, 2), v_n))
                saved += q_n, k_n, v_n, weight
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*saved)
        return out.to(ctx.types[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        heads, saved, d_out = ctx.heads, iter(ctx.saved_tensors), grads[0].float().contiguous()
        d_q, d_kv = torch.empty_like(d_out), d_out.new_zeros(ctx.shape)
        with torch.autocast(d_out.device.type, enabled=False):
            for group, q_n, k_n, v_n, weight in zip(
                ctx.packing.groups, saved, saved, saved, saved, strict=False
            ):
                d_n = heads.asking(d_out, group, pads=False)
                d_weight = torch.bmm(v_n, d_n.transpose(1, 2))
                # what autograd calls for a softmax; made of products it would take three more passes
                d_score = torch._softmax_backward_data(  # pyright: ignore[reportPrivateImportUsage]
                    d_weight, weight, 1, torch.float32
                ).mul_(heads.scale)
                heads.write(d_q, group, torch.bmm(d_score.transpose(1, 2), k_n))
                heads.add(d_kv, group, torch.bmm(d_score, q_n), torch.bmm(weight, d_n))
        return d_q.to(ctx.types[0]), d_kv.to(ctx.types[1]), None, None, None


@dataclass(frozen=True)
class _Heads:
    """Rows of groups out of and into packed tensors, by key head.

    Attributes:
        count, width: G and P.
    """

    count: int
    width: int

    @property
    def scale(self) -> float:
        return self.width**-0.5

    def split(self, x: Tensor, n: int) -> Tensor:
        """(n L, A, G R P) -> (n G, L A R, P); a view where G is 1."""
        if self.count == 1:
            return x.view(n, -1, self.width)
        x = x.view(n, -1, self.count, x.shape[2] // (self.count * self.width), self.width)
        return x.transpose(1, 2).reshape(n * self.count, -1, self.width)

    def join(self, x: Tensor, group: Group, steps: int, tokens: int) -> Tensor:
        """(n G, L A R, P) -> (n L, A, G R P), with `steps` = n L and `tokens` = A; a view where G is 1."""
        if self.count > 1:
            x = x.view(group.count, self.count, steps // group.count * tokens, -1, self.width).transpose(1, 2)
        return x.reshape(steps, tokens, -1)

    def asking(self, x: Tensor, group: Group, pads: bool = True) -> Tensor:
        """(n G, L A R, P) of (S, A, G R P) where a group asks; zeros at its pads where those are not wanted."""
        if group.asks is None:
            return self.split(x[group.first : group.first + group.steps], group.count)
        rows = x.index_select(0, group.asks)
        if group.pads is not None and not pads:
            rows.index_fill_(0, group.pads, 0.0)
        return self.split(rows, group.count)

    def read(self, kv: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Keys and values, (n G, L U, P), that a group reads."""
        if group.reads is None:
            kv = kv[group.first : group.first + group.steps]
        else:
            kv = kv.index_select(0, group.reads)
        half = self.count * self.width
        return self.split(kv[..., :half], group.count), self.split(kv[..., half:], group.count)

    def write(self, out: Tensor, group: Group, x: Tensor) -> None:
        """Puts (n G, L A R, P) where a group asked."""
        x = self.join(x, group, group.steps, out.shape[1])
        if group.asks is None:
            out[group.first : group.first + group.steps] = x
        elif group.kept is None:
            out.index_copy_(0, group.asks, x)
        else:
            out.index_copy_(0, group.asks[group.kept], x.index_select(0, group.kept))

    def add(self, d_kv: Tensor, group: Group, d_keys: Tensor, d_values: Tensor) -> None:
        """Adds the gradients of (n G, L U, P) keys and values where a group read; those of pads are 0."""
        steps = group.steps * (1 + group.before)
        parts = torch.cat([self.join(d, group, steps, d_kv.shape[1]) for d in (d_keys, d_values)], dim=2)
        if group.reads is None:
            d_kv[group.first : group.first + steps] = parts
        else:
            d_kv.index_add_(0, group.reads, parts)


def _mask(group: Group, asking: int, tokens: int, ask: int, repeat: int, device: torch.device) -> Tensor:
    """(keys, queries) of a group: 0 where a query sees a key, else -inf."""
    if group.before:
        return _table(group.length, asking, tokens, ask, repeat, True, device)
    size = 1 << (group.length - 1).bit_length()
    table = _table(size, asking, tokens, ask, repeat, False, device)
    return table[: group.length * tokens, : group.length * asking * repeat]


@lru_cache(maxsize=64)
def _table(
    length: int, asking: int, tokens: int, ask: int, repeat: int, before: bool, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):
        step = torch.arange(length, device=device)
        query = (step.unsqueeze(1) * tokens + torch.arange(ask, ask + asking, device=device)).flatten()
        key = torch.arange(length * tokens, device=device)
        if before:
            key = torch.cat([key - length * tokens, key])
        seen = key.unsqueeze(1) <= query
        if before:
            oldest = (query // tokens - length + 1) * tokens
            seen &= key.unsqueeze(1) >= oldest
        mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf)
        return mask.repeat_interleave(repeat, dim=1)
