"""Loads what the daily scoring job wrote (delta of every user, for one day) into the state store.

Folder: `<folder>/day=<day>/bucket=*.parquet` with `user_id` and `delta` (FixedSizeList of K float32), and beside them a
`manifest.json`, written last: `version` of the model, `day`, `width` K, and `population`, the delta of all users together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from plpm_ray.core.errors import DataError
from plpm_ray.core.feature_columns import unpack
from plpm_ray.core.storage import read_json, read_parquet
from plpm_ray.navigators.klan.klan import DELTA
from plpm_ray.serving.store import StateStore, Users

MANIFEST = "manifest.json"
_AT_ONCE = 50_000


def newest_day(folder: str | Path) -> Path | None:
    """Folder of the newest day that is complete; None where there is none yet."""
    days = [path.parent for path in Path(folder).glob(f"day=*/{MANIFEST}")]
    return max(days, key=lambda day: day.name, default=None)


def published_as(day: Path) -> dict[str, Any]:
    """What is published of a day.

    Raises:
        DataError: its manifest lacks something.
    """
    manifest = read_json(day / MANIFEST)
    lacking = [name for name in ("version", "day", "width", "population") if manifest.get(name) is None]
    if lacking:
        raise DataError(
            f"{day / MANIFEST} lacks {', '.join(lacking)}", hint="let `plpm score` write it again"
        )
    info = {name: manifest[name] for name in ("version", "day", "width", "population")}
    # `inputs` tells a day that was scored again, with sessions that came late, from the first time
    return info | {"tag": "@".join(str(manifest.get(name)) for name in ("version", "day", "inputs"))}


def load_deltas(store: StateStore, folder: str | Path, pages: int) -> bool:
    """Stores and publishes the newest complete day, unless it or a newer one is published already.

    Args:
        store: where it goes.
        folder: see the module.
        pages: number of pages K.

    Returns:
        Whether there was something new.

    Raises:
        DataError: a file is unreadable or of other pages.
        StateError: the state store failed.
    """
    day = newest_day(folder)
    if day is None:
        return False
    info, before = published_as(day), store.vector_info(DELTA)
    if before is not None and (before.get("tag") == info["tag"] or str(before["day"]) > str(info["day"])):
        return False
    if info["width"] != pages:
        raise DataError(
            f"{day} has delta for {info['width']} pages, the bundle has {pages}",
            hint="score the users with the ISP of this bundle",
        )
    store_day(store, day)
    return True


def store_day(store: StateStore, day: Path) -> None:
    """Stores all vectors of a complete day and then publishes them."""
    info = published_as(day)
    for file in sorted(day.glob("bucket=*.parquet")):
        table = read_parquet(file)
        users, values = Users.of(table["user_id"]), unpack(table[DELTA])
        for start in range(0, len(users), _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, len(users)))
            store.save_vectors(DELTA, users.take(rows), values[rows], tag=info["tag"])
    store.set_vector_info(DELTA, info)
