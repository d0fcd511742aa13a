"""Small canonical logs as a user would bring them, for the tests of the ingest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plpm_ray.core.pages import PageCatalogue
from plpm_ray.data.contract import DAY_MS, TIMESTAMP, DatasetInfo, Warehouse
from plpm_ray.data.day_table import day_number
from plpm_ray.data.ingest import IngestConfig

PAGES = ("home", "shop", "clips", "friends")
FIRST_DAY = "2024-05-01"
INFO = DatasetInfo(
    "own_logs", PageCatalogue.model_validate(PAGES), {"battery": "numeric", "device": "categorical"}
)
DATASET = {
    "name": "canonical",
    "pages": list(PAGES),
    "context": {"battery": "numeric", "device": "categorical"},
}


def sessions(n: int = 60, seed: int = 0, days: int = 4, users: int = 12) -> pa.Table:
    """Canonical sessions with page names, two context columns, no two consecutive pages equal, in order of time."""
    rng = np.random.default_rng(seed)
    entry = np.sort(day_number(FIRST_DAY) * DAY_MS + rng.integers(0, days * DAY_MS, n))
    lengths = rng.integers(1, 5, n)
    steps = [np.cumsum(np.r_[rng.integers(0, 4), rng.integers(1, 4, k - 1)]) % 4 for k in lengths]
    pages = [[PAGES[p] for p in walk] for walk in steps]
    dwell = [np.round(rng.exponential(60, k), 3).tolist() for k in lengths]
    return pa.table(
        {
            "user_id": pa.array(rng.integers(0, users, n)),
            "session_id": pa.array(np.arange(n) + 1000 * (seed + 1)),
            "entry_time": pa.array(entry).cast(TIMESTAMP),
            "exit_time": pa.array(entry + [round(sum(d) * 1000) for d in dwell]).cast(TIMESTAMP),
            "landing_page": pa.array([walk[0] for walk in pages]),
            "pages": pa.array(pages, pa.list_(pa.string())),
            "dwell_s": pa.array(dwell, pa.list_(pa.float64())),
            "video_views": pa.array([rng.integers(0, 9, k).tolist() for k in lengths], pa.list_(pa.int64())),
            "propensity": pa.array(rng.choice([0.25, 0.7, 1.0], n)),
            "battery": pa.array(rng.integers(0, 101, n)),
            "device": pa.array(rng.choice(["phone", "tablet"], n)),
        }
    )


def changed(table: pa.Table, row: int, **values: Any) -> pa.Table:
    """The table with other values in one row."""
    for name, value in values.items():
        column = table[name].to_pylist()
        column[row] = value
        table = table.set_column(
            table.column_names.index(name), name, pa.array(column, table.schema.field(name).type)
        )
    return table


def write(folder: Path, *tables: pa.Table, row_group_size: int = 20) -> Path:
    """Writes each table as a Parquet file of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{i}.parquet", row_group_size=row_group_size)
    return folder


def config(logs: Path, output: Path, **settings: Any) -> IngestConfig:
    """An ingest of a folder of canonical logs; `dataset` settings are merged."""
    dataset = {**DATASET, "path": str(logs), **settings.pop("dataset", {})}
    return IngestConfig.model_validate(
        {"dataset": dataset, "output": str(output), "n_buckets": 3, **settings}
    )


def stored(output: Path) -> pa.Table:
    """All sessions of a warehouse, bucket by bucket."""
    warehouse = Warehouse.open(output)
    parts = [warehouse.sessions.read(bucket) for bucket in range(warehouse.info.n_buckets)]
    return pa.concat_tables([part for part in parts if part is not None])


def snapshot(output: Path) -> dict[str, bytes]:
    """Path -> content of every file of the sessions table and the profiles."""
    files = [*(output / "sessions").rglob("*.parquet"), *(output / "users").glob("*.parquet")]
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(files)}
