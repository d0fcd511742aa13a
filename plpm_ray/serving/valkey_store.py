"""The state of all users in a Valkey or Redis server, shared by any number of replicas.

Keys: `<prefix>:layout` (what the records are), `<prefix>:s:<user>` (8 bytes version, then the record as `pack` writes it),
`<prefix>:p:<user>` (profile as JSON), `<prefix>:v:<name>:<user>` (vectors) and `<prefix>:vi:<name>` (what is published of
them, as JSON); streams are `<prefix>:<name>`. A write draws a new random version; `update` writes a record only if its version is
still the one that was read (compare and set in a Lua script), and repeats the users for whom it was not.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import valkey
from valkey.exceptions import ValkeyError

from plpm_ray.core.errors import StateError
from plpm_ray.data.stream import FIELD
from plpm_ray.serving.record_bytes import pack, unpack
from plpm_ray.serving.store import (
    Loaded,
    Outbox,
    Profiles,
    StateLayout,
    Stored,
    Updater,
    Users,
    empty_profiles,
)
from plpm_ray.serving.vectors import (
    SAVE_VECTORS,
    checked_info,
    checked_name,
    checked_vectors,
    pack_vectors,
    tag_bytes,
    unpack_vectors,
)

_CHUNK = 512  # keys a command, and users an update
_VERSION_BYTES = 8
_ATTEMPTS = 50
_INFO_S = 5.0  # seconds for which what is published of vectors is not asked for again
_COMPARE_AND_SET = """
local done, at, users = {}, 4, #KEYS
local ttl, maxlen, field = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if maxlen > 0 then users = users - 1 end
for i = 1, users do
  local rows = tonumber(ARGV[at + 2])
  if redis.call('GETRANGE', KEYS[i], 0, 7) == ARGV[at] then
    if ttl > 0 then redis.call('SET', KEYS[i], ARGV[at + 1], 'PX', ttl)
    else redis.call('SET', KEYS[i], ARGV[at + 1]) end
    for row = at + 3, at + 2 + rows do
      redis.call('XADD', KEYS[#KEYS], 'MAXLEN', '~', maxlen, '*', field, ARGV[row])
    end
    done[i] = 1
  else done[i] = 0 end
  at = at + 3 + rows
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
        self._save_vectors = self._client.register_script(SAVE_VECTORS)
        self._infos: dict[str, tuple[float, dict[str, Any] | None]] = {}  # name -> when to ask again, info

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

    def update(self, users: Users, fn: Updater, outbox: Outbox | None = None) -> None:
        keys = self._keys(b":s:", users)
        for start in range(0, len(keys), _CHUNK):
            self._update(keys, np.arange(start, min(start + _CHUNK, len(keys))), fn, outbox)

    def _update(self, keys: list[bytes], positions: np.ndarray, fn: Updater, outbox: Outbox | None) -> None:
        for attempt in range(_ATTEMPTS):
            wanted = [keys[i] for i in positions]
            found = self._get(wanted)
            records = self._parse(found)
            fn(records, np.arange(len(records)), positions)
            old = [(value or b"")[:_VERSION_BYTES] for value in found]
            done = self._compare_and_set(wanted, old, self._versioned(records), positions, outbox)
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

    def read(self, users: Users, names: Sequence[str]) -> Loaded:
        asked = [name for name in names if not self._fresh(name)]
        # what is published may have to be asked for in the same round trip, so the vectors are then fetched on trust
        wanted = [name for name in names if name in asked or self._infos[name][1] is not None]
        keys = [self._info_key(name) for name in asked] + self._keys(b":s:", users)
        for name in wanted:
            keys += self._keys(self._vector_part(name), users)
        values, b = self._get(keys), len(users)
        for name in asked:
            self._remember(name, values.pop(0))
        vectors: dict[str, Stored] = {}
        for i, name in enumerate(wanted, start=1):
            info = self._infos[name][1]
            if info is not None:
                vectors[name] = Stored(self._vectors_of(values[i * b : (i + 1) * b], info), info)
        states = values[:b]
        return Loaded(self._parse(states), np.array([v is not None for v in states], dtype=bool), vectors)

    def save_vectors(self, name: str, users: Users, values: np.ndarray, *, tag: str) -> None:
        rows = pack_vectors(checked_vectors(name, len(users), values), tag)
        keys = self._keys(self._vector_part(name), users)
        self._infos.pop(name, None)
        published = tag_bytes((self.vector_info(name) or {}).get("tag"))
        with self._reached():
            for start in range(0, len(keys), _CHUNK):
                part = slice(start, start + _CHUNK)
                self._save_vectors(keys=keys[part], args=[self._ttl_ms, published, *rows[part]])

    def vectors(self, name: str, users: Users) -> np.ndarray | None:
        info = self.vector_info(name)
        return self._vectors_of(self._get(self._keys(self._vector_part(name), users)), info)

    def set_vector_info(self, name: str, info: Mapping[str, Any]) -> None:
        checked = checked_info(checked_name(name), info)
        with self._reached():
            self._client.set(self._info_key(name), json.dumps(checked))
        self._infos.pop(name, None)

    def vector_info(self, name: str) -> dict[str, Any] | None:
        if not self._fresh(name):
            self._remember(name, self._get([self._info_key(name)])[0])
        return self._infos[name][1]

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
        """Values of any number of keys in one round trip."""
        with self._reached():
            pipe = self._client.pipeline(transaction=False)
            for start in range(0, len(keys), _CHUNK):
                pipe.mget(keys[start : start + _CHUNK])
            return [value for values in pipe.execute() for value in values]

    def _info_key(self, name: str) -> bytes:
        return b"%b:vi:%b" % (self._prefix, name.encode())

    @staticmethod
    def _vector_part(name: str) -> bytes:
        return b":v:%b:" % checked_name(name).encode()

    def _fresh(self, name: str) -> bool:
        return name in self._infos and time.monotonic() < self._infos[name][0]

    def _remember(self, name: str, value: bytes | None) -> None:
        try:
            info = None if value is None else checked_info(name, json.loads(value))
        except ValueError as error:
            raise self._damaged("info of vectors", error) from None
        self._infos[name] = (time.monotonic() + _INFO_S, info)

    def _vectors_of(self, values: list[bytes | None], info: Mapping[str, Any] | None) -> Any:
        try:
            return unpack_vectors(values, info)
        except ValueError as error:
            raise self._damaged("vector", error) from None

    def _parse(self, values: list[bytes | None]) -> np.ndarray:
        assert self._layout is not None
        try:
            return unpack([None if v is None else v[_VERSION_BYTES:] for v in values], self._layout)
        except ValueError as error:
            raise self._damaged("record", error) from None

    def _damaged(self, what: str, error: Exception) -> StateError:
        return StateError(
            f"{self.address} holds a damaged {what} under {self._prefix.decode()!r}: {error}",
            hint="another program writes under this prefix; set store.prefix",
        )

    def _versioned(self, records: np.ndarray) -> list[bytes]:
        assert self._layout is not None
        versions = os.urandom(_VERSION_BYTES * len(records))
        packed = pack(records, self._layout)
        return [
            versions[_VERSION_BYTES * i : _VERSION_BYTES * (i + 1)] + value for i, value in enumerate(packed)
        ]

    def _compare_and_set(
        self,
        keys: list[bytes],
        old: list[bytes],
        new: list[bytes],
        positions: np.ndarray,
        outbox: Outbox | None,
    ) -> np.ndarray:
        """(B,) whether each record was written, with its rows in the stream; in one step of the server."""
        rows = outbox.rows(positions) if outbox is not None else [[] for _ in keys]
        args: list[Any] = [self._ttl_ms, outbox.maxlen if outbox is not None else 0, FIELD]
        for before, after, its in zip(old, new, rows, strict=True):
            args += [before, after, len(its), *its]
        stream = [self._prefix + b":" + outbox.stream.encode()] if outbox is not None else []
        with self._reached():
            done: Any = self._swap(keys=[*keys, *stream], args=args)
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
