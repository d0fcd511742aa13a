"""What a sweep shows and logs while it runs: a bar on a terminal, a line per epoch in metrics.jsonl always."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from plpm_ray.core.storage import storage_errors
from plpm_ray.tuning.ledger import EpochReport


class Progress:
    """Told of every epoch of every trial.

    Args:
        path: the metrics file; lines are added to it.
        trials: in all.
        epochs: of a full trial.
        done: trials that are on record already.
    """

    def __init__(self, path: Path, trials: int, epochs: int, done: int) -> None:
        self._path = path
        self._best: tuple[float, float | None] | None = None
        self._bar: Any = None
        self._epochs = epochs
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("trials"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[best]}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=trials, completed=done, best="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *details: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_report(self, number: int, report: EpochReport) -> None:
        """Adds a line, and moves the best value shown."""
        line = json.dumps({"trial": number, **report.to_dict()}, allow_nan=False)
        with storage_errors(f"writing {self._path}"), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        full = report.epoch >= self._epochs
        if full and report.score is not None and (self._best is None or report.score > self._best[0]):
            self._best = report.score, report.value

    def on_records(self, count: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            best = "" if self._best is None else f"best {self._best[1]:.4g}"
            self._bar.update(self._task, completed=count, best=best)
