"""Reads logged decisions of some days out of a warehouse, whole users at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.hashing import splitmix64, user_hash
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.evaluation.held_out import Decisions

_SAMPLE_SALT = np.uint64(0x5EED)
_PARTS = 1 << 16


def read_decisions(warehouse: Warehouse, days: Sequence[int], max_sessions: int | None = None) -> tuple[Decisions, float]:
    """Decisions of the given days in the order bucket, day, user, entry.

    Args:
        warehouse: holds built transitions.
        days: local days.
        max_sessions: above this number whole users are sampled by a hash of their id, the same ones every time.

    Returns:
        The decisions, and the share of users kept (1.0 where nothing was sampled).

    Raises:
        DataError: no sessions on these days, or the features were not built for all of them.
    """
    table = warehouse.transitions
    entries = table.entries()
    lacking = [day_name(d) for d in days if d not in entries]
    if lacking:
        raise DataError(f"{table.root} has no transitions of {lacking[0]}", hint="run `plpm data` for these days")
    total = sum(entries[d].total for d in days)
    share = min(1.0, max_sessions / total) if max_sessions and total else 1.0
    parts = [_sampled(part, share) for b in range(warehouse.info.n_buckets) if (part := table.read(b, days)) is not None]
    if not parts or not sum(p.num_rows for p in parts):
        raise DataError(f"no sessions on {', '.join(map(day_name, days))}", hint="check the split and the tables")
    return decisions(warehouse, pa.concat_tables(parts).combine_chunks()), share


def _sampled(table: pa.Table, share: float) -> pa.Table:
    if share >= 1:
        return table
    part = splitmix64(user_hash(table["user_id"]) ^ _SAMPLE_SALT) % np.uint64(_PARTS)
    return table.filter(pa.array(part < np.uint64(round(share * _PARTS))))


def decisions(warehouse: Warehouse, table: pa.Table) -> Decisions:
    """Rows of the transition table as decisions; an episode is a user's local day."""
    users = table["user_id"].combine_chunks()
    step = table["step"].to_numpy().astype(np.int64)
    return Decisions(
        features=RawFeatures.from_table(warehouse.info.features, table),
        action=table["landing_page"].to_numpy().astype(np.int64),
        use_s=table["use_s"].to_numpy().astype(np.float64),
        user=users.to_numpy(zero_copy_only=False),
        # rows of a user-day stand together and begin with step 0
        episode=np.cumsum(step == 0),
        step=step,
        propensity=table["propensity"].to_numpy(zero_copy_only=False).astype(np.float64),
    )
