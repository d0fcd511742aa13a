"""Sessions and entries as flat NumPy arrays, the one form that the batch and the online feature code read.

Letters: M sessions, P page visits of all sessions, B entries, K pages. Time is integer milliseconds.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported, so a type checker does not know them

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.hashing import user_hash
from plpm_ray.data.contract import DAY_MS, MINUTE_MS

SESSION_INPUTS = (
    "session_id",
    "entry_time",
    "exit_time",
    "utc_offset_min",
    "landing_page",
    "pages",
    "dwell_s",
    "video_views",
)
"""Columns of the canonical sessions table that `SessionArrays.from_table` reads; `video_views` may be absent."""


@dataclass(frozen=True)
class SessionArrays:
    """M ended sessions.

    Attributes:
        key: (M,) int64, see `session_keys`; breaks ties of the order and finds repeats.
        entry_ms, exit_ms: (M,) int64, ms since 1970 UTC.
        utc_offset_min: (M,) int64.
        landing, exit_page: (M,) int16 position in the catalogue; exit_page is the last page visited, -1 if
            there is none.
        use_ms, landing_dwell_ms: (M,) int64; use is the sum of the dwell times.
        switches, views: (M,) int64; unknown video views count as 0.
        page_start: (M + 1,) int64; visits page_start[i] to page_start[i + 1] belong to session i.
        pages, dwell_ms: (P,) int16 and int64.
        visit_views: (P,) int32 video views of each visit, -1 where those of the session are unknown.
    """

    key: np.ndarray
    entry_ms: np.ndarray
    exit_ms: np.ndarray
    utc_offset_min: np.ndarray
    landing: np.ndarray
    exit_page: np.ndarray
    use_ms: np.ndarray
    landing_dwell_ms: np.ndarray
    switches: np.ndarray
    views: np.ndarray
    page_start: np.ndarray
    pages: np.ndarray
    dwell_ms: np.ndarray
    visit_views: np.ndarray

    def __len__(self) -> int:
        return len(self.exit_ms)

    @classmethod
    def from_table(cls, table: pa.Table) -> SessionArrays:
        """Canonical stored sessions (pages as positions) -> arrays; needs the columns SESSION_INPUTS."""
        pages = _one(table["pages"])
        start = _starts(pages)
        visited = _values(pages).to_numpy(zero_copy_only=False).astype(np.int16, copy=False)
        dwell_ms = milliseconds(_values(_one(table["dwell_s"])).to_numpy(zero_copy_only=False))
        count = np.diff(start)
        some = count > 0
        visit_views = _visit_views(table, count)
        return cls(
            key=session_keys(table["session_id"]),
            entry_ms=time_ms(table["entry_time"]),
            exit_ms=time_ms(table["exit_time"]),
            utc_offset_min=_ints(table["utc_offset_min"]),
            landing=_ints(table["landing_page"]).astype(np.int16),
            exit_page=_at(visited, start[1:] - 1, some, -1),
            use_ms=sum_by_session(dwell_ms, start),
            landing_dwell_ms=_at(dwell_ms, start[:-1], some, 0),
            switches=np.maximum(count - 1, 0),
            views=sum_by_session(np.maximum(visit_views, 0), start),
            page_start=start,
            pages=visited,
            dwell_ms=dwell_ms,
            visit_views=visit_views,
        )

    @classmethod
    def concat(cls, parts: Sequence[SessionArrays]) -> SessionArrays:
        """The sessions of all parts (at least one), one after the other."""
        if len(parts) == 1:
            return parts[0]
        joined = {
            f.name: np.concatenate([getattr(p, f.name) for p in parts])
            for f in fields(cls)
            if f.name != "page_start"
        }
        counts = np.concatenate([np.diff(p.page_start) for p in parts])
        return cls(**joined, page_start=_offsets(counts))

    def take(self, rows: np.ndarray) -> SessionArrays:
        """The sessions at the given positions (or a boolean mask)."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        counts = np.diff(self.page_start)[rows]
        start = _offsets(counts)
        visits = np.repeat(self.page_start[rows] - start[:-1], counts) + np.arange(start[-1])
        ragged = ("pages", "dwell_ms", "visit_views")
        taken = {
            f.name: getattr(self, f.name)[visits if f.name in ragged else rows]
            for f in fields(self)
            if f.name != "page_start"
        }
        return SessionArrays(**taken, page_start=start)

    @property
    def exit_day(self) -> np.ndarray:
        """(M,) int64 local day of the exit, days since 1970-01-01."""
        return local_day(self.exit_ms, self.utc_offset_min)

    def per_page(self, n_pages: int) -> np.ndarray:
        """(M, 3 K) int64: dwell in ms, visits and landings, K columns each."""
        m = len(self)
        cell = np.repeat(np.arange(m) * n_pages, np.diff(self.page_start)) + self.pages
        out = np.zeros((m, 3 * n_pages), dtype=np.int64)
        # sums of whole milliseconds are exact in float64 up to 2^53
        out[:, :n_pages] = np.bincount(cell, weights=self.dwell_ms, minlength=m * n_pages).reshape(m, n_pages)
        out[:, n_pages : 2 * n_pages] = np.bincount(cell, minlength=m * n_pages).reshape(m, n_pages)
        out[np.arange(m), 2 * n_pages + self.landing.astype(np.int64)] = 1
        return out

    def page_outcomes(self, n_pages: int) -> dict[str, np.ndarray]:
        """(M, K) float32 each: "page_dwell_s" seconds on every page, "page_views" video views there (NaN = unknown) and
        "page_visits"."""
        m, k = len(self), n_pages
        dwell, visits, _ = np.split(self.per_page(k), 3, axis=1)
        cell = np.repeat(np.arange(m) * k, np.diff(self.page_start)) + self.pages
        unknown = self.visit_views < 0
        views = np.bincount(cell, weights=np.where(unknown, np.nan, self.visit_views), minlength=m * k)
        views = views.reshape(m, k)
        if unknown.any():
            views[np.isnan(views).any(axis=1)] = np.nan
        return {
            "page_dwell_s": (dwell / 1000).astype(np.float32),
            "page_views": views.astype(np.float32),
            "page_visits": visits.astype(np.float32),
        }


