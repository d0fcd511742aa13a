"""The state of all users in a Valkey or Redis server, shared by any number of replicas.

Keys: `<prefix>:layout` (what the records are), `<prefix>:s:<user>` (8 bytes version, then the record as `pack` writes it)
and `<prefix>:p:<user>` (profile as JSON). A write draws a new random version; `update` writes a record only if its version is
still the one that was read (compare and set in a Lua script), and repeats the users for whom it was not.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import valkey
from valkey.exceptions import ValkeyError

from plpm_ray.core.errors import StateError
from plpm_ray.serving.store import Profiles, StateLayout, Updater, Users, empty_profiles

_CHUNK = 512  # keys a command, and users an update
_VERSION_BYTES = 8
_ATTEMPTS = 50
_WORDS = np.dtype("<u4")
_COMPARE_AND_SET = """
local done = {}
local ttl = tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
  if redis.call('GETRANGE', key, 0, 7) == ARGV[2 * i] then
    if ttl > 0 then redis.call('SET', key, ARGV[2 * i + 1], 'PX', ttl)
    else redis.call('SET', key, ARGV[2 * i + 1]) end
    done[i] = 1
  else done[i] = 0 end
end
return done
"""


class ValkeyStore:
    """Records in a server that speaks the Redis protocol (one primary; not a cluster with slots).

    Args:
        url: valkey://, redis://, rediss:// or unix:// address.
        prefix: first part of every key; stores with different prefixes do not see one another.
        ttl_days: days after the last write at which the server forgets a user; None = never.
        timeout_s: seconds to wait for a connection or an answer.

    Raises:
        StateError: the server cannot be reached, here and in every method.
    """

    remote = True

    def __init__(
        self, url: str, *, prefix: str = "plpm", ttl_days: float | None = None, timeout_s: float = 2.0
    ) -> None:
        self.address = re.sub(r"//[^@/]*@", "//", url)
        self._prefix = prefix.encode()
        self._ttl_ms = int(ttl_days * 86_400_000) if ttl_days else 0
        self._layout: StateLayout | None = None
        with self._reached():
            scheme = re.sub(r"^valkey(s?)\+?", r"redis\1", url, count=1) if url.startswith("valkey+") else url
            self._client = valkey.Valkey.from_url(
                scheme, socket_timeout=timeout_s, socket_connect_timeout=timeout_s
            )
            self._client.ping()
        self._swap = self._client.register_script(_COMPARE_AND_SET)

    def bind(self, layout: StateLayout) -> None:
        key = self._prefix + b":layout"
        with self._reached():
            if not self._client.set(key, layout.name, nx=True):
                found = self._client.get(key)
                name = found.decode(errors="replace") if isinstance(found, bytes) else layout.name
                if name != layout.name:
                    raise StateError(
                        f"{self.address} holds states of layout {name} under prefix {self._prefix.decode()!r}, "
                        f"the bundle needs {layout.name} (other pages)",
                        hint="set store.prefix to another name, or serve a bundle of the same dataset",
                    )
        self._layout = layout

    def load(self, users: Users) -> tuple[np.ndarray, np.ndarray]:
        values = self._get(self._keys(b":s:", users))
        return self._parse(values), np.array([v is not None for v in values], dtype=bool)

    def save(self, users: Users, records: np.ndarray) -> None:
        values = self._versioned(records)
        with self._reached():
            pipe = self._client.pipeline(transaction=False)
            for key, value in zip(self._keys(b":s:", users), values, strict=True):
                pipe.set(key, value, px=self._ttl_ms or None)
            pipe.execute()

    def update(self, users: Users, fn: Updater) -> None:
        keys = self._keys(b":s:", users)
        for start in range(0, len(keys), _CHUNK):
            self._update(keys, np.arange(start, min(start + _CHUNK, len(keys))), fn)

    def _update(self, keys: list[bytes], positions: np.ndarray, fn: Updater) -> None:
        for attempt in range(_ATTEMPTS):
            wanted = [keys[i] for i in positions]
            old = self._get(wanted)
            records = self._parse(old)
            fn(records, np.arange(len(records)), positions)
            done = self._compare_and_set(
                wanted, [(v or b"")[:_VERSION_BYTES] for v in old], self._versioned(records)
            )
            positions = positions[~done]
            if not len(positions):
                return
            time.sleep(random.uniform(0, 0.002 * (attempt + 1)))
        raise StateError(
            f"{len(positions)} users were changed by others {_ATTEMPTS} times in a row",
            hint="send the sessions of a user to one client",
        )

    def profiles(self, users: Users) -> Profiles:
        assert self._layout is not None
        columns = empty_profiles(self._layout.profile, len(users))
        if not columns:
            return columns
        rows = [json.loads(v) if v else {} for v in self._get(self._keys(b":p:", users))]
        for name, kind in self._layout.profile.items():
            values = [row.get(name) for row in rows]
            columns[name] = (
                np.array(values, dtype=np.float32) if kind == "numeric" else pa.array(values, pa.string())
            )
        return columns

    def save_profiles(self, users: Users, columns: Profiles) -> None:
        plain = {
            k: [None if v != v else v for v in c.tolist()] if isinstance(c, np.ndarray) else c.to_pylist()
            for k, c in columns.items()
        }
        rows = zip(*plain.values(), strict=True)
        values = [json.dumps(dict(zip(plain, row, strict=True))).encode() for row in rows]
        with self._reached():
            keys = self._keys(b":p:", users)
            for start in range(0, len(keys), _CHUNK):
                self._client.mset(
                    dict(zip(keys[start : start + _CHUNK], values[start : start + _CHUNK], strict=True))
                )

    def ping(self) -> None:
        with self._reached():
            self._client.ping()

    def stats(self) -> dict[str, Any]:
        record = self._layout.dtype.itemsize if self._layout else None
        return {"kind": "valkey", "users": None, "record_bytes": record, "address": self.address}

    def close(self) -> None:
        self._client.close()

    def _keys(self, part: bytes, users: Users) -> list[bytes]:
        head = self._prefix + part
        ids = users.ids.to_pylist()
        if pa.types.is_integer(users.ids.type):
            return [b"%b%d" % (head, user) for user in ids]
        return [head + user.encode() for user in ids]

    def _get(self, keys: list[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = []
        with self._reached():
            for start in range(0, len(keys), _CHUNK):
                found += self._client.mget(keys[start : start + _CHUNK])  # type: ignore[operator]  # the client is not asynchronous
        return found

    def _parse(self, values: list[bytes | None]) -> np.ndarray:
        assert self._layout is not None
        try:
            return unpack([None if v is None else v[_VERSION_BYTES:] for v in values], self._layout)
        except ValueError as error:
            raise StateError(
                f"{self.address} holds a damaged record under {self._prefix.decode()!r}: {error}",
                hint="another program writes under this prefix; set store.prefix",
            ) from None

    def _versioned(self, records: np.ndarray) -> list[bytes]:
        assert self._layout is not None
        versions = os.urandom(_VERSION_BYTES * len(records))
        packed = pack(records, self._layout)
        return [
            versions[_VERSION_BYTES * i : _VERSION_BYTES * (i + 1)] + value for i, value in enumerate(packed)
        ]

    def _compare_and_set(self, keys: list[bytes], old: list[bytes], new: list[bytes]) -> np.ndarray:
        done: list[int] = []
        with self._reached():
            for start in range(0, len(keys), _CHUNK):
                part = slice(start, start + _CHUNK)
                args = [x for pair in zip(old[part], new[part], strict=True) for x in pair]
                done += self._swap(keys=keys[part], args=[self._ttl_ms, *args])  # type: ignore[operator]
        return np.array(done, dtype=bool)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (ValkeyError, ValueError, OSError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(
                f"the state store at {self.address} failed: {error}",
                hint="is the server running, and is store.url right?",
            ) from error


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
