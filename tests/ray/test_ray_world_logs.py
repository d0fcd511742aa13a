"""Logs of a world on a Ray cluster are those of one process, by hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.logs_run import LogsConfig, write_logs
from tests.unit.data.own_logs import stored

WORLD = load_world("kuaishou").model_dump(mode="json")
WORLD["entries"]["most"] = 8
LOGS = {"world": WORLD, "users": 120, "days": 2, "warmup_days": 1, "trial": {"arms": ["explore"]}}


def written(output: Path, **changes: Any) -> dict[str, Any]:
    settings = {**LOGS, "potential_outcomes": 1, "users_per_file": 20, "output": str(output)}
    return write_logs(LogsConfig.model_validate({**settings, **changes}))


def test_one_process_and_four_workers_write_the_same_logs(tmp_path: Path, ray_session: None):
    one = written(tmp_path / "one")
    four = written(tmp_path / "four", backend="ray", workers=4, cpus_per_task=0.5)
    assert one["hash"] == four["hash"] and one["files"] == four["files"] == 6
    files = [sorted((tmp_path / name).rglob("*.parquet")) for name in ("one", "four")]
    assert len(files[0]) == 26 and all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))
    (tmp_path / "four" / "parts" / "part-00003.json").unlink()
    again = written(tmp_path / "four", backend="ray")
    assert (again["hash"], again["reused_files"]) == (one["hash"], 5)


def test_the_dataset_is_read_on_the_cluster(tmp_path: Path, ray_session: None):
    dataset = {"name": "world", **LOGS, "users_per_slice": 50}
    for backend in ("local", "ray"):
        output = str(tmp_path / backend)
        ingest(
            IngestConfig.model_validate(
                {"dataset": dataset, "output": output, "n_buckets": 2, "backend": backend}
            )
        )
    assert stored(tmp_path / "ray").equals(stored(tmp_path / "local"))
