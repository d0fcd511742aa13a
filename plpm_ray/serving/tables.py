"""Reads what callers hand in (entries, sessions, profiles) into arrays: any time unit, page names or positions, missing columns.

What does not fit is refused with the column's name and the first row at fault. Letters: B rows.
"""

# pyarrow makes most functions of `compute` while it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import ColumnKind
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.data.contract import REQUIRED_COLUMNS, SESSION_COLUMNS, DatasetInfo, IdType
from plpm_ray.data.normalise import Origin, id_type, is_text
from plpm_ray.data.validate import EARLIEST_MS, LATEST_MS, MAX_OFFSET_MIN, Reading, check_sessions
from plpm_ray.serving.store import Profiles, Users

_ABOVE_0 = "numbers of 0 or more, one for each of pages"
_AT_MOST = "at most 366 days (dwell_s, watch_s) and a million views on a page"
_RULES = {
    "null_user": ("user_id", "an integer or a string"),
    "null_session_id": ("session_id", "an integer or a string"),
    "exit_before_entry": ("exit_time", "a time at or after entry_time"),
    "unknown_page": ("pages", "pages of the catalogue"),
    "empty_pages": ("pages", "at least one page"),
    "landing_not_first": ("landing_page", "the first of pages"),
    "unequal_lists": ("dwell_s", "lists as long as pages (dwell_s, video_views, watch_s)"),
    "null_dwell": ("dwell_s", _ABOVE_0),
    "negative_dwell": ("dwell_s", _ABOVE_0),
    "excessive_dwell": ("dwell_s", _AT_MOST),
    "non_finite": ("dwell_s", "finite numbers (dwell_s, watch_s, context)"),
    "null_views": ("video_views", _ABOVE_0),
    "negative_views": ("video_views", _ABOVE_0),
    "excessive_views": ("video_views", _AT_MOST),
    "null_watch": ("watch_s", _ABOVE_0),
    "negative_watch": ("watch_s", _ABOVE_0),
    "excessive_watch": ("watch_s", _AT_MOST),
    "propensity_range": ("propensity", "a probability above 0 and at most 1, or null"),
}
"""Rule of `plpm_ray.data.validate` -> the field it speaks of, and what is expected there."""
_HAS_OFFSET = r"(Z|z|[+-]\d\d:?\d\d)$"


class FieldError(DataError):
    """A value handed in does not fit. `field` names the column or JSON field, `expected` says what it should be."""

    def __init__(self, field: str, problem: str, expected: str) -> None:
        super().__init__(f"{field}: {problem}", hint=f"expected {expected}")
        self.field = field
        self.problem = problem
        self.expected = expected

    def __reduce__(self):
        return type(self), (self.field, self.problem, self.expected)


@dataclass(frozen=True)
class Entries:
    """B app entries.

    Attributes:
        users: who enters.
        entry_ms: (B,) int64 UTC milliseconds.
        offset_min: (B,) int64 minutes that local time is ahead of UTC.
        context: column -> (B,) float32 (NaN = missing) or Arrow strings (null = missing), all columns of the schema.
    """

    users: Users
    entry_ms: np.ndarray
    offset_min: np.ndarray
    context: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.entry_ms)

    def take(self, rows: np.ndarray) -> Entries:
        """The entries at the given positions."""
        index = pa.array(rows)
        context = {
            k: v[rows] if isinstance(v, np.ndarray) else v.take(index) for k, v in self.context.items()
        }
        return Entries(self.users.take(rows), self.entry_ms[rows], self.offset_min[rows], context)


def read_entries(table: pa.Table, context: Mapping[str, ColumnKind]) -> Entries:
    """App entries: user_id, entry_time, and optionally utc_offset_min (default 0) and context columns (default missing).

    Raises:
        FieldError: a column is missing or holds something else; the message names it.
    """
    users = read_users(table)
    entry_ms = read_time(table, "entry_time")
    offset = read_offset(table)
    return Entries(users, entry_ms, offset, read_columns(table, context))


def read_sessions(table: pa.Table, pages: PageCatalogue, context: Mapping[str, ColumnKind]) -> pa.Table:
    """Finished sessions in canonical form -> stored form, rows in order.

    Args:
        table: columns of `contract.SESSION_COLUMNS` and context columns; what is optional may be missing. Pages are names or
            aliases, or int16 positions as in stored tables (in a catalogue without integer aliases, integers of any type).
        pages: catalogue.
        context: context column -> kind.

    Raises:
        FieldError: a column is missing, or a row breaks a rule of `plpm_ray.data.validate`.
    """
    for name in REQUIRED_COLUMNS:
        _column(table, name, "the canonical sessions table")
    kinds: dict[str, IdType] = {name: _id_type(table, name) for name in ("user_id", "session_id")}
    table = table.select([n for n in table.column_names if n in (*SESSION_COLUMNS, *context)])
    for name in ("entry_time", "exit_time"):
        table = _replaced(table, name, pa.array(read_time(table, name)))
    table = _replaced(table, "utc_offset_min", pa.array(read_offset(table)))
    for name, column in read_columns(table, context).items():
        table = _replaced(
            table, name, pa.array(column, from_pandas=True) if isinstance(column, np.ndarray) else column
        )
    for name in ("landing_page", "pages"):
        table = _replaced(table, name, _named(_column(table, name, "page names"), pages))
    info = DatasetInfo(
        "sessions",
        pages,
        dict(context),
        user_id=kinds["user_id"],
        session_id=kinds["session_id"],
    )
    checked = check_sessions(table, Reading(info), Origin("sessions"))
    if checked.findings.bad.any():
        row = int(np.argmax(checked.findings.bad))
        rule = next(rule for rule, rows in checked.findings.masks.items() if rows[row])
        field, expected = _RULES.get(rule, ("sessions", "rows that keep the rules of the sessions table"))
        raise FieldError(field, f"row {row} breaks the rule {rule}", expected)
    return checked.table


