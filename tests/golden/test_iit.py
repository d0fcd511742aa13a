"""KLAN-IIT equation by equation, against values computed by hand or independently in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.klan.iit import IIT, IITConfig, coefficient, regulariser, tidal_weight
from plpm_ray.navigators.q_learning import chosen, softmax_scores, td_loss
from tests.training_tables import fitted, pages

K = 3


@pytest.fixture
def iit() -> IIT:
    """A learner whose networks are constant: Q(s, .) = (1, 2, 4), target network (0.5, 3, -1), in mean sessions."""
    return make()


def make(**config) -> IIT:
    spec, stats = fitted(K)
    given = {"alpha": 1.0, **config}
    learner = IIT(IITConfig(hidden=(), embedding_dim=2, **given), spec, pages(K), stats)
    for network, bias in ((learner.q, (1.0, 2.0, 4.0)), (learner.q_target, (0.5, 3.0, -1.0))):
        linear = network.mlp[-1]
        torch.nn.init.zeros_(linear.weight)
        linear.bias.data = torch.tensor(bias)
    return learner


def batch_of(learner: IIT, **columns) -> dict[str, torch.Tensor]:
    spec, _ = fitted(K)
    batch = IIT.example_batch(0, spec, pages(K), rows=2)
    mean = float(learner.mean_use_s)
    given = {
        "action": torch.tensor([0, 2]),
        "use_s": torch.tensor([2.0 * mean, 0.5 * mean]),
        "done": torch.tensor([0.0, 1.0]),
        "hour": torch.tensor([12, 3]),
        "step": torch.tensor([0, 9]),
    }
    return batch | given | columns


def test_eq_7_bellman_target(iit):
    """r + gamma max_a' Q_target(s', a'): 2 + 0.9 * 3, and 0.5 alone where the day ends."""
    assert iit.td_target(batch_of(iit)).tolist() == pytest.approx([2 + 0.9 * 3, 0.5], rel=1e-6)


def test_eq_7_is_the_same_whether_terminal_rows_are_computed_or_not(iit):
    open_ended = iit.td_target(batch_of(iit, done=torch.zeros(2)))
    assert open_ended.tolist() == pytest.approx([4.7, 3.2], rel=1e-6)
    assert iit.td_target(batch_of(iit, done=torch.ones(2))).tolist() == pytest.approx([2.0, 0.5], rel=1e-6)


def test_double_q_takes_the_main_networks_page():
    learner = make(double_q=True)
    assert learner.td_target(batch_of(learner)).tolist() == pytest.approx([2 + 0.9 * -1, 0.5], rel=1e-6)


def test_eq_8_td_loss():
    """Mean of (1 - 4.7)^2 and (4 - 0.5)^2."""
    q = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    loss = td_loss(chosen(q, torch.tensor([0, 2])), torch.tensor([4.7, 0.5]))
    assert loss.tolist() == pytest.approx([13.69, 12.25], rel=1e-6)