@dataclass(frozen=True)
class EntryArrays:
    """B app entries that want features: entry_ms (B,) int64, ms since 1970 UTC; utc_offset_min (B,) int64."""

    entry_ms: np.ndarray
    utc_offset_min: np.ndarray

    def __len__(self) -> int:
        return len(self.entry_ms)

    @classmethod
    def from_table(cls, table: pa.Table) -> EntryArrays:
        """Reads the columns entry_time and utc_offset_min."""
        return cls(time_ms(table["entry_time"]), _ints(table["utc_offset_min"]))

    def take(self, rows: np.ndarray) -> EntryArrays:
        return EntryArrays(self.entry_ms[rows], self.utc_offset_min[rows])

    @property
    def local_day(self) -> np.ndarray:
        """(B,) int64 local day, days since 1970-01-01."""
        return local_day(self.entry_ms, self.utc_offset_min)

    @property
    def hour(self) -> np.ndarray:
        """(B,) int32 local hour, 0 to 23."""
        return ((self.entry_ms + self.utc_offset_min * MINUTE_MS) % DAY_MS // 3_600_000).astype(np.int32)


def local_day(time: np.ndarray, utc_offset_min: np.ndarray) -> np.ndarray:
    """int64 local day of UTC milliseconds, days since 1970-01-01."""
    return (time + utc_offset_min * MINUTE_MS) // DAY_MS


def session_keys(ids: np.ndarray | pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64 key of every session id: the id itself where it is an integer, a hash of the text where it is a string."""
    array = _one(ids) if not isinstance(ids, np.ndarray) else pa.array(ids)
    if pa.types.is_integer(array.type):
        return array.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return user_hash(array).view(np.int64)


def user_codes(*columns: np.ndarray | pa.Array | pa.ChunkedArray) -> list[np.ndarray]:
    """One numbering of the users of several columns.

    Args:
        columns: user ids, all integers or all strings, without nulls.

    Returns:
        For each column int64 codes; equal users have equal codes, which count from 0 without gaps.
    """
    chunks = [chunk for column in columns for chunk in _chunks(column)]
    coded = pa.chunked_array(chunks).combine_chunks().dictionary_encode()
    codes = _one(coded).indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.split(codes, np.cumsum([len(c) for c in columns])[:-1])


def _chunks(column: np.ndarray | pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    if isinstance(column, np.ndarray):
        return [pa.array(column)]
    if isinstance(column, pa.ChunkedArray):
        return column.chunks or [pa.array([], type=column.type)]
    return [column]


def milliseconds(seconds_f32: np.ndarray) -> np.ndarray:
    """int64 milliseconds of float32 seconds, rounded to the nearest (ties to even)."""
    scaled = seconds_f32.astype(np.float32, copy=False).astype(np.float64)
    scaled *= 1000.0
    return np.rint(scaled, out=scaled).astype(np.int64)


def time_ms(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64 milliseconds of a timestamp column."""
    return (
        _one(column)
        .cast(pa.timestamp("ms", tz="UTC"), safe=False)
        .view(pa.int64())
        .to_numpy(zero_copy_only=False)
    )


def sum_by_session(values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(M,) int64 sums of the values between consecutive starts."""
    total = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=total[1:])
    return np.diff(total[start])


def _visit_views(table: pa.Table, count: np.ndarray) -> np.ndarray:
    """(P,) int32 video views of the visits of sessions with `count` visits each; -1 where a session has no list of them."""
    out = np.full(int(count.sum()), -1, dtype=np.int32)
    if "video_views" not in table.column_names:
        return out
    lists = _one(table["video_views"])
    known = ~lists.is_null().to_numpy(zero_copy_only=False) & (count > 0)
    if known.any():
        values = pc.list_flatten(lists.filter(pa.array(known))).fill_null(0).to_numpy(zero_copy_only=False)
        out[np.repeat(known, count)] = values
    return out


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)


def _ints(column: pa.ChunkedArray) -> np.ndarray:
    return _one(column).to_numpy(zero_copy_only=False).astype(np.int64)


def _starts(lists: pa.Array) -> np.ndarray:
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0] if len(offsets) else np.zeros(1, dtype=np.int64)


def _values(lists: pa.Array) -> pa.Array:
    """The elements of a list array without nulls, whatever slice of a longer one it is."""
    offsets = lists.offsets
    if not len(offsets):
        return lists.values
    first, last = offsets[0].as_py(), offsets[-1].as_py()
    return lists.values.slice(first, last - first)


def _offsets(counts: np.ndarray) -> np.ndarray:
    start = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=start[1:])
    return start


def _at(values: np.ndarray, index: np.ndarray, some: np.ndarray, missing: int) -> np.ndarray:
    if some.all():
        return values[index]
    out = np.full(len(index), missing, dtype=values.dtype)
    out[some] = values[index[some]]
    return out
