"""GLAN's Decision Transformer equation by equation, and what its packing and its cache must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from plpm_ray.core.errors import DataError
from plpm_ray.navigators.glan.decision_transformer import (
    DecisionTransformer,
    DecisionTransformerConfig,
    class_weights,
    returns_to_go,
)
from plpm_ray.nn.packing import begins
from tests.training_tables import fitted, pages

K = 3
INPUTS = ("dense", "cat", "action", "step", "rtg")


def make(seed: int = 0, **config) -> DecisionTransformer:
    """A learner whose weights are large enough for every input to matter."""
    spec, stats = fitted(K)
    torch.manual_seed(seed)
    learner = DecisionTransformer(DecisionTransformerConfig(**{"width": 16, **config}), spec, pages(K), stats)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return learner


def days(lengths: list[int], seed: int = 1) -> dict[str, Tensor]:
    """A batch of whole days of the given numbers of sessions."""
    batch = DecisionTransformer.example_batch(seed, fitted(K)[0], pages(K), sum(lengths))
    batch["step"] = torch.cat([torch.arange(n) for n in lengths])
    gen = torch.Generator().manual_seed(seed)
    batch["rtg"] = torch.rand(sum(lengths), generator=gen) * 2000
    return batch


def appended(learner: DecisionTransformer, *given: Tensor) -> Tensor:
    """The cache (the last argument) with sessions that have ended; the arguments are those of `kept`."""
    *_, step, cache = given
    slot = (step % learner.config.context)[:, None, None].expand(-1, 1, learner.cache_width)
    return cache.scatter(1, slot, learner.kept(*given).unsqueeze(1))


def changed(batch: dict[str, Tensor], name: str, row: int) -> dict[str, Tensor]:
    value = batch[name].clone()
    value[row] = (value[row] + 1) % K if name == "action" else value[row] + 900.0
    return {**batch, name: value}


def differs(learner: DecisionTransformer, a: dict[str, Tensor], b: dict[str, Tensor]) -> list[bool]:
    with torch.no_grad():
        return (learner.logits(a) - learner.logits(b)).abs().amax(1).gt(1e-5).tolist()


def test_eq_3_return_to_go():
    """Sums to the end of each day: (1, 2, 4), (8), (16, 32)."""
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    found = returns_to_go(reward, begins(torch.tensor([0, 1, 2, 0, 0, 1])))
    assert found.tolist() == [7.0, 6.0, 4.0, 8.0, 48.0, 32.0]


def test_eq_3_does_not_wear_out_over_a_large_batch():
    rng = np.random.default_rng(0)
    lengths = rng.geometric(0.3, 20_000)
    reward = (rng.gamma(1.0, 300.0, lengths.sum())).astype(np.float32)
    step = np.concatenate([np.arange(n) for n in lengths])
    first = np.flatnonzero(step == 0)
    wanted = np.concatenate(
        [part[::-1].cumsum()[::-1] for part in np.split(reward.astype(np.float64), first[1:])]
    )
    found = returns_to_go(torch.from_numpy(reward), begins(torch.from_numpy(step)))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(("reward", "column"), [("hrm", "reward"), ("duration", "use_s")])
def test_eq_3_reads_the_reward_of_the_config(reward, column):
    learner, batch = make(reward=reward), days([3, 2])
    batch.pop("rtg")
    assert column in learner.needed_columns(learner.config)
    assert learner.rtg_of(batch)[0].item() == pytest.approx(batch[column][:3].sum().item(), rel=1e-6)


def test_returns_are_in_mean_days():
    _, stats = fitted(K)
    assert make(reward="duration").day_value_s.item() == pytest.approx(stats.mean_day_use_s)
    assert make(reward="hrm").day_value_s.item() == pytest.approx(stats.mean_day_use_s * stats.reward_ratio)


def test_eq_4_a_session_is_return_state_and_action():
    learner, batch = make(), days([1])
    columns = [batch[name] for name in ("rtg", "dense", "cat", "step", "action")]
    tokens = learner.tokens(*columns)
    assert tokens.shape == (1, 3, 16)
    for place, name in enumerate(("rtg", "dense", "action")):
        other = changed(batch, name, 0)
        moved = learner.tokens(*[other[n] for n in ("rtg", "dense", "cat", "step", "action")]) != tokens
        assert moved.any(2)[0].tolist() == [place == i for i in range(3)]


@pytest.mark.parametrize("name", ["rtg", "dense", "action"])
def test_eq_29_a_page_depends_on_the_past_of_its_own_day(name):
    """Session 3 of the second day changes: later ones of that day see it, itself does unless it is its own page."""
    learner, batch = make(), days([2, 7, 3])
    seen = differs(learner, batch, changed(batch, name, 2 + 3))
    own = name != "action"
    assert seen == [False] * 5 + [own] + [True] * 3 + [False] * 3


def test_a_day_is_told_from_its_neighbours_by_its_steps_alone():
    """Days in another order give the same pages."""
    learner, batch = make().eval(), days([2, 7, 3])
    order = torch.tensor([9, 10, 11, 0, 1, *range(2, 9)])
    with torch.no_grad():
        wanted = learner.logits(batch)[order]
        found = learner.logits({n: batch[n][order] for n in INPUTS})
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


LENGTHS = [1, 100, 3, 1, 2, 8, 7, 12, 33, 1, 5, 40, 2, 9]


@pytest.mark.parametrize("order", ["given", "rising", "falling"])
@pytest.mark.parametrize("config", [{}, {"context": 8, "kv_heads": 2}], ids=["default", "short context"])
def test_packed_is_one_day_at_a_time(order, config):
    """Loss and gradients of a batch are those of its days alone, weighted by their sessions."""
    lengths = {"given": LENGTHS, "rising": sorted(LENGTHS), "falling": sorted(LENGTHS)[::-1]}[order]
    learner, batch = make(**config), days(lengths)
    loss = learner.losses(batch)["loss"]
    together = torch.autograd.grad(loss, list(learner.parameters()))
    alone, at = torch.zeros(()), 0
    for n in lengths:
        one = {name: value[at : at + n] for name, value in batch.items()}
        alone, at = alone + learner.losses(one)["loss"] * n / sum(lengths), at + n
    apart = torch.autograd.grad(alone, list(learner.parameters()))
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-6)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("context", [1, 4, 5])
def test_a_long_day_is_seen_through_a_window(context):
    """With one layer a session sees exactly the `context` - 1 before it."""
    learner, batch = make(context=context, layers=1), days([2, 17, 1])
    for step in (0, 3, 9):
        seen = differs(learner, batch, changed(batch, "rtg", 2 + step))
        assert [i - 2 for i, moved in enumerate(seen) if moved] == list(range(step, min(step + context, 17)))


def lived(learner: DecisionTransformer, batch: dict[str, Tensor], lengths: list[int]) -> Tensor:
    """(S, K) logits of the days lived through session by session, all users at once."""
    first = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    found = torch.zeros(sum(lengths), K)
    cache = torch.zeros(len(lengths), learner.config.context, learner.cache_width, dtype=torch.float16)
    done = torch.zeros(len(lengths), dtype=torch.int64)
    gen = torch.Generator().manual_seed(0)
    while (open_days := torch.nonzero(done < torch.tensor(lengths)).squeeze(1)).numel():
        # some users are ahead of others
        users = open_days[torch.rand(len(open_days), generator=gen) < 0.7]
        at = first[users] + done[users]
        rtg, dense, cat, action, step = (batch[n][at] for n in ("rtg", "dense", "cat", "action", "step"))
        found[at] = learner.decide(rtg, dense, cat, step, cache[users])
        cache[users] = appended(learner, rtg, dense, cat, action, step, cache[users])
        done[users] += 1
    return found


@pytest.mark.parametrize("lengths", [[1, 12, 3, 40, 8, 7], [35]], ids=["many users", "one user"])
@pytest.mark.parametrize(
    "config", [{}, {"context": 8, "layers": 3}, {"context": 1}, {"kv_heads": 2, "context": 5}]
)
@torch.no_grad()
def test_cached_is_uncached(lengths, config):
    learner, batch = make(**config).eval(), days(lengths)
    torch.testing.assert_close(lived(learner, batch, lengths), learner.logits(batch), rtol=1e-4, atol=2e-4)


@torch.no_grad()
def test_keys_and_values_are_rounded_in_evaluation_only():
    learner, batch = make(), days([12])
    exact = learner.logits(batch)
    gap = (learner.eval().logits(batch) - exact).abs().max().item()
    assert 0 < gap < 0.05


def test_the_default_cache_takes_384_bytes_a_session():
    spec, stats = fitted(K)
    learner = DecisionTransformer(DecisionTransformerConfig(), spec, pages(K), stats)
    assert learner.cache_width * torch.float16.itemsize == 384


@torch.no_grad()
def test_append_leaves_the_cache_it_was_given():
    learner, batch = make(context=2).eval(), days([1])
    cache = torch.ones(1, 2, learner.cache_width, dtype=torch.float16)
    row = [batch[n] for n in ("rtg", "dense", "cat", "action")]
    new = appended(learner, *row, torch.tensor([3]), cache)
    assert (cache == 1).all() and (new[0, 0] == 1).all()
    assert torch.equal(new[0, 1], learner.kept(*row, torch.tensor([3]), cache)[0])


@torch.no_grad()
def test_a_row_without_its_day_is_a_first_session_with_the_mean_day_to_come():
    learner, batch = make().eval(), days([1] * 5)
    whole = {**batch, "rtg": learner.day_value_s.expand(5)}
    torch.testing.assert_close(learner.scores({n: batch[n] for n in ("dense", "cat")}), learner.scores(whole))


def test_class_weights_are_one_on_average():
    """Landings 6, 3, 1: weights 10/18, 10/9, 10/3, the last cut to 2, over their mean."""
    _, stats = fitted(K)
    stats.landings = np.array([6.0, 3.0, 1.0])
    raw = np.array([10 / 18, 10 / 9, 2.0])
    wanted = raw / (raw * [0.6, 0.3, 0.1]).sum()
    assert class_weights(stats, 2.0).tolist() == pytest.approx(wanted, rel=1e-6)
    stats.landings = np.array([9.0, 0.0, 1.0])
    assert np.isfinite(class_weights(stats, 10.0).numpy()).all()


def test_class_balanced_loss():
    learner, batch = make(weighting="class_balanced", risk_weight=0), days([2, 3])
    cross = learner.metrics(batch)["cross_entropy"]
    wanted = (cross * learner.class_weight[batch["action"]]).mean()
    terms = learner.losses(batch)
    torch.testing.assert_close(terms["loss"], wanted)
    torch.testing.assert_close(terms["cross_entropy"], cross.mean())


def test_inverse_propensity_loss():
    """1 / (K p), at most the clip."""
    learner, batch = make(weighting="inverse_propensity", weight_clip=2.0, risk_weight=0), days([2, 1])
    batch["propensity"] = torch.tensor([0.5, 1 / 3, 0.01])
    cross = learner.metrics(batch)["cross_entropy"]
    wanted = (cross * torch.tensor([2 / 3, 1.0, 2.0])).mean()
    torch.testing.assert_close(learner.losses(batch)["loss"], wanted)


@pytest.mark.parametrize("unknown", [float("nan"), -0.5])
def test_unknown_propensities_are_refused(unknown):
    learner, batch = make(weighting="inverse_propensity"), days([2])
    batch["propensity"][1] = unknown
    with pytest.raises(DataError, match="unknown"):
        learner.losses(batch)


def test_unknown_propensities_do_not_matter_without_weights():
    batch = days([2]) | {"propensity": torch.full((2,), float("nan"))}
    assert make().losses(batch)["loss"].isfinite()


def test_kv_heads_must_divide_the_heads():
    with pytest.raises(ValueError, match="kv_heads"):
        DecisionTransformerConfig(heads=4, kv_heads=3)


def test_the_foretold_risk_is_that_of_the_page_shown():
    """Cross entropy of the shown page alone; with `vectors` scores carry the chances to stay."""
    learner, batch = make(risk_weight=2.0), days([2, 3])
    risk = torch.sigmoid(learner.risks(batch))
    shown = risk[torch.arange(5), batch["action"]]
    label = batch["dropped"]
    wanted = -(label * shown.log() + (1 - label) * (1 - shown).log())
    terms = learner.losses(batch)
    torch.testing.assert_close(terms["risk"], wanted.mean())
    torch.testing.assert_close(terms["loss"], terms["cross_entropy"] + 2 * wanted.mean())
    # neither what is still to come nor the page that was shown: the logs know both only because they know the session
    others = {**batch, "rtg": batch["rtg"] * 3, "action": batch["action"].flip(0)}
    assert torch.equal(learner.risks(others), learner.risks(batch))

    one = {"dense": batch["dense"][:1], "cat": batch["cat"][:1], "rtg": batch["rtg"][:1]}
    told = {
        "vec.glan.rtg": batch["rtg"][:1, None],
        "vec.glan.step": torch.zeros(1, 1),
        "vec.glan.past": torch.zeros(1, 0),
    }
    learner.eval()
    p, stay = learner.scores({**one, **told}).split(K, dim=1)
    torch.testing.assert_close(p, learner.scores(one))
    torch.testing.assert_close(stay, 1 - torch.sigmoid(learner.risks(one)))


@pytest.mark.parametrize("config", [{"reward": "duration"}, {"risk_weight": 0}])
def test_without_a_reward_model_no_risk_is_foretold(config):
    learner, batch = make(**config), days([2, 3])
    assert learner.risk is None and "risk" not in learner.losses(batch)
    assert ("dropped" in learner.needed_columns(learner.config)) == (config.get("reward") != "duration")
