"""Records as bytes for a server: short for users with a short history."""

from __future__ import annotations

import numpy as np

from plpm_ray.serving.store import StateLayout

_WORDS = np.dtype("<u4")
_TRIMMED = 1 << 31  # flag of the width: the bits end with the last word that differs


def pack(records: np.ndarray, layout: StateLayout) -> list[bytes]:
    """(B,) records -> one bytes object each: number of 4-byte words, a bit for each word up to the last that differs from the
    blank record (their bytes counted before them), and the words that do (as their difference to it). Users with a short
    history take a few hundred bytes, and the room of a day that has not begun takes none."""
    words = _words(records) ^ _words(layout.blank)
    changed = words != 0
    bits = np.packbits(changed, axis=1, bitorder="little")
    size = bits.shape[1]
    used = np.where(bits.any(axis=1), size - (bits[:, ::-1] != 0).argmax(axis=1), 0)
    heads, counts, flat = bits.tobytes(), used.astype("<u2").tobytes(), words[changed].tobytes()
    ends = np.cumsum(4 * changed.sum(axis=1)).tolist()
    starts = [0, *ends][: len(ends)]
    width = np.array(words.shape[1] | _TRIMMED, dtype=_WORDS).tobytes()
    return [
        width + counts[2 * i : 2 * i + 2] + heads[i * size : i * size + n] + flat[a:b]
        for i, (n, a, b) in enumerate(zip(used.tolist(), starts, ends, strict=True))
    ]


def unpack(values: list[bytes | None], layout: StateLayout) -> np.ndarray:
    """Inverse of `pack`; None gives the blank record. A navigator's tail of another size is cut, or stays blank.

    Raises:
        ValueError: a value is not what `pack` writes, or wrote before it counted the bits' bytes.
    """
    made = np.repeat(layout.blank, len(values))
    out = _words(made)
    begins = np.array([0 if v is None else int.from_bytes(v[:4], "little") for v in values], dtype=np.int64)
    widths = begins & ~_TRIMMED
    if ((widths > 0) & (widths < layout.shared_bytes // 4)).any():
        raise ValueError("a record is too short")
    for begin in np.unique(begins[begins > 0]).tolist():
        rows = np.flatnonzero(begins == begin)
        width = begin & ~_TRIMMED
        some = [
            _parts(v, -(-width // 8), bool(begin & _TRIMMED)) for i in rows if (v := values[i]) is not None
        ]
        bits = np.frombuffer(b"".join(head for head, _ in some), dtype=np.uint8).reshape(len(rows), -1)
        changed = np.unpackbits(bits, axis=1, count=width, bitorder="little").astype(bool)
        words = np.zeros((len(rows), width), dtype=_WORDS)
        words[changed] = np.frombuffer(b"".join(rest for _, rest in some), dtype=_WORDS)
        common = width if width == out.shape[1] else layout.shared_bytes // 4
        out[rows, :common] ^= words[:, :common]
    return made


def _parts(value: bytes, size: int, trimmed: bool) -> tuple[bytes, bytes]:
    """The bits of a value, as many bytes as they are at most, and its words."""
    if not trimmed:
        return value[4 : 4 + size].ljust(size, b"\0"), value[4 + size :]
    end = 6 + int.from_bytes(value[4:6], "little")
    return value[6:end].ljust(size, b"\0"), value[end:]


def _words(records: np.ndarray) -> np.ndarray:
    return (
        np.ascontiguousarray(records)
        .view(_WORDS)
        .reshape(len(records), records.dtype.itemsize // _WORDS.itemsize)
    )
