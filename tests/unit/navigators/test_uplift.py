"""What uplift learners share: scale, guard, pages without users, features of the day; and what tells them apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.feature_fitting import SpecFitter
from plpm_ray.core.features import FeatureSchema, FeatureSpec, RawFeatures
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.uplift import UpliftLearner, static_preference
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.loop import fit_learner
from plpm_ray.training.table import TensorTable
from tests.training_tables import fitted, pages

NAMES = (
    "klan.isp",
    "reference.s_learner",
    "reference.t_learner",
    "reference.tarnet",
    "reference.efin",
)
every_uplift_learner = pytest.mark.parametrize("name", NAMES)


def build(name: str, k: int = 3, spec=None, stats=None, **config) -> UpliftLearner:
    fitted_spec, fitted_stats = fitted(k)
    torch.manual_seed(0)
    cls = lookup("learner", name)
    learner = cls(cls.Config(**config), spec or fitted_spec, pages(k), stats or fitted_stats).eval()
    with torch.no_grad():
        # ISP begins without any effect
        for parameter in learner.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return learner


def example(name: str, k: int = 3, rows: int = 32) -> dict[str, Tensor]:
    return lookup("learner", name).example_batch(0, fitted(k)[0], pages(k), rows)


def trial(users: list[float], sums: list[float]) -> TableStats:
    stats = fitted(len(users) - 1)[1]
    return replace(stats, arm_users=np.array(users), arm_response=np.array(sums))


@every_uplift_learner
def test_responses_are_of_all_arms_and_never_negative(name):
    learner = build(name)
    with torch.no_grad():
        responses = learner.responses(example(name))
        delta = learner.scores(example(name))
    assert responses.shape == (32, 4) and (responses >= 0).all()
    torch.testing.assert_close(delta.sum(1), torch.ones(32))
    assert torch.equal(responses[:, 1:].argmax(1), delta.argmax(1))


@every_uplift_learner
def test_the_unit_of_the_response_changes_nothing_but_itself(name):
    """Seconds or milliseconds: the loss and delta are the same, responses follow the unit."""
    users = [100.0, 90.0, 110.0, 100.0]
    seconds, millis = (build(name, stats=trial(users, [unit * 600 * u for u in users])) for unit in (1, 1000))
    batch = example(name)
    other = batch | {"response": batch["response"] * 1000}
    with torch.no_grad():
        torch.testing.assert_close(millis(other)["loss"], seconds(batch)["loss"])
        torch.testing.assert_close(millis.scores(other), seconds.scores(batch))
        torch.testing.assert_close(millis.responses(other), seconds.responses(batch) * 1000)


@every_uplift_learner
def test_an_untrained_model_predicts_about_the_control_mean(name):
    learner = build(name)
    with torch.no_grad():
        mean = learner.responses(example(name, rows=256)).mean().item()
    assert mean == pytest.approx(learner.control_mean.item(), rel=0.35)


@every_uplift_learner
def test_a_page_without_users_has_the_controls_response(name):
    stats = trial([100.0, 50.0, 0.0, 70.0], [6e4, 4e4, 0.0, 3e4])
    learner = build(name, stats=stats)
    again = build(name, stats=trial([100.0] * 4, [6e4] * 4))
    again.load_state_dict(learner.state_dict())
    for model in (learner, again):
        with torch.no_grad():
            responses = model.responses(example(name))
        assert torch.equal(responses[:, 2], responses[:, 0])
        assert not torch.equal(responses[:, 1], responses[:, 0])


@every_uplift_learner
def test_a_response_clip_bounds_what_is_learnt_from(name):
    learner = build(name, response_clip=2.0, stats=trial([10.0] * 4, [100.0] * 4))
    batch = example(name, rows=3) | {"response": torch.tensor([5.0, 20.0, 900.0])}
    assert learner.target(batch).tolist() == [0.5, 2.0, 2.0]


@every_uplift_learner
def test_only_features_of_the_day_are_read(name):
    """Nothing that changes within a day moves the scores: neither entries of today, nor the hour, nor the last page."""
    learner, batch = build(name), example(name)
    schema = fitted()[0].schema
    with torch.no_grad():
        before = learner.scores(batch)
        for key, daily in (
            ("dense", schema.daily_numeric),
            ("bins", schema.daily_numeric),
            ("cat", schema.daily_categorical),
        ):
            if key in batch:
                inside = [i for i in range(batch[key].shape[1]) if i not in daily]
                batch[key] = batch[key].clone()
                batch[key][:, inside] = 0
        assert torch.equal(learner.scores(batch), before)
        batch["dense"][:, list(schema.daily_numeric)] += 1
        assert not torch.equal(learner.scores(batch), before)


def spec_of(schema: FeatureSchema, rows: int = 60) -> FeatureSpec:
    rng = np.random.default_rng(0)
    cats = {name: rng.choice(["a", "b", "c"], rows).astype(object) for name in schema.categorical}
    fitter = SpecFitter(schema)
    fitter.update(
        RawFeatures(schema, rng.normal(size=(rows, len(schema.numeric))).astype(np.float32), cats, {})
    )
    return fitter.finish()


@every_uplift_learner
@pytest.mark.parametrize("kinds", [("numeric",), ("categorical",), ("numeric", "categorical")])
def test_a_table_of_users_with_profile_columns_only(name, kinds):
    profile = {f"{kind}_{i}": kind for kind in kinds for i in range(2)}
    schema = FeatureSchema(pages().names, profile=profile, history=False)
    spec = spec_of(schema)
    learner = build(name, spec=spec)
    batch = type(learner).example_batch(0, spec, pages())
    assert learner(batch)["loss"].isfinite()
    assert learner.scores(batch).shape == (32, 3)


@every_uplift_learner
def test_a_schema_without_daily_features_is_refused(name):
    schema = FeatureSchema(pages().names, context={"device": "categorical"}, history=False)
    with pytest.raises(ConfigError, match="has none"):
        build(name, spec=spec_of(schema))


@every_uplift_learner
def test_a_trial_without_control_is_refused(name):
    with pytest.raises(DataError, match="control"):
        build(name, stats=trial([0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]))


def test_guard_of_a_control_near_zero():
    """Below the floor the ratios stay finite and fall together, so the preference becomes even; above it nothing changes."""
    y = torch.tensor([[0.0, 3.0, 1.0], [1e-12, 1e-9, 2e-9], [0.0, 0.0, 0.0], [0.1, 0.2, 0.1]])
    delta = static_preference(y, 0.05)
    assert delta.isfinite().all()
    assert delta[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert delta[1].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    assert delta[2].tolist() == [0.5, 0.5]
    torch.testing.assert_close(delta[3], torch.softmax(torch.tensor([2.0, 1.0]), 0))


def test_the_floor_is_a_share_of_the_control_mean():
    learner = build("reference.t_learner", control_floor=1.0)
    y = torch.tensor([[0.5, 2.0, 1.0, 0.5]])
    learner.predict = lambda batch: y  # type: ignore[method-assign]
    torch.testing.assert_close(learner.scores({}), torch.softmax(torch.tensor([[2.0, 1.0, 0.5]]), 1))


def test_sizes_are_of_one_order():
    counts = {name: sum(p.numel() for p in build(name).parameters()) for name in NAMES}
    assert max(counts.values()) <= 2 * min(counts.values()), counts


@every_uplift_learner
def test_many_rows_give_the_scores_of_few(name):
    learner, batch = build(name), example(name, rows=2500)
    with torch.inference_mode():
        whole = learner.scores(batch)
        some = learner.scores({key: value[1200:1210] for key, value in batch.items()})
    torch.testing.assert_close(whole[1200:1210], some, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["reference.t_learner", "reference.tarnet"])
def test_errors_of_own_heads_are_those_of_all_heads(name):
    learner, batch = build(name), example(name)
    y = learner.predict(batch).gather(1, batch["arm"].unsqueeze(1)).squeeze(1)
    wanted = (y - learner.target(batch)).square().mean()
    torch.testing.assert_close(learner(batch)["loss"], wanted)


def test_efin_leaves_the_control_alone_where_a_page_was_given():
    learner, batch = build("reference.efin", constraint=0.0), example("reference.efin")
    batch["arm"] = batch["arm"].clamp(min=1)
    learner(batch)["loss"].backward()
    gradients = {name: p.grad for name, p in learner.named_parameters()}
    control = [g for n, g in gradients.items() if n.startswith(("control.", "query.", "key.", "value."))]
    assert control and not any(g is not None and g.any() for g in control)
    assert gradients["uplift.weight"] is not None and gradients["uplift.weight"].any()


@every_uplift_learner
def test_it_finds_who_gains_by_which_page(name):
    """Half of the users gain by page 1 and half by page 2; who does is told by one feature."""
    rng = np.random.default_rng(0)
    schema = FeatureSchema(
        pages(2).names, profile={"a": "numeric", "b": "numeric", "c": "numeric"}, history=False
    )
    x = rng.normal(size=(6000, 3)).astype(np.float32)
    fitter = SpecFitter(schema)
    raw = RawFeatures(schema, x, {}, {})
    fitter.update(raw)
    spec = fitter.finish()
    arm = rng.integers(0, 3, len(x))
    first = x[:, 0] > 0
    gain = np.where(arm == 1, np.where(first, 1.0, -0.4), np.where(arm == 2, np.where(first, -0.4, 1.0), 0.0))
    response = (100 * (1.5 + gain) * rng.gamma(8, 1 / 8, len(x))).astype(np.float32)
    sums = np.bincount(arm, weights=response)
    stats = trial(np.bincount(arm).astype(float).tolist(), sums.tolist())
    learner = build(name, 2, spec, stats)
    encoded = spec.encode(raw, bins=True)
    assert encoded.bins is not None
    columns = {
        "dense": torch.from_numpy(encoded.dense),
        "bins": torch.from_numpy(encoded.bins).long(),
        "cat": torch.from_numpy(encoded.cat).long(),
        "arm": torch.from_numpy(arm),
        "response": torch.from_numpy(response),
    }
    fit_learner(
        learner, TensorTable(columns), None, TrainingConfig(epochs=12, batch_size=256, lr=5e-3, device="cpu")
    )
    with torch.no_grad():
        delta = learner.scores(columns)
        effect = learner.responses(columns)[:, 1] - learner.responses(columns)[:, 0]
    assert (delta.argmax(1).numpy() == np.where(first, 0, 1)).mean() > 0.85
    assert effect[torch.from_numpy(first)].mean().item() == pytest.approx(100, rel=0.3)
