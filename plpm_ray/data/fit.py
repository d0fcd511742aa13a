"""Fits the feature spec and the totals of the training window, bucket by bucket, and remembers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plpm_ray.core.config import config_hash
from plpm_ray.core.errors import DataError
from plpm_ray.core.feature_fitting import SpecFitter
from plpm_ray.core.features import FeatureSpec, RawFeatures
from plpm_ray.core.stats import TableStats
from plpm_ray.core.storage import read_json, write_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.data.ray_exec import Backend, run_tasks

_VERSION = 2
_DAYS_AT_A_TIME = 7
_SAMPLE_ROWS = 200_000
_STATS_COLUMNS = ("landing_page", "use_s", "landing_dwell_s", "hour", "step")


def fit_spec(
    warehouse: Warehouse, train_days: Sequence[int], *, backend: Backend = "local", workers: int | None = None
) -> tuple[FeatureSpec, TableStats]:
    """The encoder and the totals of the training window.

    They are kept in `<root>/fitted/<fingerprint>.json` and read from there as long as the days' tables are
    the same.

    Args:
        warehouse: its transition table must hold the days.
        train_days: days since 1970-01-01.
        backend, workers: as in `run_tasks`; the result does not depend on them.

    Raises:
        DataError: a day has no transition table, or the days hold no sessions.
    """
    days = sorted(set(train_days))
    table = warehouse.transitions
    lacking = sorted(set(days) - table.entries().keys())
    if lacking:
        raise DataError(
            f"the transition table of {day_name(lacking[0])} is not built", hint="run `plpm data`"
        )
    schema = warehouse.info.features

    def fit() -> tuple[FeatureSpec, TableStats]:
        chunks = [days[i : i + _DAYS_AT_A_TIME] for i in range(0, len(days), _DAYS_AT_A_TIME)]
        buckets = range(warehouse.info.n_buckets)
        sample_rows = max(200, _SAMPLE_ROWS // max(1, len(buckets) * len(chunks)))
        items = [_Part(warehouse.root, bucket, chunks, sample_rows) for bucket in buckets]
        fitter, stats = SpecFitter(schema), no_stats(len(schema.pages))
        for part_fitter, part_stats in run_tasks(
            _fit_bucket, items, backend=backend, workers=workers, progress="fitting features"
        ):
            fitter.merge(part_fitter)
            stats += part_stats
        return fitter.finish(), stats

    key = [_VERSION, days, table.fingerprint(days), schema.to_dict()]
    return remembered(warehouse, key, fit, {"days": [day_name(d) for d in days]})


def remembered(
    warehouse: Warehouse,
    key: Any,
    fit: Callable[[], tuple[FeatureSpec, TableStats]],
    notes: Mapping[str, Any],
) -> tuple[FeatureSpec, TableStats]:
    """What `fit` finds, kept in the warehouse's `fitted/` folder and read from there as long as `key` is the same.

    Args:
        key: JSON-like values that decide the result.
        notes: what the file says besides, for people.
    """
    path = warehouse.root / "fitted" / f"{config_hash(key, length=16)}.json"
    if not path.exists():
        spec, stats = fit()
        write_json(path, {"spec": spec.to_dict(), "stats": stats.to_dict(), **notes})
    # read back even now, so that the numbers are those that will be read later
    kept = read_json(path)
    return FeatureSpec.from_dict(kept["spec"]), TableStats.from_dict(kept["stats"])


@dataclass(frozen=True)
class _Part:
    root: Path
    bucket: int
    chunks: list[list[int]]
    sample_rows: int


def _fit_bucket(part: _Part) -> tuple[SpecFitter, TableStats]:
    warehouse = Warehouse.open(part.root)
    schema = warehouse.info.features
    features = [
        "x_numeric",
        *(f"cat:{c}" for c in schema.categorical),
        *(f"seq:{s}" for s in schema.sequences),
    ]
    fitter, stats = SpecFitter(schema, sample_rows=part.sample_rows), no_stats(len(schema.pages))
    for days in part.chunks:
        table = warehouse.transitions.read(part.bucket, days, [*_STATS_COLUMNS, *features])
        if table is None:
            continue
        fitter.update(RawFeatures.from_table(schema, table))
        landing, use_s, landing_dwell_s, hour, step = (table[name].to_numpy() for name in _STATS_COLUMNS)
        of_days = TableStats.of(
            len(schema.pages),
            landing=landing,
            use_s=use_s,
            landing_dwell_s=landing_dwell_s,
            hour=hour,
            step=step,
        )
        of_days.day_totals = _day_totals(step, use_s)
        stats += of_days
    return fitter, stats


def _day_totals(step: np.ndarray, use_s: np.ndarray) -> np.ndarray:
    """`TableStats.day_totals` of sessions in table order; entry number 0 begins a user's day."""
    day = np.cumsum(step == 0) - 1
    return TableStats.days(np.bincount(day), np.bincount(day, weights=use_s))


def no_stats(n_pages: int) -> TableStats:
    """Totals of no session at all."""
    nothing, whole = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
    return TableStats.of(
        n_pages, landing=whole, use_s=nothing, landing_dwell_s=nothing, hour=whole, step=whole
    )
