"""Feature values as Arrow columns and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def packed(values: np.ndarray) -> pa.Array:
    """(B, width) numbers -> FixedSizeList<float> column."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def unpack(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """FixedSizeList<float> column -> (B, width) float32, without a copy when it is one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


def joined(columns: Sequence[Any]) -> Any:
    """One column of several, of Arrow strings where any of them is."""
    if any(isinstance(column, pa.Array) for column in columns):
        return pa.concat_arrays([category_column(column) for column in columns])
    return np.concatenate(columns)


def category_column(values: np.ndarray | pa.Array) -> pa.Array:
    """A categorical feature as it is stored: int32 codes, or strings."""
    if isinstance(values, pa.Array):
        return values
    if values.dtype.kind in "iu":
        return pa.array(values.astype(np.int32))
    return pa.array(values, type=pa.string())
