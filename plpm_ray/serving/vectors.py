"""Vectors that jobs write for many users at once (KLAN's delta of the day), beside the records that sessions change.

A job writes all rows under a tag of its own and then publishes the name with `set_vector_info`: from then on the rows of
that tag count. Until then readers see those of the tag before, so that a decision never mixes two runs of the job; two
tags a user are kept, no more.

Letters: B users, W width of a vector.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import StateError
from plpm_ray.core.hashing import user_hash
from plpm_ray.serving.user_index import UserIndex

_HEAD = np.dtype([("tag", "<u8"), ("width", "<u4")])
SAVE_VECTORS = """
local ttl, published = tonumber(ARGV[1]), ARGV[2]
for i, key in ipairs(KEYS) do
  local new, old, kept = ARGV[i + 2], redis.call('GET', key), ''
  if old then
    local tag, at = string.sub(new, 1, 8), 1
    while at + 11 <= #old do
      local a, b, c, d = string.byte(old, at + 8, at + 11)
      local size = 12 + 4 * (a + 256 * b + 65536 * c + 16777216 * d)
      local its = string.sub(old, at, at + 7)
      if its ~= tag and (kept == '' or its == published) then kept = string.sub(old, at, at + size - 1) end
      at = at + size
    end
  end
  if ttl > 0 then redis.call('SET', key, new .. kept, 'PX', ttl)
  else redis.call('SET', key, new .. kept) end
end
return #KEYS
"""
"""Writes the row of each key before the one that readers may still want."""


def checked_vectors(name: str, users: int, values: Any) -> np.ndarray:
    """(B, W) float32 of what was handed in for B users.

    Raises:
        StateError: another shape, or a name that cannot stand in a key.
    """
    checked_name(name)
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.ndim != 2 or len(array) != users:
        raise StateError(
            f"vectors {name!r} have the shape {array.shape} for {users} users",
            hint="give one row for each user",
        )
    return array


def checked_name(name: str) -> str:
    """The name itself.

    Raises:
        StateError: it cannot stand in a key.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.\-]+", name):
        raise StateError(f"{name!r} is no name for vectors", hint="use letters, digits, _ . and -")
    return name


