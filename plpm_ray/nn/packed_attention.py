"""Causal attention over packed sequences.

Letters: S steps of all sequences together, U tokens of a step, A of them that ask, n sequences of a group, L steps of each,
G key heads, R query heads for each of them, P width of a head.
"""

from __future__ import annotations

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
        ctx.packing, ctx.kv_heads, ctx.types = packing, kv_heads, (q.dtype, kv.dtype)
        q, kv = q.float(), kv.float()
        scale, width = _scale(kv, kv_heads), kv.shape[2] // (2 * kv_heads)
        out = torch.empty_like(q)
        weights: list[Tensor] = []
        with torch.autocast(q.device.type, enabled=False):
            for group in packing.groups:
                q_n = _asking(q, group, kv_heads, width)
                k_n, v_n = _read(kv, group, kv_heads, width)
                mask = _mask(group, q.shape[1], kv.shape[1], ask, q.shape[2] // (kv_heads * width), q.device)
                weight = torch.baddbmm(mask, k_n, q_n.transpose(1, 2), alpha=scale).softmax(1)
                _write(out, group, torch.bmm(weight.transpose(1, 2), v_n), kv_heads)
                weights.append(weight)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, kv, *weights)
        return out.to(ctx.types[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        q, kv, *weights = ctx.saved_tensors
        heads, scale = ctx.kv_heads, _scale(kv, ctx.kv_heads)
        width, d_out = kv.shape[2] // (2 * heads), grads[0].float().contiguous()
        d_q, d_kv = torch.empty_like(q), torch.zeros_like(kv)
        with torch.autocast(q.device.type, enabled=False):
            for group, weight in zip(ctx.packing.groups, weights, strict=True):
                q_n, d_n = _asking(q, group, heads, width), _asking(d_out, group, heads, width, pads=False)
                k_n, v_n = _read(kv, group, heads, width)
                d_weight = torch.bmm(v_n, d_n.transpose(1, 2))
                # what autograd calls for a softmax; made of products it would take three more passes
                d_score = torch._softmax_backward_data(  # pyright: ignore[reportPrivateImportUsage]
                    d_weight, weight, 1, torch.float32
                ).mul_(scale)
                _write(d_q, group, torch.bmm(d_score.transpose(1, 2), k_n), heads)
                _add(d_kv, group, torch.bmm(d_score, q_n), torch.bmm(weight, d_n), heads)
        return d_q.to(ctx.types[0]), d_kv.to(ctx.types[1]), None, None, None


def _scale(kv_SUY: Tensor, kv_heads: int) -> float:
    return (kv_SUY.shape[2] // (2 * kv_heads)) ** -0.5


def _split(x: Tensor, count: int, kv_heads: int, width: int) -> Tensor:
    """(n L, A, G R P) -> (n G, L A R, P); a view where G is 1."""
    x = x.view(count, -1, kv_heads, x.shape[2] // (kv_heads * width), width)
    return x.transpose(1, 2).reshape(count * kv_heads, -1, width)


def _join(x: Tensor, steps: int, tokens: int, kv_heads: int) -> Tensor:
    """(n G, L A R, P) -> (n L, A, G R P), with `steps` = n L and `tokens` = A; a view where G is 1."""
    count, width = len(x) // kv_heads, x.shape[2]
    x = x.view(count, kv_heads, steps // count * tokens, -1, width)
    return x.transpose(1, 2).reshape(steps, tokens, -1)


def _asking(x: Tensor, group: Group, kv_heads: int, width: int, pads: bool = True) -> Tensor:
    """(n G, L A R, P) rows of a group of (S, A, G R P); zeros at its pads where those are not wanted."""
    steps = group.count * group.length
    if group.asks is None:
        return _split(x[group.first : group.first + steps], group.count, kv_heads, width)
    rows = x.index_select(0, group.asks)
    if group.pads is not None and not pads:
        rows.index_fill_(0, group.pads, 0.0)
    return _split(rows, group.count, kv_heads, width)


def _read(kv: Tensor, group: Group, kv_heads: int, width: int) -> tuple[Tensor, Tensor]:
    """Keys and values (n G, L U, P) that a group reads."""
    if group.reads is None:
        kv = kv[group.first : group.first + group.count * group.length]
    else:
        kv = kv.index_select(0, group.reads)
    keys, values = kv.split(kv_heads * width, dim=2)
    return _split(keys, group.count, kv_heads, width), _split(values, group.count, kv_heads, width)


def _write(out: Tensor, group: Group, x: Tensor, kv_heads: int) -> None:
    """Puts (n G, L A R, P) where a group asked."""
    x = _join(x, group.count * group.length, out.shape[1], kv_heads)
    if group.asks is None:
        out[group.first : group.first + len(x)] = x
    elif group.kept is None:
        out.index_copy_(0, group.asks, x)
    else:
        out.index_copy_(0, group.asks[group.kept], x.index_select(0, group.kept))


def _add(d_kv: Tensor, group: Group, d_keys: Tensor, d_values: Tensor, kv_heads: int) -> None:
    """Adds the gradients of (n G, L U, P) keys and values where a group read; those of pads are 0."""
    steps = group.count * group.length * (1 + group.before)
    parts = [_join(part, steps, d_kv.shape[1], kv_heads) for part in (d_keys, d_values)]
    if group.reads is not None:
        d_kv.index_add_(0, group.reads, torch.cat(parts, dim=2))
        return
    for place, part in zip(d_kv[group.first : group.first + steps].chunk(2, dim=2), parts, strict=True):
        place.copy_(part)


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
