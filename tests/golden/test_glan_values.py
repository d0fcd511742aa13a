"""Values of GLAN's learners in float64 from the paper's equations: tokens, chances, metrics, bounds; and the scores of it all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.bundle import Bundle
from plpm_ray.navigators.glan.glan import GLAN
from plpm_ray.navigators.glan.lrtg import LRTG, LRTGConfig
from plpm_ray.training.evaluate import evaluate
from plpm_ray.training.table import TensorTable
from tests.golden import test_dt as dt
from tests.golden import test_hrm as hrm
from tests.golden import test_lrtg as lrtg
from tests.golden.test_encoder import Reference, linear, transformed, weights_of
from tests.training_tables import fitted, pages, raw_features

K = 3
MEAN_REWARD = 0.8  # reward per second of use in `fitted`
LENGTHS = [2, 1, 4]
INPUTS = ("rtg", "dense", "cat", "step", "action")


def assert_close(found: Any, wanted: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


def totals_of_days() -> list[float]:
    """Number of days, then the sums of s, s^2, y, y^2, x, x^2 and x y: sessions, use, and ln(1 + sessions)."""
    return np.asarray(fitted(K)[1].day_totals).tolist()


class Transformer:
    """GLAN's Decision Transformer, one day at a time."""

    def __init__(self, learner: dt.DecisionTransformer, batch: dict[str, torch.Tensor]) -> None:
        self.p, self.config = weights_of(learner), learner.config
        self.batch = {name: values.numpy() for name, values in batch.items()}
        self.starts = np.cumsum([0, *fitted(K)[0].cat_sizes])[:-1]
        n, _, _, use_s, *_ = totals_of_days()
        self.mean_day = use_s / n * (MEAN_REWARD if learner.config.reward == "hrm" else 1.0)

    def features(self, i: int) -> np.ndarray:
        rows = self.p["fields.fields.table.weight"][self.starts + self.batch["cat"][i]]
        return np.concatenate([self.batch["dense"][i], rows.ravel()])

    def perceptron(self, name: str, i: int) -> np.ndarray:
        return linear(self.p, f"{name}.2", np.maximum(linear(self.p, f"{name}.0", self.features(i)), 0))

    def tokens(self, i: int) -> np.ndarray:
        """(3, D) R_t, s_t and a_t of eq. 4; R_t in mean days, and its logarithm with its sign."""
        p, batch = self.p, self.batch
        days = float(batch["rtg"][i]) / self.mean_day
        logarithm = math.copysign(math.log(1 + abs(days)), days)
        entry = p["entry.weight"][min(int(batch["step"][i]), self.config.entry_steps - 1)]
        rtg = linear(p, "rtg", np.array([days, logarithm])) + p["kind"][0]
        state = self.perceptron("state", i) + p["kind"][1]
        action = p["action.weight"][batch["action"][i]] + p["kind"][2]
        return np.stack([rtg, state, action]) + entry

    def pages(self) -> np.ndarray:
        """(S, K) chances of eq. 29; a token sees itself and those before it on its day, and the page is read at the state."""
        inside = {name.removeprefix("transformer."): p for name, p in self.p.items()}
        found = []
        for day in np.split(np.arange(sum(LENGTHS)), np.cumsum(LENGTHS)[:-1]):
            x = np.concatenate([self.tokens(i) for i in day])
            seen = np.tril(np.ones((len(x), len(x)), bool))
            read = transformed(inside, x, seen, self.config.heads, self.config.kv_heads)[1::3]
            found += [hrm.softmax(row) for row in linear(self.p, "head", read)]
        return np.array(found)

    def risks(self) -> np.ndarray:
        """(S,) the risk foretold of the page that was shown."""
        shown = enumerate(self.batch["action"])
        return np.array([hrm.sigmoid(float(self.perceptron("risk", i)[a])) for i, a in shown])


def sessions_of_days(**config: Any) -> tuple[dt.DecisionTransformer, dict[str, torch.Tensor], Transformer]:
    """A learner, days of which some R_t are below zero, and the reference of both."""
    learner, batch = dt.make(**config), dt.days(LENGTHS)
    batch["rtg"] = torch.tensor([1500.0, -700.0, 0.0, 4000.0, 90.0, -30.0, -2500.0])
    return learner, batch, Transformer(learner, batch)


