from __future__ import annotations

import numpy as np
import pytest
import torch

from plpm_ray.core.config import tunables
from plpm_ray.navigators.klan.iit import IIT, IITConfig
from plpm_ray.navigators.reference.bc import BC, BCConfig
from plpm_ray.navigators.reference.dqn import DQN, DQNConfig
from tests.training_tables import fitted, pages


def test_dqn_is_iit_without_penalty():
    spec, stats = fitted(3)
    dqn, iit = DQN(DQNConfig(), spec, pages(3), stats), IIT(IITConfig(alpha=0.0), spec, pages(3), stats)
    iit.q.load_state_dict(dqn.q.state_dict())
    iit.q_target.load_state_dict(dqn.q_target.state_dict())
    batch = IIT.example_batch(0, spec, pages(3))
    assert dqn(batch)["loss"].item() == pytest.approx(iit(batch)["loss"].item(), rel=1e-6)
    assert "alpha" not in DQNConfig.model_fields


def test_sweep_space_is_in_the_config():
    assert {"alpha", "beta", "gamma", "temperature"} <= tunables(IITConfig).keys()
    assert "alpha" not in tunables(DQNConfig)


def test_bc_probabilities_sum_to_one():
    spec, stats = fitted(3)
    learner = BC(BCConfig(), spec, pages(3), stats)
    scores = learner.scores(BC.example_batch(0, spec, pages(3)))
    torch.testing.assert_close(scores.sum(1), torch.ones(32))


def test_balanced_weights_have_mean_one_over_the_training_window():
    spec, stats = fitted(3)
    learner = BC(BCConfig(class_balanced=True), spec, pages(3), stats)
    share = stats.landings / stats.landings.sum()
    assert float((learner.page_weight.double().numpy() * share).sum()) == pytest.approx(1.0, rel=1e-6)
    rarest = int(np.argmin(share))
    assert int(learner.page_weight.argmax()) == rarest


def test_balanced_loss_is_weighted_by_page():
    spec, stats = fitted(3)
    torch.manual_seed(0)
    plain = BC(BCConfig(), spec, pages(3), stats)
    balanced = BC(BCConfig(class_balanced=True), spec, pages(3), stats)
    balanced.load_state_dict(plain.state_dict() | {"page_weight": balanced.page_weight})
    batch = BC.example_batch(0, spec, pages(3))
    rows = plain.metrics(batch)["loss"] * balanced.page_weight[batch["action"]]
    assert balanced(batch)["loss"].item() == pytest.approx(rows.mean().item(), rel=1e-5)
