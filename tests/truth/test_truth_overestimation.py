"""Without its conservative penalty KLAN-IIT believes in returns that held-out days do not give."""

import numpy as np
import pytest

from plpm_ray.core.config import Named
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import split_days
from plpm_ray.data.tables import build_transitions
from plpm_ray.evaluation.held_out import read_decisions
from plpm_ray.evaluation.metrics import clustered_mean, overestimation_gap, realised_return
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train
from tests.world_logs import world_logs


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Logs of few users under the world's own policy, which shows most pages seldom: Q has room to err."""
    root = tmp_path_factory.mktemp("overestimation")
    dataset = Named.model_validate(world_logs(200, 10, policy="logging"))
    ingest(IngestConfig(dataset=dataset, output=str(root), n_buckets=2))
    build_transitions(Warehouse.open(root))
    return root


def judged(tables, tmp_path, alpha):
    """Q of the test days' decisions (N, K) in seconds, the decisions, and their discounted returns."""
    warehouse = Warehouse.open(tables)
    split = split_days(warehouse.transitions.days())
    training = TrainingConfig(epochs=30, batch_size=256, lr=3e-3, num_threads=1, eval_every=30)
    learner = {"alpha": alpha, "gamma": 0.9, "hidden": [128, 128], "target": "soft", "tau": 0.02}
    result = train("klan.iit", learner, training, tables, split.train, split.valid, tmp_path)
    held_out = read_decisions(warehouse, split.test)
    q = load_bundle(result.bundle_path).navigator().values(held_out.features)
    return q, held_out, realised_return(held_out.use_s, held_out.episode, held_out.step, 0.9)


def test_the_overestimation_gap_grows_when_alpha_is_zero(tables, tmp_path):
    (without, log, returns), (careful, *_) = (judged(tables, tmp_path, alpha) for alpha in (0.0, 1.0))
    gaps = [overestimation_gap(q, log.action, returns, log.user) for q in (without, careful)]
    assert gaps[0].best_action.low > 0
    # both are held against the same returns, so what one gap is larger is the difference of Q, decision by decision
    rows = np.arange(len(log))
    for grown, one, other in (
        (clustered_mean(without.max(axis=1) - careful.max(axis=1), log.user), "best_action", 0.1),
        (
            clustered_mean(without[rows, log.action] - careful[rows, log.action], log.user),
            "logged_action",
            0.05,
        ),
    ):
        values = [getattr(gap, one).value for gap in gaps]
        assert np.isclose(values[0] - values[1], grown.value, rtol=1e-3)
        assert grown.low > 0 and grown.value > other * gaps[0].realised.value
