"""The scratch folder of one ingest inside the warehouse, and the lock that keeps two ingests apart."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plpm_ray.core.errors import StorageError
from plpm_ray.core.storage import storage_errors
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
        StorageError: another ingest is writing here, or the folder cannot be made.
    """
    with storage_errors(f"creating {root}"):
        root.mkdir(parents=True, exist_ok=True)
    with _locked(root / ".ingest.lock", root):
        for left in root.glob(f"{_PREFIX}*"):
            _remove(left, sessions)
        gen = sessions.new_generation()
        folder = root / f"{_PREFIX}{gen}"
        with storage_errors(f"creating {folder}"):
            folder.mkdir()
        try:
            yield folder, gen
        finally:
            _remove(folder, sessions)


def _remove(folder: Path, sessions: DayTable) -> None:
    """Removes a scratch folder, and what its generation holds of days that were not committed with it."""
    gen = folder.name.removeprefix(_PREFIX)
    valid = {
        sessions.path(day, gen, 0).parent for day, entry in sessions.entries().items() if entry.gen == gen
    }
    for written in sessions.root.glob(f"day=*/gen={gen}"):
        if written not in valid:
            shutil.rmtree(written, ignore_errors=True)
            with contextlib.suppress(OSError):
                written.parent.rmdir()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, root: Path) -> Iterator[None]:
    """An advisory lock that the operating system lets go when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with storage_errors(f"writing {path}"):
        path.touch()
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"another ingest is writing to {root}", hint="wait until it has ended"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
