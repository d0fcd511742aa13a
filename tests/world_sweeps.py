"""A small KLAN, a small GLAN, and sweeps of them in the world, for tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.split import SplitConfig, split_days
from plpm_ray.navigators.bundle import Bundle, save_bundle
from plpm_ray.training.compose import PartJob, compose
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.job import build_learner
from plpm_ray.training.run import train
from plpm_ray.tuning.world import WorldSweepConfig

SPLIT = {"valid_days": 1, "test_days": 1}
TRAINING = {"epochs": 1, "batch_size": 1024}
SMALL: dict[str, dict[str, Any]] = {
    "klan.iit": {"hidden": [16]},
    "klan.am": {"expert_hidden": 8, "experts": 2},
    "glan.lrtg": {"experts": 2, "expert_hidden": 8, "width": 8, "ff_width": 8},
    "glan.hrm": {"experts": 2, "expert_hidden": 8, "embedding_dim": 8},
    "glan.dt": {"width": 16, "layers": 1, "head_dim": 8, "context": 8, "state_hidden": [16]},
}


def build_klan(tables: Path, folder: Path, **options: Any) -> Path:
    """Bundle of a KLAN: IIT and AM briefly trained, ISP as it begins."""
    from plpm_ray.navigators.klan.isp import ISP

    warehouse = Warehouse.open(tables)
    split = split_days(warehouse.transitions.days(), SplitConfig.model_validate(SPLIT))
    spec, stats = fit_spec(warehouse, split.train)
    isp = build_learner(ISP, {"expert_hidden": 4, "latent_dim": 4}, spec, warehouse.info.pages, stats, 0)
    kept = save_bundle(Bundle.of_learner(isp, spec, warehouse.info.pages, stats), folder / "isp" / "bundle")
    jobs = [PartJob("isp", bundle=str(kept))]
    training = TrainingConfig.model_validate(TRAINING)
    for role, learner in (("iit", "klan.iit"), ("am", "klan.am")):
        run = partial(_train, learner, training, str(tables), (split.train, split.valid), str(folder), role)
        jobs.append(PartJob(role, run=run))
    made = compose("klan", options, jobs, tables, split.train, run_root=folder, run_name="klan")
    return made.bundle_path


def build_glan(tables: Path, folder: Path, dt: dict[str, Any] | None = None, **options: Any) -> Path:
    """Bundle of a GLAN, all of whose parts are briefly trained; `dt` are settings of the transformer."""
    warehouse = Warehouse.open(tables)
    split = split_days(warehouse.transitions.days(), SplitConfig.model_validate(SPLIT))
    training = TrainingConfig.model_validate(TRAINING)
    jobs = []
    for role in ("lrtg", "hrm", "dt"):
        own = (dt or {}) if role == "dt" else {}
        run = partial(
            _train, f"glan.{role}", training, str(tables), (split.train, split.valid), str(folder), role, own
        )
        jobs.append(PartJob(role, run=run, rewarded_by="hrm" if role == "dt" else None))
    made = compose("glan", options, jobs, tables, split.train, run_root=folder, run_name="glan")
    return made.bundle_path


def _train(
    learner: str,
    training: TrainingConfig,
    tables: str,
    days: tuple[Any, Any],
    run_root: str,
    name: str,
    options: dict[str, Any] | None = None,
    rewards: Path | None = None,
) -> Path:
    config = {**SMALL[learner], **(options or {})}
    return train(learner, config, training, tables, *days, run_root, name, rewards=rewards).bundle_path


def world_sweep(tables: Path, bundle: Path, folder: Path, **changes: Any) -> WorldSweepConfig:
    """Two trials over two settings of KLAN's fusion, of sixty users; no constraints."""
    raw: dict[str, Any] = {
        "name": "world",
        "run_root": str(folder / "runs"),
        "tables": str(tables),
        "split": SPLIT,
        "bundle": str(bundle),
        "training": TRAINING,
        "search": {"navigator.p_temperature": None, "navigator.gamma": None},
        "world": "kuaishou",
        "users": 60,
        "warmup_days": 1,
        "aa_days": 1,
        "ab_days": 2,
        "groups": 2,
        "constraints": {"epef": None},
        "trials": 2,
        "scheduler": "none",
        "backend": "local",
    }
    return WorldSweepConfig.model_validate(raw | changes)
