"""The state of all users in this process's memory, as one structured array; optionally saved to a file and loaded again."""

# pyarrow makes most functions of `compute` while it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.errors import PlpmError, StateError
from plpm_ray.core.storage import atomic_writer, storage_errors
from plpm_ray.serving.store import Loaded, Outbox, Profiles, StateLayout, Stored, Updater, Users
from plpm_ray.serving.user_index import UserIndex
from plpm_ray.serving.vectors import VectorTable, checked_info, checked_name, checked_vectors

_log = logging.getLogger(__name__)
_GROWTH = 1.25  # in place (the array is reallocated), so that a large store never needs twice its memory


class MemoryStore:
    """Records in growing arrays, found through a vectorised hash table. Safe to use from several threads.

    Args:
        snapshot: file to start from and to write every `interval_s` seconds and on `close`; None keeps nothing.
    """

    remote = False

    def __init__(self, snapshot: str | Path | None = None, interval_s: float = 300.0) -> None:
        self._lock = threading.RLock()
        self._index = UserIndex()
        self._profiled = UserIndex()  # users with a profile need no record
        self._layout: StateLayout | None = None
        self._records = np.zeros(0, dtype=np.uint8)
        self._profiles: dict[str, _Column] = {}
        self._vectors: dict[str, VectorTable] = {}
        self._snapshot = Path(snapshot) if snapshot else None
        self._stop = threading.Event()
        self._interval_s = interval_s
        self._saver: threading.Thread | None = None

    def bind(self, layout: StateLayout) -> None:
        with self._lock:
            if self._layout is None:
                self._layout = layout
                self._records = np.zeros(0, dtype=layout.dtype)
                self._profiles = {name: _Column(kind == "numeric") for name, kind in layout.profile.items()}
                if self._snapshot is not None:
                    self._start_snapshots(self._snapshot)
                return
            _same_layout(self._layout.name, layout, "the memory store")
            if layout.dtype != self._layout.dtype:
                self._records = converted(self._records, layout)
            for name, kind in layout.profile.items():
                self._profiles.setdefault(name, _Column(kind == "numeric"))
            self._layout = layout

    def load(self, users: Users) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            rows = self._index.find(users.hash)
            known = rows >= 0
            if not known.any():
                return np.repeat(self._bound().blank, len(rows)), known
            records = self._records[rows]
            if not known.all():
                records[~known] = self._bound().blank
            return records, known

    def save(self, users: Users, records: np.ndarray) -> None:
        with self._lock:
            self._records[self._rows(users)] = records

    def update(self, users: Users, fn: Updater, outbox: Outbox | None = None) -> None:
        if outbox is not None:
            raise StateError(
                "the memory store has no stream that sessions could be appended to",
                hint="set store.kind=valkey",
            )
        with self._lock:
            rows = self._rows(users)
            fn(self._records, rows, np.arange(len(rows)))

    def profiles(self, users: Users) -> Profiles:
        with self._lock:
            rows = self._profiled.find(users.hash)
            return {name: self._profiles[name].take(rows) for name in self._bound().profile}

    def save_profiles(self, users: Users, columns: Profiles) -> None:
        with self._lock:
            rows = self._profiled.add(users.hash)
            for name in self._bound().profile:
                self._profiles[name].put(rows, columns[name], len(self._profiled.keys))

    def read(self, users: Users, names: Sequence[str]) -> Loaded:
        with self._lock:
            records, known = self.load(users)
            vectors: dict[str, Stored] = {}
            for name in names:
                info, values = self.vector_info(name), self.vectors(name, users)
                if info is not None and values is not None:
                    vectors[name] = Stored(values, info)
            return Loaded(records, known, vectors)

    def save_vectors(self, name: str, users: Users, values: np.ndarray, *, tag: str) -> None:
        checked = checked_vectors(name, len(users), values)
        with self._lock:
            self._vectors.setdefault(name, VectorTable()).put(users.hash, checked, tag)

    def vectors(self, name: str, users: Users) -> np.ndarray | None:
        with self._lock:
            table = self._vectors.get(name)
            return table.take(users.hash) if table is not None else None

    def set_vector_info(self, name: str, info: Mapping[str, Any]) -> None:
        checked = checked_info(checked_name(name), info)
        with self._lock:
            self._vectors.setdefault(name, VectorTable()).publish(checked)

    def vector_info(self, name: str) -> dict[str, Any] | None:
        table = self._vectors.get(name)
        return table.info if table is not None else None

    def ping(self) -> None:
        return None

    def stats(self) -> dict[str, Any]:
        return {
            "kind": "memory",
            "users": len(self._index),
            "record_bytes": self._records.dtype.itemsize,
        }

    def close(self) -> None:
        self._stop.set()
        if self._saver is not None:
            self._saver.join()
            self._saver = None
            self.write_snapshot()

    def write_snapshot(self, path: str | Path | None = None) -> Path:
        """Writes everything to one file (NumPy arrays and JSON, no pickle), whole or not at all.

        Raises:
            StorageError: the disk is full or forbidden.
            StateError: no file was given, here or at the start.
        """
        target = Path(path) if path else self._snapshot
        if target is None or self._layout is None:
            raise StateError("the memory store has no snapshot file", hint="set store.snapshot to a path")
        with self._lock:
            keys, profiled = (index.keys[: len(index)].copy() for index in (self._index, self._profiled))
            arrays = {"keys": keys, "records": self._records[: len(keys)].copy(), "profiled": profiled}
            profiles = {name: column.dump(len(profiled)) for name, column in self._profiles.items()}
            vectors = {name: table.dump() for name, table in self._vectors.items()}
        header = {
            "layout": self._layout.name,
            "levels": {name: levels for name, (_, levels) in profiles.items()},
            "vectors": {name: its for name, (its, _) in vectors.items()},
        }
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        arrays |= {f"profile.{name}": values for name, (values, _) in profiles.items()}
        arrays |= {f"vector.{name}.{key}": v for name, (_, its) in vectors.items() for key, v in its.items()}
        with atomic_writer(target) as file:
            np.savez(file, **arrays)
        return target

    def _start_snapshots(self, path: Path) -> None:
        if path.exists():
            self._read_snapshot(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._saver = threading.Thread(target=self._save_regularly, name="state-snapshots", daemon=True)
        self._saver.start()

    def _read_snapshot(self, path: Path) -> None:
        layout = self._bound()
        try:
            with (
                storage_errors(f"reading {path}"),
                path.open("rb") as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                header = json.loads(arrays["header"].tobytes())
                _same_layout(header["layout"], layout, f"the snapshot {path}")
                rows = self._index.add(arrays["keys"])
                self._grow()
                self._records[rows] = converted(arrays["records"], layout)
                rows = self._profiled.add(arrays["profiled"])
                for name in header["levels"].keys() & self._profiles.keys():
                    values, levels = arrays[f"profile.{name}"], header["levels"][name]
                    self._profiles[name].restore(rows, values, levels, len(self._profiled.keys))
                for name, its in header.get("vectors", {}).items():
                    keys = ("keys", *map(str, range(len(its["tags"]))))
                    held = {key: arrays[f"vector.{name}.{key}"] for key in keys}
                    self._vectors[name] = VectorTable.restore(its, held)
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise StateError(
                f"the snapshot {path} is damaged: {error}", hint="remove it to start with an empty store"
            ) from None

    def _save_regularly(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self.write_snapshot()
            except PlpmError as error:  # serving goes on; the next one may succeed
                _log.error("no snapshot: %s", error)

    def _bound(self) -> StateLayout:
        if self._layout is None:
            raise StateError("the state store is used before bind()", hint="load_policy binds it")
        return self._layout

    def _rows(self, users: Users) -> np.ndarray:
        rows = self._index.add(users.hash)
        self._grow()
        return rows

    def _grow(self) -> None:
        before, need = len(self._records), len(self._index)
        if need > before:
            self._records.resize(max(need, int(before * _GROWTH), 64), refcheck=False)
            self._records[before:] = self._bound().blank


def converted(records: np.ndarray, layout: StateLayout) -> np.ndarray:
    """Records under another layout: fields of the same name and type are kept, the others are blank."""
    if records.dtype == layout.dtype:
        return records
    made = np.repeat(layout.blank, len(records))
    old, new = records.dtype.fields or {}, layout.dtype.fields or {}
    for name in new:
        if name in old and old[name][0] == new[name][0]:
            made[name] = records[name]
    return made


def _same_layout(found: str, layout: StateLayout, where: str) -> None:
    if found != layout.name:
        raise StateError(
            f"{where} holds states of layout {found}, the bundle needs {layout.name} (other pages)",
            hint="start it empty (another store.snapshot or store.prefix), or serve a bundle of the same dataset",
        )


class _Column:
    """One profile column by row: float32, or strings as codes into a growing list of levels (-1 = missing)."""

    def __init__(self, numeric: bool) -> None:
        self.numeric = numeric
        self.values = np.zeros(0, dtype=np.float32 if numeric else np.int32)
        self.levels = pa.array([], type=pa.string())

    def take(self, rows: np.ndarray) -> Any:
        blank = np.nan if self.numeric else -1
        present = (rows >= 0) & (rows < len(self.values))
        values = np.full(len(rows), blank, dtype=self.values.dtype)
        values[present] = self.values[rows[present]]
        if self.numeric:
            return values
        return self.levels.take(pa.array(values, mask=values < 0))

    def put(self, rows: np.ndarray, column: Any, capacity: int) -> None:
        self._grow(capacity)
        if self.numeric:
            self.values[rows] = column
            return
        encoded = column.dictionary_encode()
        self.levels = pa.concat_arrays([self.levels, encoded.dictionary]).unique()
        codes = self._codes(encoded.dictionary)
        indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        self.values[rows] = np.append(codes, -1)[indices]

    def dump(self, n: int) -> tuple[np.ndarray, list[str]]:
        self._grow(n)
        return self.values[:n].copy(), self.levels.to_pylist()

    def restore(self, rows: np.ndarray, values: np.ndarray, levels: list[str], capacity: int) -> None:
        self._grow(capacity)
        self.levels = pa.array(levels, type=pa.string())
        self.values[rows] = values

    def _codes(self, values: pa.Array) -> np.ndarray:
        return pc.index_in(values, value_set=self.levels).to_numpy(zero_copy_only=False).astype(np.int32)

    def _grow(self, capacity: int) -> None:
        if capacity > len(self.values):
            blank = np.full(
                capacity - len(self.values), np.nan if self.numeric else -1, dtype=self.values.dtype
            )
            self.values = np.concatenate([self.values, blank])
