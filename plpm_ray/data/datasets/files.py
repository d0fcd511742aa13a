"""Parquet and CSV files cut into work items: row groups of the one, whole lines of the other."""

# pyarrow makes most functions of `compute` while it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import csv
import glob
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from plpm_ray.core.errors import DataError
from plpm_ray.core.storage import read_parquet, storage_errors
from plpm_ray.data.datasets.base import Raw, Slice

ROWS_PER_SLICE = 1_000_000
_READ_AHEAD = 1 << 20


def parquet_files(path: str) -> list[Path]:
    """Parquet files of a file, folder (searched in depth) or glob pattern, in the order of their paths.

    Names that begin with `_` or `.` are left out, as Spark and Hive do.

    Raises:
        DataError: there are none.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return [given.resolve()]
    found = given.rglob("*.parquet") if given.is_dir() else map(Path, glob.glob(str(given), recursive=True))
    files = sorted(f.resolve() for f in found if f.is_file() and not f.name.startswith(("_", ".")))
    if not files:
        raise DataError(
            f"no Parquet files at {path!r}",
            hint="give a file, a folder or a pattern such as logs/**/*.parquet",
        )
    return files


def parquet_slices(
    files: Sequence[Path], rows_per_slice: int = ROWS_PER_SLICE
) -> tuple[list[Slice], dict[str, pa.Schema]]:
    """Reads every footer and cuts the files at row groups.

    Returns:
        Slices of about `rows_per_slice` rows (a row group is never cut), and file -> schema.

    Raises:
        DataError: a file cannot be read as Parquet; the message names it.
    """
    slices: list[Slice] = []
    schemas: dict[str, pa.Schema] = {}
    for file in files:
        path = str(file)
        try:
            metadata = pq.read_metadata(path)
            schemas[path] = metadata.schema.to_arrow_schema()
        except (pa.ArrowException, OSError):
            read_parquet(path)  # raises the error that names the file
            raise
        start = first = row = 0
        for group in range(metadata.num_row_groups):
            row += metadata.row_group(group).num_rows
            if row - first >= rows_per_slice or group == metadata.num_row_groups - 1:
                slices.append(Slice(path, start, group + 1, first))
                start, first = group + 1, row
    return slices, schemas


def read_parquet_slice(item: Slice, columns: list[str]) -> pa.Table:
    """The rows of a slice.

    Raises:
        DataError: damaged file or missing column; names the file.
    """
    return read_parquet(item.path, columns, range(item.start, item.stop))


def csv_header(path: Path) -> list[str]:
    """Column names of the first line.

    Raises:
        DataError: the file is empty.
    """
    with storage_errors(f"reading {path}"), open(path, "rb") as file:
        line = file.readline().decode("utf-8-sig").strip("\r\n")
    if not line:
        raise DataError(f"{path} is empty", hint="copy the file again")
    return next(csv.reader([line]))


def csv_slices(path: Path, block_bytes: int, columns: Sequence[str]) -> list[Slice]:
    """Cuts a CSV file at line ends (no field may hold a line break) and counts the lines.

    Raises:
        DataError: the file is empty or lacks a column; names file and column.
    """
    header = csv_header(path)
    for name in columns:
        if name not in header:
            raise DataError(f"{path} has no column {name!r}", hint=f"it holds {', '.join(header)}")
    slices: list[Slice] = []
    with storage_errors(f"reading {path}"), open(path, "rb") as file:
        start = len(file.readline())
        row = 0
        while True:
            lines, size = 0, 0
            while size < block_bytes and (block := file.read(min(block_bytes - size, _READ_AHEAD))):
                size += len(block)
                lines += block.count(b"\n")
            rest = file.readline()
            size += len(rest)
            if not size:
                return slices
            slices.append(Slice(str(path), start, start + size, row))
            start, row = start + size, row + lines + bool(rest)


def read_csv_slice(item: Slice, types: Mapping[str, pa.DataType], header: list[str] | None = None) -> Raw:
    """Rows of a CSV slice.

    Cells that do not parse become null and the row's text is kept as `original`, for quarantine; lines with too few or
    too many fields come out as `rejected`.

    Args:
        item: from `csv_slices`.
        types: column -> int64, float64 or string.
        header: column names of the file; read from it by default.
    """
    header = header or csv_header(Path(item.path))
    with storage_errors(f"reading {item.path}"), open(item.path, "rb") as file:
        file.seek(item.start)
        data = file.read(item.stop - item.start)
    try:
        table, rejected = _parse(data, header, types)
        return Raw(table, _kept_rows(table, rejected), rejected=rejected)
    except pa.ArrowInvalid:
        pass
    try:
        text, rejected = _parse(data, header, dict.fromkeys(types, pa.string()))
    except pa.ArrowInvalid as error:
        raise DataError(f"{item.path} cannot be read as CSV: {error}", hint="copy the file again") from None
    converted = pa.table({name: _convert(text[name], kind) for name, kind in types.items()})
    return Raw(converted, _kept_rows(text, rejected), original=text, rejected=rejected)


def _parse(
    data: bytes, header: list[str], types: Mapping[str, pa.DataType]
) -> tuple[pa.Table, pa.Table | None]:
    bad: list[tuple[int, str]] = []

    def reject(row: pacsv.InvalidRow) -> str:
        bad.append((row.number, row.text))
        return "skip"

    table = pacsv.read_csv(
        io.BytesIO(data),
        read_options=pacsv.ReadOptions(use_threads=False, column_names=header, block_size=max(len(data), 1)),
        parse_options=pacsv.ParseOptions(invalid_row_handler=reject, ignore_empty_lines=False),
        convert_options=pacsv.ConvertOptions(
            column_types=dict(types),
            include_columns=list(types),
            strings_can_be_null=True,
            null_values=["", "NULL", "null", "nan"],
        ),
    )
    if not bad:
        return table, None
    numbers, texts = zip(*bad, strict=True)
    return table, pa.table(
        {"text": pa.array(texts, pa.string()), "row": pa.array(np.array(numbers) - 1, pa.int64())}
    )


def _kept_rows(table: pa.Table, rejected: pa.Table | None) -> np.ndarray | None:
    if rejected is None:
        return None
    everything = np.arange(table.num_rows + rejected.num_rows)
    return np.delete(everything, rejected["row"].to_numpy())


def _convert(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Strings -> numbers; null where the text is none."""
    if pa.types.is_string(kind):
        return column
    pattern = (
        r"^[+-]?\d{1,18}$" if pa.types.is_integer(kind) else r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"
    )
    fits = pc.match_substring_regex(column, pattern)
    return pc.if_else(fits, column, pa.scalar(None, pa.string())).cast(kind)


def natural(path: Path) -> tuple[str | int, ...]:
    """Sort key that puts part2 before part10."""
    return tuple(int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name))
