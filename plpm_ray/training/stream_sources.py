"""Where a stream of finished sessions comes from: the protocol, and tables replayed in time order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name, day_number
from plpm_ray.data.features.sessions import session_keys


@dataclass(frozen=True)
class StreamRows:
    """Sessions in stream order.

    Attributes:
        features: raw features at their entries.
        outcome: (R,) columns as in `plpm_ray.data.stream.OUTCOME`.
        position: that of the last of them; opaque to all but the source.
    """

    features: RawFeatures
    outcome: Mapping[str, np.ndarray]
    position: str

    def __len__(self) -> int:
        return len(self.features)


class StreamSource(Protocol):
    """A stream that can be read again from any position that is not yet committed.

    Attributes:
        schema: of the features.
        identity: what the stream is, JSON-like; a run goes on with the same one only.
    """

    schema: FeatureSchema
    identity: dict[str, Any]

    def read(self, after: str | None, n: int) -> StreamRows | None:
        """The next `n` sessions after a position (None: from the beginning); None where so many are not there (yet).

        The same `after` and `n` give the same sessions, however often and by which process it is asked.

        Raises:
            DataError: sessions after that position are gone, or damaged.
        """
        ...

    def ended(self) -> bool:
        """After `read` gave None: whether it is of no use to ask again."""
        ...

    def committed(self, position: str) -> None:
        """Told that everything up to a position is learned and kept; it will not be asked for again."""
        ...

    def close(self) -> None: ...


class _Place(NamedTuple):
    """So many rows of a day are behind us; the day is that of a generation of its table."""

    day: int
    gen: str
    row: int

    @classmethod
    def parse(cls, text: str) -> _Place:
        name, gen, row = text.split("/")
        return cls(day_number(name), gen, int(row))

    def __str__(self) -> str:
        return f"{day_name(self.day)}/{self.gen}/{self.row}"


class TableReplay:
    """All users of a transition table merged by time of entry, one local day after the other.

    Within a day sessions stand in order of entry, ties by session key. One day is in memory at a time. Where users live in
    several time zones, a local day ends for some while the next has begun for others: days are not interleaved.

    Args:
        warehouse: its transition table is read.
        first_day, last_day: local days (days since 1970-01-01), both included; None: the ends of the table.

    Raises:
        DataError: the table holds no such day.
    """

    def __init__(
        self, warehouse: Warehouse, first_day: int | None = None, last_day: int | None = None
    ) -> None:
        self.schema = warehouse.info.features
        self.identity = {
            "kind": "table",
            "dataset": warehouse.info.name,
            "first_day": None if first_day is None else day_name(first_day),
        }
        self._warehouse, self._table = warehouse, warehouse.transitions
        self._first, self._last = first_day, last_day
        self._loaded: tuple[int, str, pa.Table] | None = None
        if not self._days():
            raise DataError(
                f"{self._table.root} holds no sessions on the days asked for",
                hint="run `plpm data`, or change source.first_day and source.last_day",
            )

    def read(self, after: str | None, n: int) -> StreamRows | None:
        place = None if after is None else _Place.parse(after)
        slices, found = [], 0
        while found < n:
            if place is None or place.row >= self._sorted(place).num_rows:
                following = self._next_day(None if place is None else place.day)
                if following is None:
                    return None
                place = following
                continue
            part = self._sorted(place).slice(place.row, n - found)
            slices.append(part)
            found += part.num_rows
            place = place._replace(row=place.row + part.num_rows)
        assert place is not None
        table = pa.concat_tables(slices).combine_chunks()
        return StreamRows(RawFeatures.from_table(self.schema, table), _outcome(table), str(place))

    def ended(self) -> bool:
        return True

    def committed(self, position: str) -> None:
        pass

    def close(self) -> None:
        self._loaded = None

    def _days(self) -> list[int]:
        low, high = self._first, self._last
        return [d for d in self._table.days() if (low is None or d >= low) and (high is None or d <= high)]

    def _next_day(self, day: int | None) -> _Place | None:
        entries = self._table.entries()
        following = next((d for d in self._days() if day is None or d > day), None)
        return None if following is None else _Place(following, entries[following].gen, 0)

    def _sorted(self, place: _Place) -> pa.Table:
        """The day's sessions of all users, by time of entry.

        Raises:
            DataError: the day was removed or computed anew since a part of it was learned.
        """
        if self._loaded is not None and self._loaded[:2] == (place.day, place.gen):
            return self._loaded[2]
        entry = self._table.entries().get(place.day)
        if entry is None or entry.gen != place.gen:
            change = "removed" if entry is None else "computed anew"
            raise DataError(
                f"{day_name(place.day)} of {self._table.root} was {change} after {place.row} of its sessions were learned",
                hint="start the stream anew under another name, or from its last bundle and a later source.first_day",
            )
        wanted = [*_LABELS, "entry_time", "session_id", "x_numeric"]
        wanted += [
            *(f"cat:{c}" for c in self.schema.categorical),
            *(f"seq:{s}" for s in self.schema.sequences),
        ]
        read = [self._table.read(bucket, [place.day], wanted) for bucket in sorted(entry.rows)]
        whole = pa.concat_tables([table for table in read if table is not None])
        order = np.lexsort((session_keys(whole["session_id"]), _entry_ms(whole)))
        table = whole.take(pa.array(order)).combine_chunks()
        self._loaded = (place.day, place.gen, table)
        return table


_LABELS = ("landing_page", "use_s", "landing_dwell_s", "switches")


def _entry_ms(table: pa.Table) -> np.ndarray:
    return table["entry_time"].cast(pa.int64()).to_numpy()


def _outcome(table: pa.Table) -> dict[str, np.ndarray]:
    return {
        "action": table["landing_page"].to_numpy().astype(np.int64),
        "use_s": table["use_s"].to_numpy().astype(np.float32),
        "landing_dwell_s": table["landing_dwell_s"].to_numpy().astype(np.float32),
        "switches": table["switches"].to_numpy().astype(np.int64),
        "entry_ms": _entry_ms(table).astype(np.int64),
        "key": session_keys(table["session_id"]).view(np.uint64),
    }
