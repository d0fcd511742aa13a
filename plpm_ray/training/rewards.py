"""The job of a reward model: what every session was worth, a column beside the trajectory table (GLAN 4.2, eq. 28).

Rewards lie in `<warehouse>/rewards/<version of the model>/`, partitioned as the transitions are and row for row the same
sessions: session_id, what the model `says` ("reward" in seconds, "drop_off"), and its `labels` ("dropped"). A day is judged
anew only if its transitions have changed; the model's version is in the folder's name, so that rewards of two models never
mix. A user bucket is one task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from plpm_ray.core.config import StrictConfig, config_hash
from plpm_ray.core.errors import BundleError, DataError, PlpmError
from plpm_ray.core.feature_columns import unpack
from plpm_ray.core.features import SESSION_KEYS, RawFeatures
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.storage import exclusive_folder, read_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import DayEntry, DayTable, day_name
from plpm_ray.data.ray_exec import Backend, run_tasks
from plpm_ray.data.rebuild import rebuild, unfinished
from plpm_ray.navigators.base import LearnerNavigator, Navigator
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle
from plpm_ray.training.data import label

REWARD = "reward"
JUDGED_AT_ONCE = 16_384
_VERSION = 2
"""To be raised whenever the meaning of the output changes: all days are then judged anew."""


class RewardConfig(StrictConfig):
    """`plpm reward`: the rewards of all sessions by one reward model."""

    bundle: str = Field(
        description="bundle of a reward model (glan.hrm), or of a navigator with one as its part; a run does too"
    )
    tables: str = Field(description="warehouse folder made by `plpm data`")
    sessions_per_batch: int = Field(
        default=JUDGED_AT_ONCE, ge=1, description="sessions that the model judges at once"
    )
    backend: Backend = Field(
        default="local", description="run the buckets here, in processes of this machine, or on a Ray cluster"
    )
    workers: int | None = Field(
        default=None, ge=1, description="buckets at a time; null: what the backend gives"
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register the bundle's learner"
    )


@dataclass(frozen=True)
class RewardSummary:
    """What `reward_sessions` did.

    Attributes:
        name: of the reward table: the model's version.
        folder: it lies here.
        recomputed, unchanged, dropped: days since 1970-01-01.
        rows: sessions judged now.
    """

    name: str
    folder: Path
    recomputed: list[int]
    unchanged: list[int]
    dropped: list[int]
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """For `summary.json`, with days as `YYYY-MM-DD`."""
        lists = {name: [day_name(d) for d in getattr(self, name)] for name in ("recomputed", "dropped")}
        kept = {"name": self.name, "folder": str(self.folder), "rows": self.rows}
        return {**kept, **lists, "unchanged_days": len(self.unchanged)}


def reward_bundle(path: str | Path, plugins: Sequence[str] = ()) -> tuple[Path, Bundle]:
    """Folder and bundle of the reward model at a path: a bundle or run of one, or of a navigator with one as its part.

    Raises:
        BundleError: there is none, or more than one.
    """
    folder = find_bundle(path).resolve()
    bundle = load_bundle(folder, tuple(plugins))
    load_plugins(bundle.plugins)
    places = {folder: bundle} | {folder / "parts" / role: part for role, part in bundle.parts.items()}
    found = [(at, made) for at, made in places.items() if made.kind == "learner" and _rewards(made.name)]
    if len(found) != 1:
        raise BundleError(
            f"bundle {bundle.name!r} holds {len(found)} reward models, this job runs one",
            hint="give the bundle of a learner such as glan.hrm, or of a navigator with such a part",
        )
    return found[0]


def _rewards(learner: str) -> bool:
    return REWARD in (lookup("learner", learner).says or ())


def reward_sessions(
    tables: str | Path,
    bundle: str | Path,
    *,
    days: Sequence[int] | None = None,
    batch: int = JUDGED_AT_ONCE,
    backend: Backend = "local",
    workers: int | None = None,
    plugins: Sequence[str] = (),
) -> RewardSummary:
    """Brings the rewards of a model up to date with the transitions.

    Args:
        tables: the warehouse.
        bundle: see `reward_bundle`.
        days: only these (since 1970-01-01); all by default.
        batch: sessions judged at once.
        backend, workers: as in `run_tasks`; the result does not depend on them.
        plugins: files or modules that register the model.

    Raises:
        BundleError: no reward model, or one of other pages or columns.
        DataError: no sessions on those days; an older version built them; or a file is missing, damaged or another one.
        PlpmError: the model gives numbers that are not finite.
        ConfigError: another process is judging the same sessions with the same model.
    """
    warehouse = Warehouse.open(tables)
    path, model = reward_bundle(bundle, plugins)
    if model.spec.schema != warehouse.info.features:
        raise BundleError(
            f"bundle {model.name!r} was trained on other pages or columns than {warehouse.root}",
            hint="judge the sessions of its own dataset",
        )
    table, transitions = warehouse.rewards(model.version), warehouse.transitions.entries()
    scope = transitions.keys() if days is None else transitions.keys() & set(days)
    if not scope:
        raise DataError(f"{warehouse.root} holds no transitions of those days", hint="run `plpm data`")
    warehouse.transitions.checked(scope)
    prints = {d: config_hash([_VERSION, model.version, transitions[d].gen], length=16) for d in sorted(scope)}
    with exclusive_folder(table.root):
        table.remove_uncommitted()
        built = table.entries()
        # rewards of fewer rows than there are were written while files of the transitions lacked
        short = {d for d in prints if d in built and built[d].rows != transitions[d].rows}
        stale = sorted({*unfinished([table], prints), *short})
        dropped = sorted(built.keys() - transitions.keys())
        files = {d: transitions[d] for d in stale}
        common = _Task(warehouse.root.resolve(), path, model.version, tuple(plugins), 0, "", files, batch)
        rows = rebuild(
            [table],
            stale,
            prints,
            dropped,
            _judge_bucket,
            lambda gen: [common.of(bucket, gen) for bucket in range(warehouse.info.n_buckets)],
            backend=backend,
            workers=workers,
            progress="judging sessions",
        )
    return RewardSummary(
        model.version, table.root, stale, [d for d in prints if d not in stale], dropped, rows
    )


@dataclass(frozen=True)
class _Task:
    root: Path
    bundle: Path
    version: str
    plugins: tuple[str, ...]
    bucket: int
    gen: str
    days: Mapping[int, DayEntry]
    batch: int

    def of(self, bucket: int, gen: str) -> _Task:
        return _Task(self.root, self.bundle, self.version, self.plugins, bucket, gen, self.days, self.batch)


def _judge_bucket(task: _Task) -> dict[int, tuple[int]]:
    """Judges the stale days of one bucket; day -> rows.

    Raises:
        DataError: a file of the transitions is missing or damaged, or does not hold what their manifest says.
    """
    warehouse = Warehouse.open(task.root)
    navigator = _navigator(task.bundle, task.version, task.plugins)
    says = _says(navigator)
    written: dict[int, tuple[int]] = {}
    for day, entry in task.days.items():
        expected = entry.rows.get(task.bucket, 0)
        if not expected:
            continue
        path = warehouse.transitions.path(day, entry.gen, task.bucket)
        sessions = read_parquet(path)
        if len(sessions) != expected:
            raise DataError(
                f"{path} holds {len(sessions)} sessions, the manifest of its table says {expected}",
                hint="copy the file again, or remove the table's folder and run `plpm data`",
            )
        said = np.zeros((len(sessions), len(says)), dtype=np.float32)
        raw = with_outcomes(RawFeatures.from_table(warehouse.info.features, sessions), sessions)
        for start in range(0, len(raw), task.batch):
            rows = np.arange(start, min(start + task.batch, len(raw)))
            said[rows] = navigator.scores(raw.take(rows))
        if not np.isfinite(said).all():
            raise PlpmError(
                f"{task.version} gives numbers that are not finite to sessions of {day_name(day)}",
                hint="train it again; nothing was published",
            )
        columns = {name: pa.array(said[:, i]) for i, name in enumerate(says)} | _labels(navigator, sessions)
        table = pa.table({"session_id": sessions["session_id"], **columns})
        written[day] = (warehouse.rewards(task.version).write(day, task.gen, task.bucket, table),)
    return written


def _labels(navigator: Navigator, transitions: pa.Table) -> dict[str, pa.Array]:
    """The model's labels of rows of the transition table."""
    if not isinstance(navigator, LearnerNavigator):
        return {}
    columns = {name: torch.from_numpy(label(transitions, name)) for name in navigator.learner.columns}
    return {name: pa.array(values.numpy()) for name, values in navigator.learner.labels(columns).items()}