def test_eq_8_holds_the_target_fixed():
    q, target = torch.tensor([1.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    td_loss(q, target).sum().backward()
    assert q.grad is not None and q.grad.tolist() == [-4.0]
    assert target.grad is None


def test_eq_9_regulariser():
    q = np.array([[1.0, 2.0, 4.0], [-3.0, 0.0, 0.5]])
    action = np.array([0, 1])
    wanted = np.log(np.exp(q).sum(1)) - q[[0, 1], action]
    found = regulariser(torch.tensor(q), torch.tensor(q)[[0, 1], torch.tensor(action)])
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    assert (found > 0).all()


def test_eq_9_survives_large_values():
    q = torch.tensor([[1000.0, 0.0]])
    assert regulariser(q, q[:, 1]).item() == 1000.0


def test_eq_10_objective(iit):
    """TD loss plus the mean of alpha_t x regulariser, weighted before the mean."""
    batch = batch_of(iit)
    v_hour, v_entry = iit.hour_activity.double().numpy(), iit.entry_activity.double().numpy()
    weight = np.exp(-(v_hour[[12, 3]] - 1)) * np.exp(-(v_entry[[0, 9]] - 1))
    alpha = np.clip(weight, 0.1, 5.0)
    lse = math.log(math.exp(1) + math.exp(2) + math.exp(4))
    wanted = (3.7**2 + 3.5**2) / 2 + (alpha * (lse - np.array([1.0, 4.0]))).mean()
    assert iit.losses(batch)["loss"].item() == pytest.approx(wanted, rel=1e-5)


def test_eq_11_scores():
    q = np.array([[1.0, 2.0, 4.0]])
    for temperature in (1.0, 0.5):
        wanted = np.exp(q / temperature) / np.exp(q / temperature).sum()
        np.testing.assert_allclose(softmax_scores(torch.tensor(q), temperature).numpy(), wanted, rtol=1e-12)


def test_eq_11_of_the_learner(iit):
    assert iit.scores(batch_of(iit))[0].tolist() == pytest.approx([0.042010, 0.114195, 0.843795], abs=1e-6)


def test_eq_26_activity():
    """Use of 1, 2 and 3 hours' worth at 0, 12 and 20 o'clock: V = 24 x use of the hour / use of the day."""
    stats = TableStats.of(
        2,
        landing=np.array([0, 1, 0]),
        use_s=np.array([60.0, 120.0, 180.0]),
        landing_dwell_s=np.array([1.0, 1.0, 1.0]),
        hour=np.array([0, 12, 20]),
        step=np.array([0, 1, 1]),
    )
    wanted = np.zeros(24)
    wanted[[0, 12, 20]] = 24 * np.array([60, 120, 180]) / 360
    np.testing.assert_allclose(stats.hour_activity, wanted)
    # shares 1/3 and 2/3 over their mean square sum 5/9
    np.testing.assert_allclose(stats.step_activity(2), [0.6, 1.2])


def test_eq_27_weight():
    found = tidal_weight(torch.tensor([0.2, 1.0, 1.8], dtype=torch.float64), 1.5)
    np.testing.assert_allclose(found.numpy(), [math.exp(1.2), 1.0, math.exp(-1.2)], rtol=1e-12)


def test_eq_28_coefficient_and_its_clip():
    """alpha enters once, and alpha_t stays within [0.1 alpha, 5 alpha]."""
    one = torch.ones(1, dtype=torch.float64)
    assert coefficient(2.0, 1.0, one * 0.5, one * 1.2).item() == pytest.approx(
        2 * math.exp(0.5) * math.exp(-0.2)
    )
    assert coefficient(2.0, 1.0, one * 9.0, one).item() == pytest.approx(0.2)
    assert coefficient(2.0, 4.0, one * 0.0, one * 0.0).item() == pytest.approx(10.0)
    assert coefficient(2.0, 0.0, one * 9.0, one * 9.0).item() == pytest.approx(2.0)
    assert coefficient(0.0, 1.0, one, one).item() == 0.0


def test_eq_28_survives_weights_beyond_all_measure():
    low, high = torch.tensor([0.0]), torch.tensor([4.0])
    assert coefficient(1.0, 100.0, low, high).tolist() == pytest.approx([0.1])
    assert coefficient(1.0, 200.0, low, torch.tensor([1.5])).tolist() == [5.0]


def test_eq_28_of_the_learner_reads_hour_and_entry(iit):
    batch = batch_of(iit)
    wanted = coefficient(1.0, 1.0, iit.hour_activity[batch["hour"]], iit.entry_activity[batch["step"]])
    torch.testing.assert_close(iit.alpha_t(batch), wanted)


def test_tide_travels_with_the_weights():
    """A checkpoint brings its own V, whatever the totals of the process that loads it."""
    first, (spec, other) = make(alpha=0.7), fitted(K, seed=5)
    second = IIT(IITConfig(hidden=(), embedding_dim=2, alpha=0.7), spec, pages(K), other)
    assert not torch.equal(first.hour_activity, second.hour_activity)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.hour_activity, first.hour_activity, rtol=0, atol=0)
    torch.testing.assert_close(second.alpha_table, first.alpha_table, rtol=0, atol=0)
    assert second.mean_use_s == first.mean_use_s


def test_gradient_of_the_target_network_is_none():
    spec, stats = fitted(K)
    learner = IIT(IITConfig(hidden=(8,)), spec, pages(K), stats)
    learner.losses(IIT.example_batch(1, spec, pages(K)))["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in learner.q_target.parameters())
    assert all(p.grad is not None and p.grad.any() for p in learner.q.mlp.parameters())


def test_soft_target_moves_by_tau():
    learner = make(tau=0.25)
    learner.after_step(1)
    assert learner.q_target.mlp[-1].bias.tolist() == pytest.approx([0.625, 2.75, 0.25])


def test_hard_target_is_copied_every_n_steps():
    learner = make(target="hard", target_every=2)
    learner.after_step(1)
    assert learner.q_target.mlp[-1].bias.tolist() == [0.5, 3.0, -1.0]
    learner.after_step(2)
    assert learner.q_target.mlp[-1].bias.tolist() == [1.0, 2.0, 4.0]


def test_values_are_seconds(iit):
    mean = float(iit.mean_use_s)
    assert iit.values(batch_of(iit))[0].tolist() == pytest.approx([mean, 2 * mean, 4 * mean], rel=1e-6)


def test_metrics_of_held_out_rows(iit):
    found = {name: values.tolist() for name, values in iit.metrics(batch_of(iit)).items()}
    mean = float(iit.mean_use_s)
    assert found["td_error_sq"] == pytest.approx([3.7**2, 3.5**2], rel=1e-5)
    assert found["q_logged_s"] == pytest.approx([mean, 4 * mean], rel=1e-6)
    assert found["q_max_s"] == pytest.approx([4 * mean, 4 * mean], rel=1e-6)
    assert found["agreement"] == [0.0, 1.0]
    loss = np.array(found["td_error_sq"]) + np.array(found["alpha_t"]) * np.array(found["regulariser"])
    assert found["loss"] == pytest.approx(loss.tolist(), rel=1e-6)


def test_reward_clip():
    learner = make(reward_clip=1.0)
    assert learner.reward(batch_of(learner)).tolist() == pytest.approx([1.0, 0.5])
