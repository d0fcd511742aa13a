"""A trial with known effects, and the learner of users that tests train on it (`PLUGIN`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from plpm_ray.core.storage import write_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest

PLUGIN = str(Path(__file__).resolve().with_name("uplift_plugin.py"))


def make_trial(folder: Path, users: int = 2000, seed: int = 0) -> Warehouse:
    """A warehouse with a trial of two pages: the first adds 20 to everyone, the second adds or takes 30 by `taste`."""
    rng = np.random.default_rng(seed)
    taste, arm = rng.choice([-1.0, 1.0], users), rng.integers(0, 3, users)
    response = 100 + 20 * (arm == 1) + 30 * taste * (arm == 2) + rng.normal(0, 5, users)
    table = pa.table(
        {
            "user_id": rng.permutation(users),
            "arm": pa.array(["control", "a", "b"]).take(pa.array(arm)),
            "response": response,
            "taste": taste,
            "noise": rng.normal(size=users),
        }
    )
    write_parquet(folder / "trial.parquet", table)
    dataset = {
        "name": "trial",
        "path": str(folder / "trial.parquet"),
        "pages": ["a", "b"],
        "features": {"taste": "numeric", "noise": "numeric"},
    }
    root = folder / "warehouse"
    ingest(IngestConfig.model_validate({"dataset": dataset, "output": str(root), "n_buckets": 4}))
    return Warehouse.open(root)