def with_outcomes(raw: RawFeatures, transitions: pa.Table) -> RawFeatures:
    """The features of rows of the transition table, with what came of their sessions."""
    stored = {"action": "landing_page"}
    for key in SESSION_KEYS:
        column = transitions[stored.get(key, key)]
        lists = pa.types.is_fixed_size_list(column.type)
        raw.session[key] = unpack(column) if lists else column.to_numpy()
    return raw


def _says(navigator: Navigator) -> tuple[str, ...]:
    return tuple(lookup("learner", navigator.name).says)


@lru_cache(maxsize=2)
def _navigator(path: Path, version: str, plugins: tuple[str, ...]) -> Navigator:
    """The model, loaded once a process."""
    bundle = load_bundle(path, plugins)
    if bundle.version != version:
        raise BundleError(f"{path} was replaced while sessions were judged", hint="judge them again")
    return bundle.navigator()


def reward_total(
    warehouse: Warehouse, name: str, days: Sequence[int], *, backend: Backend = "local"
) -> float:
    """Sum of the rewards of all sessions of some days, seconds.

    Raises:
        DataError: a day has not been judged.
    """
    table = warehouse.rewards(name)
    lacking = sorted(set(days) - table.entries().keys())
    if lacking:
        raise DataError(
            f"{table.root} holds no rewards of {day_name(lacking[0])}",
            hint="run `plpm reward` on these tables",
        )
    items = [(table.root, bucket, tuple(days)) for bucket in range(warehouse.info.n_buckets)]
    return float(np.sum(run_tasks(_bucket_total, items, backend=backend, progress="adding up rewards")))


def _bucket_total(item: tuple[Path, int, tuple[int, ...]]) -> float:
    root, bucket, days = item
    found = DayTable(root).read(bucket, days, [REWARD])
    return 0.0 if found is None else float(found[REWARD].to_numpy().sum(dtype=np.float64))
