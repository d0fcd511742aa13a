"""Without its conservative penalty KLAN-IIT believes in returns that held-out days do not give."""

import numpy as np
import pytest

from plpm_ray.core.config import Named
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import split_days
from plpm_ray.data.tables import build_transitions
from plpm_ray.evaluation.held_out import read_decisions
from plpm_ray.evaluation.metrics import overestimation_gap, realised_return
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    root = tmp_path_factory.mktemp("overestimation")
    dataset = Named.model_validate({"name": "synthetic_demo", "users": 800, "days": 10})
    ingest(IngestConfig(dataset=dataset, output=str(root), n_buckets=2))
    build_transitions(Warehouse.open(root))
    return root


def gap(tables, tmp_path, alpha):
    warehouse = Warehouse.open(tables)
    split = split_days(warehouse.transitions.days())
    training = TrainingConfig(epochs=25, batch_size=256, num_threads=1, eval_every=25)
    learner = {"alpha": alpha, "gamma": 0.9, "hidden": [128, 128], "target": "soft", "tau": 0.02}
    result = train("klan.iit", learner, training, tables, split.train, split.valid, tmp_path)
    held_out = read_decisions(warehouse, split.test)
    q = load_bundle(result.bundle_path).navigator().values(held_out.features)
    returns = realised_return(held_out.use_s, held_out.episode, held_out.step, 0.9)
    return overestimation_gap(q, held_out.action, returns, held_out.user)


def test_the_overestimation_gap_grows_when_alpha_is_zero(tables, tmp_path):
    without, careful = gap(tables, tmp_path, 0.0), gap(tables, tmp_path, 1.0)
    assert np.isclose(without.realised.value, careful.realised.value)
    assert without.best_action.low > careful.best_action.high
    assert without.logged_action.value > careful.logged_action.value
