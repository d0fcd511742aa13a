"""GLAN's L-RTG equation by equation, against values computed by hand or independently in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from plpm_ray.core.features import HISTORY_DAYS
from plpm_ray.navigators.glan.lrtg import LRTG, LRTGConfig, consistency
from tests.training_tables import fitted, pages

SIZES = {
    "embedding_dim": 3,
    "width": 4,
    "heads": 2,
    "ff_width": 5,
    "experts": 3,
    "expert_hidden": 5,
    "expert_width": 4,
    "tower_hidden": (6,),
}


def make(**config) -> LRTG:
    """A small learner whose biases count too, which they do not when training begins."""
    spec, stats = fitted()
    torch.manual_seed(0)
    learner = LRTG(LRTGConfig(**(SIZES | config)), spec, pages(), stats)
    for parameter in learner.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return learner


def batch_of(rows: int = 6, seed: int = 0) -> dict[str, Tensor]:
    return LRTG.example_batch(seed, fitted()[0], pages(), rows)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def bin_of(days_ago: int) -> int:
    """Bins 1, 2, 3, 4-5, 6-7, 8-14, 15-21, 22-30, as a person would write them."""
    bins = [(1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 14), (15, 21), (22, 30)]
    return next(i for i, (low, high) in enumerate(bins) if low <= days_ago <= high)


class Reference:
    """One user-day at a time, in float64, straight from the paper."""

    def __init__(self, learner: LRTG, batch: dict[str, Tensor]) -> None:
        self.learner, self.batch = learner, batch
        self.p = {name: p.detach().double().numpy() for name, p in learner.named_parameters()}
        self.spec, self.stats = fitted()

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.p[f"{name}.weight"].T + self.p.get(f"{name}.bias", 0.0)

    def context(self, i: int) -> np.ndarray:
        """Eq. 5: daily numbers, then the embedded weekday; this schema has no profile."""
        schema = self.spec.schema
        kept = [j for j, n in enumerate(schema.numeric) if any(f"_{days}d" in n for days in (7, 14, 30))]
        weekday = int(self.batch["cat"][i, schema.categorical.index("weekday")])
        return np.concatenate(
            [self.batch["dense"][i, kept].double().numpy(), self.p["fields.fields.table.weight"][weekday]]
        )

    def h(self, i: int) -> np.ndarray:
        """(T, D) H."""
        x = self.batch["days"][i].double().numpy()
        x = x / [self.stats.mean_day_use_s, self.stats.mean_day_sessions]
        return self.linear("day", np.concatenate([x, np.log1p(x)], axis=1))

    def active(self, i: int) -> np.ndarray:
        return self.batch["days"][i, :, 1].numpy() > 0

    def periodic(self, i: int) -> np.ndarray:
        """Eq. 6 to 8, over active days only."""
        q = self.linear("periodic.query", self.context(i))
        kept, scores, values = self.h(i)[self.active(i)], [], []
        days_ago = np.flatnonzero(self.active(i)) + 1
        for h, ago in zip(kept, days_ago, strict=True):
            bias = self.p["periodic.week_bias"][ago % 7] + self.p["periodic.distance_bias"][bin_of(int(ago))]
            scores.append(q @ self.linear("periodic.key", h) / math.sqrt(len(q)) + bias)
            values.append(self.linear("periodic.out", h))
        return softmax(np.array(scores)) @ np.array(values)

    def trend(self, i: int) -> np.ndarray:
        """Eq. 10 and 11; the encoder is the shared one, given the active days alone."""
        encoder = self.learner.trend.encoder.double()
        x = (self.h(i) + self.p["trend.position"])[self.active(i)]
        mask = torch.ones(1, len(x), dtype=torch.bool)
        d = encoder(torch.from_numpy(x)[None], mask)[0].detach().numpy()
        encoder.float()
        return softmax(self.linear("trend.pool", d)[:, 0]) @ d

    def y(self, i: int) -> np.ndarray:
        """Eq. 9, 12 and 13."""
        u = np.concatenate([self.context(i), self.periodic(i)])
        hidden = np.maximum(self.linear("mmoe.first", u), 0).reshape(SIZES["experts"], -1)
        d = [
            h @ w + b[0]
            for h, w, b in zip(hidden, self.p["mmoe.second.weight"], self.p["mmoe.second.bias"], strict=True)
        ]
        gates = self.linear("mmoe.gate", np.concatenate([self.trend(i), u])).reshape(2, -1)
        found = []
        for k in (0, 1):
            z = sum(g * expert for g, expert in zip(softmax(gates[k]), d, strict=True))
            z = np.maximum(z @ self.p["towers.layers.0.weight"][k] + self.p["towers.layers.0.bias"][k, 0], 0)
            out = z @ self.p["towers.layers.1.weight"][k] + self.p["towers.layers.1.bias"][k, 0]
            found.append(math.log1p(math.exp(out[0])))
        return np.array(found)


def test_eq_5_context_is_what_stays_the_same_within_a_day():
    learner, batch = make(), batch_of()
    wanted = np.stack([Reference(learner, batch).context(i) for i in range(6)])
    np.testing.assert_allclose(learner.context(batch).detach().numpy(), wanted, rtol=1e-5)


def test_a_prediction_is_the_same_at_every_entry_of_the_day():
    learner, batch = make(), batch_of()
    schema = fitted()[0].schema
    later = {name: values.clone() for name, values in batch.items()}
    changing = [j for j in range(len(schema.numeric)) if j not in schema.daily_numeric]
    later["dense"][:, changing] += 5.0
    weekday = schema.categorical.index("weekday")
    for j in range(later["cat"].shape[1]):
        if j != weekday:
            later["cat"][:, j] = 0
    assert torch.equal(learner.scores(later), learner.scores(batch))
    later["cat"][:, weekday] = (later["cat"][:, weekday] + 1) % 7
    assert not torch.equal(learner.scores(later), learner.scores(batch))


def test_eq_7_bias_of_every_distance():
    learner = make()
    week = learner.periodic.week_bias.tolist()
    distance = learner.periodic.distance_bias.tolist()
    wanted = [week[ago % 7] + distance[bin_of(ago)] for ago in range(1, HISTORY_DAYS + 1)]
    np.testing.assert_allclose(learner.periodic.bias().detach().numpy(), wanted, rtol=1e-6)
    assert len(distance) == 8 and bin_of(30) == 7


def test_eq_6_and_7_by_hand():
    """Without a query the shares follow from the biases: yesterday and a week ago, ln 3 apart, have 1/4 and 3/4."""
    learner = make()
    with torch.no_grad():
        learner.periodic.query.weight.zero_()
        learner.periodic.week_bias.zero_()
        learner.periodic.distance_bias.zero_()
        learner.periodic.week_bias[0] = math.log(3)
    mask = torch.zeros(1, HISTORY_DAYS, dtype=torch.bool)
    mask[0, [0, 6]] = True
    context = learner.context(batch_of(1))
    weights = learner.periodic.weights(context, torch.randn(1, HISTORY_DAYS, 4), mask)
    torch.testing.assert_close(weights[0, [0, 6]], torch.tensor([0.25, 0.75]))
    assert weights.sum().item() == pytest.approx(1.0)


def test_eq_6_to_8_periodic_attention():
    learner, batch = make(), batch_of()
    reference = Reference(learner, batch)
    h, active = learner.days(batch)
    found = learner.periodic(learner.context(batch), h, active)
    wanted = np.stack([reference.periodic(i) for i in range(6)])
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_eq_10_and_11_trend():
    learner, batch = make(), batch_of()
    h, active = learner.days(batch)
    found = learner.trend(h, active).detach().numpy()
    reference = Reference(learner, batch)
    wanted = np.stack([reference.trend(i) for i in range(6)])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_eq_9_12_and_13_experts_gates_and_towers():
    learner, batch = make(), batch_of()
    found = learner.predict(batch).detach().numpy()
    reference = Reference(learner, batch)
    np.testing.assert_allclose(found, [reference.y(i) for i in range(6)], rtol=1e-4)
    assert (found > 0).all()
    scores = learner.scores(batch).detach().numpy()
    units = [reference.stats.mean_day_use_s, reference.stats.mean_day_sessions]
    np.testing.assert_allclose(scores, found * units, rtol=1e-5)


def test_a_user_without_any_day_is_predicted_from_the_context():
    learner, batch = make(), batch_of()
    batch["days"] = batch["days"].clone()
    batch["days"][0] = 0
    found = learner.predict(batch)
    assert torch.isfinite(found).all()
    learner(batch)["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)
    context = learner.context(batch)[:1]
    user = torch.cat([context, torch.zeros(1, 4)], dim=1)
    z = learner.mmoe(user, torch.cat([torch.zeros(1, 4), user], dim=1))
    torch.testing.assert_close(found[:1], torch.nn.functional.softplus(learner.towers(z).squeeze(2)))


def test_an_absent_day_has_no_part():
    """Whatever stood at a day without sessions, the prediction is the same."""
    learner, batch = make(), batch_of()
    noisy = batch["days"].clone()
    noisy[..., 0] = torch.where(noisy[..., 1] > 0, noisy[..., 0], 1e4)
    assert torch.equal(learner.predict(batch | {"days": noisy}), learner.predict(batch))


def huber(error: float, delta: float) -> float:
    return error**2 / 2 if abs(error) <= delta else delta * (abs(error) - delta / 2)


@pytest.mark.parametrize("delta", [0.3, 2.0])
def test_eq_15_to_17_losses(delta):
    learner, batch = make(delta=delta), batch_of()
    reference = Reference(learner, batch)
    stats = reference.stats
    a, b = stats.day_law
    wanted = np.zeros((3, 6))
    for i in range(6):
        y = reference.y(i)
        error = batch["use_s"][i].item() / stats.mean_day_use_s - y[0]
        sessions = y[1] * stats.mean_day_sessions
        law_s = a * math.log(1 + sessions) + b
        wanted[:, i] = (
            huber(error, delta),
            (batch["sessions"][i].item() / stats.mean_day_sessions - y[1]) ** 2,
            ((y[0] * stats.mean_day_use_s - law_s) / stats.mean_day_use_s) ** 2,
        )
    found = torch.stack(learner.terms(batch)).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    terms = learner(batch)
    for name, values in zip(("wt", "se", "rel"), wanted, strict=True):
        assert terms[name].item() == pytest.approx(values.mean(), rel=1e-4)


def test_eq_17_by_hand():
    found = consistency(torch.tensor([2.0]), torch.tensor([math.e - 1]), torch.tensor([0.5, 0.25]))
    assert found.item() == pytest.approx((2.0 - 0.5 - 0.25) ** 2)


def test_eq_18_lagrangian():
    learner, batch = make(), batch_of()
    learner.duals.value.copy_(torch.tensor([0.7, 2.0]))
    se_bound, rel_bound = learner.duals.bound.tolist()
    terms = {name: value.item() for name, value in learner(batch).items()}
    wanted = terms["wt"] + 0.7 * (terms["se"] - se_bound) + 2.0 * (terms["rel"] - rel_bound)
    assert terms["loss"] == pytest.approx(wanted, rel=1e-5)
    assert (terms["lambda_se"], terms["lambda_rel"]) == (pytest.approx(0.7), 2.0)


def test_bounds_are_shares_of_variances():
    stats = fitted()[1]
    learner = make(epsilon_se=0.5, epsilon_rel=0.2)
    assert learner.duals.bound.tolist() == pytest.approx(
        [
            0.5 * stats.day_sessions_variance / stats.mean_day_sessions**2,
            0.2 * stats.day_use_variance / stats.mean_day_use_s**2,
        ]
    )


def test_eq_19_and_20_dual_steps():
    """By hand, for a row of batch losses; the average begins with the first batch."""
    learner = make(eta=0.5, rho=0.8, lambda_max=0.6)
    bounds, batch_losses = learner.duals.bound.double().numpy(), np.random.default_rng(0).gamma(1, 1, (40, 2))
    batch_losses[20:] *= 0.01
    average, weight, multiplier, seen = np.zeros(2), 0.0, np.zeros(2), []
    for losses in batch_losses:
        learner.after_losses(
            {"se": torch.tensor(losses[0]), "rel": torch.tensor(losses[1]), "wt": torch.tensor(0.0)}
        )
        average, weight = 0.8 * average + 0.2 * losses, 0.8 * weight + 0.2
        multiplier = np.clip(multiplier + 0.5 * (average / weight - bounds), 0, 0.6)
        np.testing.assert_allclose(learner.duals.value.numpy(), multiplier, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(learner.duals.smoothed().numpy(), average / weight, rtol=1e-4)
        seen.append(multiplier)
    assert {0.0, 0.6} <= {value for row in np.round(seen, 6).tolist() for value in row}


def test_without_constraints_both_dual_variables_stay_zero():
    learner = make(constrained=False)
    for _ in range(5):
        learner.after_losses({"se": torch.tensor(50.0), "rel": torch.tensor(50.0)})
    assert learner.duals.value.tolist() == [0.0, 0.0]
    assert not learner.constraints()["se"]["holds"]
    terms = learner(batch_of())
    assert terms["loss"].item() == terms["wt"].item()
