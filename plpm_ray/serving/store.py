"""Where the per-user state lives between decisions: one protocol, in this process (memory) or beside it (Valkey, Redis).

A store knows nothing of features: it keeps one fixed-size record a user, whose first part every navigator shares (the
history) and whose tail belongs to the navigator of the moment (its intra-day state), and the user's profile columns.

Letters: B users in a call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import ColumnKind
from plpm_ray.core.hashing import user_hash
from plpm_ray.serving.config import StoreConfig

Profiles = dict[str, Any]
Updater = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
"""`fn(records, rows, positions)` changes `records[rows]` in place; row rows[i] is the record of user positions[i]."""


@dataclass(frozen=True)
class Users:
    """B users: `ids` (B,) int64 or string without nulls, `hash` (B,) uint64."""

    ids: pa.Array
    hash: np.ndarray

    @classmethod
    def of(cls, ids: Any) -> Users:
        """From ids of any integer or string type, in an Arrow array, a NumPy array or a list.

        Raises:
            DataError: nulls, or another type.
        """
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        array = ids if isinstance(ids, pa.Array) else pa.array(ids)
        return cls(array, user_hash(array))

    def __len__(self) -> int:
        return len(self.hash)

    def take(self, rows: np.ndarray) -> Users:
        """The users at the given positions."""
        return Users(self.ids.take(pa.array(rows)), self.hash[rows])

    def unique(self) -> tuple[Users, np.ndarray]:
        """The distinct users and, for each of the B rows, its position among them."""
        _, first, inverse = np.unique(self.hash, return_index=True, return_inverse=True)
        if len(first) == len(self.hash):
            return self, np.arange(len(self.hash))
        return self.take(first), inverse.reshape(-1)


@dataclass(frozen=True)
class StateLayout:
    """What a record is.

    Attributes:
        dtype: structured NumPy dtype of a record, a whole number of 4-byte words long.
        shared: number of leading fields that do not depend on the navigator; the rest is the navigator's tail.
        blank: (1,) record of a user without history.
        name: identifies the shared part (pages, fields): stores refuse another one.
        profile: profile column -> kind.
    """

    dtype: np.dtype
    shared: int
    blank: np.ndarray
    name: str
    profile: Mapping[str, ColumnKind]

    @property
    def shared_bytes(self) -> int:
        """Bytes before the navigator's tail."""
        fields: Any = self.dtype.fields
        names = self.dtype.names or ()
        return int(fields[names[self.shared]][1]) if self.shared < len(names) else self.dtype.itemsize


@dataclass(frozen=True)
class Outbox:
    """Rows that go into a stream with the records they belong to: both are written, or neither.

    Attributes:
        stream: its key is `<prefix>:<stream>`.
        maxlen: about how many rows the stream keeps.
        rows: positions of users -> the rows of each, oldest first; asked after every call of the updater for just these.
    """

    stream: str
    maxlen: int
    rows: Callable[[np.ndarray], list[list[bytes]]]


class Stored(NamedTuple):
    """Published vectors of B users: `values` (B, W) float32, NaN rows where none is stored, and what was published."""

    values: np.ndarray
    info: Mapping[str, Any]


class Loaded(NamedTuple):
    """(B,) records, (B,) bool whether the user is known, and published vectors by name (names without any are absent)."""

    records: np.ndarray
    known: np.ndarray
    vectors: Mapping[str, Stored]


class StateStore(Protocol):
    """Records, profiles and vectors by user. All calls are vectorised; an unknown user has the layout's blank record."""

    remote: bool
    """Whether the records are outside this process, so that several replicas may share them and calls wait for a network."""

    def bind(self, layout: StateLayout) -> None:
        """Says what a record is; called once before use and again when a navigator with another tail takes over.

        Raises:
            StateError: the store holds records of another shared part.
        """
        ...

    def load(self, users: Users) -> tuple[np.ndarray, np.ndarray]:
        """(B,) records and (B,) bool whether the user is known; repeated users are allowed."""
        ...

    def save(self, users: Users, records: np.ndarray) -> None:
        """Stores the (B,) records of distinct users, whatever was there."""
        ...

    def update(self, users: Users, fn: Updater, outbox: Outbox | None = None) -> None:
        """Reads, changes and writes the records of distinct users; no other writer's change to a user is lost.

        Args:
            users: distinct users, who are known afterwards.
            fn: see `Updater`. It may be called several times, each for some of the users, and again for users whom another
                process changed meanwhile.
            outbox: what is appended to a stream with each record, exactly once whatever crashes; remote stores only.
        """
        ...

    def profiles(self, users: Users) -> Profiles:
        """Profile columns of B users: (B,) float32, NaN = missing, or Arrow strings, null = missing."""
        ...

    def save_profiles(self, users: Users, columns: Profiles) -> None:
        """Stores profile columns of distinct users, all columns of the layout."""
        ...

    def read(self, users: Users, names: Sequence[str]) -> Loaded:
        """`load`, and the published vectors of the same users, in one round trip."""
        ...

    def save_vectors(self, name: str, users: Users, values: np.ndarray, *, tag: str) -> None:
        """Stores vectors of distinct users; readers see them once `set_vector_info` has published the tag.

        Args:
            name: such as "delta".
            users: B users.
            values: (B, W) float32.
            tag: the run of the job that writes; each run has one of its own.
        """
        ...

    def vectors(self, name: str, users: Users) -> np.ndarray | None:
        """(B, W) float32 vectors of the published tag (of the newest, as long as nothing is published), NaN rows where
        none is stored; None where nothing is published and none of the users has one."""
        ...

    def set_vector_info(self, name: str, info: Mapping[str, Any]) -> None:
        """Publishes vectors: `version` of the model, `day`, `width` W, `population` (W numbers for users without a
        vector), and `tag` (None: whatever tag a user's newest vector has)."""
        ...

    def vector_info(self, name: str) -> dict[str, Any] | None:
        """What was published, perhaps a few seconds ago; None = nothing."""
        ...

    def ping(self) -> None:
        """Returns if the store works.

        Raises:
            StateError: it does not.
        """
        ...

    def stats(self) -> dict[str, Any]:
        """Kind, number of users (None where unknown), bytes a record."""
        ...

    def close(self) -> None:
        """Releases connections, writes the last snapshot."""
        ...


def open_store(config: StoreConfig) -> StateStore:
    """The store a config asks for; it is used after `bind`.

    Raises:
        ConfigError: a valkey store without an address.
        StateError: the server cannot be reached.
    """
    if config.kind == "memory":
        from plpm_ray.serving.memory_store import MemoryStore

        return MemoryStore(config.snapshot, config.snapshot_interval_s)
    from plpm_ray.serving.valkey_store import ValkeyStore

    url = os.path.expandvars(config.url or "")
    if not url or "$" in url:
        raise ConfigError(
            f"store.url is {config.url!r}, the valkey store needs an address",
            hint="set store.url=valkey://host:6379/0 (an environment variable in it must be set), or store.kind=memory",
        )
    return ValkeyStore(url, prefix=config.prefix, ttl_days=config.ttl_days, timeout_s=config.timeout_s)


def empty_profiles(profile: Mapping[str, ColumnKind], rows: int) -> Profiles:
    """Profile columns of users without one."""
    made: Profiles = {}
    for name, kind in profile.items():
        made[name] = (
            np.full(rows, np.nan, dtype=np.float32) if kind == "numeric" else pa.nulls(rows, pa.string())
        )
    return made