@pytest.mark.parametrize("reward", ["hrm", "duration"])
def test_eq_4_tokens_by_hand(reward):
    learner, batch, reference = sessions_of_days(reward=reward, entry_steps=3)
    found = learner.tokens(*(batch[name] for name in INPUTS))
    assert_close(found, [reference.tokens(i) for i in range(sum(LENGTHS))])


@pytest.mark.parametrize(("reward", "ratio"), [("hrm", MEAN_REWARD), ("duration", 1.0)])
def test_the_mean_session_is_in_seconds_of_reward(reward, ratio):
    _, stats = fitted(K)
    assert dt.make(reward=reward).session_value_s.item() == pytest.approx(
        stats.use_s / stats.sessions * ratio
    )


@pytest.mark.parametrize("config", [{}, {"kv_heads": 2, "layers": 1}])
def test_eq_29_by_hand(config):
    learner, batch, reference = sessions_of_days(**config)
    assert_close(learner.scores(batch), reference.pages())


@pytest.mark.parametrize("weighting", ["none", "inverse_propensity", "class_balanced"])
@pytest.mark.parametrize("risk_weight", [0.0, 3.0])
def test_metrics_of_the_transformer(weighting, risk_weight):
    learner, batch, reference = sessions_of_days(
        weighting=weighting, risk_weight=risk_weight, weight_clip=2.0
    )
    action, dropped = reference.batch["action"], reference.batch["dropped"]
    p, rows = reference.pages(), np.arange(sum(LENGTHS))
    cross = -np.log(p[rows, action])
    share = fitted(K)[1].landings / fitted(K)[1].landings.sum()
    balanced = np.minimum(1 / (K * share), 2.0)
    weight = {
        "none": np.ones(len(p)),
        "inverse_propensity": np.minimum(1 / (K * reference.batch["propensity"]), 2.0),
        "class_balanced": (balanced / (share * balanced).sum())[action],
    }[weighting]
    wanted = {
        "loss": weight * cross,
        "cross_entropy": cross,
        "agreement": p.argmax(1) == action,
        "entropy": -(p * np.log(p)).sum(1),
    }
    if risk_weight:
        risk = reference.risks()
        wanted["risk"] = -np.where(dropped > 0, np.log(risk), np.log(1 - risk))
        wanted["loss"] = weight * cross + risk_weight * wanted["risk"]
    found = learner.metrics(batch)
    for name, values in wanted.items():
        assert_close(found[name], values)
    losses = learner.losses(batch)
    assert_close(losses["loss"], wanted["loss"].mean())
    # what the metrics are told apart by
    assert 0 < wanted["agreement"].mean() < 1 and set(dropped) == {0.0, 1.0}
    assert weighting == "none" or len(set(weight)) > 1


def unbent(p: float, gamma: float) -> float:
    """The chance of a drop-off at which p is where the expectation of eq. 26 has slope 0; slopes by differences."""

    def slope(loss: Any) -> float:
        return (loss(p + 1e-6 * p * (1 - p)) - loss(p - 1e-6 * p * (1 - p))) / (2e-6 * p * (1 - p))

    dropped = slope(lambda q: -((1 - q) ** gamma) * math.log(q))
    stayed = slope(lambda q: -(q**gamma) * math.log(1 - q))
    return stayed / (stayed - dropped)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 2.0, 3.5])
@pytest.mark.parametrize("calibrated", [True, False])
def test_chances_rewards_and_metrics_of_the_reward_model(calibrated, gamma):
    learner = hrm.make(calibrated=calibrated, gamma=gamma, switch_weight=0.7, delta=0.3)
    batch = hrm.batch_of()
    reference, mean = hrm.Reference(learner, batch), fitted(K)[1].mean_use_s
    label = (reference.batch["landing_dwell_s"] < 10).astype(float)
    bent = np.array([reference.p_sw(i) for i in range(8)])
    chance = np.array([unbent(p, gamma) for p in bent]) if calibrated else bent
    units = np.array([reference.units(i) for i in range(8)])
    came = reference.batch["page_dwell_s"]
    reg = [sum(map(hrm.huber, row, [0.3] * K)) for row in came / mean - units]
    focal = np.where(label > 0, -((1 - bent) ** gamma) * np.log(bent), -(bent**gamma) * np.log(1 - bent))
    wanted = {
        "loss": reg + 0.7 * focal,
        "log_loss": -np.where(label > 0, np.log(chance), np.log(1 - chance)),
        "brier": (chance - label) ** 2,
        "drop_off": label,
        "predicted_drop_off": chance,
        "bias_s": (units * mean - came).sum(1),
    }
    wanted |= {f"abs_error_s.page_{k}": abs(units * mean - came)[:, k] for k in range(K)}
    found = learner.metrics(batch)
    for name, values in wanted.items():
        assert_close(found[name], values)
    seconds, said = learner.predict(batch)
    assert_close(seconds, units * mean)
    assert_close(said, chance)
    assert_close(learner.scores(batch), np.stack([(1 - chance) * units.sum(1) * mean, chance], axis=1))
    assert set(label) == {0.0, 1.0}


