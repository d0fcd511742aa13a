"""Rows that say the same twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from plpm_ray.data.normalise import contiguous


def repeated(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Marks rows that equal an earlier row in all the named columns.

    Args:
        table: (n,) rows.
        names: key columns; with none, no row repeats another.

    Returns:
        (n,) bool; the first of equal rows is not marked.
    """
    n = table.num_rows
    found = np.zeros(n, dtype=bool)
    if n == 0 or not names:
        return found
    keys = [_codes(table[name]) for name in names]
    order = np.lexsort(keys[::-1])  # stable: equal rows stay in input order
    same = np.ones(n - 1, dtype=bool)
    for key in keys:
        ordered = key[order]
        same &= ordered[1:] == ordered[:-1]
    found[order[1:][same]] = True
    return found


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) int64 that are equal exactly where the values are."""
    array = contiguous(column)
    if pa.types.is_integer(array.type) and not array.null_count:
        return array.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    coded = array.dictionary_encode(null_encoding="encode")
    return coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
