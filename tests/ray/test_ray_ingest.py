"""The ingest on a Ray cluster gives what it gives without one."""

from __future__ import annotations

import pyarrow as pa
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.data.ingest import ingest
from tests.unit.data.own_logs import changed, config, sessions, snapshot, stored, write

PLUGIN = """
from plpm_ray.core.registry import register
from plpm_ray.data.datasets.canonical import Canonical


@register("dataset", "of_my_own")
class Own(Canonical):
    pass
"""


def test_the_same_rows_in_the_same_order_with_and_without_ray(tmp_path, ray_session):
    table = changed(sessions(200), 3, propensity=7.0)
    logs = write(tmp_path / "logs", table, table.slice(10, 1), sessions(200, 1))
    (tmp_path / "own.py").write_text(PLUGIN)
    made = {}
    for backend in ("local", "ray"):
        run = config(
            logs,
            tmp_path / backend,
            backend=backend,
            dataset={"name": "of_my_own"},
            plugins=[str(tmp_path / "own.py")],
        )
        made[backend] = ingest(run)
    assert made["ray"]["quarantined"] == {"propensity_range": 1, "duplicate_session_id": 1}
    for key in ("rows_in", "sessions", "users", "days", "quarantined", "landing_shares"):
        assert made["ray"][key] == made["local"][key]
    assert stored(tmp_path / "ray").equals(stored(tmp_path / "local"))
    assert sorted(snapshot(tmp_path / "ray").values()) == sorted(snapshot(tmp_path / "local").values())


def test_errors_of_tasks_arrive_as_they_are(tmp_path, ray_session):
    table = sessions(20)
    logs = write(tmp_path / "logs", table.set_column(0, "user_id", pa.nulls(20, pa.int64())))
    with pytest.raises(DataError, match="20 of 20 rows"):
        ingest(config(logs, tmp_path / "w", backend="ray"))
