"""Names of runs without their hash, as in `runs/glan`: which run one means is said, and a run found again takes its name."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plpm_ray.core import storage

_FILES = ("bundle/bundle.json", "summary.json")  # by their times `newest_run` finds bundles and reports


class _ToStderr(logging.Handler):
    """One line for each message, once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            print(text, file=sys.stderr)


@contextlib.contextmanager
def names_told() -> Iterator[None]:
    """While the block runs, stderr says which run a name was taken for, where several have it."""
    logger, handler = logging.getLogger(storage.__name__), _ToStderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def take_name(run_dir: Path) -> str:
    """Makes a finished run that was found again the one its name means, where its files may be touched; what came of it."""
    from plpm_ray.navigators.bundle import find_bundle

    name = storage.name_of_run(run_dir)
    if storage.renew(run_dir, _FILES) or find_bundle(name).parent == run_dir:
        return f"{name} means this run"
    return f"{name} means another run, as files of this one cannot be touched; give the folder itself"


def run_rows(result: Any) -> dict[str, Any]:
    """Rows of a summary that say where a run lies; one that had finished before takes its name again."""
    name = {"name": take_name(result.run_dir)} if result.finished_before else {}
    return {"run": result.run_dir, "bundle": result.bundle_path, **name}
