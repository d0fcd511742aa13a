"""The row that holds a user's online state: its layout, its bytes, and a navigator's numbers in it.

`plpm_ray.data.features.state` says what the row is for and re-exports everything here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plpm_ray.core.errors import StateError
from plpm_ray.core.features import RECENT_STEPS, FeatureSchema
from plpm_ray.data.features.shared import GENERAL

LAYOUT_VERSION = 1
SPARE = 4
KEPT = RECENT_STEPS + SPARE
DAYS = 32
PAGE_DAYS = 16
NO_DAY = -(1 << 30)
NEVER = np.iinfo(np.int64).min

EXIT, ENTRY, KEY, DAY, LANDING, EXIT_PAGE, LANDING_DWELL, TOTALS = range(8)
"""Columns of `recent`; from TOTALS on the general totals (COUNT is 0 in an empty place), dwell and visits per page."""

LAYOUT_HINT = "give another prefix or store, and fill it again from the logs"


def state_dtype(schema: FeatureSchema, nav_size: int = 0) -> np.dtype:
    """The row layout for K pages and `nav_size` float32 numbers of a navigator's intra-day state.

    Fields: version, n_pages, day (32,), page_day (16,), general (32, 5), pages (16, 3 K), recent (12, 12 + 2 K)
    newest first, nav_day, nav_size, nav (nav_size, made even). Totals and times in ms are int64, days int32.
    """
    k = len(schema.pages)
    return np.dtype(
        [
            ("version", np.uint32),
            ("n_pages", np.uint32),
            ("day", np.int32, (DAYS,)),
            ("page_day", np.int32, (PAGE_DAYS,)),
            ("general", np.int64, (DAYS, GENERAL)),
            ("pages", np.int64, (PAGE_DAYS, 3 * k)),
            ("recent", np.int64, (KEPT, TOTALS + GENERAL + 2 * k)),
            ("nav_day", np.int32),
            ("nav_size", np.uint32),
            ("nav", np.float32, (nav_size + nav_size % 2,)),
        ]
    )


def empty_states(dtype: np.dtype, n: int) -> np.ndarray:
    """(n,) states of users without history; `dtype` from `state_dtype`."""
    states = np.zeros(n, dtype=dtype)
    states["version"] = LAYOUT_VERSION
    states["n_pages"] = dtype["pages"].shape[1] // 3
    states["nav_size"] = dtype["nav"].shape[0]
    states["day"] = states["page_day"] = states["nav_day"] = NO_DAY
    states["recent"][:, :, EXIT] = NEVER
    states["recent"][:, :, DAY] = NO_DAY
    return states


def to_bytes(states: np.ndarray) -> list[bytes]:
    """One bytes object a row, for a key-value store."""
    data, size = states.tobytes(), states.dtype.itemsize
    return [data[i : i + size] for i in range(0, len(data), size)]


def from_bytes(blobs: Sequence[bytes | None], dtype: np.dtype) -> np.ndarray:
    """Rows written by `to_bytes`; None gives the empty state. The result can be changed in place.

    Raises:
        StateError: a row has another layout (other pages, navigator state or version).
    """
    empty = empty_states(dtype, 1)
    blank = empty.tobytes()
    for blob in blobs:
        if blob is not None and len(blob) != dtype.itemsize:
            raise StateError(
                f"a stored user state has {len(blob)} bytes, this layout has {dtype.itemsize}",
                hint=LAYOUT_HINT,
            )
    states = np.frombuffer(bytearray().join(blank if b is None else b for b in blobs), dtype=dtype)
    for name in ("version", "n_pages", "nav_size"):
        if (states[name] != empty[name]).any():
            wrong = states[name][states[name] != empty[name]][0]
            raise StateError(
                f"a stored user state has {name} {wrong}, this layout has {empty[name][0]}", hint=LAYOUT_HINT
            )
    return states


def nav_state(
    states: np.ndarray, day: np.ndarray, nav_size: int, mine: np.ndarray | None = None
) -> np.ndarray:
    """(B, nav_size) float32 intra-day state of a navigator: zeros where the last one is of another local day, or where `mine`
    (B,) is False. Its bits need not be those of numbers. It may lie in the states themselves, so it is not to be changed."""
    held = states["nav_day"] == day
    if mine is not None:
        held &= mine
    nav = states["nav"][:, :nav_size]
    if held.all():
        return nav
    made = np.zeros(nav.shape, dtype=np.float32)
    made[held] = nav[held]
    return made


def set_nav_state(states: np.ndarray, rows: np.ndarray, day: np.ndarray, values: np.ndarray) -> None:
    """Stores (B, nav_size) intra-day state of local day `day` into the given rows."""
    states["nav_day"][rows] = day
    states["nav"][rows, : values.shape[1]] = values
