"""Public randomised trials as published, through the ingest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.config import load_config
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def read(name: str, path: Path, output: Path) -> tuple[dict, pa.Table]:
    overrides = [f"dataset.path={path}", f"output={output}"]
    summary = ingest(load_config(IngestConfig, JOBS / f"data_{name}.yaml", overrides))
    warehouse = Warehouse.open(output)
    tables = [warehouse.trial.read(b, columns=["user_id", "arm", "response"]) for b in range(8)]
    return summary, pa.concat_tables([t for t in tables if t is not None])


def test_hillstrom_has_the_published_arms_and_visits(tmp_path: Path, data_folder: Callable[[str], Path]):
    summary, table = read("hillstrom", data_folder("hillstrom/hillstrom.csv"), tmp_path)
    assert summary["users"] == 64_000 and summary["quarantined"] == {}
    assert summary["trial"]["arm_users"] == {
        "control": 21_306,
        "Mens E-Mail": 21_307,
        "Womens E-Mail": 21_387,
    }
    arm, visit = table["arm"].to_numpy(), table["response"].to_numpy()
    means = [visit[arm == k].mean() for k in range(3)]
    assert means == pytest.approx([0.1062, 0.1828, 0.1514], abs=5e-5)
    assert sorted(table["user_id"].to_pylist()) == list(range(64_000))


def test_lbcf_has_eight_groups_of_about_500(tmp_path: Path, data_folder: Callable[[str], Path]):
    summary, table = read("lbcf", data_folder("lbcf_rct"), tmp_path)
    assert summary["users"] == 4_000 and summary["quarantined"] == {}
    assert list(summary["trial"]["arm_users"].values()) == [546, 462, 494, 493, 508, 529, 470, 498]
    assert np.all(table["response"].to_numpy() >= 0)
