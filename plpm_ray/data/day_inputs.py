"""Which session days a day of the transition table depends on, found from the Parquet footers of the sessions.

A day D of transitions needs sessions of D itself; those of earlier days that end (in local time) within the
lookback; and those of later local days that ended before an entry of D, which a change of UTC offset makes
possible.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import HISTORY_DAYS
from plpm_ray.core.storage import read_json, write_json
from plpm_ray.data.contract import DAY_MS, MINUTE_MS, Warehouse
from plpm_ray.data.day_table import DayEntry

_DAY_MIN = 1440
_DAYS_AHEAD = 3  # UTC offsets differ by 26 hours at most


@dataclass(frozen=True)
class DayRange:
    """Extremes of a session day.

    Attributes:
        first_exit_ms, last_entry_ms, last_exit_ms: ms since 1970 UTC.
        low_offset_min, high_offset_min: UTC offsets.
    """

    first_exit_ms: int
    last_entry_ms: int
    last_exit_ms: int
    low_offset_min: int
    high_offset_min: int

    @property
    def last_exit_day(self) -> int:
        """Latest local day on which a session may have ended (an upper bound where offsets differ)."""
        return (self.last_exit_ms + self.high_offset_min * MINUTE_MS) // DAY_MS


@dataclass(frozen=True)
class DayInputs:
    """What each day depends on.

    Attributes:
        ranges: session day -> extremes; days without sessions are absent.
        slack_days: how many local days one moment can be apart for two sessions of a user.
    """

    ranges: Mapping[int, DayRange]
    slack_days: int

    def of(self, day: int) -> list[int]:
        """Session days that can matter to the features of `day`, in order."""
        oldest = self.oldest_exit_day(day)
        found = [d for d, r in self.ranges.items() if d <= day and r.last_exit_day >= oldest]
        if day in self.ranges:
            last_entry = self.ranges[day].last_entry_ms
            ahead = [d for d in range(day + 1, day + 1 + _DAYS_AHEAD) if d in self.ranges]
            found += [d for d in ahead if self.ranges[d].first_exit_ms < last_entry]
        return sorted(found)

    def oldest_exit_day(self, day: int) -> int:
        """Sessions with an earlier local exit day cannot matter to `day`."""
        return day - HISTORY_DAYS - self.slack_days


def day_inputs(warehouse: Warehouse, entries: Mapping[int, DayEntry]) -> DayInputs:
    """Reads the extremes of all session days; those seen before come from `transitions/_ranges.json`.

    Raises:
        DataError: a session file is missing or damaged.
    """
    path = warehouse.transitions.root / "_ranges.json"
    known: dict[str, Any] = read_json(path) if path.exists() else {}
    ranges: dict[int, DayRange] = {}
    for day, entry in entries.items():
        if entry.total:
            kept = known.get(f"{day}-{entry.gen}")
            ranges[day] = DayRange(*kept) if kept else _read_range(warehouse, day, entry)
    fresh = {f"{day}-{entries[day].gen}": list(astuple(r)) for day, r in ranges.items()}
    if fresh != known:
        write_json(path, fresh)
    if not ranges:
        return DayInputs({}, 0)
    spread = max(r.high_offset_min for r in ranges.values()) - min(r.low_offset_min for r in ranges.values())
    return DayInputs(ranges, -(-spread // _DAY_MIN))


def _read_range(warehouse: Warehouse, day: int, entry: DayEntry) -> DayRange:
    columns = ("exit_time", "entry_time", "utc_offset_min")
    low: dict[str, int] = {}
    high: dict[str, int] = {}
    for bucket, rows in entry.rows.items():
        if not rows:
            continue
        path = warehouse.sessions.path(day, entry.gen, bucket)
        try:
            meta = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}", hint="ingest this day again") from None
        at = {meta.schema.column(i).path: i for i in range(meta.num_columns)}
        for group in range(meta.num_row_groups):
            for name in columns:
                stats = meta.row_group(group).column(at[name]).statistics
                if stats is None or not stats.has_min_max:
                    raise DataError(
                        f"{path} has no statistics of {name}", hint="write sessions with `write_parquet`"
                    )
                low[name] = min(low.get(name, _number(stats.min)), _number(stats.min))
                high[name] = max(high.get(name, _number(stats.max)), _number(stats.max))
    return DayRange(
        low["exit_time"], high["entry_time"], high["exit_time"], low["utc_offset_min"], high["utc_offset_min"]
    )


def _number(value: Any) -> int:
    return (value - _EPOCH) // dt.timedelta(milliseconds=1) if isinstance(value, dt.datetime) else int(value)


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def chunked(days: Iterable[int], width: int) -> list[list[int]]:
    """Days in order, in groups that span at most `width` days each."""
    groups: list[list[int]] = []
    for day in sorted(days):
        if groups and day - groups[-1][0] < width:
            groups[-1].append(day)
        else:
            groups.append([day])
    return groups
