"""Column conversions: whatever Arrow types the logs use -> the few that are stored.

A wrong *type* is a mistake in the file or the mapping and raises at once, naming file and column. A wrong *value* is
one bad row: the conversions here return masks, and `plpm_ray.data.validate` turns them into quarantine reasons.

Shapes: n rows of a table, m values of all its lists together.
"""

# pyarrow makes most functions of `compute` while it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.config import nearest
from plpm_ray.core.errors import DataError
from plpm_ray.data.contract import IdType

TimeUnit = Literal["s", "ms", "us", "ns"]
DurationUnit = Literal["s", "ms"]

_PER_MS: dict[str, tuple[int, int]] = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}


@dataclass(frozen=True)
class Origin:
    """Where a table came from, for messages: the file, and canonical column -> the file's own column name."""

    file: str
    columns: Mapping[str, str] = field(default_factory=dict)

    def own(self, name: str) -> str:
        return self.columns.get(name, name)

    def column(self, name: str) -> str:
        """`column 'uid' (read as 'user_id')`."""
        own = self.own(name)
        return f"column {own!r}" if own == name else f"column {own!r} (read as {name!r})"

    def wrong_type(self, name: str, kind: pa.DataType, needed: str, hint: str | None = None) -> DataError:
        return DataError(
            f"{self.file}: {self.column(name)} is {kind}, it must be {needed}",
            hint=hint or "cast it in the file, or map another column with `columns:`",
        )

    def missing(self, name: str, present: list[str]) -> DataError:
        own = self.own(name)
        if own != name:
            hint = f"`columns: {{{name}: {own}}}` names a column that is not there; {nearest(own, present)}"
        else:
            hint = f"write `columns: {{{name}: <your column>}}`; {nearest(name, present)}"
        return DataError(f"{self.file} has no {self.column(name)}; it holds {', '.join(present)}", hint=hint)


def contiguous(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array without dictionary encoding."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def id_type(kind: pa.DataType) -> IdType | None:
    """Stored type of an id column; None where it cannot be an id."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return "int64"
    return "string" if is_text(kind) else None


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def ids(column: pa.ChunkedArray, name: str, stored: IdType, origin: Origin) -> tuple[pa.Array, np.ndarray]:
    """User or session ids.

    Args:
        column: (n,) integers or strings.
        name: canonical column name.
        stored: the type of this dataset's ids.
        origin: for messages.

    Returns:
        (n,) int64 or string array; (n,) bool mask of nulls and empty strings.

    Raises:
        DataError: neither integers nor strings, integers where the dataset has strings or the other way round, or an
            unsigned integer beyond int64.
    """
    array = contiguous(column)
    found = id_type(array.type)
    if found is None and not pa.types.is_null(array.type):
        advice = (
            "pandas turns integers with gaps into floats; use its Int64 type, or strings"
            if pa.types.is_floating(array.type)
            else None
        )
        raise origin.wrong_type(name, array.type, "integers or strings", advice)
    if found is not None and found != stored:
        raise origin.wrong_type(
            name, array.type, f"{stored} as in the dataset's other files", "use one type of id everywhere"
        )
    try:
        array = array.cast(pa.int64() if stored == "int64" else pa.string())
    except pa.ArrowInvalid:
        raise origin.wrong_type(
            name, array.type, "within int64", "give ids beyond int64 as strings"
        ) from None
    missing = nulls(array)
    if stored == "string":
        missing |= mask(pc.equal(pc.binary_length(array), 0))
    return array, missing


def times_ms(
    column: pa.ChunkedArray, name: str, unit: TimeUnit, origin: Origin
) -> tuple[np.ndarray, np.ndarray]:
    """Instants.

    Args:
        column: (n,) timestamps of any unit (without a zone they are UTC), or integers since 1970 UTC in `unit`.
        name, origin: for messages.
        unit: of integers.

    Returns:
        (n,) int64, ms since 1970 UTC, 0 where null; (n,) bool mask of nulls.

    Raises:
        DataError: another type.
    """
    array = contiguous(column)
    if pa.types.is_timestamp(array.type):
        unit, array = array.type.unit, array.view(pa.int64())
    elif not (pa.types.is_integer(array.type) or pa.types.is_null(array.type)):
        raise origin.wrong_type(
            name,
            array.type,
            "timestamps or integers since 1970 (UTC)",
            "parse the times in the file; `time_unit` says what integers mean",
        )
    empty = nulls(array)
    values = array.cast(pa.int64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False)
    up, down = _PER_MS[unit]
    if up > 1:
        far = np.abs(values) > (1 << 62) // up
        return np.where(far, np.iinfo(np.int64).max, values * np.where(far, 0, up)), empty
    return (values // down if down > 1 else values), empty


def numbers(array: pa.Array | pa.ChunkedArray, name: str, origin: Origin) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of any type.

    Returns:
        float64 values, 0 where null; bool mask of nulls. NaN and infinities are kept.

    Raises:
        DataError: the column is not numeric.
    """
    array = contiguous(array)
    kind = array.type
    numeric = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )
    if not (numeric or pa.types.is_null(kind)):
        raise origin.wrong_type(name, kind, "numeric")
    empty = nulls(array)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    values = array.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy(zero_copy_only=False)
    return values, empty


def integers(array: pa.Array | pa.ChunkedArray, name: str, origin: Origin) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers: int64 values, 0 where null; bool mask of nulls.

    Raises:
        DataError: the column is not of an integer type.
    """
    array = contiguous(array)
    if not (pa.types.is_integer(array.type) or pa.types.is_null(array.type)):
        raise origin.wrong_type(name, array.type, "integers")
    return array.cast(pa.int64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False), nulls(array)


def text(column: pa.ChunkedArray, name: str, origin: Origin) -> pa.Array:
    """(n,) strings of strings, integers, booleans or floats (NaN becomes null).

    Raises:
        DataError: another type.
    """
    array = contiguous(column)
    kind = array.type
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
    elif not (
        is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    ):
        raise origin.wrong_type(name, kind, "strings, numbers or booleans")
    return array.cast(pa.string())


@dataclass(frozen=True)
class Lists:
    """A list column: (n,) lengths (0 where null), (n,) null mask, and the (m,) values one after the other."""

    lengths: np.ndarray
    null: np.ndarray
    values: pa.Array

    def rows_with(self, bad: np.ndarray) -> np.ndarray:
        """(n,) bool: which rows hold at least one of the (m,) marked values."""
        found = np.zeros(len(self.lengths), dtype=bool)
        found[np.repeat(np.arange(len(self.lengths)), self.lengths)[bad]] = True
        return found

    def values_of(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: which values belong to the (n,) marked rows."""
        return np.repeat(rows, self.lengths)


def lists(column: pa.ChunkedArray, name: str, origin: Origin) -> Lists:
    """Takes a list column apart.

    Raises:
        DataError: the column is not a list.
    """
    array = contiguous(column)
    kind = array.type
    if pa.types.is_null(kind):
        n = len(array)
        return Lists(np.zeros(n, dtype=np.int64), np.ones(n, dtype=bool), pa.nulls(0))
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise origin.wrong_type(
            name,
            kind,
            "a list",
            "one list per session: pages in the order they were seen, with a dwell time each",
        )
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return Lists(lengths, nulls(array), contiguous(array.flatten()))


def nulls(array: pa.Array) -> np.ndarray:
    """(n,) bool, writable."""
    return mask(array.is_null()) if array.null_count else np.zeros(len(array), dtype=bool)


def mask(array: pa.Array) -> np.ndarray:
    """(n,) bool, writable; null counts as False."""
    return np.array(array.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)
