"""Splitting days by time, and fitting the feature spec on the training days alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.stats import TableStats
from plpm_ray.data import fit
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.split import SplitConfig, split_days
from plpm_ray.data.tables import build_transitions, read_transitions
from tests.unit.data.test_tables import BUCKETS, constant_log, put_days, warehouse_of


def test_days_are_split_by_time() -> None:
    split = split_days([5, 3, 4, 1, 2, 9, 9])
    assert (split.train, split.valid, split.test) == ([1, 2], [3, 4], [5, 9])
    assert split.to_dict()["test"] == ["1970-01-06", "1970-01-10"]
    short = split_days(range(10), SplitConfig(train_days=3, valid_days=0, test_days=1))
    assert (short.train, short.valid, short.test) == ([6, 7, 8], [], [9])


@pytest.mark.parametrize(
    ("days", "config"), [([], {}), ([1, 2, 3, 4], {}), ([1, 2, 3, 4, 5, 6], {"train_days": 3})]
)
def test_too_few_days_are_refused(days: list[int], config: dict) -> None:
    with pytest.raises(DataError, match=r"at least \d for training"):
        split_days(days, SplitConfig(**config))


def test_spec_and_totals_come_from_the_training_days(tmp_path: Path) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=20))
    build_transitions(warehouse)
    days = warehouse.sessions.days()[:12]
    spec, stats = fit_spec(warehouse, days)
    parts = [t for b in range(BUCKETS) if (t := read_transitions(warehouse, b, days)) is not None]
    raws = [RawFeatures.from_table(warehouse.info.features, t) for t in parts]
    numeric = np.concatenate([r.numeric for r in raws]).astype(np.float64)
    use_s = np.concatenate([t["use_s"].to_numpy() for t in parts])
    j = spec.schema.numeric.index("use_s_7d")
    np.testing.assert_allclose(spec.mean[j], np.log1p(numeric[:, j]).mean(), rtol=1e-5)
    np.testing.assert_allclose(stats.use_s, use_s.sum(dtype=np.float64), rtol=1e-6)
    assert stats.sessions == len(use_s)
    assert spec.vocabularies[spec.schema.categorical.index("context.device")] == ("a", "b")


def test_the_result_is_kept_until_the_days_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = constant_log(days=10)
    warehouse = warehouse_of(tmp_path, log)
    build_transitions(warehouse)
    days = warehouse.sessions.days()
    first = fit_spec(warehouse, days[:6])
    with monkeypatch.context() as patched:
        patched.setattr(fit, "run_tasks", None)
        assert_fitted_equal(fit_spec(warehouse, days[:6]), first)
    fit_spec(warehouse, days[:7])
    assert len(list((tmp_path / "fitted").iterdir())) == 2
    put_days(warehouse, log, {days[8]})  # not a training day
    build_transitions(warehouse)
    fit_spec(warehouse, days[:6])
    assert len(list((tmp_path / "fitted").iterdir())) == 2
    put_days(warehouse, log, {days[3]})
    build_transitions(warehouse)
    fit_spec(warehouse, days[:6])
    assert len(list((tmp_path / "fitted").iterdir())) == 3


def test_missing_tables_are_named(tmp_path: Path) -> None:
    warehouse = warehouse_of(tmp_path, constant_log(days=5))
    days = warehouse.sessions.days()
    build_transitions(warehouse, days[:2])
    with pytest.raises(DataError, match=r"transition table of 2022-01-\d\d is not built"):
        fit_spec(warehouse, days[:3])
    with pytest.raises(DataError, match="training window"):
        fit_spec(warehouse, [])


def test_ray_fits_the_same(tmp_path: Path, ray_session: None) -> None:
    log = constant_log(days=10)
    local, spread = warehouse_of(tmp_path / "local", log), warehouse_of(tmp_path / "ray", log)
    build_transitions(local)
    build_transitions(spread)
    days = local.sessions.days()
    assert_fitted_equal(fit_spec(spread, days, backend="ray"), fit_spec(local, days))


def assert_fitted_equal(one: tuple, other: tuple) -> None:
    assert one[0].to_dict() == other[0].to_dict()
    assert isinstance(one[1], TableStats)
    assert one[1].to_dict() == other[1].to_dict()
