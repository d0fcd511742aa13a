"""Stable 64-bit hashes of users: the same in every process, on every machine, for every release.

Buckets on disk and session ids are derived from them, so the functions here never change their values.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import DataError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_CHUNK = 1 << 14  # rows whose intermediate results stay in the first-level cache


def splitmix64(values: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea and Flood 2014), a bijection of the 64-bit integers.

    Args:
        values: (n,) int64 or uint64.

    Returns:
        (n,) uint64.
    """
    source = np.ascontiguousarray(values).view(np.uint64)
    mixed = np.empty_like(source)
    scratch = np.empty(min(_CHUNK, len(source)), dtype=np.uint64)
    for start in range(0, len(source), _CHUNK):
        z = mixed[start : start + _CHUNK]
        shifted = scratch[: len(z)]
        np.add(source[start : start + _CHUNK], _GOLDEN, out=z)
        for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
            np.right_shift(z, np.uint64(shift), out=shifted)
            np.bitwise_xor(z, shifted, out=z)
            np.multiply(z, factor, out=z)
        np.right_shift(z, np.uint64(31), out=shifted)
        np.bitwise_xor(z, shifted, out=z)
    return mixed


def user_hash(users: np.ndarray | pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Hash of every user id.

    Args:
        users: (n,) integers or strings without nulls.

    Returns:
        (n,) uint64: `splitmix64` of an integer; of a string, `splitmix64` chained over the 8-byte words of its
        UTF-8 text, seeded with its length.

    Raises:
        DataError: nulls, or a type that is neither integer nor string.
    """
    if isinstance(users, np.ndarray) and users.dtype.kind in "iu":
        return splitmix64(users.astype(np.int64, copy=False))
    array = pa.array(users) if isinstance(users, np.ndarray) else users
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if array.null_count:
        raise DataError(
            f"{array.null_count} user ids are null",
            hint="rows without a user go to quarantine before they are bucketed",
        )
    if pa.types.is_dictionary(array.type):
        return user_hash(array.dictionary)[array.indices.to_numpy(zero_copy_only=False)]
    if pa.types.is_integer(array.type):
        return splitmix64(array.cast(pa.int64()).to_numpy(zero_copy_only=False))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return _hash_strings(array.cast(pa.large_string()))
    raise DataError(f"user ids are {array.type}", hint="users are integers or strings; cast the column")


def user_draws(users: np.ndarray, seed: int) -> np.ndarray:
    """Draws that split users at random: the same for a user whoever the others are.

    Args:
        users: (n,) integer ids.
        seed: of the split, 0 or more.

    Returns:
        (n,) float64 in [0, 1).
    """
    return (splitmix64(splitmix64(users) + np.uint64(seed)) >> np.uint64(11)) * 2.0**-53


def bucket_of(hashes: np.ndarray, n_buckets: int) -> np.ndarray:
    """Bucket of every user hash: its upper half scaled to 0..n_buckets-1, which needs no division.

    Args:
        hashes: (n,) uint64 from `user_hash`.
        n_buckets: 1 to 65,536.

    Returns:
        (n,) uint16.
    """
    if not 1 <= n_buckets <= 1 << 16:
        raise ValueError(f"n_buckets is {n_buckets}, it must be 1 to 65536")
    scaled = hashes >> np.uint64(32)
    scaled *= np.uint64(n_buckets)
    scaled >>= np.uint64(32)
    return scaled.astype(np.uint16)


def _hash_strings(array: pa.LargeStringArray) -> np.ndarray:
    _, offset_buffer, data = array.buffers()
    if len(array) == 0 or offset_buffer is None:
        return np.empty(0, dtype=np.uint64)
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    padded = np.zeros((last - first) // 8 + 2, dtype="<u8")
    if last > first and data is not None:
        padded.view(np.uint8)[: last - first] = np.frombuffer(data, dtype=np.uint8)[first:last]
    starts, lengths = offsets[:-1] - first, np.diff(offsets)
    hashes = splitmix64(lengths)
    done, rows = 0, np.flatnonzero(lengths > 0)
    while len(rows):
        word = _word_at(padded, starts[rows] + done, lengths[rows] - done)
        hashes[rows] = splitmix64(hashes[rows] ^ word)
        done += 8
        rows = rows[lengths[rows] > done]
    return hashes


def _word_at(words: np.ndarray, position: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The up to 8 bytes from a byte position on as one little-endian integer, zero beyond `left` bytes."""
    at, shift = position >> 3, ((position & 7) << 3).astype(np.uint64)
    low = words[at] >> shift
    high = (words[at + 1] << np.uint64(1)) << (np.uint64(63) - shift)
    keep = np.uint64(64) - np.minimum(left, 8).astype(np.uint64) * np.uint64(8)
    return (low | high) << keep >> keep
