"""Ingest of datasets that are a table of a trial's users: checked rows straight into the trial table.

The two phases are those of every ingest: slices of files are read, checked and divided by user bucket; then every bucket
drops users that come twice and writes its rows. The whole table is replaced by an atomic commit, if anything in it changed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.config import config_hash
from plpm_ray.core.errors import ConfigError, DataError, PlpmError
from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.core.storage import write_json
from plpm_ray.data import ingest_tasks as tasks
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.datasets.trial import TrialAdapter
from plpm_ray.data.day_table import DayTable, day_number
from plpm_ray.data.duplicates import repeated
from plpm_ray.data.quarantine import Tally, refuse_over
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.data.sessionise import bucketise
from plpm_ray.data.shards import read_shards, write_shards
from plpm_ray.data.staging import staging
from plpm_ray.data.trials import TRIAL_VERSION, TrialSummary, trial_arms
from plpm_ray.data.validate import check_trial

if TYPE_CHECKING:
    from plpm_ray.data.ingest import IngestConfig


def ingest_trial(
    config: IngestConfig, adapter: TrialAdapter, plugins: tuple[str, ...], started: float
) -> dict[str, Any]:
    """Brings a trial into a warehouse.

    Args:
        config: what to read and where to put it; `days` must be null.
        adapter: made from it.
        plugins: absolute paths or module names, for the tasks.
        started: of the ingest, by `time.monotonic`.

    Returns:
        The summary, also written to `<output>/quarantine/<ingest id>/summary.json`: rows_read, rows_in, users, quarantined
        (reason -> rows), quarantined_rows, trial (see `TrialSummary.to_dict`), seconds. rows_in = users + quarantined_rows.

    Raises:
        ConfigError: days were given.
        DataError: unreadable or unfitting files, or too many bad rows. Nothing is committed.
        StorageError: full disk, or another ingest at work. Nothing is committed.
    """
    if config.days is not None:
        raise ConfigError(f"days: the rows of dataset {adapter.name!r} have no days", hint="leave it out")
    info, root = adapter.info(config.n_buckets), Path(config.output).expanduser().absolute()
    items = tuple(adapter.inputs())
    if not items:
        raise DataError(
            f"{config.dataset.options.get('path')}: the files hold no rows", hint="check the path"
        )
    table = DayTable(root / "trial")
    with staging(root, table) as (folder, gen):
        ingest_id = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{gen[:6]}"
        plan = tasks.Plan(
            dataset=config.dataset,
            plugins=plugins,
            info=info,
            items=items,
            profile_items=(),
            root=str(root),
            staging=str(folder),
            quarantine=str(root / "quarantine" / ingest_id),
            gen=gen,
            window=None,
        )
        tally = Tally()
        summary: dict[str, Any] = {
            "dataset": info.name,
            "output": str(root),
            "ingest_id": ingest_id,
            "backend": config.backend,
            "form": "trial",
            "files": len({item.path for item in items}),
            "quarantine": plan.quarantine,
        }
        try:
            results = _rows(plan, config, tally)
        except PlpmError as error:
            _finish(summary | {"refused": error.message}, tally, started)
            raise
        trial = _commit(plan, adapter, table, results)
    users = sum(result.rows for result in results)
    return _finish(summary | {"users": users, "trial": trial.to_dict()}, tally, started)


@dataclass(frozen=True)
class _Written:
    rows: int
    digest: str
    tally: Tally


def _rows(plan: tasks.Plan, config: IngestConfig, tally: Tally) -> list[_Written]:
    """Both phases; counts go into `tally`."""
    for found in run_tasks(
        partial(_map, plan), range(len(plan.items)), backend=config.backend, progress="reading the trial"
    ):
        tally.add(found)
    refuse_over(tally, config.max_bad_share, plan.quarantine)
    buckets = range(plan.info.n_buckets)
    results = run_tasks(partial(_reduce, plan), buckets, backend=config.backend, progress="trial by user")
    for result in results:
        tally.add(result.tally)
    refuse_over(tally, config.max_bad_share, plan.quarantine)
    if not any(result.rows for result in results):
        raise DataError(f"{plan.items[0].path}: no rows that could be used", hint=f"see {plan.quarantine}")
    return results


def _map(plan: tasks.Plan, index: int) -> Tally:
    adapter, item = _adapter(plan), plan.items[index]
    raw = adapter.read(item)
    checked = check_trial(raw.table, adapter.reading(plan.info), adapter.control, adapter.origin(item))
    staged = tasks.placed(checked, raw, index)
    write_shards(bucketise(staged, plan.info.n_buckets), plan.stage("rows"), index)
    everywhere = np.ones(raw.table.num_rows, dtype=bool)
    return tasks.set_aside(plan, f"trial-{index:05d}", item, raw, checked, everywhere)


def _reduce(plan: tasks.Plan, bucket: int) -> _Written:
    adapter = _adapter(plan)
    staged = read_shards(plan.stage("rows"), bucket, len(plan.items)).combine_chunks()
    again = repeated(staged, ["user_id"])
    tally = tasks.set_aside_staged(
        plan, f"again-{bucket:05d}", plan.items, staged.filter(pa.array(again)), "duplicate_user"
    )
    rows = staged.filter(pa.array(~again)).sort_by("user_id")
    if not rows.num_rows:
        return _Written(0, "", tally)
    table, day = DayTable(Path(plan.root) / "trial"), day_number(adapter.start_day)
    table.write(day, plan.gen, bucket, trial_table(rows, plan.info.features, adapter.days))
    with open(table.path(day, plan.gen, bucket), "rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()[:24]
    return _Written(rows.num_rows, digest, tally)


def trial_table(rows: pa.Table, schema: FeatureSchema, days: int) -> pa.Table:
    """Checked rows (`check_trial`) -> rows of the trial table; `days` is how long the response was measured."""
    numeric = [name for name, kind in schema.profile.items() if kind == "numeric"]
    values = np.empty((rows.num_rows, len(numeric)), dtype=np.float32)
    for j, name in enumerate(numeric):
        values[:, j] = rows[name].to_numpy()
    categorical = {
        f"profile.{name}": rows[name].combine_chunks()
        for name, kind in schema.profile.items()
        if kind == "categorical"
    }
    raw = RawFeatures(schema, values, categorical, {})
    lead = {name: rows[name] for name in ("user_id", "arm", "response")}
    lead["days"] = pa.array(np.full(rows.num_rows, days, dtype=np.int16))
    if "part" in rows.column_names:
        lead["part"] = rows["part"]
    return pa.table({**lead, **raw.to_columns()})


def _commit(
    plan: tasks.Plan, adapter: TrialAdapter, table: DayTable, results: list[_Written]
) -> TrialSummary:
    warehouse = Warehouse.create(plan.root, plan.info)
    day, before = day_number(adapter.start_day), table.entries()
    counts = {bucket: result.rows for bucket, result in enumerate(results)}
    inputs = config_hash([TRIAL_VERSION, [result.digest for result in results]], length=16)
    dropped = sorted(before.keys() - {day})
    changed = day not in before or before[day].inputs != inputs
    if changed or dropped:
        table.commit(plan.gen, {day: counts} if changed else {}, {day: inputs}, drop=dropped)
    written = sum(counts.values()) if changed else 0
    lists = ([day], []) if changed else ([], [day])
    return TrialSummary(*lists, dropped, written, 0, trial_arms(warehouse))


def _adapter(plan: tasks.Plan) -> TrialAdapter:
    adapter = plan.adapter()
    assert isinstance(adapter, TrialAdapter)
    return adapter


def _finish(summary: dict[str, Any], tally: Tally, started: float) -> dict[str, Any]:
    summary |= {
        "rows_read": tally.rows_read,
        "rows_in": tally.rows_in,
        "quarantined_rows": tally.bad_rows,
        "quarantined": dict(tally.reasons.most_common()),
        "seconds": round(time.monotonic() - started, 2),
    }
    write_json(Path(summary["quarantine"]) / "summary.json", summary)
    return summary
