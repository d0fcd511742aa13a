"""Fits the feature spec and the arms' totals on the training users of a trial, bucket by bucket, and remembers them.

The totals of sessions (landings, use by hour) are zeros: they belong to days, and a learner of users reads none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from plpm_ray.core.errors import DataError
from plpm_ray.core.feature_fitting import SpecFitter
from plpm_ray.core.features import FeatureSpec, RawFeatures
from plpm_ray.core.stats import TableStats
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import no_stats, remembered
from plpm_ray.data.ray_exec import Backend, run_tasks
from plpm_ray.data.split import TRAIN, UserSplitConfig
from plpm_ray.data.trials import read_part

_VERSION = 1
_SAMPLE_ROWS = 200_000


def fit_trial(
    warehouse: Warehouse, split: UserSplitConfig, *, backend: Backend = "local", workers: int | None = None
) -> tuple[FeatureSpec, TableStats]:
    """The encoder, and the totals with `arm_users` and `arm_response`, of a trial's training users.

    They are kept in `<root>/fitted/<fingerprint>.json` and read from there as long as the trial table is the same.

    Args:
        warehouse: with a trial table.
        split: which users train.
        backend, workers: as in `run_tasks`; the result does not depend on them.

    Raises:
        DataError: there is no trial, or no user in the training part; or the official split is asked for and the data
            came without one.
    """
    need_trial(warehouse)
    schema, table = warehouse.info.features, warehouse.trial
    users = split.model_dump()
    key = ["trial", _VERSION, table.fingerprint(), schema.to_dict(), users]
    return remembered(warehouse, key, lambda: _fit(warehouse, split, backend, workers), {"users": users})


def _fit(
    warehouse: Warehouse, split: UserSplitConfig, backend: Backend, workers: int | None
) -> tuple[FeatureSpec, TableStats]:
    schema = warehouse.info.features
    buckets = range(warehouse.info.n_buckets)
    items = [_Part(warehouse.root, b, split, max(200, _SAMPLE_ROWS // len(buckets))) for b in buckets]
    k = len(schema.pages)
    fitter, users, response = SpecFitter(schema), np.zeros(k + 1), np.zeros(k + 1)
    for part_fitter, part_users, part_response in run_tasks(
        _fit_bucket, items, backend=backend, workers=workers, progress="fitting features"
    ):
        fitter.merge(part_fitter)
        users += part_users
        response += part_response
    if not users.sum():
        raise DataError(
            f"{warehouse.trial.root} holds no users of the part 'train'",
            hint="lower `users.test_share`, or give more users",
        )
    return fitter.finish(), replace(no_stats(k), arm_users=users, arm_response=response)


def need_trial(warehouse: Warehouse) -> None:
    """Raises: DataError where the warehouse has no trial table; says how to come by one."""
    if any(entry.total for entry in warehouse.trial.entries().values()):
        return
    if warehouse.assignments_file.exists():
        raise DataError(
            f"the trial table of {warehouse.root} is not built",
            hint="run `plpm data` on the dataset's config",
        )
    raise DataError(
        f"this learner needs a randomised trial: the dataset in {warehouse.root} has no assignments",
        hint="give `assignments:` (user, arm, first and last day) in the `dataset:` section and run `plpm data`; or make "
        "tables of a trial's users, with dataset `trial` for your own",
    )


@dataclass(frozen=True)
class _Part:
    root: Path
    bucket: int
    split: UserSplitConfig
    sample_rows: int


def _fit_bucket(part: _Part) -> tuple[SpecFitter, np.ndarray, np.ndarray]:
    """The bucket's features, users by arm and sums of their responses."""
    warehouse = Warehouse.open(part.root)
    schema = warehouse.info.features
    k = len(schema.pages)
    fitter = SpecFitter(schema, sample_rows=part.sample_rows)
    table = read_part(warehouse, part.bucket, part.split, TRAIN)
    if table is None or not table.num_rows:
        return fitter, np.zeros(k + 1), np.zeros(k + 1)
    fitter.update(RawFeatures.from_table(schema, table))
    arm, response = table["arm"].to_numpy(), table["response"].to_numpy().astype(np.float64)
    return (
        fitter,
        np.bincount(arm, minlength=k + 1).astype(np.float64),
        np.bincount(arm, weights=response, minlength=k + 1),
    )
