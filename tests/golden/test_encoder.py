"""Blocks of a Transformer step by step in NumPy, and GLAN's encoder of eq. 10, alone and in the whole of L-RTG, against them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plpm_ray.nn import TransformerEncoder
from tests.golden import test_lrtg as lrtg

WIDTH, HEADS, LAYERS = 12, 3, 2
Weights = dict[str, np.ndarray]


def weights_of(module: torch.nn.Module) -> Weights:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def linear(p: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)


def norm(p: Weights, name: str, x: np.ndarray) -> np.ndarray:
    spread = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    return (x - x.mean(axis=1, keepdims=True)) / spread * p[f"{name}.weight"] + p[f"{name}.bias"]


def block(p: Weights, name: str, x: np.ndarray, seen: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
    """x + attention(norm x), then x + feed-forward(norm x).

    Args:
        x: (T, D).
        seen: (T, T) bool, True where the step of the row sees that of the column.
        heads, kv_heads: neighbouring heads share keys and values, where these have fewer.
    """
    normed = norm(p, f"{name}.norm", x)
    q = np.split(linear(p, f"{name}.query", normed), heads, axis=1)
    both = np.split(linear(p, f"{name}.key_value", normed), 2 * kv_heads, axis=1)
    keys, values = both[:kv_heads], both[kv_heads:]
    mixed = []
    for h in range(heads):
        k, v = keys[h * kv_heads // heads], values[h * kv_heads // heads]
        found = np.zeros((len(x), v.shape[1]))
        for t in range(len(x)):
            scores = np.exp([q[h][t] @ k[s] / math.sqrt(k.shape[1]) for s in np.flatnonzero(seen[t])])
            found[t] = scores / scores.sum() @ v[seen[t]]
        mixed.append(found)
    x = x + linear(p, f"{name}.out", np.concatenate(mixed, axis=1))
    hidden = np.maximum(linear(p, f"{name}.feed_forward.1", norm(p, f"{name}.feed_forward.0", x)), 0)
    return x + linear(p, f"{name}.feed_forward.3", hidden)


def transformed(
    p: Weights, x: np.ndarray, seen: np.ndarray, heads: int, kv_heads: int | None = None
) -> np.ndarray:
    """(T, D) after all blocks that there are weights of, normalised."""
    layers = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("blocks."))
    for i in range(layers):
        x = block(p, f"blocks.{i}", x, seen, heads, kv_heads or heads)
    return norm(p, "norm", x)


def encoder() -> TransformerEncoder:
    """One whose norms and biases count too, which they do not when training begins."""
    torch.manual_seed(0)
    net = TransformerEncoder(WIDTH, HEADS, LAYERS, 20)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net


def test_an_encoder_by_hand():
    net, x = encoder(), torch.randn(3, 5, WIDTH)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 1, 0, 0]]).bool()
    found = net(x, mask).detach().numpy()
    for i in range(3):
        real = mask[i].numpy()
        kept = x[i].double().numpy()[real]
        wanted = transformed(weights_of(net), kept, np.ones((len(kept), len(kept)), bool), HEADS)
        np.testing.assert_allclose(found[i, real], wanted, rtol=1e-4, atol=1e-5)


class Reference(lrtg.Reference):
    """All of L-RTG by hand."""

    def trend(self, i: int) -> np.ndarray:
        """Eq. 10 and 11, over active days only."""
        x = (self.h(i) + self.p["trend.position"])[self.active(i)]
        inside = {name.removeprefix("trend.encoder."): p for name, p in self.p.items()}
        d = transformed(inside, x, np.ones((len(x), len(x)), bool), self.learner.config.heads)
        return lrtg.softmax(self.linear("trend.pool", d)[:, 0]) @ d


@pytest.mark.parametrize("config", [{"heads": 2}, {"heads": 4, "layers": 3}, {"heads": 1}])
def test_eq_5_to_13_by_hand(config):
    learner, batch = lrtg.make(**config), lrtg.batch_of()
    reference = Reference(learner, batch)
    h, active = learner.days(batch)
    wanted = [reference.trend(i) for i in range(6)]
    np.testing.assert_allclose(learner.trend(h, active).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
    found = learner.predict(batch).detach().numpy()
    np.testing.assert_allclose(found, [reference.y(i) for i in range(6)], rtol=1e-4)
