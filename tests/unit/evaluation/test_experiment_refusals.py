"""What an analysis of an experiment refuses: options and tables that do not fit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.evaluation.experiment_metrics import metric_catalogue
from tests.experiment_tables import ARMS, run, split_table, with_columns


@pytest.fixture(scope="module")
def users() -> pa.Table:
    return split_table(3, 4_000, ARMS)


class TestTable:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"control": "nobody"}, "nobody"),
            ({"arms": ["control"]}, "at least one other"),
            ({"arms": ["control", "model", "model"]}, "each once"),
            ({"arms": ["control", "new"]}, "fewer than two users"),
            ({"design": "matched"}, "designs are"),
            ({"design": "twins"}, "every user once in every arm"),
            ({"ab_days": 0}, "AB days"),
            ({"expected_shares": {"control": 1}}, "expected shares"),
            ({"adjustment": "bonferroni"}, "unknown adjustment"),
        ],
    )
    def test_options(self, users: pa.Table, options: dict, says: str) -> None:
        with pytest.raises((ConfigError, DataError), match=says):
            run(users, **options)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda t: t.drop_columns("ab_use_s"), "no column 'ab_use_s'"),
            (lambda t: t.drop_columns("user_id"), "no column 'user_id'"),
            (lambda t: with_columns(t, ab_use_s=[None] + [1.0] * (t.num_rows - 1)), "nulls"),
            (lambda t: with_columns(t, ab_use_s=np.full(t.num_rows, np.inf)), "not finite"),
            (lambda t: with_columns(t, ab_use_s=["much"] * t.num_rows), "not a number"),
            (lambda t: with_columns(t, arm=[None] + ["a"] * (t.num_rows - 1)), "has nulls"),
            (lambda t: with_columns(t, user_id=np.zeros(t.num_rows)), "several rows"),
        ],
    )
    def test_rows(self, users: pa.Table, change, says: str) -> None:
        with pytest.raises(DataError, match=says):
            run(change(users))

    def test_a_page_twice(self) -> None:
        with pytest.raises(ConfigError, match="twice"):
            metric_catalogue(["a", "a"])
