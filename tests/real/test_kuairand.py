"""KuaiRand-Pure as published, through the ingest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

from plpm_ray.core.config import load_config
from plpm_ray.core.errors import DataError
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.quarantine import read_rows

REPO = Path(__file__).resolve().parents[2]
JOB = REPO / "jobs" / "data_kuairand.yaml"


def test_the_published_log_with_the_shipped_job(tmp_path: Path, data_folder: Callable[[str], Path]):
    folder = data_folder("KuaiRand-Pure")
    overrides = [f"dataset.path={folder}", f"output={tmp_path}", "dataset.block_mb=4"]
    summary = ingest(load_config(IngestConfig, JOB, overrides))
    files = sorted((folder / "data").glob("log_*.csv"))
    log = pa.concat_tables([pacsv.read_csv(path) for path in files])
    assert summary["rows_in"] == log.num_rows
    distinct = log.group_by(["user_id", "video_id", "time_ms"]).aggregate([]).num_rows
    assert summary["quarantined"] == {"duplicate_event": log.num_rows - distinct}
    assert read_rows(tmp_path).num_rows == summary["quarantined_rows"] == log.num_rows - distinct
    assert summary["users"] == log["user_id"].combine_chunks().unique().__len__()

    warehouse = Warehouse.open(tmp_path)
    parts = [warehouse.sessions.read(b) for b in range(warehouse.info.n_buckets)]
    rows = pa.concat_tables([part for part in parts if part is not None])
    assert rows.num_rows == summary["sessions"]
    firsts = log.group_by(["user_id", "video_id", "time_ms"], use_threads=False).aggregate(
        [("play_time_ms", "first")]
    )
    played = pa.compute.sum(firsts["play_time_ms_first"]).as_py() / 1000
    dwell = pa.compute.sum(rows["dwell_s"].combine_chunks().flatten().cast(pa.float64())).as_py()
    assert dwell == pytest.approx(played, rel=1e-6)
    assert summary["landing_shares"]["tab_1"] > 0.7
    assert summary["profiles"]["rows_in"] == 27_285

    if log.num_rows == 205_152:  # the part of the log that the project's own tests use
        assert (summary["sessions"], summary["users"], summary["quarantined_rows"]) == (
            123_944,
            22_619,
            5_261,
        )


def test_the_duplicates_are_over_the_default_limit(tmp_path: Path, data_folder: Callable[[str], Path]):
    dataset = {"name": "kuairand", "path": str(data_folder("KuaiRand-Pure")), "profile": {}}
    with pytest.raises(DataError, match="more than the 1.00% that max_bad_share allows: duplicate_event"):
        ingest(IngestConfig.model_validate({"dataset": dataset, "output": str(tmp_path / "w")}))
    assert not (tmp_path / "w" / "manifest.json").exists()
