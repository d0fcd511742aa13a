"""Single values of JSON requests. Whatever does not fit raises FieldError with the field's name and what it should be."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from plpm_ray.core.config import nearest
from plpm_ray.data.validate import EARLIEST_MS, LATEST_MS, MAX_OFFSET_MIN
from plpm_ray.serving.tables import FieldError

TIME = "an ISO 8601 string, or an integer in milliseconds since 1970 (UTC)"
_EPOCH, _MS = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.timedelta(milliseconds=1)


def one_type(ids: list[Any], name: str) -> None:
    """Ids of one request are all integers or all strings."""
    first = isinstance(ids[0], str)
    for i, value in enumerate(ids):
        if isinstance(value, str) != first:
            raise FieldError(
                f"[{i}].{name}", f"{value!r} is of another type than the first", "one type of id in a request"
            )


def known_keys(row: Mapping[str, Any], known: Collection[str], at: str) -> None:
    """Refuses keys that do not belong to a row."""
    unknown = row.keys() - known
    if unknown:
        name = min(unknown)
        raise FieldError(at + name, "unknown field", nearest(name, known) or "")


def required(row: Mapping[str, Any], name: str, at: str, expected: str) -> Any:
    """A value that must be there."""
    value = row.get(name)
    if value is None:
        raise FieldError(at + name, "it is missing" if name not in row else "it is null", expected)
    return value


def read_moment(value: Any, field: str) -> int:
    """UTC milliseconds."""
    if isinstance(value, str):
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            refuse(field, value, TIME)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        ms = (moment - _EPOCH) // _MS
    elif isinstance(value, int) and not isinstance(value, bool):
        ms = value
    else:
        refuse(field, value, TIME)
    if not EARLIEST_MS <= ms < LATEST_MS:
        refuse(field, value, "a time between 1990 and 2099; integers are milliseconds")
    return ms


def read_offset_min(row: Mapping[str, Any], at: str) -> int:
    """Minutes ahead of UTC; 0 where it is missing."""
    value = row.get("utc_offset_min")
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_OFFSET_MIN:
        refuse(at + "utc_offset_min", value, f"whole minutes between -{MAX_OFFSET_MIN} and {MAX_OFFSET_MIN}")
    return value


def read_labels(row: Mapping[str, Any], at: str) -> dict[str, Any]:
    """What a session says of its decision."""
    made: dict[str, Any] = {}
    for name in ("policy", "experiment_arm"):
        if row.get(name) is not None:
            made[name] = (
                row[name] if isinstance(row[name], str) else refuse(at + name, row[name], "a string or null")
            )
    if row.get("propensity") is not None:
        made["propensity"] = read_number(
            row["propensity"], at + "propensity", "a probability above 0 and at most 1"
        )
        if not 0 < made["propensity"] <= 1:
            refuse(at + "propensity", row["propensity"], "a probability above 0 and at most 1")
    return made


def read_flag(row: Mapping[str, Any], name: str, at: str, default: bool = False) -> bool:
    """True or false; the default where it is missing."""
    value = row.get(name)
    if value is None:
        return default
    return value if isinstance(value, bool) else refuse(at + name, value, "true or false")


def read_list(value: Any, field: str, expected: str) -> list[Any]:
    """A list."""
    return value if isinstance(value, list) else refuse(field, value, expected)


def read_numbers(value: Any, field: str, length: int, whole: bool = False) -> list[Any]:
    """A list of numbers, 0 or more."""
    expected = f"a list of {length} numbers of 0 or more, one for each of `pages`"
    items = read_list(value, field, expected)
    if len(items) != length:
        raise FieldError(field, f"it has {len(items)} values, pages has {length}", expected)
    for i, item in enumerate(items):
        if read_number(item, f"{field}[{i}]", "a number of 0 or more") < 0:
            raise FieldError(f"{field}[{i}]", f"{item!r} is negative", "a number of 0 or more")
        if whole and not isinstance(item, int):
            refuse(f"{field}[{i}]", item, "a whole number")
    return items


def read_number(value: Any, field: str, expected: str) -> float:
    """A number that fits float32."""
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float) or not abs(value) <= 3.4e38:  # NaN fails every comparison
        refuse(field, value, expected)
    return value


def refuse(field: str, value: Any, expected: str) -> NoReturn:
    """Raises the error of a value that does not fit."""
    raise FieldError(field, f"{shown(value)} does not fit", expected)


def shown(value: Any) -> str:
    """A value as error messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
