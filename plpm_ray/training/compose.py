"""A navigator from tables to bundle: the parts of a composed one, trained side by side and put together, or one fitted whole.

<run_root>/<name>-<role>-<hash>/   the run of each part, as `train` makes it
<run_root>/<name>-<hash>/          config.json  bundle/  summary.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from plpm_ray.core.config import ConfigSource, config_hash, nearest, validate
from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.features import FeatureSpec, RawFeatures
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.storage import exclusive_folder, read_json, read_parquet, write_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.ray_exec import Backend, run_tasks
from plpm_ray.navigators.base import FittedNavigator, Heuristic
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle, save_bundle
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.job import plugins_identity

_SAMPLE_ROWS = 20_000


@dataclass(frozen=True)
class PartJob:
    """One part: a bundle that exists, or what trains it.

    Attributes:
        role: of the navigator.
        bundle: bundle or run folder; None where it is trained.
        run: trains it and returns the bundle's folder; picklable.
        on_ray: it starts Ray workers of its own, so it runs in a thread of this process.
        rewarded_by: another role, whose bundle must be there first: `run` is called with it as `rewards`.
    """

    role: str
    bundle: str | None = None
    run: Callable[..., Path] | None = None
    on_ray: bool = False
    rewarded_by: str | None = None


@dataclass(frozen=True)
class ComposeResult:
    """What a run came to.

    Attributes:
        run_dir, bundle_path: its folder, and the bundle in it.
        parts: role -> bundle folder.
        metrics: on the validation rows, of navigators fitted whole; role.metric of the parts.
        seconds: wall time of this call.
        finished_before: the run had ended before this call.
    """

    run_dir: Path
    bundle_path: Path
    parts: dict[str, Path] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    finished_before: bool = False


@runtime_checkable
class Composed(Protocol):
    """A navigator some of whose settings follow from its parts."""

    def composed(self, features: RawFeatures) -> Any:
        """The config with those settings filled in that are None, from rows of the training window."""
        ...


def navigator_config(name: str, options: Mapping[str, Any], plugins: Sequence[str] = ()) -> Any:
    """The validated config of a registered navigator.

    Raises:
        ConfigError: an unknown navigator, or a wrong setting.
    """
    load_plugins(plugins)
    cls: type[Heuristic] = lookup("navigator", name)
    return validate(cls.Config, ConfigSource(dict(options), f"navigator {name!r}", {}, {}))


def compose(
    name: str,
    options: Mapping[str, Any],
    jobs: Sequence[PartJob],
    warehouse_root: str | Path,
    train_days: Sequence[int],
    *,
    run_root: str | Path,
    run_name: str,
    backend: Backend = "local",
    plugins: Sequence[str] = (),
) -> ComposeResult:
    """Trains the parts of a navigator and writes one bundle of them all.

    Args:
        name, options: registered navigator and its settings.
        jobs: one for each of its roles.
        warehouse_root, train_days: what settings that follow from the parts are found on.
        run_root, run_name: the folder is `<run_root>/<run_name>-<hash of settings and parts>`.
        backend: with processes or ray the parts are trained side by side, as far as there is room.
        plugins: files or modules that register navigators and learners of one's own.

    Raises:
        ConfigError: a role without a job, or the other way round.
        DataError, StorageError, BundleError: as in training, and where parts do not fit each other.
    """
    started = time.perf_counter()
    cls, config = lookup("navigator", name), navigator_config(name, options, plugins)
    wrong = sorted({job.role for job in jobs} ^ set(cls.roles))
    if wrong:
        raise ConfigError(
            f"navigator {name!r} is composed of {sorted(cls.roles)}; parts {wrong} are missing or too many",
            hint=nearest(wrong[0], cls.roles) or "it has no parts",
        )
    paths = _train_parts(jobs, backend)
    parts = {role: load_bundle(path, tuple(plugins)) for role, path in paths.items()}
    warehouse = Warehouse.open(warehouse_root)
    composed = _bundle(name, config, warehouse, train_days, plugins).with_parts(parts)

    def settled() -> Bundle:
        navigator = composed.navigator()
        if not isinstance(navigator, Composed):
            return composed
        found = navigator.composed(sample_rows(warehouse, train_days))
        return composed.with_options(found.model_dump(mode="json"))

    return _kept(
        Path(run_root) / run_name,
        [composed.version, composed.data, plugins_identity(plugins)],
        settled,
        paths,
        started,
    )


def fit_whole(
    name: str,
    options: Mapping[str, Any],
    warehouse_root: str | Path,
    train_days: Sequence[int],
    valid_days: Sequence[int],
    *,
    run_root: str | Path,
    run_name: str,
    seed: int = 0,
    plugins: Sequence[str] = (),
) -> ComposeResult:
    """Fits a `FittedNavigator` on the training days, and writes its bundle.

    Raises:
        ConfigError: a wrong setting, or a library is missing.
        DataError: no rows on those days.
    """
    started = time.perf_counter()
    cls: type[FittedNavigator] = lookup("navigator", name)
    config, warehouse = navigator_config(name, options, plugins), Warehouse.open(warehouse_root)
    empty = _bundle(name, config, warehouse, train_days, plugins)
    empty.data["valid_days"] = [day_name(d) for d in valid_days]

    def fitted() -> Bundle:
        needs = Needs(cls.grain, cls.inputs, cls.columns)
        train, valid = (_rows(warehouse, days, empty.spec, needs) for days in (train_days, valid_days))
        assert train is not None
        weights, metrics = cls.fit(config, empty.spec, empty.pages, empty.stats, train, valid, seed)
        tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
        return replace(empty, weights=tensors, metrics=metrics)

    return _kept(
        Path(run_root) / run_name,
        [empty.version, empty.data, seed, plugins_identity(plugins)],
        fitted,
        {},
        started,
    )


def _bundle(
    name: str, config: Any, warehouse: Warehouse, train_days: Sequence[int], plugins: Sequence[str]
) -> Bundle:
    """A navigator's bundle, as yet without weights and parts."""
    spec, stats = fit_spec(warehouse, train_days)
    data = {
        "dataset": warehouse.info.name,
        "fingerprint": warehouse.transitions.fingerprint(train_days),
        "user_id": warehouse.info.user_id,
        "train_days": [day_name(d) for d in train_days],
    }
    plain, pages = config.model_dump(mode="json"), warehouse.info.pages
    return Bundle("navigator", name, plain, pages, spec, stats, data=data, plugins=tuple(plugins))


