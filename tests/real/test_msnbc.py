"""MSNBC as published, through the ingest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from plpm_ray.core.config import load_config
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.data.ingest import IngestConfig, ingest

JOB = Path(__file__).resolve().parents[2] / "jobs" / "data_msnbc.yaml"


def test_all_sessions_and_the_landing_shares_of_the_file(tmp_path: Path, data_folder: Callable[[str], Path]):
    path = data_folder("msnbc/msnbc990928.zip")
    summary = ingest(load_config(IngestConfig, JOB, [f"dataset.path={path}", f"output={tmp_path}"]))
    assert summary["rows_in"] == summary["sessions"] == summary["users"] == 989_818
    assert summary["quarantined"] == {}
    assert summary["landing_shares"]["frontpage"] == pytest.approx(0.280, abs=5e-4)
    assert summary["landing_shares"]["on-air"] == pytest.approx(0.165, abs=5e-4)
    entries = Warehouse.open(tmp_path).sessions.entries()
    assert [(day_name(day), entry.total) for day, entry in entries.items()] == [("1999-09-28", 989_818)]
