"""The scratch folder of one ingest inside the warehouse, and the lock that keeps writers apart."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plpm_ray.core.errors import StorageError
from plpm_ray.core.storage import exclusive_lock, storage_errors
from plpm_ray.data.day_table import DayTable

_ROW_BITS = 40
_PREFIX = ".staging-"


def positions(item: int, rows: np.ndarray) -> np.ndarray:
    """(n,) int64: one number for (work item, row in it), in input order."""
    return (np.int64(item) << _ROW_BITS) | rows.astype(np.int64, copy=False)


def item_and_row(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `positions`."""
    return position >> _ROW_BITS, position & ((1 << _ROW_BITS) - 1)


@contextlib.contextmanager
def staging(root: Path, sessions: DayTable) -> Iterator[tuple[Path, str]]:
    """Locks the warehouse for writing, and gives a scratch folder and a new generation of its sessions.

    When the block ends, well or not, the folder is gone; if it ends with an error, the generation too. What a killed
    ingest left behind is removed first.

    Raises:
        StorageError: another ingest or build is writing here, or the folder cannot be made.
    """
    with storage_errors(f"creating {root}"):
        root.mkdir(parents=True, exist_ok=True)
    with write_lock(root):
        for left in root.glob(f"{_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        sessions.remove_uncommitted()
        gen = sessions.new_generation()
        folder = root / f"{_PREFIX}{gen}"
        with storage_errors(f"creating {folder}"):
            folder.mkdir()
        try:
            yield folder, gen
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            sessions.remove_uncommitted()


@contextlib.contextmanager
def write_lock(root: Path) -> Iterator[None]:
    """Keeps other ingests and builds off a warehouse; readers need no lock.

    Raises:
        StorageError: another process (or another call in this one) holds it, or the folder cannot be written.
    """
    busy = StorageError(f"another ingest or build is writing to {root}", hint="wait until it has ended")
    with exclusive_lock(root / ".write.lock", busy):
        yield
