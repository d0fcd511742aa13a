"""Where bad rows go: a table per ingest with reason, source and original values, counted and never dropped silently.

`<warehouse>/quarantine/<ingest id>/` holds Parquet files with the columns `reason` (several joined by `; `),
`source_file`, `source_row` (0-based, within the file's data rows) and the row's own values in their own types, and
`summary.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import DataError, StorageError
from plpm_ray.core.storage import read_parquet, write_parquet

SHOWN_CHARACTERS = 60


@dataclass
class Tally:
    """Rows seen and rows refused, by reason and file; tallies of tasks add up.

    Attributes:
        rows_read: rows of the input.
        rows_outside: rows left alone because they belong to other days than those asked for.
        bad_rows: rows in quarantine.
        reasons: reason -> rows; a row with two reasons counts for both, so these may sum to more than `bad_rows`.
        by_file: (file, reason) -> rows.
        examples: (file, reason) -> (source_row, values) of the first such row.
    """

    rows_read: int = 0
    rows_outside: int = 0
    bad_rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    by_file: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], tuple[int, dict[str, Any]]] = field(default_factory=dict)

    @property
    def rows_in(self) -> int:
        """Rows that had to become sessions or go to quarantine."""
        return self.rows_read - self.rows_outside

    def add(self, other: Tally) -> None:
        self.rows_read += other.rows_read
        self.rows_outside += other.rows_outside
        self.bad_rows += other.bad_rows
        self.reasons.update(other.reasons)
        self.by_file.update(other.by_file)
        self.examples = {**other.examples, **self.examples}


def write_rows(
    folder: str | Path, part: str, table: pa.Table, reasons: pa.Array, files: pa.Array, rows: np.ndarray
) -> Tally:
    """Writes bad rows as one Parquet file of a quarantine folder.

    Args:
        folder: the ingest's quarantine folder.
        part: file name without ending; a repeated task writes the same one again.
        table: (b,) the rows with their original values.
        reasons: (b,) strings, several joined by `; `.
        files: (b,) strings, the source files.
        rows: (b,) int64, positions in them.

    Returns:
        Counts and examples of these rows (`rows_read` 0).

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    if table.num_rows == 0:
        return Tally()
    taken = {"reason", "source_file", "source_row"}
    own = [f"original.{name}" if name in taken else name for name in table.column_names]
    lead = pa.table({"reason": reasons, "source_file": files, "source_row": pa.array(rows, pa.int64())})
    for name, column in zip(own, table.columns, strict=True):
        lead = lead.append_column(name, column)
    write_parquet(Path(folder) / f"{part}.parquet", lead)
    return _count(lead)


def read_rows(root: str | Path, ingest_id: str | None = None) -> pa.Table:
    """The quarantine of one ingest (the latest by default) as one table, columns of all its files united.

    Args:
        root: the warehouse.
        ingest_id: name of the folder under `quarantine/`.

    Raises:
        StorageError: there was no such ingest.
    """
    home = Path(root) / "quarantine"
    found = sorted(p.name for p in home.iterdir() if p.is_dir()) if home.is_dir() else []
    if not found or (ingest_id is not None and ingest_id not in found):
        raise StorageError(
            f"{home} holds no ingest{f' {ingest_id!r}' if ingest_id else ''}", hint=f"it holds {found}"
        )
    tables = [read_parquet(path) for path in sorted((home / (ingest_id or found[-1])).glob("*.parquet"))]
    if not tables:
        return pa.table(
            {"reason": pa.array([], pa.string()), "source_file": pa.array([], pa.string())}
        ).append_column("source_row", pa.array([], pa.int64()))
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:  # the same column as text here and number there: show both as text
        return pa.concat_tables([_as_text(t) for t in tables], promote_options="permissive")


def refuse_over(tally: Tally, limit: float, folder: str | Path, what: str = "rows") -> None:
    """Stops an ingest with too many bad rows.

    Args:
        tally: what was counted so far.
        limit: largest share of bad rows, 0 to 1.
        folder: quarantine folder, named in the message.
        what: name of the rows in the message.

    Raises:
        DataError: the share is larger; names the file and rule with most bad rows, the counts and an example row.
    """
    if tally.bad_rows <= limit * tally.rows_in:
        return
    (file, rule), worst = tally.by_file.most_common(1)[0]
    row, values = tally.examples[file, rule]
    counts = ", ".join(f"{reason} {count:,}" for reason, count in tally.reasons.most_common())
    share = tally.bad_rows / max(tally.rows_in, 1)
    raise DataError(
        f"{tally.bad_rows:,} of {tally.rows_in:,} {what} ({share:.2%}) break a rule, more than the {limit:.2%} that "
        f"max_bad_share allows: {counts}. Most in {file}: {rule} in {worst:,} rows, for example row {row:,}: "
        f"{_shown(values)}",
        hint="mend the logs or the column mapping, or raise max_bad_share; nothing was committed, and all bad rows lie "
        f"in {folder}",
    )


def _count(table: pa.Table) -> Tally:
    tally = Tally(bad_rows=table.num_rows)
    keyed = table.select(["source_file", "reason"]).append_column("at", pa.array(np.arange(table.num_rows)))
    groups = keyed.group_by(["source_file", "reason"]).aggregate([("at", "count"), ("at", "min")])
    for group in groups.sort_by("at_min").to_pylist():
        for reason in group["reason"].split("; "):
            key = (group["source_file"], reason)
            tally.reasons[reason] += group["at_count"]
            tally.by_file[key] += group["at_count"]
            if key not in tally.examples:
                tally.examples[key] = _example(table, group["at_min"])
    return tally


def _example(table: pa.Table, at: int) -> tuple[int, dict[str, Any]]:
    row = table.slice(at, 1).to_pylist()[0]
    return row["source_row"], {
        k: v for k, v in row.items() if k not in ("reason", "source_file", "source_row")
    }


def _shown(values: Mapping[str, Any]) -> str:
    def short(value: Any) -> str:
        text = value.isoformat() if hasattr(value, "isoformat") else repr(value)
        return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."

    return ", ".join(
        f"{name}={short(value)}" for name, value in values.items() if value is not None or name == "user_id"
    )


def _as_text(table: pa.Table) -> pa.Table:
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        scalar = not pa.types.is_nested(column.type)
        if name == "source_row":
            columns[name] = column
        else:
            columns[name] = (
                column.cast(pa.string())
                if scalar
                else pa.array([None if v is None else str(v) for v in column.to_pylist()])
            )
    return pa.table(columns)
