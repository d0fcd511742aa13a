"""GLAN's HRM equation by equation, against values computed by hand or independently in float64; and that no label leaks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from plpm_ray.core.features import SESSION_KEYS
from plpm_ray.navigators.glan.hrm import (
    HRM,
    MANY,
    HRMConfig,
    calibrated_odds,
    focal_loss,
    reward,
    session_features,
)
from tests.training_tables import fitted, pages

K = 3
LABELS = {"page_dwell_s", "landing_dwell_s", "use_s", "dwell_s", "watch_s", "reward"}


def make(k: int = K, **config) -> HRM:
    spec, stats = fitted(k)
    torch.manual_seed(0)
    sizes = {"embedding_dim": 4, "experts": 2, "expert_hidden": 5, "expert_width": 3, "tower_hidden": (6,)}
    learner = HRM(HRMConfig(**(sizes | config)), spec, pages(k), stats)
    for parameter in learner.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return learner


def batch_of(rows: int = 8, k: int = K, seed: int = 0) -> dict[str, Tensor]:
    """Some sessions whose views are unknown, and some whose landing page was left at once."""
    batch = HRM.example_batch(seed, fitted(k)[0], pages(k), rows)
    batch["page_views"][1] = torch.nan
    batch["page_views"][2, 0] = torch.nan
    batch["landing_dwell_s"][::2] = 3.0
    return batch


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class Reference:
    """One session at a time, in float64, straight from the paper."""

    def __init__(self, learner: HRM, batch: dict[str, Tensor]) -> None:
        self.p = {name: p.detach().double().numpy() for name, p in learner.named_parameters()}
        self.batch = {name: values.double().numpy() for name, values in batch.items()}
        self.cat = batch["cat"].numpy()
        self.k = batch["action"].tolist()
        sizes = fitted(learner.mmoe.tasks - 1)[0].cat_sizes
        self.starts = np.cumsum([0, *sizes])[:-1]
        self.experts = learner.mmoe.experts

    def v(self, i: int) -> np.ndarray:
        """Session features, one by one."""
        views, visits = self.batch["page_views"][i], self.batch["page_visits"][i]
        counts = [0.0 if math.isnan(c) else c for c in views] + [*visits, self.batch["switches"][i]]
        known = [0.0 if math.isnan(c) else 1.0 for c in views]
        return np.array([math.log(1 + c) for c in counts] + [c / MANY for c in counts] + known)

    def embeddings(self, i: int) -> np.ndarray:
        """(F, D) e_x, e_c, e_v (eq. 32): numbers times vectors, then rows of tables."""
        numbers = np.concatenate([self.batch["dense"][i], self.v(i)])
        rows = self.p["fields.fields.table.weight"][self.starts + self.cat[i]]
        return np.concatenate([numbers[:, None] * self.p["fields.slope"], rows])

    def f(self, i: int) -> np.ndarray:
        """Eq. 33, 21 and 22."""
        k = self.k[i]
        e_k = self.p["landing.weight"][k]
        w = softmax(self.p["selection_weight"][k] @ e_k + self.p["selection_bias"][k])
        return np.concatenate([sum(a * e for a, e in zip(w, self.embeddings(i), strict=True)), e_k])

    def outputs(self, i: int) -> np.ndarray:
        """Eq. 23 and the towers of eq. 24 before their last function; the drop-off comes last."""
        p, f = self.p, self.f(i)
        hidden = np.maximum(f @ p["mmoe.first.weight"].T + p["mmoe.first.bias"], 0).reshape(self.experts, -1)
        d = [
            hidden[m] @ p["mmoe.second.weight"][m] + p["mmoe.second.bias"][m, 0] for m in range(self.experts)
        ]
        gates = (f @ p["mmoe.gate.weight"].T + p["mmoe.gate.bias"]).reshape(-1, self.experts)
        out = []
        for j, gate in enumerate(gates):
            z = sum(g * expert for g, expert in zip(softmax(gate), d, strict=True))
            z = np.maximum(z @ p["towers.layers.0.weight"][j] + p["towers.layers.0.bias"][j, 0], 0)
            out.append((z @ p["towers.layers.1.weight"][j] + p["towers.layers.1.bias"][j, 0])[0])
        return np.array(out)

    def units(self, i: int) -> list[float]:
        return [math.log1p(math.exp(x)) for x in self.outputs(i)[:-1]]

    def p_sw(self, i: int) -> float:
        return sigmoid(self.outputs(i)[-1])


def test_eq_21_22_and_33_selection_by_the_landing_page():
    learner, batch = make(), batch_of()
    reference = Reference(learner, batch)
    wanted = np.stack([reference.f(i) for i in range(8)])
    assert set(reference.k) == {0, 1, 2}
    np.testing.assert_allclose(learner.fused(batch).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_eq_33_by_hand():
    """W e + b = (0, ln 3), so the weights are 1/4 and 3/4."""
    learner = make()
    with torch.no_grad():
        learner.selection_weight.zero_()
        learner.selection_bias.fill_(-200.0)
        learner.selection_bias[:, 0], learner.selection_bias[:, 1] = 0.0, math.log(3)
    torch.testing.assert_close(learner.selection()[:, :2], torch.tensor([0.25, 0.75]).expand(K, 2))


def test_eq_23_and_24_towers():
    learner, batch = make(calibrated=False), batch_of()
    reference = Reference(learner, batch)
    seconds, chance = learner.predict(batch)
    mean = fitted()[1].mean_use_s
    for i in range(8):
        np.testing.assert_allclose(seconds[i].detach().numpy() / mean, reference.units(i), rtol=1e-4)
        assert chance[i].item() == pytest.approx(reference.p_sw(i), rel=1e-4)


def huber(error: float, delta: float) -> float:
    return error**2 / 2 if abs(error) <= delta else delta * (abs(error) - delta / 2)


@pytest.mark.parametrize(("delta", "gamma", "weight"), [(1.0, 2.0, 1.0), (0.3, 0.0, 0.5), (2.0, 1.3, 3.0)])
def test_eq_25_to_27_losses(delta, gamma, weight):
    learner, batch = make(delta=delta, gamma=gamma, switch_weight=weight, tau_s=4.0), batch_of()
    reference = Reference(learner, batch)
    mean, reg, sw = fitted()[1].mean_use_s, [], []
    for i in range(8):
        units, target = reference.units(i), reference.batch["page_dwell_s"][i] / mean
        reg.append(sum(huber(t - u, delta) for t, u in zip(target, units, strict=True)))
        p, y = reference.p_sw(i), float(reference.batch["landing_dwell_s"][i] < 4.0)
        sw.append(-(y * (1 - p) ** gamma * math.log(p) + (1 - y) * p**gamma * math.log(1 - p)))
    terms = learner(batch)
    assert terms["reg"].item() == pytest.approx(np.mean(reg), rel=1e-4)
    assert terms["sw"].item() == pytest.approx(np.mean(sw), rel=1e-4)
    assert terms["loss"].item() == pytest.approx(np.mean(reg) + weight * np.mean(sw), rel=1e-4)
    metrics = learner.metrics(batch)
    assert metrics["loss"].mean().item() == pytest.approx(terms["loss"].item(), rel=1e-5)


def test_the_label_is_below_tau_and_not_at_it():
    learner = make(tau_s=10.0)
    label = learner.label({"landing_dwell_s": torch.tensor([9.99, 10.0, 0.0, 40.0])})
    assert label.tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("logit", [-500.0, -50.0, 50.0, 500.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_and_its_gradient_are_finite_everywhere(logit, gamma):
    for label in (0.0, 1.0):
        x = torch.tensor([logit], requires_grad=True)
        loss = focal_loss(x, torch.tensor([label]), gamma)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(x.grad).all()
    assert torch.isfinite(calibrated_odds(torch.tensor([logit]), gamma).sigmoid()).all()


def test_eq_28_reward():
    seconds = torch.tensor([[10.0, 20.0, 30.0]])
    assert reward(seconds, torch.tensor([0.25]).logit()).item() == pytest.approx(45.0)
    # a chance to stay so small that 1 - chance would be 0
    assert reward(seconds, torch.tensor([20.0])).item() == pytest.approx(60 * math.exp(-20), rel=1e-5)
    learner, batch = make(calibrated=False), batch_of()
    reference = Reference(learner, batch)
    mean = fitted()[1].mean_use_s
    scores = learner.scores(batch)
    for i in range(8):
        wanted = (1 - reference.p_sw(i)) * sum(reference.units(i)) * mean
        assert scores[i, 0].item() == pytest.approx(wanted, rel=1e-4)
        assert scores[i, 1].item() == pytest.approx(reference.p_sw(i), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 2.0, 4.0])
@pytest.mark.parametrize("chance", [0.003, 0.1, 0.5, 0.93])
def test_calibration_gives_the_chance_back_that_the_focal_loss_bent(gamma, chance):
    """The prediction of least expected loss is found on a grid; from it the true chance is to follow."""
    logits = torch.linspace(-9, 9, 180_001, dtype=torch.float64)
    one, zero = torch.ones_like(logits), torch.zeros_like(logits)
    expected = chance * focal_loss(logits, one, gamma) + (1 - chance) * focal_loss(logits, zero, gamma)
    best = logits[expected.argmin()]
    assert calibrated_odds(best, gamma).sigmoid().item() == pytest.approx(chance, rel=2e-3)
    if gamma == 2.0 and chance == 0.003:
        assert best.sigmoid() > 0.1


def test_no_label_enters_the_prediction():
    """Whatever the labels are, and whether they are there at all, the scores are the same bit for bit."""
    learner, batch = make(), batch_of()
    wanted = learner.scores(batch)
    changed = {n: v * 3 + 7 if n in LABELS else v for n, v in batch.items()}
    assert torch.equal(learner.scores(changed), wanted)
    inputs = {n: v for n, v in batch.items() if n in {"dense", "cat", *SESSION_KEYS}}
    assert torch.equal(learner.scores(inputs), wanted)
    assert set(HRM.columns) <= LABELS and not LABELS & {"dense", "cat", *SESSION_KEYS}


class Asked(dict):
    """A batch that remembers what it was asked for."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        super().__init__(batch)
        self.keys_read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.keys_read.add(key)
        return super().__getitem__(key)


def test_session_features_read_no_label():
    asked = Asked(batch_of() | {"use_s": torch.ones(8), "watch_s": torch.ones(8)})
    session_features(asked)
    assert asked.keys_read == {"page_views", "page_visits", "switches"}
    make().scores(asked)
    assert not asked.keys_read & LABELS
    assert asked.keys_read == {"dense", "cat", *SESSION_KEYS}


def test_unknown_views_are_told_from_none():
    batch = batch_of()
    known, unknown = dict(batch), dict(batch)
    known["page_views"], unknown["page_views"] = torch.zeros(8, K), torch.full((8, K), torch.nan)
    learner = make()
    assert torch.isfinite(learner.scores(unknown)).all()
    assert not torch.equal(learner.scores(known), learner.scores(unknown))


def test_metrics_name_the_pages():
    found = make().metrics(batch_of())
    assert {f"abs_error_s.page_{i}" for i in range(K)} < found.keys()
    error = sum(found[f"abs_error_s.page_{i}"] for i in range(K))
    assert (error >= found["bias_s"].abs() - 1e-3).all()
