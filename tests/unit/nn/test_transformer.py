"""The transformers against plain attention under an explicit mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plpm_ray.nn import CausalTransformer, Packing, TransformerEncoder
from plpm_ray.nn.packing import begins

WIDTH, LAYERS, HEADS, HEAD = 12, 2, 4, 6


def steps_of(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(n) for n in lengths])


def causal(window: int, kv_heads: int = 1, tokens: int = 3, read: int = 1) -> CausalTransformer:
    torch.manual_seed(0)
    shape = WIDTH, LAYERS, HEADS, kv_heads, HEAD, 2 * WIDTH
    return CausalTransformer(*shape, tokens=tokens, read=read, window=window)


def plain(net: CausalTransformer, x_SUD: Tensor, step_S: Tensor) -> Tensor:
    """All sequences in one attention matrix, most of which is masked."""
    step = step_S.repeat_interleave(net.tokens)
    sequence = begins(step_S).cumsum(0).repeat_interleave(net.tokens)
    place = torch.arange(len(step))
    seen = (sequence[:, None] == sequence) & (place[:, None] >= place)
    seen &= step[:, None] - step < net.window
    x = x_SUD.flatten(0, 1)
    for block in net._layers:
        normed = block.norm(x)
        q = block.query(normed).unflatten(1, (HEADS, HEAD)).transpose(0, 1)
        k, v = block.key_value(normed).unflatten(1, (2, block.kv_heads, HEAD)).permute(1, 2, 0, 3)
        k, v = (t.repeat_interleave(HEADS // block.kv_heads, dim=0) for t in (k, v))
        weight = (q @ k.transpose(1, 2) / HEAD**0.5).masked_fill(~seen, -torch.inf).softmax(2)
        x = x + block.out((weight @ v).transpose(0, 1).flatten(1))
        x = x + block.feed_forward(x)
    return net.norm(x).unflatten(0, (-1, net.tokens))[:, net.read]


def packed(net: CausalTransformer, x_SUD: Tensor, step_S: Tensor) -> Tensor:
    packing = Packing.of(begins(step_S), net.window)
    return packing.restore(net(packing.arrange(x_SUD), packing))


LENGTHS = {
    "one step": [1],
    "a long tail": [1, 3, 2, 30, 7, 8, 9, 10, 11, 1, 1, 6, 25, 9, 7, 7, 20],
    "a hundred steps": [2, 100, 1, 1],
    "all alike": [4] * 5,
    "as long as the window": [10, 10, 20, 21, 9],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(
    ("window", "kv_heads", "tokens", "read"), [(10, 1, 3, 1), (1, 1, 3, 1), (128, 2, 2, 0), (10, 4, 1, 0)]
)
def test_packed_sequences_give_what_an_explicit_mask_gives(lengths, window, kv_heads, tokens, read):
    net, step = causal(window, kv_heads, tokens, read).double(), steps_of(lengths)
    x = torch.randn(len(step), tokens, WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(step), WIDTH, dtype=torch.float64)
    found = []
    for run in (packed, plain):
        y = run(net, x, step)
        gradients = torch.autograd.grad((y * weight).sum(), [x, *net.parameters()])
        found.append([y, *gradients])
    for ours, wanted in zip(*found, strict=True):
        # the attention itself is float32
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_a_packing_keeps_sorted_sequences_where_they_are():
    packing = Packing.of(begins(steps_of([1, 1, 2, 2, 7, 7])), 10)
    assert packing.order is None
    assert [(g.count, g.length, g.first) for g in packing.groups] == [(2, 1, 0), (2, 2, 2), (2, 7, 6)]
    assert all(g.asks is None for g in packing.groups)


def test_a_packing_pads_few_long_sequences_and_cuts_what_exceeds_the_window():
    packing = Packing.of(begins(steps_of([25, 8, 1, 9])), 10)
    assert packing.order is not None
    assert packing.order.tolist() == [33, *range(25, 33), *range(34, 43), *range(25)]
    one, padded, first, later = packing.groups
    assert (one.length, padded.count, padded.length) == (1, 2, 9)
    assert padded.pads is not None and padded.pads.tolist() == [8]
    assert (first.count, first.length, first.before) == (1, 10, False)
    assert (later.count, later.length, later.before) == (2, 10, True)


def test_what_is_restored_lies_as_it_came():
    x = torch.randn(36, 2)
    packing = Packing.of(begins(steps_of([25, 8, 1, 2])), 10)
    assert torch.equal(packing.restore(packing.arrange(x)), x)


def test_a_sequence_begins_at_zero_and_where_numbers_do_not_follow():
    assert begins(torch.tensor([2, 3, 0, 0, 1, 5])).tolist() == [True, False, True, True, False, True]
    assert begins(torch.empty(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_step_by_step_gives_what_the_whole_sequence_gives(kv_heads):
    net, lengths = causal(6, kv_heads).eval(), [1, 4, 6, 7, 20]
    step = steps_of(lengths)
    first, length = torch.nonzero(step == 0).squeeze(1), torch.tensor(lengths)
    x = torch.randn(len(step), 3, WIDTH)
    cache = torch.zeros(len(lengths), 6, net.cache_width, dtype=torch.float16)
    with torch.no_grad():
        whole = packed(net, x, step)
        for t in range(max(lengths)):
            users = torch.nonzero(length > t).squeeze(1)
            rows, past = first[users] + t, torch.full((len(users),), t)
            read = net.decide(x[rows, :2], cache[users], past)
            torch.testing.assert_close(read, whole[rows], rtol=1e-5, atol=1e-4)
            cache[users, t % 6] = net.entry(x[rows], cache[users], past)


def test_bfloat16_is_kept_out_of_the_weights_of_attention():
    net, step = causal(10), steps_of([1, 3, 3, 12])
    x = torch.randn(len(step), 3, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        y = packed(net, x, step)
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), packed(net, x, step), rtol=0.1, atol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def encoder(dropout: float = 0.0) -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(WIDTH, 3, 2, 20, dropout)


def test_an_encoder_sees_real_steps_only():
    net, x = encoder(), torch.randn(4, 6, WIDTH)
    mask = torch.tensor(
        [[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]
    ).bool()
    other = torch.where(mask.unsqueeze(2), x, torch.randn_like(x))
    torch.testing.assert_close(net(x, mask)[mask], net(other, mask)[mask])
    torch.testing.assert_close(net(x, mask)[3, 0], net(x[3:, :1], mask[3:, :1])[0, 0])


def test_an_encoder_sees_in_both_directions():
    net, x = encoder(), torch.randn(1, 5, WIDTH)
    changed = x.clone()
    changed[0, 4] += 1
    assert (
        (net(x, torch.ones(1, 5, dtype=torch.bool)) != net(changed, torch.ones(1, 5, dtype=torch.bool)))
        .any(2)
        .all()
    )


def test_an_encoder_of_nothing_is_finite():
    net, x = encoder(0.5), torch.randn(2, 3, WIDTH, requires_grad=True)
    y = net(x, torch.zeros(2, 3, dtype=torch.bool))
    y.sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_heads_must_divide_an_encoders_width():
    with pytest.raises(ValueError, match="5 heads"):
        TransformerEncoder(WIDTH, 5, 1, 8)


def test_dropout_is_for_training_only():
    net, x, mask = encoder(0.5), torch.randn(2, 3, WIDTH), torch.ones(2, 3, dtype=torch.bool)
    assert not torch.equal(net(x, mask), net(x, mask))
    net.eval()
    assert torch.equal(net(x, mask), net(x, mask))
    assert F.mse_loss(net(x, mask), x) > 0
