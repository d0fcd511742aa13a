"""Training on the users of a trial: which rows are read, what is fitted, and runs from start to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.hashing import user_hash
from plpm_ray.core.storage import write_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit_trial import fit_trial
from plpm_ray.data.split import UserSplitConfig, user_parts
from plpm_ray.data.trials import read_part
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource, UserPart
from plpm_ray.training.run import TrainResult, train
from tests.training_tables import make_warehouse
from tests.uplift_trial import PLUGIN, make_trial

SPLIT = UserSplitConfig(valid_share=0.2, test_share=0.3, seed=3)
NEEDS = Needs("user", ("dense",), ("arm", "response"))


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    return make_trial(tmp_path_factory.mktemp("trial"))


def rows_of(warehouse: Warehouse) -> pa.Table:
    tables = [warehouse.trial.read(bucket) for bucket in range(warehouse.info.n_buckets)]
    return pa.concat_tables([t for t in tables if t is not None])


def source(warehouse: Warehouse, part: int, needs: Needs = NEEDS) -> TableSource:
    spec, _ = fit_trial(warehouse, SPLIT)
    return TableSource(warehouse.root, tuple(warehouse.trial.days()), spec, needs, UserPart(SPLIT, part))


def go(warehouse: Warehouse, name: str = "test.uplift", **more) -> TrainResult:
    settings = {"epochs": 60, "batch_size": 256, "lr": 0.05, "device": "cpu", **more.pop("training", {})}
    options = {"users": SPLIT, "plugins": [PLUGIN], "notify": lambda text: None, **more}
    return train(
        name, {}, TrainingConfig(**settings), warehouse.root, run_root=warehouse.root.parent, **options
    )


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_source_reads_the_users_of_its_part(warehouse: Warehouse, part: int):
    rows = rows_of(warehouse)
    mine = rows.filter(pa.array(user_parts(user_hash(rows["user_id"]), SPLIT) == part))
    table = source(warehouse, part).load()
    np.testing.assert_array_equal(table.columns["arm"].numpy(), mine["arm"].to_numpy())
    np.testing.assert_array_equal(table.columns["response"].numpy(), mine["response"].to_numpy())
    spec = source(warehouse, part).spec
    raw = RawFeatures.from_table(spec.schema, mine)
    np.testing.assert_array_equal(table.columns["dense"].numpy(), spec.encode(raw).dense)
    assert table.next_row is None and table.rows == len(mine) > 300


def test_parts_can_be_divided_further(warehouse: Warehouse):
    whole = source(warehouse, 0)
    parts = whole.parts(min_parts=9, max_rows=100)
    assert len(parts) >= 9 and sum(p.rows for p in parts) == whole.load().rows
    assert max(p.rows for p in parts) < 200
    assert [whole.load([p]).rows for p in parts] == [p.rows for p in parts]


def test_the_encoder_and_the_arms_totals_are_those_of_the_training_users(warehouse: Warehouse):
    spec, stats = fit_trial(warehouse, SPLIT)
    rows = rows_of(warehouse)
    mine = rows.filter(pa.array(user_parts(user_hash(rows["user_id"]), SPLIT) == 0))
    arm, response = mine["arm"].to_numpy(), mine["response"].to_numpy().astype(float)
    assert stats.arm_users is not None and stats.arm_response is not None
    np.testing.assert_array_equal(stats.arm_users, np.bincount(arm, minlength=3))
    np.testing.assert_allclose(stats.arm_response, np.bincount(arm, weights=response))
    assert stats.control_mean == pytest.approx(response[arm == 0].mean()) and stats.sessions == 0
    dense = spec.encode(RawFeatures.from_table(spec.schema, mine)).dense
    np.testing.assert_allclose([dense.mean(0), dense.std(0)], [[0, 0], [1, 1]], atol=1e-4)
    kept = fit_trial(warehouse, SPLIT)
    assert kept[0].to_dict() == spec.to_dict() and kept[1].to_dict() == stats.to_dict()
    other = fit_trial(warehouse, UserSplitConfig(seed=4))[1].arm_users
    assert other is not None and not np.array_equal(other, stats.arm_users)


def test_a_run_finds_the_effects_of_the_pages(warehouse: Warehouse):
    result = go(warehouse)
    bundle = load_bundle(result.bundle_path)
    assert bundle.data["users"] == SPLIT.model_dump() and bundle.data["trial_days"] == ["1970-01-01"]
    assert bundle.stats.control_mean == pytest.approx(100, abs=1)
    held_out = pa.concat_tables([read_part(warehouse, b, SPLIT, 2) for b in range(4)])  # type: ignore[misc]
    raw = RawFeatures.from_table(bundle.spec.schema, held_out.combine_chunks())
    effects, taste = bundle.navigator().scores(raw), raw.column("profile.taste")
    np.testing.assert_allclose(effects[:, 0].mean(), 20, atol=1.5)
    for sign in (-1, 1):
        np.testing.assert_allclose(effects[taste == sign, 1].mean(), 30 * sign, atol=2)
    assert result.metrics["error"] == pytest.approx((5 / 100) ** 2, rel=0.3)
    assert go(warehouse).finished_before
    other = go(warehouse, users=UserSplitConfig(valid_share=0.2, test_share=0.3), training={"epochs": 1})
    assert other.run_dir != result.run_dir and not other.finished_before


def test_a_stream_and_a_run_without_validation(warehouse: Warehouse):
    streamed = go(warehouse, training={"data": {"mode": "stream", "window_rows": 300}})
    assert streamed.metrics["error"] == pytest.approx((5 / 100) ** 2, rel=0.3)
    alone = go(warehouse, users=UserSplitConfig(valid_share=0), training={"epochs": 1})
    assert alone.metrics == {}


def test_without_a_trial_it_is_said_what_to_do(tmp_path: Path):
    warehouse = make_warehouse(tmp_path / "w")
    with pytest.raises(DataError, match="needs a randomised trial.*no assignments\n.*assignments:"):
        go(warehouse)
    write_parquet(warehouse.assignments_file, warehouse.info.assignments_schema.empty_table())
    with pytest.raises(DataError, match="not built\n.*plpm data"):
        go(warehouse)


def test_parts_without_users_and_unknown_columns_are_named(warehouse: Warehouse, tmp_path: Path):
    few = make_trial(tmp_path, users=12)
    with pytest.raises(DataError, match="no users of the part 'valid'"):
        go(few, users=UserSplitConfig(valid_share=1e-6))
    with pytest.raises(DataError, match="no users of the part 'train'"):
        go(few, users=UserSplitConfig(valid_share=0, test_share=1 - 1e-9))
    with pytest.raises(DataError, match="without a split of its own"):
        go(few, users=UserSplitConfig(official=True))
    with pytest.raises(ConfigError, match="column 'use_s', which its table does not have"):
        source(warehouse, 0, Needs("user", ("dense",), ("use_s",))).load()
