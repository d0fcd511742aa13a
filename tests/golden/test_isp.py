"""KLAN-ISP equation by equation, against values computed by hand or independently in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from plpm_ray.navigators.klan.isp import ISP, ISPConfig, kl_to_mean
from plpm_ray.navigators.uplift import static_preference
from tests.training_tables import fitted, pages

K = 3


def make(k: int = K, **config) -> ISP:
    """A small learner whose bins and biases count too, which they do not when training begins."""
    spec, stats = fitted(k)
    torch.manual_seed(0)
    sizes = {"embedding_dim": 4, "experts": 2, "expert_hidden": 5, "latent_dim": 3, "tower_hidden": (6,)}
    learner = ISP(ISPConfig(**(sizes | config)), spec, pages(k), stats)
    for parameter in learner.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return learner


def batch_of(arm: list[int], k: int = K, seed: int = 0) -> dict[str, Tensor]:
    batch = ISP.example_batch(seed, fitted(k)[0], pages(k), rows=len(arm))
    return batch | {"arm": torch.tensor(arm)}


def numpy_of(learner: ISP) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy() for name, p in learner.named_parameters()}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


class Reference:
    """One user, one branch, one run at a time, in float64, straight from the paper."""

    def __init__(self, learner: ISP, batch: dict[str, Tensor]) -> None:
        self.p = numpy_of(learner)
        schema = fitted(learner.n_pages)[0].schema
        self.dense = batch["dense"].double().numpy()[:, list(schema.daily_numeric)]
        self.bins = batch["bins"].numpy()[:, list(schema.daily_numeric)]
        self.starts = np.cumsum([0, *learner.bin_sizes])[:-1]
        self.experts = learner.config.experts

    def e_x(self, i: int) -> np.ndarray:
        """(F, D), eq. 16."""
        rows = self.p["fields.fields.table.weight"][self.starts + self.bins[i]]
        return rows + self.dense[i][:, None] * self.p["fields.slope"]

    def f(self, i: int, k: int, arm: int) -> np.ndarray:
        """Input of branch k (from 1) under an arm, eq. 2 and 3 and A.2."""
        e_t = self.p["arms.weight"][arm]
        w = softmax(self.p["selection_weight"][k - 1] @ e_t + self.p["selection_bias"][k - 1])
        return np.concatenate([w @ self.e_x(i), e_t])

    def z_y(self, i: int, k: int, arm: int) -> tuple[np.ndarray, float]:
        """Eq. 4."""
        p, f, b = self.p, self.f(i, k, arm), k - 1
        g = softmax(f @ p["experts.gate.weight"][b] + p["experts.gate.bias"][b, 0])
        hidden = np.maximum(f @ p["experts.first.weight"][b] + p["experts.first.bias"][b, 0], 0)
        z = np.zeros(p["experts.weight"].shape[2])
        for m, (h, w) in enumerate(
            zip(np.split(hidden, self.experts), np.split(p["experts.weight"][b], self.experts), strict=True)
        ):
            z += g[m] * (h @ w + p["experts.bias"][b, m])
        tower = np.maximum(z @ p["towers.layers.0.weight"][b] + p["towers.layers.0.bias"][b, 0], 0)
        out = tower @ p["towers.layers.1.weight"][b] + p["towers.layers.1.bias"][b, 0]
        return z, math.log1p(math.exp(out[0]))


def test_eq_16_embedding_of_bins_and_values():
    learner, batch = make(), batch_of([0, 1])
    e = learner.fields.embedded(learner.codes(batch), learner.daily(batch, "dense"))
    reference = Reference(learner, batch)
    np.testing.assert_allclose(e[1].detach().numpy(), reference.e_x(1), rtol=1e-5, atol=1e-6)


def test_eq_2_selection_by_attention_of_the_arm():
    """By hand: W e_t + b = (0, ln 3), so the weights are 1/4 and 3/4; without any field embedding written down."""
    learner = make()
    batch = batch_of([0, 1, 2, 3])
    reference = Reference(learner, batch)
    _, e_x = learner.selected(batch)
    for k in range(1, K + 1):
        for run, arm in ((0, 0), (1, k)):
            for i in range(4):
                np.testing.assert_allclose(
                    e_x[i, run, k - 1].detach().numpy(), reference.f(i, k, arm)[:4], rtol=1e-4, atol=1e-5
                )
    with torch.no_grad():
        learner.selection_weight.zero_()
        learner.selection_bias.fill_(-200.0)
        learner.selection_bias[:, 0], learner.selection_bias[:, 1] = 0.0, math.log(3)
    weight = learner.selection(learner.arm_embeddings())
    torch.testing.assert_close(weight[..., :2], torch.tensor([0.25, 0.75]).expand(2, K, 2))


def test_eq_2_a_branch_selects_alike_for_both_runs_where_their_arms_are_alike():
    learner = make()
    with torch.no_grad():
        learner.arms.weight[1:] = learner.arms.weight[0]
    control, page = learner.selection(learner.arm_embeddings())
    assert torch.equal(control, page)
    assert not torch.allclose(control[0], control[1])


def test_eq_3_and_4_branches():
    learner, batch = make(), batch_of([0, 1, 2])
    reference = Reference(learner, batch)
    arms, e_x = learner.selected(batch)
    for run in (0, 1):
        z, y = learner.branches(e_x[:, run], arms[run])
        for i in range(3):
            for k in range(1, K + 1):
                wanted_z, wanted_y = reference.z_y(i, k, k * run)
                np.testing.assert_allclose(z[i, k - 1].detach().numpy(), wanted_z, rtol=1e-4, atol=1e-5)
                assert y[i, k - 1].item() == pytest.approx(wanted_y, rel=1e-4)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_eq_5_loss(kl_weight):
    arm = [0, 2, 0, 3, 3]
    learner, batch = make(kl_weight=kl_weight), batch_of(arm)
    reference = Reference(learner, batch)
    y = batch["response"].double().numpy() / learner.control_mean.item()
    total = 0.0
    for i, k in enumerate(arm):
        if k:
            total += (y[i] - reference.z_y(i, k, k)[1]) ** 2
            continue
        runs = [reference.z_y(i, branch, 0) for branch in range(1, K + 1)]
        mean = np.mean([softmax(z) for z, _ in runs], axis=0)
        total += sum((y[i] - y_0) ** 2 + kl_weight * kl(softmax(z), mean) for z, y_0 in runs)
    assert learner(batch)["loss"].item() == pytest.approx(total / len(arm), rel=1e-4)


@pytest.mark.parametrize("arm", [[0, 1, 2, 3, 3, 3], [0, 0], [2, 2, 2], [1, 3, 1]])
def test_eq_5_from_the_runs_that_count_is_that_from_all_runs(arm):
    learner, batch = make(), batch_of(arm)
    found = []
    for terms in (learner._given_runs(batch), learner._all_runs(batch)):
        learner.zero_grad()
        torch.stack(terms).sum().backward()
        found.append((torch.stack(terms), [p.grad for p in learner.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_kl_is_between_distributions():
    """softmax (ln 1, ln 3) and (ln 3, ln 1) are (1/4, 3/4) and (3/4, 1/4), their mean is even: by hand
    1/4 ln 1/2 + 3/4 ln 3/2 for both. A shift of z changes nothing."""
    z = torch.tensor([[[0.0, math.log(3)], [math.log(3) + 5, 5.0]]])
    wanted = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kl_to_mean(z)[0].tolist() == pytest.approx([wanted, wanted], rel=1e-5)
    assert kl_to_mean(torch.tensor([[[0.0, 300.0], [300.0, 0.0]]]))[0].tolist() == pytest.approx(
        [math.log(2)] * 2, rel=1e-5
    )


def test_the_gradient_through_the_mean_distribution_is_zero():
    z = torch.randn(4, K, 6, dtype=torch.float64, requires_grad=True)
    kl_to_mean(z).sum().backward()
    whole, z.grad = z.grad, None
    log_p = z.log_softmax(2)
    fixed = log_p.exp().mean(1, keepdim=True).log().detach()
    (log_p.exp() * (log_p - fixed)).sum().backward()
    torch.testing.assert_close(whole, z.grad)


def test_eq_6_preference():
    """Ratios 2, 1 and 0 to the control, by hand; rows of other sizes give the same."""
    y = torch.tensor([[0.5, 1.0, 0.5, 0.0], [50.0, 100.0, 50.0, 0.0]])
    e = math.e
    wanted = [e**2 / (e**2 + e + 1), e / (e**2 + e + 1), 1 / (e**2 + e + 1)]
    for row in static_preference(y, 0.05):
        assert row.tolist() == pytest.approx(wanted, rel=1e-5)


def test_eq_6_reads_the_mean_of_the_branches_controls():
    learner, batch = make(), batch_of([0, 1, 2, 3])
    reference = Reference(learner, batch)
    with torch.no_grad():
        delta, responses = learner.scores(batch), learner.responses(batch)
    for i in range(4):
        y_0 = np.mean([reference.z_y(i, k, 0)[1] for k in range(1, K + 1)])
        y = np.array([reference.z_y(i, k, k)[1] for k in range(1, K + 1)])
        np.testing.assert_allclose(delta[i].numpy(), softmax(y / y_0), rtol=1e-3)
        scale = learner.control_mean.item()
        np.testing.assert_allclose(responses[i].numpy(), np.append(y_0, y) * scale, rtol=1e-4)


def parts_of(learner: ISP) -> dict[str, Tensor]:
    """Gradients of everything a branch owns, the branch first."""
    owned = {n: p.grad for n, p in learner.named_parameters() if not n.startswith(("fields.", "arms."))}
    return {n: g for n, g in owned.items() if g is not None}


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("way", ["_given_runs", "_all_runs"])
def test_a_3_a_sample_leaves_exactly_zero_gradient_in_every_other_branch(k, way):
    learner = make()
    torch.stack(getattr(learner, way)(batch_of([k] * 5))).sum().backward()
    others = [b for b in range(K) if b != k - 1]
    for name, gradient in parts_of(learner).items():
        assert len(gradient) == K, name
        assert not gradient[others].any(), name
        assert gradient[k - 1].any(), name
    rows = learner.arms.weight.grad
    assert rows is not None and rows[k].any()
    assert not rows[[a for a in range(K + 1) if a != k]].any()


def test_eq_21_to_25_gradient_of_the_branches_inputs():
    """dL/df is zero for every branch but that of the sample's arm, and the derivative of the squared error there."""
    arm = [1, 3, 0]
    learner, batch = make(kl_weight=0.0), batch_of(arm)
    (_, t_k), e_x = learner.selected(batch)
    e_k = e_x[:, 1].detach().requires_grad_()
    y = learner.branches(e_k, t_k)[1]
    given = torch.nn.functional.one_hot(batch["arm"], K + 1)[:, 1:]
    target = learner.target(batch).unsqueeze(1)
    (given * (y - target).square()).sum().backward()
    gradient = e_k.grad
    assert gradient is not None
    assert gradient.abs().sum(2).gt(0).tolist() == [[True, False, False], [False, False, True], [False] * 3]
    alone = e_x[:1, 1].detach().requires_grad_()
    out = learner.branches(alone, t_k)[1][0, 0]
    (slope,) = torch.autograd.grad(out, alone)
    residual = (learner.target(batch)[0] - out).detach()
    torch.testing.assert_close(gradient[0, 0], (-2 * residual * slope)[0, 0])


