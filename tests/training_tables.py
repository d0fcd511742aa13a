"""A small warehouse with a transition table, and learners' inputs, for tests of training and of navigators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from plpm_ray.core.feature_columns import packed
from plpm_ray.core.feature_fitting import fitted_spec
from plpm_ray.core.features import HISTORY_DAYS, FeatureSchema, FeatureSpec, RawFeatures
from plpm_ray.core.hashing import bucket_of, user_hash
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.stats import TableStats
from plpm_ray.data.contract import TIMESTAMP, DatasetInfo, Warehouse
from plpm_ray.data.day_table import day_number

FIRST_DAY = day_number("2024-03-01")
N_DAYS = 5


def pages(k: int = 3) -> PageCatalogue:
    return PageCatalogue(pages=tuple({"name": f"page_{i}"} for i in range(k)))  # type: ignore[arg-type]


def raw_features(schema: FeatureSchema, rows: int, rng: np.random.Generator) -> RawFeatures:
    """Random features of the right names, types and ranges; some are missing."""
    k = len(schema.pages)
    numeric = rng.gamma(1.0, 20.0, (rows, len(schema.numeric))).astype(np.float32)
    numeric[rng.random(numeric.shape) < 0.05] = np.nan
    ranges = {"hour": (0, 24), "weekday": (0, 7), "last_exit_page": (-1, k), "last_landing_page": (-1, k)}
    categorical = {c: rng.integers(*ranges[c], rows).astype(np.int32) for c in schema.categorical}
    sequences = {
        "recent_landing": rng.integers(0, k, (rows, 8)).astype(np.float32),
        "recent_use_s": rng.gamma(1.0, 60.0, (rows, 8)).astype(np.float32),
    }
    raw = RawFeatures(schema, numeric, categorical, sequences)
    sessions = rng.poisson(2.0, (rows, HISTORY_DAYS)) * (rng.random((rows, HISTORY_DAYS)) < 0.7)
    use_s = sessions * rng.gamma(2.0, 100.0, sessions.shape)
    raw.days = np.stack([use_s, sessions], axis=2).astype(np.float32)
    return raw


def with_session(raw: RawFeatures, rng: np.random.Generator) -> RawFeatures:
    """The same rows with what came of the session, as reward models read it."""
    k = len(raw.schema.pages)
    visits = rng.poisson(0.7, (len(raw), k)).astype(np.float32)
    raw.session = {
        "action": rng.integers(0, k, len(raw)),
        "switches": visits.sum(axis=1).astype(np.int64),
        "page_views": visits * rng.poisson(4.0, visits.shape).astype(np.float32),
        "page_visits": visits,
    }
    return raw


def fitted(k: int = 3, rows: int = 400, seed: int = 0) -> tuple[FeatureSpec, TableStats]:
    """An encoder and totals fitted on random rows."""
    rng = np.random.default_rng(seed)
    schema = FeatureSchema(pages(k).names)
    raw = raw_features(schema, rows, rng)
    landing = rng.choice(k, rows, p=np.arange(k, 0, -1) / np.arange(k, 0, -1).sum())
    seconds = rng.gamma(1.0, 120.0, rows).astype(np.float32)
    steps = rng.geometric(0.4, rows) - 1
    stats = TableStats.of(
        k,
        landing=landing,
        use_s=seconds,
        landing_dwell_s=seconds / 2,
        hour=raw.categorical["hour"],
        step=steps,
    )
    sessions = rng.integers(1, 12, rows)
    stats.day_totals = TableStats.days(sessions, 400.0 * np.log1p(sessions) * rng.gamma(4.0, 0.25, rows))
    stats.reward_s = 0.8 * stats.use_s
    arm = rng.integers(0, k + 1, rows)
    stats.arm_users = np.bincount(arm, minlength=k + 1).astype(np.float64)
    stats.arm_response = np.bincount(arm, weights=rng.gamma(1.0, 600.0, rows), minlength=k + 1)
    return fitted_spec(raw), stats


def make_warehouse(
    root: Path, *, users: int = 60, n_buckets: int = 4, k: int = 3, seed: int = 0, days: int = N_DAYS
) -> Warehouse:
    """Transitions of some users, with an effect to learn: on the page of the last exit they stay longest."""
    rng = np.random.default_rng(seed)
    warehouse = Warehouse.create(root, DatasetInfo("synthetic", pages(k), n_buckets=n_buckets))
    table = warehouse.transitions
    gen = table.new_generation()
    ids = np.sort(rng.choice(10_000, users, replace=False)).astype(np.int64)
    buckets = bucket_of(user_hash(ids), n_buckets)
    rows: dict[int, dict[int, int]] = {}
    for day in range(FIRST_DAY, FIRST_DAY + days):
        rows[day] = {}
        for bucket in range(n_buckets):
            here = ids[buckets == bucket]
            if len(here):
                rows[day][bucket] = table.write(
                    day, gen, bucket, _day(here, day, warehouse.info.features, rng)
                )
    table.commit(gen, rows)
    return warehouse


def _day(ids: np.ndarray, day: int, schema: FeatureSchema, rng: np.random.Generator) -> pa.Table:
    counts = rng.integers(1, 5, len(ids))
    user = np.repeat(ids, counts)
    step = np.concatenate([np.arange(c) for c in counts])
    n = len(user)
    raw = raw_features(schema, n, rng)
    raw.days = None
    liked = np.maximum(raw.categorical["last_exit_page"], 0)
    landing = np.where(rng.random(n) < 0.5, liked, rng.integers(0, len(schema.pages), n))
    use_s = np.where(landing == liked, 200.0, 60.0) * rng.gamma(4.0, 0.25, n)
    return pa.table(
        {
            "user_id": user,
            "session_id": rng.integers(0, 1 << 60, n),
            "entry_time": pa.array((day * 24 + 2 * step) * 3_600_000 + 1, pa.int64()).cast(TIMESTAMP),
            "landing_page": landing.astype(np.int16),
            "use_s": use_s.astype(np.float32),
            "landing_dwell_s": (use_s / 2).astype(np.float32),
            "switches": rng.integers(0, 4, n).astype(np.int16),
            "hour": raw.categorical["hour"].astype(np.int8),
            "step": step.astype(np.int16),
            "done": np.append(user[1:] != user[:-1], True),
            "propensity": pa.nulls(n, pa.float64()),
            **_visited(landing, use_s, len(schema.pages), rng),
            **raw.to_columns(),
        }
    )


def _visited(landing: np.ndarray, use_s: np.ndarray, k: int, rng: np.random.Generator) -> dict[str, pa.Array]:
    """Seconds, video views and visits by page; half of the use is on the landing page."""
    visits = rng.integers(0, 2, (len(landing), k)).astype(np.float32)
    visits[np.arange(len(landing)), landing] += 1
    share = visits / visits.sum(axis=1, keepdims=True) / 2
    share[np.arange(len(landing)), landing] += 0.5
    dwell = share * use_s[:, None]
    views = np.rint(dwell / 12)
    found = {"page_dwell_s": dwell, "page_views": views, "page_visits": visits}
    return {name: packed(values) for name, values in found.items()}
