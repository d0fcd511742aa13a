"""Who was in which arm of a randomised trial, and from when to when: read, checked and stored as one table.

| reason | rule that the row breaks |
|---|---|
| null_user | the id is missing (null or an empty string) |
| null_day | both days are there |
| start_after_end | start_day <= end_day |
| overlapping_assignment | periods of one user share no day; the first, in the order of files and rows, stays |

Both days belong to the period. The table is small beside the logs (a row per user and trial), and is held in memory.
"""

# pyarrow makes most functions of `compute` while it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.data import normalise as to
from plpm_ray.data.contract import DatasetInfo
from plpm_ray.data.datasets.base import Adapter
from plpm_ray.data.quarantine import Tally, write_rows
from plpm_ray.data.visits import Findings, column_of


def read_assignments(adapter: Adapter, info: DatasetInfo, quarantine: str) -> tuple[pa.Table, Tally]:
    """All assignments of a dataset.

    Returns:
        Good rows in `info.assignments_schema`, sorted by (user_id, start_day), and the counts; bad rows lie in the
        quarantine folder.

    Raises:
        DataError: a file is unreadable, or a column is missing or of a type that cannot be read.
    """
    tally, good, originals, files, at = Tally(), [], [], [], []
    for index, item in enumerate(adapter.assignment_inputs()):
        raw = adapter.read_assignments(item)
        table, found = check_assignments(raw.table, info, adapter.assignment_origin(item))
        original = raw.table if raw.original is None else raw.original
        bad = np.flatnonzero(found.bad)
        tally.rows_read += len(found.bad)
        tally.add(
            write_rows(
                quarantine,
                f"assignments-{index:05d}",
                original.take(pa.array(bad)),
                found.reasons(bad),
                pa.array([item.path] * len(bad), pa.string()),
                item.first_row + bad,
            )
        )
        kept = np.flatnonzero(~found.bad)
        good.append(table)
        originals.append(original.take(pa.array(kept)))
        files += [item.path] * len(kept)
        at.append(item.first_row + kept)
    if not good:
        return info.assignments_schema.empty_table(), tally
    table = pa.concat_tables(good).combine_chunks()
    again = overlapping(table)
    rows = pa.array(np.flatnonzero(again))
    part = pa.concat_tables(originals, promote_options="permissive").take(rows)
    reasons = pa.array(["overlapping_assignment"] * len(rows), pa.string())
    where = pa.array(files, pa.string()).take(rows)
    tally.add(write_rows(quarantine, "assignments-again", part, reasons, where, np.concatenate(at)[again]))
    table = table.filter(pa.array(~again))
    return table.sort_by([("user_id", "ascending"), ("start_day", "ascending")]), tally


def check_assignments(raw: pa.Table, info: DatasetInfo, origin: to.Origin) -> tuple[pa.Table, Findings]:
    """Raw assignments (n,) -> the good rows in stored form, and which rows break which rule.

    Raises:
        DataError: a column is missing or of a type that cannot be read; names file and column.
    """
    found = Findings(raw.num_rows)
    users, missing = to.ids(column_of(raw, "user_id", origin), "user_id", info.user_id, origin)
    found.mark("null_user", missing)
    arm = to.text(column_of(raw, "arm", origin), "arm", origin)
    start, end = (_days(raw, name, origin) for name in ("start_day", "end_day"))
    found.mark("null_day", to.nulls(start) | to.nulls(end))
    found.mark("start_after_end", to.mask(pc.greater(start, end)))
    table = pa.Table.from_arrays([users, arm, start, end], schema=info.assignments_schema)
    return table.filter(pa.array(~found.bad)), found


def overlapping(table: pa.Table) -> np.ndarray:
    """(n,) bool: rows that share a day with an earlier row of the same user that stays."""
    n = table.num_rows
    found = np.zeros(n, dtype=bool)
    users = to.contiguous(table["user_id"]).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    kept: dict[int, list[tuple[int, int]]] = {}
    counts = np.bincount(users, minlength=1) if n else np.zeros(1, dtype=int)
    start, end = (
        to.contiguous(table[name]).cast(pa.int32()).to_numpy(zero_copy_only=False)
        for name in ("start_day", "end_day")
    )
    for row in np.flatnonzero(counts[users] > 1).tolist():
        periods = kept.setdefault(int(users[row]), [])
        first, last = int(start[row]), int(end[row])
        found[row] = any(first <= b and a <= last for a, b in periods)
        if not found[row]:
            periods.append((first, last))
    return found


def _days(raw: pa.Table, name: str, origin: to.Origin) -> pa.Array:
    """(n,) date32 of dates, or of timestamps without a zone (their date)."""
    array = to.contiguous(column_of(raw, name, origin))
    kind = array.type
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    if zoned or not (pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_null(kind)):
        raise origin.wrong_type(name, kind, "dates", "give local days as Parquet dates")
    return array.cast(pa.date32(), safe=False)