def _kept(
    folder: Path, identity: Any, make: Callable[[], Bundle], parts: Mapping[str, Path], started: float
) -> ComposeResult:
    """Makes and writes a navigator's bundle, or finds it written before, in `<folder>-<hash of the identity>`."""
    run_dir = folder.with_name(f"{folder.name}-{config_hash(identity)}")
    with exclusive_folder(run_dir):
        before = (run_dir / "summary.json").exists()
        if not before:
            _write(run_dir, make(), parts)
    summary = read_json(run_dir / "summary.json")
    metrics = {
        f"{role}.{key}": value for role, of in summary["part_metrics"].items() for key, value in of.items()
    }
    return ComposeResult(
        run_dir,
        run_dir / "bundle",
        dict(parts),
        metrics | summary["metrics"],
        time.perf_counter() - started,
        before,
    )


def _train_parts(jobs: Sequence[PartJob], backend: Backend) -> dict[str, Path]:
    """Role -> bundle folder."""
    found = {job.role: find_bundle(job.bundle) for job in jobs if job.bundle is not None}
    open_jobs = [job for job in jobs if job.bundle is None]
    while open_jobs:
        ready = [job for job in open_jobs if job.rewarded_by is None or job.rewarded_by in found]
        if not ready:
            raise ConfigError(
                f"part {open_jobs[0].role!r} waits for the rewards of {open_jobs[0].rewarded_by!r}, which is no part"
            )
        found |= _side_by_side(ready, found, backend)
        open_jobs = [job for job in open_jobs if job.role not in found]
    return found


def _side_by_side(jobs: Sequence[PartJob], found: Mapping[str, Path], backend: Backend) -> dict[str, Path]:
    """Role -> bundle folder of jobs that need no other than those found."""
    runs = [(job, found[job.rewarded_by] if job.rewarded_by is not None else None) for job in jobs]
    if backend == "local":
        return {job.role: _run((job, rewards)) for job, rewards in runs}
    # what starts workers of its own only waits here; the others each are a task
    threads = [item for item in runs if item[0].on_ray]
    tasks = [item for item in runs if not item[0].on_ray]
    with ThreadPoolExecutor(max(1, len(threads))) as pool:
        waiting = [pool.submit(_run, item) for item in threads]
        done = run_tasks(_run, tasks, backend=backend, progress="training parts")
        made = {job.role: path for (job, _), path in zip(tasks, done, strict=True)}
        return made | {job.role: future.result() for (job, _), future in zip(threads, waiting, strict=True)}


def _run(item: tuple[PartJob, Path | None]) -> Path:
    job, rewards = item
    assert job.run is not None
    return job.run() if rewards is None else job.run(rewards=rewards)


def _write(run_dir: Path, bundle: Bundle, parts: Mapping[str, Path]) -> None:
    save_bundle(bundle, run_dir / "bundle")
    names = {role: str(path) for role, path in parts.items()}
    write_json(
        run_dir / "config.json", {"navigator": bundle.name, "config": bundle.config, "data": bundle.data}
    )
    write_json(
        run_dir / "summary.json",
        {
            "status": "finished",
            "navigator": bundle.name,
            "version": bundle.version,
            "config": bundle.config,
            "parts": names,
            "versions": {role: part.version for role, part in bundle.parts.items()},
            "metrics": bundle.metrics,
            "part_metrics": {role: part.metrics for role, part in bundle.parts.items()},
            "data": bundle.data,
        },
    )


def _rows(
    warehouse: Warehouse, days: Sequence[int], spec: FeatureSpec, needs: Needs
) -> dict[str, Any] | None:
    if not days:
        return None
    table = TableSource(warehouse.root, tuple(days), spec, needs).load()
    return {name: column.numpy() for name, column in table.columns.items()}


def sample_rows(warehouse: Warehouse, days: Sequence[int]) -> RawFeatures:
    """Some rows of the days, evenly taken from one bucket."""
    schema = warehouse.info.features
    for bucket in range(warehouse.info.n_buckets):
        for _, path in reversed(warehouse.transitions.files(bucket, days)):
            raw = RawFeatures.from_table(schema, read_parquet(path))
            if len(raw):
                return raw.take(np.arange(0, len(raw), -(-len(raw) // _SAMPLE_ROWS)))
    raise DataError("the training days hold no sessions", hint="check the split's days")
