"""KLAN-AM against its equations: the MMoE of eq. 12 in NumPy, the label rule and the masking of A.5."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plpm_ray.navigators.klan.am import AM, AMConfig, masked_cross_entropy, static_label
from plpm_ray.training.job import build_learner
from tests.training_tables import fitted, pages

K = 3


def make(**config) -> AM:
    spec, stats = fitted(K)
    options = {
        "experts": 3,
        "expert_hidden": 7,
        "expert_width": 5,
        "tower_hidden": (4,),
        "embedding_dim": 2,
        **config,
    }
    learner = build_learner(AM, options, spec, pages(K), stats, seed=3)
    assert isinstance(learner, AM)
    return learner


def example(rows: int = 40, seed: int = 0) -> dict[str, torch.Tensor]:
    return AM.example_batch(seed, fitted(K)[0], pages(K), rows)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def gamma_by_hand(learner: AM, dense: np.ndarray, cat: np.ndarray) -> np.ndarray:
    """(K,) eq. 12 for one session, expert by expert and tower by tower, in double precision."""
    w = {name: p.detach().double().numpy() for name, p in learner.state_dict().items()}
    offsets = learner.fields.offsets.numpy()
    x = np.concatenate([dense, *(w["fields.table.weight"][o + c] for o, c in zip(offsets, cat, strict=True))])
    outputs = []
    for m in range(3):
        rows = slice(7 * m, 7 * m + 7)
        h = relu(w["mmoe.first.weight"][rows] @ x + w["mmoe.first.bias"][rows])
        outputs.append(h @ w["mmoe.second.weight"][m] + w["mmoe.second.bias"][m, 0])
    found = []
    for k in range(K):
        rows = slice(3 * k, 3 * k + 3)
        gate = softmax(w["mmoe.gate.weight"][rows] @ x + w["mmoe.gate.bias"][rows])
        mixed = sum(g * o for g, o in zip(gate, outputs, strict=True))
        h = relu(mixed @ w["towers.layers.0.weight"][k] + w["towers.layers.0.bias"][k, 0])
        logit = h @ w["towers.layers.1.weight"][k] + w["towers.layers.1.bias"][k, 0]
        found.append(1 / (1 + np.exp(-logit[0])))
    return np.array(found)


def test_eq_12():
    learner, batch = make(), example()
    gamma = learner.scores(batch).detach().numpy()
    assert gamma.shape == (40, K) and (gamma > 0).all() and (gamma < 1).all()
    by_hand = [
        gamma_by_hand(learner, d.double().numpy(), c.numpy())
        for d, c in zip(batch["dense"], batch["cat"], strict=True)
    ]
    np.testing.assert_allclose(gamma, by_hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("switches", "use_s", "static"),
    [
        (0, 0.0, 1),  # nothing happened, so nothing moved
        (0, 900.0, 1),
        (1, 0.0, 0),  # a switch without any use
        (1, 499.0, 0),
        (1, 500.0, 0),  # exactly T is not below it
        (1, 501.0, 1),
        (4, 1900.0, 0),
        (4, 2100.0, 1),
    ],
)
def test_label_is_1_below_the_threshold(switches: int, use_s: float, static: int):
    found = static_label(torch.tensor([switches]), torch.tensor([use_s]), 0.002)
    assert found.tolist() == [static]


def test_the_threshold_is_applied_in_the_loss():
    batch = example()
    shares = [make(threshold=t).metrics(batch)["static_share"].mean().item() for t in (1e-4, 0.01, 10.0)]
    assert shares[0] < shares[1] < shares[2]
    assert AMConfig().threshold == 0.002


def test_the_loss_is_the_cross_entropy_of_the_assigned_page():
    logits = torch.tensor([[0.3, -2.0, 5.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    action, label = torch.tensor([1, 2]), torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = masked_cross_entropy(logits, action, label).numpy()
    p = 1 / (1 + np.exp(-np.array([-2.0, -1.0])))
    np.testing.assert_allclose(found, [-np.log(p[0]), -np.log(1 - p[1])], rtol=1e-12)


@pytest.mark.parametrize("page", range(K))
def test_other_pages_get_exactly_no_gradient(page: int):
    learner, batch = make(), example()
    batch["action"] = torch.full_like(batch["action"], page)
    learner(batch)["loss"].backward()
    mmoe, others = learner.mmoe, [k for k in range(K) if k != page]
    for parameter in learner.towers.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[others] == 0).all() and (parameter.grad[page] != 0).any()
    for parameter in mmoe.gate.parameters():
        assert parameter.grad is not None
        gate = parameter.grad.unflatten(0, (K, -1))
        assert (gate[others] == 0).all() and (gate[page] != 0).any()
    assert mmoe.first.weight.grad is not None and (mmoe.first.weight.grad != 0).any()


def test_metrics_are_those_of_the_assigned_page():
    learner, batch = make(), example()
    gamma, label = learner.predicted(batch)
    found = learner.metrics(batch)
    torch.testing.assert_close(gamma, learner.scores(batch)[torch.arange(40), batch["action"]])
    torch.testing.assert_close(found["brier"], (gamma - label) ** 2)
    torch.testing.assert_close(found["loss"].mean(), learner(batch)["loss"])
    assert torch.equal(found["accuracy"], ((gamma > 0.5) == (label > 0.5)).float())
