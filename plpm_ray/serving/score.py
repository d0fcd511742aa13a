"""The daily job of KLAN-ISP: the static preference delta of every user (KLAN 4.1.3, eq. 6), once a day instead of at every entry.

For a local day D, features are read at the midnight that begins it, from sessions that entered before, and the uplift model
runs once for all arms. Layout: `<output>/day=<D>/bucket=003.parquet` with `user_id` and `delta` (FixedSizeList of K floats),
and, written last, `manifest.json`: version of the model, day, pages, width K, population (mean delta over all users, for those
without one), rows and `inputs`, a hash of all that the numbers follow from. The same inputs give the same bytes.

A user bucket is one task. Its file carries `inputs`, so that a run that was stopped goes on with the buckets that lack.

Letters: B users, K pages.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from plpm_ray.core.config import StrictConfig, config_hash
from plpm_ray.core.errors import BundleError, ConfigError, DataError, PlpmError
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.storage import (
    exclusive_folder,
    read_json,
    read_parquet,
    storage_errors,
    write_json,
    write_parquet,
)
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_inputs import day_inputs
from plpm_ray.data.day_table import day_name, day_number
from plpm_ray.data.history import Midnight, profile_fingerprint, read_profiles
from plpm_ray.data.ray_exec import Backend, run_tasks
from plpm_ray.navigators.base import Navigator
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle
from plpm_ray.navigators.klan.klan import DELTA
from plpm_ray.serving.config import StoreConfig
from plpm_ray.serving.deltas import MANIFEST, store_day
from plpm_ray.serving.store import StateStore, open_store

SCORE_VERSION = 1
"""To be raised whenever the meaning of the output changes: all days are then scored anew."""

_META = b"plpm.score"


class ScoreConfig(StrictConfig):
    """`plpm score`: delta of every user for one day."""

    bundle: str = Field(
        description="bundle of a learner of users (klan.isp), or of a navigator with one as its part; a run does too"
    )
    tables: str = Field(description="warehouse folder made by `plpm data`")
    output: str = Field(min_length=1, description="folder of the results, a subfolder a day")
    day: dt.date | None = Field(
        default=None, description="local day to score; null: the day after the last one with sessions"
    )
    store: StoreConfig | None = Field(
        default=None, description="state store that is told the result too (kind: valkey); null: none"
    )
    users_per_batch: int = Field(default=16_384, ge=1, description="users that the model scores at once")
    backend: Backend = Field(
        default="local", description="run the buckets here, in processes of this machine, or on a Ray cluster"
    )
    workers: int | None = Field(
        default=None, ge=1, description="buckets at a time; null: what the backend gives"
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register the bundle's learner"
    )


def score_users(config: ScoreConfig, store: StateStore | None = None) -> dict[str, Any]:
    """Scores a day, or goes on with it, or finds it done.

    Args:
        config: see ScoreConfig.
        store: instead of the one that the config names.

    Returns:
        Summary: output (the day's folder), day, version, rows, population (page -> mean delta), buckets_done before this call,
        stored (whether the state store was told), seconds.

    Raises:
        ConfigError: a memory store, which belongs to the serving process.
        BundleError: the bundle does not hold one learner of users, or is of other pages or columns than the tables.
        DataError: no users, or unreadable tables.
        StorageError, StateError: the output or the state store cannot be written.
        PlpmError: the model gives numbers that are not finite.
    """
    started = time.perf_counter()
    if config.store is not None and config.store.kind == "memory" and store is None:
        raise ConfigError(
            "store: a memory store lives in the serving process, which this job cannot reach",
            hint="leave `store` out and let the service read the output folder, or take a valkey store",
        )
    plugins = tuple(str(Path(p).resolve()) if p.endswith(".py") else p for p in config.plugins)
    path = find_bundle(config.bundle).resolve()
    bundle = uplift_bundle(load_bundle(path, plugins))
    plan = _plan(config, path, bundle, plugins)
    folder = Path(config.output).expanduser().absolute() / f"day={day_name(plan.midnight.day)}"
    with exclusive_folder(folder):
        manifest, before = _day(config, plan, folder)
        opened = open_store(config.store) if store is None and config.store is not None else store
        stored = False
        if opened is not None:
            with contextlib.ExitStack() as stack:
                if store is None:
                    stack.callback(opened.close)
                stored = _published(opened, folder, manifest)
    return {
        "output": str(folder),
        **{name: manifest[name] for name in ("day", "version", "rows")},
        "population": dict(zip(manifest["pages"], manifest["population"], strict=True)),
        "buckets": len(manifest["buckets"]),
        "buckets_done": before,
        "stored": stored,
        "seconds": round(time.perf_counter() - started, 2),
    }


def uplift_bundle(bundle: Bundle) -> Bundle:
    """The bundle itself, or its part, that is a learner of users.

    Raises:
        BundleError: there is none, or more than one.
    """
    load_plugins(bundle.plugins)
    found = [
        part
        for part in (bundle, *bundle.parts.values())
        if part.kind == "learner" and lookup("learner", part.name).grain == "user"
    ]
    if len(found) != 1:
        raise BundleError(
            f"bundle {bundle.name!r} holds {len(found)} learners of a trial's users, this job runs one",
            hint="give the bundle of a learner such as klan.isp, or of a navigator with such a part",
        )
    return found[0]


def _published(store: StateStore, folder: Path, manifest: dict[str, Any]) -> bool:
    """Tells a store the result of a day, unless a newer day is published there; whether it was told."""
    before = store.vector_info(DELTA)
    if before is not None and str(before.get("day", "")) > manifest["day"]:
        return False
    store_day(store, folder)
    return True


@dataclass(frozen=True)
class _Plan:
    """What all tasks must know.

    Attributes:
        root: warehouse folder.
        path, version, plugins: where the model lies.
        midnight: of the day.
        files: session files of earlier days by bucket, for the ids of all users.
        inputs: hash of all that the result follows from.
        pages: names of the pages.
    """

    root: Path
    path: Path
    version: str
    plugins: tuple[str, ...]
    midnight: Midnight
    files: dict[int, list[Path]]
    inputs: str
    pages: tuple[str, ...]
    batch: int


@dataclass(frozen=True)
class _Scored:
    """Users of a bucket, and the sum of their delta."""

    rows: int
    total: list[float]


def _plan(config: ScoreConfig, path: Path, bundle: Bundle, plugins: tuple[str, ...]) -> _Plan:
    warehouse = Warehouse.open(config.tables)
    sessions = warehouse.sessions.entries()
    if not sessions:
        raise DataError(
            f"{warehouse.root} holds no sessions, so there are no days to score",
            hint="give the warehouse of an app's logs",
        )
    if bundle.spec.schema != warehouse.info.features:
        raise BundleError(
            f"bundle {bundle.name!r} was trained on other pages or columns than {warehouse.root}",
            hint="score the users of its own dataset",
        )
    day = max(sessions) + 1 if config.day is None else day_number(config.day)
    earlier = {d: entry for d, entry in sessions.items() if d < day}
    midnight = Midnight.of(day, day_inputs(warehouse, sessions), sessions)
    seen = [[d, entry.gen] for d, entry in earlier.items()]
    info = warehouse.info
    what = [SCORE_VERSION, bundle.version, day, midnight.generations, seen, profile_fingerprint(warehouse)]
    inputs = config_hash([*what, info.features.to_dict(), info.n_buckets], length=24)
    files = {
        bucket: [warehouse.sessions.path(d, e.gen, bucket) for d, e in earlier.items() if e.rows.get(bucket)]
        for bucket in range(info.n_buckets)
    }
    root, pages = warehouse.root.resolve(), info.pages.names
    return _Plan(root, path, bundle.version, plugins, midnight, files, inputs, pages, config.users_per_batch)


def _day(config: ScoreConfig, plan: _Plan, folder: Path) -> tuple[dict[str, Any], int]:
    """The manifest of a complete day, and how many buckets had been done before."""
    known = {bucket: _finished(_file(folder, bucket), plan.inputs) for bucket in plan.files}
    before = sum(found is not None for found in known.values())
    path = folder / MANIFEST
    if path.exists():
        manifest = read_json(path)
        if manifest.get("inputs") == plan.inputs and before == len(known):
            return manifest, before
        with storage_errors(f"removing {path}"):
            path.unlink()  # readers must not take what is now replaced for a whole day
    _remove_others(folder, set(plan.files))
    missing = [bucket for bucket, found in known.items() if found is None]
    task: Callable[[int], _Scored] = partial(_score_bucket, plan, folder)
    made = run_tasks(task, missing, backend=config.backend, workers=config.workers, progress="scoring users")
    known |= dict(zip(missing, made, strict=True))
    results = [found for found in known.values() if found is not None]
    rows = sum(found.rows for found in results)
    if not rows:
        raise DataError(
            f"{plan.root} knows no users before {day_name(plan.midnight.day)}", hint="score a later day"
        )
    population = np.sum([found.total for found in results if found.rows], axis=0) / rows
    manifest = {
        "format": SCORE_VERSION,
        "version": plan.version,
        "day": day_name(plan.midnight.day),
        "pages": list(plan.pages),
        "width": len(plan.pages),
        "population": population.astype(np.float32).tolist(),
        "rows": rows,
        "inputs": plan.inputs,
        "buckets": {_file(folder, b).name: found.rows for b, found in zip(known, results, strict=True)},
    }
    write_json(path, manifest)
    return manifest, before


def _file(folder: Path, bucket: int) -> Path:
    return folder / f"bucket={bucket:03d}.parquet"


def _finished(path: Path, inputs: str) -> _Scored | None:
    """What a file holds, if it is whole and was made from these inputs."""
    try:
        meta = json.loads((pq.read_metadata(path).metadata or {})[_META])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return _Scored(meta["rows"], meta["total"]) if meta["inputs"] == inputs else None


def _remove_others(folder: Path, buckets: set[int]) -> None:
    """Files of a run with more buckets, and halves that a killed one left."""
    kept = {_file(folder, bucket) for bucket in buckets}
    with storage_errors(f"removing old files of {folder}"):
        for path in (*folder.glob("bucket=*.parquet"), *folder.glob(".*.tmp")):
            if path not in kept:
                path.unlink()


def _score_bucket(plan: _Plan, folder: Path, bucket: int) -> _Scored:
    """Scores the users of a bucket and writes its file."""
    warehouse = Warehouse.open(plan.root)
    navigator = _navigator(plan.path, plan.version, plan.plugins)
    profiles = read_profiles(warehouse, bucket)
    users = _users(plan.files[bucket], profiles, warehouse.info.users_schema.field("user_id").type)
    k, delta = len(plan.pages), np.zeros((len(users), len(plan.pages)), dtype=np.float32)
    if len(users):
        raw = plan.midnight.features(warehouse, bucket, users, profiles)
        for start in range(0, len(users), plan.batch):
            rows = np.arange(start, min(start + plan.batch, len(users)))
            delta[rows] = navigator.scores(raw.take(rows))
    if not np.isfinite(delta).all():
        raise PlpmError(
            f"{plan.version} gives numbers that are not finite to {int((~np.isfinite(delta)).any(1).sum())} users "
            f"of bucket {bucket}",
            hint="train it again; nothing was published",
        )
    total = delta.sum(axis=0, dtype=np.float64).tolist()
    values = pa.FixedSizeListArray.from_arrays(pa.array(delta.reshape(-1)), k)
    meta = json.dumps({"inputs": plan.inputs, "rows": len(users), "total": total})
    table = pa.table({"user_id": users, DELTA: values}).replace_schema_metadata({_META: meta.encode()})
    write_parquet(_file(folder, bucket), table)
    return _Scored(len(users), total)


@lru_cache(maxsize=2)
def _navigator(path: Path, version: str, plugins: tuple[str, ...]) -> Navigator:
    """The model, loaded once a process."""
    bundle = uplift_bundle(load_bundle(path, plugins))
    if bundle.version != version:
        raise BundleError(f"{path} was replaced while its users were scored", hint="score the day again")
    return bundle.navigator()


def _users(files: Sequence[Path], profiles: pa.Table | None, kind: pa.DataType) -> pa.Array:
    """Sorted ids of all users with a session in one of the files, or a profile."""
    found = [read_parquet(path, ["user_id"])["user_id"].unique() for path in files]
    found += [profiles["user_id"].unique()] if profiles is not None else []
    distinct = pa.chunked_array(found, kind).unique()
    return distinct.sort()
