"""Tells a state store what the daily scoring job found.

Letters: B users, K pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from plpm_ray.core.features import unpack
from plpm_ray.core.storage import read_parquet
from plpm_ray.serving.store import Users

DELTA = "delta"
_STORED_AT_ONCE = 50_000


class VectorStore(Protocol):
    """What the job needs of a state store."""

    def save_vectors(self, name: str, users: Users, values: np.ndarray, *, tag: str) -> None:
        """Stores (B, K) vectors under a tag; they count once the tag is published."""
        ...

    def set_vector_info(self, name: str, info: Mapping[str, Any]) -> None:
        """Publishes."""
        ...

    def vector_info(self, name: str) -> dict[str, Any] | None:
        """What is published."""
        ...

    def close(self) -> None:
        """Releases connections."""
        ...


def publish(store: VectorStore, folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Tells a store the result of a day, unless a newer day is published there; whether it was told."""
    before = store.vector_info(DELTA)
    if before is not None and str(before.get("day", "")) > manifest["day"]:
        return False
    tag = f"{manifest['version']}@{manifest['day']}"
    for name in manifest["buckets"]:
        table = read_parquet(folder / name)
        users, values = Users.of(table["user_id"]), unpack(table[DELTA])
        for start in range(0, len(users), _STORED_AT_ONCE):
            rows = np.arange(start, min(start + _STORED_AT_ONCE, len(users)))
            store.save_vectors(DELTA, users.take(rows), values[rows], tag=tag)
    info = {name: manifest[name] for name in ("version", "day", "width", "population")}
    store.set_vector_info(DELTA, info | {"tag": tag})
    return True