def test_eq_28_of_a_session_that_is_all_but_surely_dropped():
    """In float32 its chance is 1, and what is left of the reward is not 0."""
    learner, batch = hrm.make(calibrated=False), hrm.batch_of()
    last: Any = learner.towers.layers[-1]
    with torch.no_grad():
        last.weight[-1].zero_()
        last.bias[-1].fill_(25.0)
    reference, mean = hrm.Reference(learner, batch), fitted(K)[1].mean_use_s
    wanted = [sum(reference.units(i)) * mean / (1 + math.exp(25)) for i in range(8)]
    assert_close(learner.scores(batch)[:, 0], wanted, atol=0)


def bounds_of(learner: LRTG) -> tuple[float, float]:
    """Shares of the variances of a day's sessions and use, in squared means."""
    n, s, ss, y, yy, *_ = totals_of_days()
    se = learner.config.epsilon_se * (ss / n - (s / n) ** 2) / (s / n) ** 2
    rel = learner.config.epsilon_rel * (yy / n - (y / n) ** 2) / (y / n) ** 2
    return se, rel


def days_by_hand(learner: LRTG, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    reference, stats = Reference(learner, batch), fitted()[1]
    y = np.array([reference.y(i) for i in range(len(batch["use_s"]))])
    unit, (a, b) = np.array([stats.mean_day_use_s, stats.mean_day_sessions]), stats.day_law
    came = np.stack([batch["use_s"].double().numpy(), batch["sessions"].double().numpy()], axis=1)
    error = y * unit - came
    law = (y[:, 0] * unit[0] - a * np.log(1 + y[:, 1] * unit[1]) - b) / unit[0]
    se_bound, rel_bound = bounds_of(learner)
    return {
        "wt": np.array([lrtg.huber(e, learner.config.delta) for e in error[:, 0] / unit[0]]),
        "abs_error_s": abs(error[:, 0]),
        "squared_error_s2": error[:, 0] ** 2,
        "bias_s": error[:, 0],
        "abs_error_sessions": abs(error[:, 1]),
        "excess_se": (error[:, 1] / unit[1]) ** 2 - se_bound,
        "excess_rel": law**2 - rel_bound,
    }


def test_metrics_of_days():
    learner, batch = lrtg.make(delta=0.3), lrtg.batch_of()
    found, wanted = learner.metrics(batch), days_by_hand(learner, batch)
    for name, values in wanted.items():
        assert_close(found[name], values, rtol=2e-4)


@pytest.mark.parametrize("times", [(2.0, 0.5), (0.5, 3.0), (2.0, 3.0), (1.04, 1.06)])
def test_the_loss_of_held_out_days_counts_what_the_constraints_were_broken_by(times):
    """In training; a twentieth above a bound still holds."""
    learner, free, batch = lrtg.make(lambda_max=2.5), lrtg.make(constrained=False), lrtg.batch_of()
    wt, bounds = days_by_hand(learner, batch)["wt"].mean(), bounds_of(learner)
    assert evaluate(learner, TensorTable(batch))["loss"] == pytest.approx(wt, rel=1e-4)
    terms = {
        name: torch.tensor(t * bound) for name, t, bound in zip(("se", "rel"), times, bounds, strict=True)
    }
    for each in (learner, free):
        each.after_losses(terms)
    broken = sum(max(t - 1.05, 0) * bound for t, bound in zip(times, bounds, strict=True))
    found = evaluate(learner, TensorTable(batch))
    assert found["wt"] == pytest.approx(wt, rel=1e-4)
    assert found["loss"] == pytest.approx(wt + 2.5 * broken, rel=1e-4)
    assert evaluate(free, TensorTable(batch))["loss"] == pytest.approx(wt, rel=1e-4)


def test_bounds_where_all_days_are_alike():
    """Shares of 1: with bounds of 0 nothing could ever hold."""
    spec, stats = fitted()
    stats.day_totals = TableStats.days(np.full(5, 4), np.full(5, 300.0))
    learner = LRTG(LRTGConfig(**lrtg.SIZES, epsilon_se=0.5, epsilon_rel=0.2), spec, pages(), stats)
    bounds = {name: constraint["bound"] for name, constraint in learner.constraints().items()}
    assert bounds == {"se": pytest.approx(0.5), "rel": pytest.approx(0.2)}


@pytest.mark.parametrize(("above", "holds"), [(0.0, True), (0.049, True), (0.051, False), (0.2, False)])
@pytest.mark.parametrize("name", ["se", "rel"])
def test_a_constraint_holds_up_to_a_twentieth_above_its_bound(name, above, holds):
    learner = lrtg.make()
    bounds = dict(zip(("se", "rel"), bounds_of(learner), strict=True))
    met = {other: bound / 2 for other, bound in bounds.items()}
    losses = met | {name: bounds[name] * (1 + above)}
    learner.after_losses({other: torch.tensor(loss) for other, loss in losses.items()})
    found = learner.constraints()
    assert {other: constraint["holds"] for other, constraint in found.items()} == {
        "se": True,
        "rel": True,
        name: holds,
    }
    assert found[name]["value"] == pytest.approx(losses[name])


def glan(chances: list[float], odds: list[float], caution: float) -> GLAN:
    """One whose transformer says the same of every entry: chances of the pages, and log odds of a drop-off on them."""
    spec, stats = fitted(K)
    learners = {"lrtg": LRTG, "hrm": hrm.HRM, "dt": dt.DecisionTransformer}
    made = {role: cls(cls.Config(), spec, pages(K), stats) for role, cls in learners.items()}
    with torch.no_grad():
        for last, biases in ((made["dt"].head, np.log(chances)), (made["dt"].risk[-1], odds)):
            last.weight.zero_()
            last.bias.copy_(torch.tensor(biases))
    parts = {role: Bundle.of_learner(learner, spec, pages(K), stats) for role, learner in made.items()}
    navigator = Bundle(
        "navigator", "glan", {"caution": caution}, pages(K), spec, stats, parts=parts
    ).navigator()
    assert isinstance(navigator, GLAN)
    return navigator


CHANCES = [0.7, 0.2, 0.1]


@pytest.mark.parametrize("caution", [0.0, 1.0, 16.0])
@pytest.mark.parametrize(
    "odds",
    [[-2.0, 0.5, 1.0], [6.0, 5.9, 6.1], [8.0, 7.9, 7.85], [30.0, 29.9, 29.8], [60.0, 59.8, 60.1], [40.0, 2.0, 9.0]],
)  # fmt: skip
def test_scores_are_chances_times_a_power_of_those_to_stay_however_small_these_are(odds, caution):
    entry = raw_features(fitted(K)[0].schema, 2, np.random.default_rng(0))
    logits = [math.log(p) - caution * math.log1p(math.exp(x)) for p, x in zip(CHANCES, odds, strict=True)]
    scores, told = glan(CHANCES, odds, caution).explained(entry)
    assert_close(scores, [hrm.softmax(np.array(logits))] * 2, atol=1e-30)
    assert_close(told["p"], [CHANCES] * 2)
    assert_close(told["stay"], [[1 / (1 + math.exp(x)) for x in odds]] * 2, atol=0)


@pytest.mark.parametrize("odds", [[200.0, 200.0, 200.0], [200.0, 2.0, 200.0]])
def test_scores_where_no_stay_can_be_told_from_0(odds):
    entry = raw_features(fitted(K)[0].schema, 2, np.random.default_rng(0))
    scores = glan(CHANCES, odds, 16.0).scores(entry)
    assert_close(scores, [[0, 1, 0] if odds[1] == 2 else CHANCES] * 2)
