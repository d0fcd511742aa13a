"""The lists of a session: pages, and dwell, views and watch time on each; read, checked, merged where pages repeat.

Also what all rules share: how raw values are to be read, and the marks of the rows that break a rule.

Shapes: n rows of the raw table, g good ones, b bad ones, m values of all lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from plpm_ray.data import normalise as to
from plpm_ray.data.contract import DatasetInfo

MAX_SECONDS = 366 * 86_400.0
MAX_VIEWS = 1_000_000
"""Most seconds and views of one stay on a page: above it stands garbage, which would overflow the sums."""


@dataclass(frozen=True)
class Reading:
    """How the raw values of a dataset are to be understood.

    Attributes:
        info: catalogue, id types, context and profile columns.
        time_unit: unit of times given as integers.
        duration_unit: unit of dwell, watch times and event durations.
        utc_offset_min: local time where the rows have no column for it.
    """

    info: DatasetInfo
    time_unit: to.TimeUnit = "ms"
    duration_unit: to.DurationUnit = "s"
    utc_offset_min: int = 0


class Findings:
    """Marks of the rules over the n rows of a table."""

    def __init__(self, n: int) -> None:
        self.masks: dict[str, np.ndarray] = {}
        self.bad = np.zeros(n, dtype=bool)

    def mark(self, reason: str, rows: np.ndarray) -> None:
        """Adds the (n,) marked rows to those that break a rule."""
        if rows.any():
            self.masks[reason] = self.masks[reason] | rows if reason in self.masks else rows
            self.bad |= rows

    def reasons(self, rows: np.ndarray) -> pa.Array:
        """(b,) strings for the given row positions, several reasons joined by `; `."""
        texts = np.full(len(rows), "", dtype=object)
        for reason, marked in self.masks.items():
            here = marked[rows]
            texts[here] = [f"{text}; {reason}" if text else reason for text in texts[here]]
        return pa.array(texts, pa.string())


def column_of(raw: pa.Table, name: str, origin: to.Origin) -> pa.ChunkedArray:
    if name not in raw.column_names:
        raise origin.missing(name, raw.column_names)
    return raw[name]


def page_values(column: pa.ChunkedArray | pa.Array, name: str, origin: to.Origin) -> pa.Array:
    array = to.contiguous(column)
    if not (to.is_text(array.type) or pa.types.is_integer(array.type) or pa.types.is_null(array.type)):
        raise origin.wrong_type(name, array.type, "page names (strings) or integers")
    return array.cast(pa.string()) if pa.types.is_string_view(array.type) else array


@dataclass(frozen=True)
class Visits:
    """The lists of all sessions: pages, and what happened on each (None where the logs do not say)."""

    pages: to.Lists
    codes: np.ndarray
    dwell: tuple[to.Lists, np.ndarray]
    views: tuple[to.Lists, np.ndarray] | None
    watch: tuple[to.Lists, np.ndarray] | None

    def merged(self, good: np.ndarray) -> dict[str, pa.Array]:
        """List columns of the good rows, runs of equal pages made one."""
        lengths = self.pages.lengths[good]
        codes = self.codes[self.pages.values_of(good)]
        first = np.ones(len(codes), dtype=bool)
        first[1:] = codes[1:] != codes[:-1]
        first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        row_of = np.repeat(np.arange(len(lengths)), lengths)
        runs = np.bincount(row_of[first], minlength=len(lengths))
        everywhere = np.ones(len(lengths), dtype=bool)
        made = {"pages": _list_array(codes[first], runs, everywhere)}
        for name, part, kind in (
            ("dwell_s", self.dwell, np.float32),
            ("video_views", self.views, np.int32),
            ("watch_s", self.watch, np.float32),
        ):
            if part is None:
                continue
            given, values = part[0], part[1][part[0].values_of(good)]
            present = ~given.null[good]
            starts = first[np.repeat(present, lengths)]
            if not starts.all():
                values = np.add.reduceat(values, np.flatnonzero(starts)) if len(values) else values
            made[name] = _list_array(values.astype(kind), np.where(present, runs, 0), present)
        return made


def read_visits(
    raw: pa.Table, landing: np.ndarray, reading: Reading, origin: to.Origin, found: Findings
) -> Visits:
    pages = to.lists(column_of(raw, "pages", origin), "pages", origin)
    codes = reading.info.pages.encode(page_values(pages.values, "pages", origin))
    found.mark("empty_pages", pages.lengths == 0)
    found.mark("unknown_page", pages.rows_with(codes < 0))
    first = np.full(len(landing), -1, dtype=np.int16)
    starts = np.cumsum(pages.lengths) - pages.lengths
    first[pages.lengths > 0] = codes[starts[pages.lengths > 0]]
    found.mark("landing_not_first", (first >= 0) & (landing >= 0) & (first != landing))

    scale = 1e-3 if reading.duration_unit == "ms" else 1.0
    dwell = _numbers_in(raw, "dwell_s", "dwell", scale, pages.lengths, origin, found, optional=False)
    watch = _numbers_in(raw, "watch_s", "watch", scale, pages.lengths, origin, found)
    views = _numbers_in(raw, "video_views", "views", None, pages.lengths, origin, found)
    assert dwell is not None
    return Visits(pages, codes, dwell, views, watch)


def _numbers_in(
    raw: pa.Table,
    name: str,
    what: str,
    scale: float | None,
    page_counts: np.ndarray,
    origin: to.Origin,
    found: Findings,
    optional: bool = True,
) -> tuple[to.Lists, np.ndarray] | None:
    """A list column beside `pages` and its values; counts (no scale) are integers, all others seconds times `scale`."""
    if optional and name not in raw.column_names:
        return None
    given = to.lists(column_of(raw, name, origin), name, origin)
    values, empty = (
        to.numbers(given.values, name, origin) if scale else to.integers(given.values, name, origin)
    )
    absent = given.null if optional else np.zeros(len(page_counts), dtype=bool)
    found.mark("unequal_lists", ~absent & (given.lengths != page_counts) & (page_counts > 0))
    found.mark(f"null_{what}", given.rows_with(empty))
    found.mark(f"negative_{what}", given.rows_with(values < 0))
    if scale:
        found.mark("non_finite", given.rows_with(~np.isfinite(values)))
        values = values * scale
    most = MAX_SECONDS if scale else MAX_VIEWS
    found.mark(f"excessive_{what}", given.rows_with(np.isfinite(values) & (values > most)))
    return given, values


def _list_array(values: np.ndarray, lengths: np.ndarray, present: np.ndarray) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    missing = None if present.all() else pa.array(~present)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=missing)
