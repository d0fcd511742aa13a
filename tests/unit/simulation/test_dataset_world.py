"""The dataset `world`, and the way of its sessions through files, warehouse and features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from plpm_ray.core.config import Named
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.registry import names
from plpm_ray.core.storage import read_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.datasets.base import make_adapter
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.tables import build_transitions, read_transitions
from plpm_ray.policies.base import Choice
from plpm_ray.simulation import dataset as module
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.dataset import WorldDatasetConfig, WorldLogs, WorldLogsConfig
from plpm_ray.simulation.logs_run import LogsConfig, write_logs
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.simulation.simulation import Entries, Sessions, Simulation, run_days
from tests.unit.data.own_logs import stored

WORLD = load_world("kuaishou").model_dump(mode="json")
WORLD["entries"]["most"] = 8
SMALL = {"name": "world", "world": WORLD, "users": 150, "days": 3, "warmup_days": 1}


def adapter(**changes: Any) -> Any:
    return make_adapter(Named.model_validate({**SMALL, **changes}))


def everything(made: Any) -> pa.Table:
    return pa.concat_tables([made.read(item).table for item in made.inputs()])


def built(folder: Path, dataset: dict[str, Any]) -> tuple[dict[str, Any], Warehouse]:
    config = {"dataset": dataset, "output": str(folder), "n_buckets": 3, "max_bad_share": 0}
    return ingest(IngestConfig.model_validate(config)), Warehouse.open(folder)


def test_slices_do_not_change_the_sessions():
    one, many = adapter(), adapter(users_per_slice=37)
    assert [len(a.inputs()) for a in (one, many)] == [1, 5]
    assert everything(many).equals(everything(one))
    apart = adapter(first_user=100, users=20)
    table = everything(one)
    inside = np.isin(table["user_id"].to_numpy(), np.arange(100, 120))
    assert everything(apart).equals(table.filter(pa.array(inside)))


def test_warm_up_days_are_lived_and_not_logged():
    whole = everything(adapter(warmup_days=0, days=4))
    later = everything(adapter())
    assert later.equals(whole.filter(pa.array(whole["session_id"].to_numpy() // 256 % 4096 >= 1)))


def test_luck_seed_and_policy_change_the_sessions_and_only_the_seed_the_users():
    plain, luck, seed = adapter(), adapter(replicate=1), adapter(seed=9)
    item = plain.inputs()[0]
    profile = plain.read_profile(item).table
    assert luck.read_profile(item).table.equals(profile) and not seed.read_profile(item).table.equals(profile)
    made = [plain, luck, seed, adapter(policy="random"), adapter(policy="explore")]
    tables = [everything(a) for a in made]
    assert len({table.num_rows for table in tables}) > 2
    assert all(not table.equals(tables[0]) for table in tables[1:])
    assert set(tables[4]["landing_page"].to_pylist()) == {"explore"}


def test_profiles_and_arms_need_no_simulation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "Simulation", None)
    made = adapter(trial={})
    profiles = [made.read_profile(item).table for item in made.profile_inputs()]
    arms = [made.read_assignments(item).table for item in made.assignment_inputs()]
    assert profiles[0].num_rows == arms[0].num_rows == 150
    assert adapter().assignment_inputs() == []


@pytest.mark.parametrize(
    "policy", ["logging", "random", {"builtin": "logging", "explore": 0.3}, {"navigator": "heuristic.longest_use",
               "policy": {"kind": "epsilon", "epsilon": 0.4}}]
)  # fmt: skip
def test_propensities_are_true(policy: Any):
    """For every page the mean of 1[page] / propensity estimates 1."""
    table = everything(adapter(policy=policy, users=400))
    page, p = np.array(table["landing_page"].to_pylist()), table["propensity"].to_numpy()
    users = table["user_id"].to_numpy()
    for name in ("featured", "explore", "following"):
        term = (page == name) / p - 1
        by_user = np.bincount(users, weights=term)
        assert abs(by_user.sum()) < 4 * np.sqrt((by_user**2).sum())
        assert abs(term.mean()) < 0.25


def test_names_are_checked():
    assert {"canonical", "kuairand", "msnbc", "world"} <= set(names("dataset"))
    for policy, hint in (
        ("expore", "did you mean 'explore'?"),
        ({"navigator": "heuristic.longest"}, "longest_use"),
    ):
        with pytest.raises(ConfigError) as error:
            adapter(policy=policy)
        assert hint in str(error.value)
    with pytest.raises(ConfigError, match="explore is 1.5"):
        adapter(policy={"builtin": "logging", "explore": 1.5})
    with pytest.raises(ConfigError, match="unknown key 'user'"):
        adapter(user=3)
    with pytest.raises(ValueError, match="more than 4096"):
        WorldDatasetConfig(world="kuaishou", days=4096)


def test_files_and_dataset_make_the_same_warehouse(tmp_path: Path):
    settings = {key: value for key, value in SMALL.items() if key != "name"}
    trial = {"start_day": 1, "days": 2, "arms": ["following"], "shares": {"control": 2}}
    config = {**settings, "trial": trial, "output": str(tmp_path / "logs"), "users_per_file": 40}
    summary = write_logs(LogsConfig.model_validate(config))
    section = yaml.safe_load((tmp_path / "logs" / "dataset.yaml").read_text())["dataset"]
    by_files, files = built(tmp_path / "by_files", section)
    by_dataset, direct = built(tmp_path / "by_dataset", {**SMALL, "trial": trial})
    assert by_files["sessions"] == by_dataset["sessions"] == summary["sessions"] > 500
    assert by_files["quarantined_rows"] == by_dataset["quarantined_rows"] == 0
    assert files.info == direct.info and files.info.propensity_known
    assert stored(files.root).equals(stored(direct.root))
    assert read_parquet(files.assignments_file).equals(read_parquet(direct.assignments_file))
    for bucket in range(3):
        assert read_parquet(files.users_file(bucket)).equals(read_parquet(direct.users_file(bucket)))


class _Remembering(LoggingPolicy):
    """The logging policy, with the features that the app has of each entry when it is asked."""

    def __init__(self, logs: WorldLogs, users: np.ndarray) -> None:
        self.online = OnlineFeatures(logs.world, logs.profiles(users))
        self.tables: list[pa.Table] = []

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        table = pa.table(self.online.features(entries).to_columns())
        ids = (entries.user_id * 4096 + entries.day) * 256 + entries.step
        self.tables.append(table.append_column("session_id", pa.array(ids)))
        return super().choose(simulation, entries)

    def observe(self, simulation: Simulation, sessions: Sessions) -> None:
        self.online.observe(sessions)


def test_features_of_the_stored_logs_are_those_of_the_running_world(tmp_path: Path):
    settings = {**SMALL, "users": 80, "days": 18, "warmup_days": 0}
    _, warehouse = built(tmp_path, settings)
    build_transitions(warehouse)
    rows = [read_transitions(warehouse, bucket) for bucket in range(3)]
    batch = pa.concat_tables([t for t in rows if t is not None]).sort_by("session_id").combine_chunks()

    logs = WorldLogs(WorldLogsConfig.model_validate({k: v for k, v in settings.items() if k != "name"}))
    chooser = _Remembering(logs, np.arange(80))
    run_days(Simulation(logs.world, np.arange(80)), 18, chooser)
    online = pa.concat_tables(chooser.tables).sort_by("session_id").combine_chunks()
    assert online.num_rows == batch.num_rows > 3000
    schema = warehouse.info.features
    left, right = (RawFeatures.from_table(schema, table) for table in (online, batch))
    np.testing.assert_array_equal(left.numeric, right.numeric)
    for name, values in left.categorical.items():
        assert pa.array(values).equals(pa.array(right.categorical[name])), name
    for name, values in left.sequences.items():
        np.testing.assert_array_equal(values, right.sequences[name])
