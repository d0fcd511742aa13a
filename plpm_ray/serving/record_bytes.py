"""Records as bytes for a server: short for users with a short history."""

from __future__ import annotations

import numpy as np

from plpm_ray.serving.store import StateLayout

_WORDS = np.dtype("<u4")


def pack(records: np.ndarray, layout: StateLayout) -> list[bytes]:
    """(B,) records -> one bytes object each: number of 4-byte words, a bit for each word, and the words that differ from
    the blank record (as their difference to it). Users with a short history take a few hundred bytes."""
    words = _words(records) ^ _words(layout.blank)
    changed = words != 0
    heads = np.packbits(changed, axis=1, bitorder="little").tobytes()
    size = len(heads) // len(records) if len(records) else 0
    flat = words[changed].tobytes()
    ends = np.cumsum(4 * changed.sum(axis=1)).tolist()
    width = np.array(words.shape[1], dtype=_WORDS).tobytes()
    starts = [0, *ends[:-1]]
    return [
        width + heads[i * size : (i + 1) * size] + flat[a:b]
        for i, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]


def unpack(values: list[bytes | None], layout: StateLayout) -> np.ndarray:
    """Inverse of `pack`; None gives the blank record. A navigator's tail of another size is cut, or stays blank.

    Raises:
        ValueError: a value is not what `pack` writes.
    """
    made = np.repeat(layout.blank, len(values))
    out = _words(made)
    widths = np.array([0 if v is None else int.from_bytes(v[:4], "little") for v in values])
    if ((widths > 0) & (widths < layout.shared_bytes // 4)).any():
        raise ValueError("a record is too short")
    for width in np.unique(widths[widths > 0]).tolist():
        rows = np.flatnonzero(widths == width)
        head = 4 + -(-width // 8)
        some = [v for i in rows if (v := values[i]) is not None]
        bits = np.frombuffer(b"".join(v[4:head] for v in some), dtype=np.uint8).reshape(len(rows), head - 4)
        changed = np.unpackbits(bits, axis=1, count=width, bitorder="little").astype(bool)
        words = np.zeros((len(rows), width), dtype=_WORDS)
        words[changed] = np.frombuffer(b"".join(v[head:] for v in some), dtype=_WORDS)
        common = width if width == out.shape[1] else layout.shared_bytes // 4
        out[rows, :common] ^= words[:, :common]
    return made


def _words(records: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(records).view(_WORDS).reshape(len(records), -1)
