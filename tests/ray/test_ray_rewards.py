"""The reward job as tasks on Ray."""

from __future__ import annotations

from pathlib import Path

import torch

from plpm_ray.core.registry import lookup
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.navigators.bundle import Bundle, save_bundle
from plpm_ray.training.rewards import reward_sessions
from tests.training_tables import FIRST_DAY, make_warehouse

DAYS = list(range(FIRST_DAY, FIRST_DAY + 5))


def files(warehouse: Warehouse, name: str) -> dict[tuple[int, int], bytes]:
    table = warehouse.rewards(name)
    return {(d, b): path.read_bytes() for b in range(warehouse.info.n_buckets) for d, path in table.files(b)}


def test_ray_writes_the_same_bytes(ray_session, tmp_path: Path):
    here, there = (make_warehouse(tmp_path / name, users=60, n_buckets=3) for name in ("here", "there"))
    spec, stats = fit_spec(here, DAYS[:3])
    cls = lookup("learner", "glan.hrm")
    torch.manual_seed(0)
    bundle = Bundle.of_learner(cls(cls.Config(), spec, here.info.pages, stats), spec, here.info.pages, stats)
    path = save_bundle(bundle, tmp_path / "hrm" / "bundle")
    local = reward_sessions(here.root, path)
    spread = reward_sessions(there.root, path, backend="ray")
    assert local.rows == spread.rows > 0 and spread.recomputed == DAYS
    assert files(here, local.name) == files(there, spread.name)
    assert not reward_sessions(there.root, path, backend="ray").recomputed
