"""The daily scoring job as tasks on Ray."""

from __future__ import annotations

from pathlib import Path

from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import UserSplitConfig
from plpm_ray.data.trials import build_trial
from plpm_ray.serving.score import ScoreConfig, score_users
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train
from tests.uplift_trial import PLUGIN
from tests.world_logs import world_logs


def test_ray_writes_the_same_bytes(ray_session, tmp_path: Path):
    tables = tmp_path / "warehouse"
    dataset = world_logs(60, 3, trial={"start_day": 1})
    ingest(IngestConfig.model_validate({"dataset": dataset, "output": str(tables), "n_buckets": 3}))
    build_trial(Warehouse.open(tables), backend="ray")
    settings = TrainingConfig.model_validate({"epochs": 1, "device": "cpu"})
    users = UserSplitConfig(valid_share=0)
    run = train(
        "test.uplift", {}, settings, tables, run_root=tmp_path / "runs", plugins=[PLUGIN], users=users
    )
    folders = []
    for backend in ("local", "ray"):
        config = {"bundle": str(run.run_dir), "tables": str(tables), "output": str(tmp_path / backend)}
        summary = score_users(ScoreConfig.model_validate({**config, "backend": backend, "plugins": [PLUGIN]}))
        folders.append({p.name: p.read_bytes() for p in Path(summary["output"]).glob("[!.]*")})
    assert len(folders[0]) == 4 and folders[0] == folders[1]