def checked_info(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """What is published, as it comes back from JSON.

    Raises:
        StateError: the width is missing, the population has another one, or a value is no JSON.
    """
    try:
        made = json.loads(json.dumps(dict(info)))
    except (TypeError, ValueError) as error:
        raise StateError(f"the info of vectors {name!r} is no JSON: {error}") from None
    width, population = made.get("width"), made.get("population")
    if not isinstance(width, int) or width < 1 or (population is not None and len(population) != width):
        raise StateError(
            f"vectors {name!r}: width is {width!r}, population {population!r}",
            hint="give width, and as population a list of so many numbers",
        )
    return made


def tag_bytes(tag: str | None) -> bytes:
    """What stands for a tag in a row; b"" for none."""
    return b"" if tag is None else user_hash(pa.array([tag]))[0].tobytes()


def pack_vectors(values: np.ndarray, tag: str) -> list[bytes]:
    """(B, W) float32 -> one bytes object a row: tag, width, numbers."""
    head = tag_bytes(tag) + np.array(values.shape[1], dtype="<u4").tobytes()
    size, flat = 4 * values.shape[1], values.astype("<f4").tobytes()
    return [head + flat[at : at + size] for at in range(0, len(flat), size)] if size else [head] * len(values)


def unpack_vectors(values: Sequence[bytes | None], info: Mapping[str, Any] | None) -> np.ndarray | None:
    """Rows as they stand in a server -> (B, W) of the published tag, NaN where there is none.

    Args:
        values: B rows, each its newest vector and at most one before it.
        info: what is published; without a tag in it, or None, the newest vector counts.

    Returns:
        None where nothing is published and none of the users has a vector.

    Raises:
        ValueError: a row is not what `pack_vectors` writes.
    """
    shapes: dict[tuple[int, int], list[int]] = {}
    for row, value in enumerate(values):
        if value is not None:
            shapes.setdefault((len(value), int.from_bytes(value[8:12], "little")), []).append(row)
    if info is None and not shapes:
        return None
    out = np.full((len(values), info["width"] if info else next(iter(shapes))[1]), np.nan, dtype=np.float32)
    wanted = tag_bytes(info.get("tag") if info else None)
    for (size, _), rows in shapes.items():
        raw = np.frombuffer(b"".join(values[r] or b"" for r in rows), dtype=np.uint8).reshape(len(rows), size)
        _fill(out, np.array(rows), raw, wanted)
    return out


def _fill(out: np.ndarray, rows: np.ndarray, raw: np.ndarray, wanted: bytes) -> None:
    """Puts into out[rows] the first block of each row of `raw` with the wanted tag (any, if b"") and width."""
    open_rows, at = np.ones(len(rows), dtype=bool), 0
    while at < raw.shape[1]:
        if raw.shape[1] - at < _HEAD.itemsize:
            raise ValueError("a vector is cut off")
        head = np.ascontiguousarray(raw[:, at : at + _HEAD.itemsize]).view(_HEAD)[:, 0]
        width = int(head["width"][0])
        end = at + _HEAD.itemsize + 4 * width
        if end > raw.shape[1] or (head["width"] != width).any():
            raise ValueError("a vector is cut off")
        fits = open_rows & (not wanted or head["tag"] == np.frombuffer(wanted, "<u8")[0])
        if width == out.shape[1] and fits.any():
            numbers = np.ascontiguousarray(raw[fits, at + _HEAD.itemsize : end]).view("<f4")
            out[rows[fits]] = numbers
            open_rows &= ~fits
        at = end


class VectorTable:
    """Vectors of one name in this process's memory: a dense array a tag, at most two of them."""

    def __init__(self) -> None:
        self.info: dict[str, Any] | None = None
        self._index = UserIndex()
        self._kept: dict[str, np.ndarray] = {}  # tag -> (users, W), the newest last

    def put(self, hashes: np.ndarray, values: np.ndarray, tag: str) -> None:
        """Stores the (B, W) vectors of distinct users under a tag."""
        rows = self._index.add(hashes)
        held = self._kept.get(tag, np.zeros((0, values.shape[1]), dtype=np.float32))
        if held.shape[1] != values.shape[1]:
            raise StateError(f"tag {tag!r} holds vectors of {held.shape[1]} numbers, not {values.shape[1]}")
        self._kept[tag] = _at_least(held, len(self._index.keys))
        self._kept[tag][rows] = values
        published = (self.info or {}).get("tag")
        others = [t for t in self._kept if t not in (tag, published)]
        for old in others if published in self._kept else others[:-1]:
            del self._kept[old]

    def publish(self, info: dict[str, Any]) -> None:
        """Lets the rows of the info's tag count; those of others are forgotten."""
        self.info = info
        if info.get("tag") is not None:
            self._kept = {tag: held for tag, held in self._kept.items() if tag == info["tag"]}

    def take(self, hashes: np.ndarray) -> np.ndarray | None:
        """(B, W) vectors that count, NaN where there is none; None as in `unpack_vectors`."""
        rows = self._index.find(hashes)
        wanted = (self.info or {}).get("tag")
        if self.info is None and not (rows >= 0).any():
            return None
        width = self.info["width"] if self.info else next(reversed(self._kept.values())).shape[1]
        out = np.full((len(rows), width), np.nan, dtype=np.float32)
        for tag, held in self._kept.items():  # newer ones over older ones
            if held.shape[1] == width and wanted in (None, tag):
                there = np.flatnonzero((rows >= 0) & (rows < len(held)))
                found = held[rows[there]]
                some = ~np.isnan(found).all(axis=1)
                out[there[some]] = found[some]
        return out

    def dump(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What `restore` needs: JSON, and arrays by name."""
        n = len(self._index)
        arrays = {f"{i}": _at_least(held, n)[:n].copy() for i, held in enumerate(self._kept.values())}
        return {"info": self.info, "tags": list(self._kept)}, {"keys": self._index.keys[:n].copy(), **arrays}

    @classmethod
    def restore(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> VectorTable:
        """Inverse of `dump`."""
        made = cls()
        made.info = header["info"]
        made._index.add(arrays["keys"])
        rows = made._index.find(arrays["keys"])
        for i, tag in enumerate(header["tags"]):
            held = np.full(arrays[f"{i}"].shape, np.nan, dtype=np.float32)
            held[rows] = arrays[f"{i}"]
            made._kept[tag] = held
        return made


def _at_least(held: np.ndarray, rows: int) -> np.ndarray:
    if rows <= len(held):
        return held
    return np.concatenate([held, np.full((rows - len(held), held.shape[1]), np.nan, dtype=np.float32)])
