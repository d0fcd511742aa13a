from __future__ import annotations

import numpy as np
import pytest

from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from tests.training_tables import pages, raw_features

SCHEMA = FeatureSchema(pages(3).names)
LANDINGS = np.array([10.0, 60.0, 30.0])  # popularity order: 1, 2, 0


def history(**columns: list[list[float]]) -> RawFeatures:
    """Features of as many users as the columns have rows; what is not given is missing (counts are 0)."""
    rows = len(next(iter(columns.values())))
    raw = raw_features(SCHEMA, rows, np.random.default_rng(0))
    raw.numeric[:] = 0
    raw.categorical["last_exit_page"][:] = -1
    for name, values in columns.items():
        if name == "last_exit_page":
            raw.categorical[name] = np.asarray(values, dtype=np.int32)
        else:
            raw.per_page(name)[:] = values
    return raw


def order(name: str, raw: RawFeatures) -> list[list[int]]:
    zero = np.zeros(3)
    stats = TableStats(100, 1.0, np.zeros(24), np.zeros(64), LANDINGS, zero, zero)
    cls = lookup("navigator", f"heuristic.{name}")
    return np.argsort(-cls(cls.Config(), pages(3), stats).scores(raw), axis=1, kind="stable").tolist()


def test_last_exit_page_comes_first_then_popularity():
    assert order("last_exit_page", history(last_exit_page=[0, 1, 2, -1])) == [
        [0, 1, 2],
        [1, 2, 0],
        [2, 1, 0],
        [1, 2, 0],
    ]


def test_most_frequent_counts_today_and_the_days_before():
    raw = history(
        page_entries_14d=[[3, 0, 2], [0, 0, 0], [1, 0, 1]],
        today_page_entries=[[0, 0, 2], [0, 0, 0], [0, 0, 0]],
    )
    assert order("most_frequent", raw) == [[2, 0, 1], [1, 2, 0], [2, 0, 1]]


def test_longest_use_counts_seconds():
    raw = history(
        page_dwell_s_14d=[[90.0, 5.0, 80.0], [0, 0, 0]], today_page_dwell_s=[[0, 0, 20.0], [0, 0, 0]]
    )
    assert order("longest_use", raw) == [[2, 0, 1], [1, 2, 0]]


def test_longest_use_tells_a_millisecond_apart_whatever_the_popularity():
    raw = history(page_dwell_s_14d=[[600.001, 600.0, 0.0]], today_page_dwell_s=[[0.0, 0.0, 0.0]])
    assert order("longest_use", raw) == [[0, 1, 2]]


def test_popularity_is_the_same_for_everybody():
    assert order("popularity", history(last_exit_page=[0, 2])) == [[1, 2, 0], [1, 2, 0]]


@pytest.mark.parametrize("name", ["most_frequent", "longest_use"])
def test_missing_history_is_no_history(name):
    raw = history(page_entries_14d=[[0, 0, 0]])
    raw.numeric[:] = np.nan
    assert order(name, raw) == [[1, 2, 0]]
