"""Checkpoints: one file that holds all a run needs to go on exactly where it was; loading executes no pickled code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from plpm_ray.core.errors import StorageError
from plpm_ray.core.storage import atomic_writer, storage_errors

FILE = "state.pt"


def save_state(state: dict[str, Any], folder: str | Path) -> Path:
    """Writes `folder/state.pt` atomically.

    Args:
        state: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    # torch reports a full disk as a RuntimeError without a reason, so the file is made in memory and written by us
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = Path(folder) / FILE
    with atomic_writer(path) as file:
        file.write(buffer.getbuffer())
    return path


def load_state(folder: str | Path) -> dict[str, Any]:
    """Reads what `save_state` wrote, onto the CPU.

    Raises:
        StorageError: there is none, or it is damaged.
    """
    path = Path(folder) / FILE
    try:
        with storage_errors(f"reading checkpoint {path}"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise StorageError(
            f"checkpoint {path} is damaged: {str(error).splitlines()[0]}",
            hint="remove that folder; the run goes on from the one before",
        ) from None


class CheckpointFolder:
    """The newest checkpoints of a run without Ray: `<root>/step-000001200/state.pt`."""

    def __init__(self, root: str | Path, keep: int) -> None:
        self.root = Path(root)
        self.keep = keep

    def all(self) -> list[Path]:
        """Complete checkpoints, the oldest first."""
        return sorted(path.parent for path in self.root.glob(f"step-*/{FILE}"))

    def latest(self) -> dict[str, Any] | None:
        """State of the newest checkpoint, or None before the first."""
        found = self.all()
        return load_state(found[-1]) if found else None

    def save(self, state: dict[str, Any], step: int) -> None:
        """Adds a checkpoint, then removes those beyond `keep`."""
        save_state(state, self.root / f"step-{step:09d}")
        for old in self.all()[: -self.keep]:
            (old / FILE).unlink(missing_ok=True)
            old.rmdir()
