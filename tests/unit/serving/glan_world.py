"""GLAN with random weights over the synthetic log of `serving_world`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from plpm_ray.core.feature_fitting import fitted_spec
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.bundle import Bundle
from tests.unit.serving.serving_world import (
    PAGES,
    batch_of,
    profiles_table,
    sessions_table,
    stats_of,
)

CONTEXT = 6
"""Sessions of a day that the transformer sees, unless told otherwise."""


@cache
def _fitted() -> tuple[FeatureSpec, TableStats]:
    sessions = sessions_table()
    stats = stats_of(sessions)
    counts = np.random.default_rng(0).integers(1, 6, 200)
    days = TableStats.days(counts, counts * stats.mean_use_s)
    return fitted_spec(batch_of(sessions, profiles_table())), replace(
        stats, day_totals=days, reward_s=0.8 * stats.use_s
    )


def glan_part(role: str, seed: int = 0, **config: Any) -> Bundle:
    """A part with weights large enough for every input to matter."""
    spec, stats = _fitted()
    torch.manual_seed(seed + len(role))
    cls = lookup("learner", f"glan.{role}")
    learner = cls(cls.Config(**config), spec, PAGES, stats)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return Bundle.of_learner(learner, spec, PAGES, stats)


def glan_bundle(seed: int = 0, dt: dict[str, Any] | None = None, **config: Any) -> Bundle:
    """GLAN composed of its three learners; `dt` are settings of the transformer, the rest are GLAN's."""
    spec, stats = _fitted()
    settings = {"width": 16, "context": CONTEXT, **(dt or {})}
    parts = {"lrtg": glan_part("lrtg", seed), "hrm": glan_part("hrm", seed)}
    parts["dt"] = glan_part("dt", seed, **settings)
    return Bundle("navigator", "glan", config, PAGES, spec, stats, parts=parts)


def day_of(user: int, entries_ms: list[int], offset_min: int = 0, first_id: int = 0) -> pa.Table:
    """Sessions of two minutes of a user at the given times, canonical and with names of pages."""
    n, names = len(entries_ms), PAGES.names
    landing = [names[(user + i) % len(names)] for i in range(n)]
    return pa.table(
        {
            "user_id": [user] * n,
            "session_id": [first_id + 1000 * user + i for i in range(n)],
            "entry_time": entries_ms,
            "exit_time": [at + 120_000 for at in entries_ms],
            "utc_offset_min": [offset_min] * n,
            "landing_page": landing,
            "pages": [[page] for page in landing],
            "dwell_s": [[60.0 + 10 * i] for i in range(n)],
            "video_views": pa.array([[i % 4] for i in range(n)], pa.list_(pa.int32())),
        }
    )
