"""The trial table built from a world's logs, against what the world itself says of its trial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.features import RawFeatures
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.features.sessions import EntryArrays
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.trials import build_trial
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.dataset import WorldLogs, WorldLogsConfig
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.simulation.simulation import Simulation, run_days
from plpm_ray.simulation.world import World
from tests.unit.data.feature_logs import assert_same

USERS, START = 200, 4
LOGS = {"world": "kuaishou", "users": USERS, "days": 7, "warmup_days": 0, "trial": {"start_day": START}}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Warehouse, pa.Table]:
    root: Path = tmp_path_factory.mktemp("trial")
    config = {"dataset": {"name": "world", **LOGS}, "output": str(root), "n_buckets": 3, "max_bad_share": 0}
    ingest(IngestConfig.model_validate(config))
    warehouse = Warehouse.open(root)
    build_trial(warehouse)
    tables = [warehouse.trial.read(bucket) for bucket in range(3)]
    return warehouse, pa.concat_tables([t for t in tables if t is not None]).sort_by("user_id")


def test_responses_and_arms_are_those_of_the_trial(built: tuple[Warehouse, pa.Table]):
    warehouse, table = built
    truth = WorldLogs(WorldLogsConfig.model_validate(LOGS)).run(np.arange(USERS)).responses
    assert truth is not None
    np.testing.assert_array_equal(
        table["response"].to_numpy(), truth["use_s_per_day"].to_numpy().astype(np.float32)
    )
    np.testing.assert_array_equal(table["active_days"].to_numpy(), truth["active_days"].to_numpy())
    names = np.array([None, *warehouse.info.pages.names], dtype=object)
    assert names[table["arm"].to_numpy()].tolist() == truth["arm"].to_pylist()
    assert set(table["days"].to_pylist()) == {3}


def test_features_are_those_of_the_evening_before(built: tuple[Warehouse, pa.Table]):
    warehouse, table = built
    world = World(WorldLogsConfig.model_validate(LOGS).world_config())
    simulation = Simulation(world, np.arange(USERS))
    online = OnlineFeatures(world, simulation.users.profile())
    run_days(simulation, START, LoggingPolicy(), online.observe)
    offset = simulation.users.utc_offset_min
    wanted = online.at(EntryArrays(simulation.world.day_start_ms(START, offset), offset))
    assert_same(RawFeatures.from_table(warehouse.info.features, table.combine_chunks()), wanted)