def _id_type(table: pa.Table, name: str) -> IdType:
    kind = id_type(table.schema.field(name).type)
    if kind is None:
        raise FieldError(name, f"the column is {table.schema.field(name).type}", "integers or strings")
    return kind


def _named(column: pa.Array, pages: PageCatalogue) -> pa.Array:
    """Page positions -> names; other page values stay as they are."""
    listed = not (
        pa.types.is_integer(column.type) or is_text(column.type) or pa.types.is_dictionary(column.type)
    )
    values = column.values if listed and hasattr(column, "values") else column
    aliases = any(raw.lstrip("-").isdigit() for page in pages.pages for raw in map(str, page.values))
    if not pa.types.is_integer(values.type) or (aliases and values.type != pa.int16()):
        return column
    numbers = values.cast(pa.int64())
    outside = pc.or_(pc.less(numbers, 0), pc.greater_equal(numbers, len(pages)))
    known = pa.array(pages.names).take(pc.if_else(outside, pa.scalar(None, pa.int64()), numbers))
    if not listed:
        return known
    return type(column).from_arrays(column.offsets, known)


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.append_column(name, column) if at < 0 else table.set_column(at, name, column)


def read_users(table: pa.Table) -> Users:
    """The user_id column."""
    array = _column(table, "user_id", "integers or strings")
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_integer(array.type):
        array = array.cast(pa.int64())
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    else:
        raise FieldError("user_id", f"the column is {array.type}", "integers or strings")
    _no_nulls(array, "user_id", "integers or strings")
    return Users.of(array)


def read_time(table: pa.Table, name: str) -> np.ndarray:
    """A time column as (B,) int64 UTC milliseconds; timestamps of any unit, integers (ms) or ISO 8601 strings, UTC where they
    name no offset."""
    expected = "timestamps, ISO 8601 strings, or integers in milliseconds since 1970 (UTC)"
    array = _column(table, name, expected)
    _no_nulls(array, name, expected)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        bare = pc.invert(pc.match_substring_regex(array, _HAS_OFFSET))
        suffix = pc.if_else(bare, pa.scalar("Z", array.type), pa.scalar("", array.type))
        array = _cast(
            pc.binary_join_element_wise(array, suffix, pa.scalar("", array.type)),
            pa.timestamp("us", tz="UTC"),
            name,
            expected,
        )
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("ms", tz=array.type.tz), safe=False).cast(pa.int64())
    if not pa.types.is_integer(array.type):
        raise FieldError(name, f"the column is {array.type}", expected)
    times = _cast(array, pa.int64(), name, expected).to_numpy(zero_copy_only=False)
    outside = (times < EARLIEST_MS) | (times >= LATEST_MS)
    if outside.any():
        row = int(np.argmax(outside))
        raise FieldError(
            name, f"row {row} is {times[row]} ms", "times between 1990 and 2099; integers are milliseconds"
        )
    return times


def read_offset(table: pa.Table) -> np.ndarray:
    """utc_offset_min as (B,) int64; 0 where the column or a value is missing."""
    if "utc_offset_min" not in table.column_names:
        return np.zeros(table.num_rows, dtype=np.int64)
    expected = f"whole minutes between -{MAX_OFFSET_MIN} and {MAX_OFFSET_MIN}"
    array = _column(table, "utc_offset_min", expected)
    offset = _cast(array, pa.int64(), "utc_offset_min", expected).fill_null(0).to_numpy(zero_copy_only=False)
    bad = np.abs(offset) > MAX_OFFSET_MIN
    if bad.any():
        row = int(np.argmax(bad))
        raise FieldError("utc_offset_min", f"row {row} is {offset[row]}", expected)
    return offset


def read_columns(table: pa.Table, columns: Mapping[str, ColumnKind]) -> Profiles:
    """Context or profile columns: (B,) float32 or Arrow strings; missing ones are all missing."""
    made: Profiles = {}
    for name, kind in columns.items():
        if name not in table.column_names:
            made[name] = (
                np.full(table.num_rows, np.nan, np.float32)
                if kind == "numeric"
                else pa.nulls(table.num_rows, pa.string())
            )
            continue
        array = _column(table, name, kind)
        if kind == "numeric":
            if pa.types.is_boolean(array.type):
                array = array.cast(pa.uint8())
            number = (
                pa.types.is_integer(array.type)
                or pa.types.is_floating(array.type)
                or pa.types.is_null(array.type)
            )
            if not (number or pa.types.is_decimal(array.type)):
                raise FieldError(name, f"the column is {array.type}", "numbers")
            values = array.cast(pa.float32(), safe=False).fill_null(np.nan)
            made[name] = values.to_numpy(zero_copy_only=False)
        else:
            made[name] = _cast(array, pa.string(), name, "strings")
    return made


def _column(table: pa.Table, name: str, expected: str) -> pa.Array:
    if name not in table.column_names:
        raise FieldError(name, f"the column is missing; the table has {table.column_names}", expected)
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _cast(array: pa.Array, to: pa.DataType, name: str, expected: str) -> pa.Array:
    try:
        return array.cast(to)
    # what Arrow raises where a value, or a pair of types, cannot be cast
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FieldError(name, str(error).splitlines()[0], expected) from None


def _no_nulls(array: pa.Array, name: str, expected: str) -> None:
    if array.null_count:
        row = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise FieldError(name, f"row {row} is null", expected)
