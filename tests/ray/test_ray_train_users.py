"""Training on the users of a trial with Ray Train."""

from __future__ import annotations

from pathlib import Path

import pytest

from plpm_ray.data.split import UserSplitConfig
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import TrainResult, train
from tests.uplift_trial import PLUGIN, make_trial


def test_two_workers_learn_from_the_same_users_as_one_process(ray_session, tmp_path: Path):
    warehouse = make_trial(tmp_path, users=1500)

    def go(workers: int) -> TrainResult:
        training = {"epochs": 3, "batch_size": 32, "lr": 0.05, "workers": workers, "cpus_per_worker": 0.5}
        return train(
            "test.uplift",
            {},
            TrainingConfig(**training, device="cpu"),
            warehouse.root,
            run_root=tmp_path / f"runs{workers}",
            plugins=[PLUGIN],
            users=UserSplitConfig(valid_share=0.2),
            notify=lambda text: None,
        )

    alone, both = go(0), go(2)
    assert both.metrics["rows"] == alone.metrics["rows"]
    assert both.samples == pytest.approx(alone.samples, rel=0.1)
    for result in (alone, both):  # the noise of the responses alone is 0.0025, that of no model 0.06
        assert result.metrics["error"] < 0.005
