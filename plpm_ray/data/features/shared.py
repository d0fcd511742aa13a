"""From exact integer totals to raw features: where the value of every feature is formed, batch and online.

Letters: B entries, K pages, N numeric features, T remembered sessions. All totals are int64 and all times
whole milliseconds, so that the order of adding does not matter; seconds appear once, in `seconds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.features import PAGE_WINDOW_DAYS, RECENT_STEPS, WINDOW_DAYS, FeatureSchema, RawFeatures
from plpm_ray.data.features.sessions import EntryArrays

COUNT, ACTIVE_DAYS, USE_MS, VIEWS, SWITCHES = range(5)
GENERAL = 5
"""Columns of general totals, in the order of these constants."""


@dataclass(frozen=True)
class Totals:
    """What a user did in each window.

    Attributes:
        today: (B, GENERAL) int64.
        today_pages: (B, 3 K) int64: dwell in ms, visits, landings.
        general: one (B, GENERAL) int64 for each of WINDOW_DAYS.
        pages: one (B, 2 K or 3 K) int64 for each of PAGE_WINDOW_DAYS: dwell in ms, visits.
    """

    today: np.ndarray
    today_pages: np.ndarray
    general: tuple[np.ndarray, ...]
    pages: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class LastSessions:
    """The last ended sessions, newest first.

    Attributes:
        present: (B, T) bool; once False, False for all older ones. The other arrays hold anything where it is
            False.
        use_ms, landing: (B, T) integers.
        exit_ms, landing_dwell_ms, exit_page: (B,) integers, of the newest.
    """

    present: np.ndarray
    use_ms: np.ndarray
    landing: np.ndarray
    exit_ms: np.ndarray
    landing_dwell_ms: np.ndarray
    exit_page: np.ndarray


def seconds(ms: np.ndarray) -> np.ndarray:
    """float32 seconds of int64 milliseconds: one float64 division, one rounding."""
    return (ms / 1000).astype(np.float32)


def history_columns(schema: FeatureSchema) -> int:
    """Number of numeric features that come from history; those of context and profile follow them."""
    return 4 + 3 + 4 * len(WINDOW_DAYS) + len(schema.pages) * (3 + 2 * len(PAGE_WINDOW_DAYS))


def fill_history(
    out: RawFeatures, rows: np.ndarray | slice, entries: EntryArrays, totals: Totals, last: LastSessions
) -> None:
    """Writes the features of history into the given rows of `out` (as `empty_features` made it)."""
    schema, b = out.schema, len(entries)
    k = len(schema.pages)
    block = np.empty((b, history_columns(schema)), dtype=np.float32)
    newest = last.present[:, 0]
    block[:, 0] = totals.today[:, COUNT]
    block[:, 1] = seconds(totals.today[:, USE_MS])
    block[:, 2] = totals.today[:, SWITCHES]
    block[:, 3] = totals.today[:, VIEWS]
    block[:, 4] = np.where(newest, seconds(entries.entry_ms - last.exit_ms), np.nan)
    block[:, 5] = np.where(newest, seconds(last.use_ms[:, 0]), np.nan)
    block[:, 6] = np.where(newest, seconds(last.landing_dwell_ms), np.nan)
    at = 7
    for window in totals.general:
        block[:, at : at + 4] = window[:, :4]
        block[:, at + 2] = seconds(window[:, USE_MS])
        at += 4
    for pages, width in ((totals.today_pages, 3 * k), *((window, 2 * k) for window in totals.pages)):
        block[:, at : at + width] = pages[:, :width]
        block[:, at : at + k] = seconds(pages[:, :k])
        at += width
    out.numeric[rows, :at] = block
    calendar = out.categorical
    calendar["hour"][rows] = entries.hour
    calendar["weekday"][rows] = (entries.local_day + 3) % 7  # 1970-01-01 was a Thursday
    calendar["last_exit_page"][rows] = np.where(newest, last.exit_page, -1)
    calendar["last_landing_page"][rows] = np.where(newest, last.landing[:, 0], -1)
    out.sequences["recent_landing"][rows] = np.where(last.present, last.landing, np.nan)
    out.sequences["recent_use_s"][rows] = np.where(last.present, seconds(last.use_ms), np.nan)


def empty_features(schema: FeatureSchema, b: int) -> RawFeatures:
    """B rows of features: those of history not yet written, those of context and profile missing."""
    numeric = np.empty((b, len(schema.numeric)), dtype=np.float32)
    numeric[:, history_columns(schema) :] = np.nan
    categorical: dict[str, Any] = {}
    for name in schema.categorical:
        extra = name.startswith(("context.", "profile."))
        categorical[name] = pa.nulls(b, pa.string()) if extra else np.empty(b, dtype=np.int32)
    sequences = {name: np.empty((b, RECENT_STEPS), dtype=np.float32) for name in schema.sequences}
    return RawFeatures(schema, numeric, categorical, sequences)


def fill_extras(
    out: RawFeatures, context: Mapping[str, Any] | None, profile: Mapping[str, Any] | None
) -> None:
    """Writes the columns of context and profile into all rows of `out`; columns not given stay missing.

    Args:
        context, profile: column name -> (B,) Arrow array, NumPy array or list; null, NaN or None where
            unknown.
    """
    schema = out.schema
    at = history_columns(schema)
    for source, kinds, columns in (
        ("context", schema.context, context),
        ("profile", schema.profile, profile),
    ):
        for name, kind in kinds.items():
            values = None if columns is None else columns.get(name)
            if kind == "numeric":
                if values is not None:
                    out.numeric[:, at] = _floats(values)
                at += 1
            elif values is not None:
                out.categorical[f"{source}.{name}"] = _strings(values)


def _floats(values: Any) -> np.ndarray:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.Array):
        return array.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(array, dtype=np.float32)


def _strings(values: Any) -> pa.Array:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return array.cast(pa.string()) if isinstance(array, pa.Array) else pa.array(array, type=pa.string())