def test_a_control_sample_reaches_every_branch_and_no_page():
    learner = make()
    learner(batch_of([0, 0]))["loss"].backward()
    assert all(g.flatten(1).any(1).all() for g in parts_of(learner).values())
    rows = learner.arms.weight.grad
    assert rows is not None and rows[0].any() and not rows[1:].any()


def test_permuted_arms_permute_the_scores():
    """Branches that change places with their arms: the same model, so the same loss, and scores in the new order."""
    learner, permuted = make(), make()
    order = [2, 0, 1]
    with torch.no_grad():
        for name, p in permuted.named_parameters():
            if name == "arms.weight":
                p[1:] = p[1:][order].clone()
            elif not name.startswith("fields."):
                p.copy_(p[order].clone())
    batch = batch_of([0, 1, 2, 3, 3])
    place = torch.tensor([0, *(order.index(k) + 1 for k in range(K))])
    moved = batch | {"arm": place[batch["arm"]]}
    assert permuted(moved)["loss"].item() == pytest.approx(learner(batch)["loss"].item(), rel=1e-5)
    torch.testing.assert_close(permuted.scores(batch), learner.scores(batch)[:, order])


@pytest.mark.parametrize("numeric", ["both", "bins", "linear"])
def test_every_embedding_of_numeric_fields_gives_the_weighted_sum(numeric):
    learner, batch = make(numeric=numeric), batch_of([0, 1, 2, 3, 1])
    codes, dense = learner.codes(batch), learner.daily(batch, "dense")
    weight = learner.selection(learner.arm_embeddings()).flatten(0, 1)
    wanted = torch.einsum("sf,bfd->bsd", weight, learner.fields.embedded(codes, dense))
    torch.testing.assert_close(learner.fields(codes, dense, weight), wanted, rtol=1e-4, atol=1e-5)
    assert learner(batch)["loss"].isfinite()
