"""A run of a streaming learner in its folder: commits that survive a kill at any moment, published bundles.

<run_root>/<name>-<hash>/   config.json  metrics.jsonl  state.pt  bundles/sessions-<n>/  bundle -> newest  summary.json

`state.pt` holds weights, optimiser, judgements and the position in the stream, and is replaced whole: what a killed process did
after it is done again from it, with the same result. Records of metrics.jsonl are written before the state that counts them,
and cut back to it where a run goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plpm_ray.core.config import config_hash
from plpm_ray.core.errors import ConfigError, StorageError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.core.storage import exclusive_folder, read_json, storage_errors, write_json
from plpm_ray.data.contract import DAY_MS, Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.data.fit import fit_spec
from plpm_ray.navigators.base import Learner
from plpm_ray.navigators.bundle import Bundle, save_bundle
from plpm_ray.training.checkpoint import FILE, load_state, save_state
from plpm_ray.training.job import build_learner, claim_folder, plugins_identity, resolve_config
from plpm_ray.training.stream_config import StreamTraining
from plpm_ray.training.stream_sources import StreamRows, StreamSource
from plpm_ray.training.streaming import Record, StreamLearner
from plpm_ray.training.trackers import JsonlTracker

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class StreamJob:
    """What is learned.

    Attributes:
        learner: with its first weights.
        spec, pages, stats: fitted encoder, catalogue, totals of the window it was fitted on.
        training: how.
        folder: of the run, without its hash.
        dataset: name of the data, for the bundle.
        started_from: version of the bundle that the weights came from, if any.
        plugins: files or modules that register the learner.
    """

    learner: Learner
    spec: FeatureSpec
    pages: PageCatalogue
    stats: TableStats
    training: StreamTraining
    folder: Path
    dataset: str
    started_from: str | None = None
    plugins: tuple[str, ...] = ()

    @classmethod
    def untrained(
        cls,
        learner: str,
        options: Mapping[str, Any],
        warehouse: Warehouse,
        fit_days: Sequence[int],
        training: StreamTraining,
        folder: Path,
        plugins: Sequence[str] = (),
    ) -> StreamJob:
        """A new learner, its encoder fitted on some days of the tables.

        Raises:
            ConfigError: an unknown learner, or a wrong setting.
            DataError: the days hold no sessions.
        """
        plugins = tuple(str(Path(p).resolve()) if p.endswith(".py") else p for p in plugins)
        load_plugins(plugins)
        kind, pages = lookup("learner", learner), warehouse.info.pages
        spec, stats = fit_spec(warehouse, fit_days)
        made = build_learner(kind, resolve_config(kind, options), spec, pages, stats, training.seed)
        dataset = warehouse.info.name
        return cls(made, spec, pages, stats, training, folder, dataset, plugins=plugins)

    def identity(self, source: dict[str, Any]) -> dict[str, Any]:
        """What decides the result; a run goes on under the same only."""
        return {
            "learner": self.learner.name,
            "config": self.learner.config.model_dump(mode="json"),
            "training": self.training.identity(),
            "start": self.started_from,
            "encoder": config_hash([self.spec.to_dict(), self.stats.to_dict()]),
            "source": source,
            **plugins_identity(self.plugins),
        }

    def run_dir(self, source: dict[str, Any]) -> Path:
        """`<folder>-<hash of the identity>`."""
        return self.folder.with_name(f"{self.folder.name}-{config_hash(self.identity(source))}").resolve()


def run_stream(
    job: StreamJob, source: StreamSource, stop: Callable[[], bool] | None = None
) -> dict[str, Any]:
    """Learns from where the run stands until the source ends, `stop_after` is reached, or it is told to stop.

    Args:
        job: what.
        source: from where; it is not closed.
        stop: asked between micro-batches.

    Returns:
        What `summary.json` holds.

    Raises:
        ConfigError: the folder holds another run, or one that another process is at.
        DataError, StateError: the source lost sessions, holds others than the encoder knows, or cannot be reached.
        StorageError: the folder cannot be written.
    """
    if source.schema != job.spec.schema:
        raise ConfigError(
            "the stream holds other pages or columns than the encoder was fitted on",
            hint="start from a bundle, or from tables, of the stream's own dataset",
        )
    run_dir = job.run_dir(source.identity)
    with exclusive_folder(run_dir):
        identity = job.identity(source.identity)
        claim_folder(run_dir, identity, {"training": job.training.model_dump(mode="json")}, "learn")
        return _Run(job, source, run_dir, config_hash(identity)).go(stop or (lambda: False))


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Gives a function that turns true at SIGTERM or SIGINT, which then do nothing else."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event.is_set
        return
    before = {s: signal.signal(s, lambda *_: event.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event.is_set
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


class _Run:
    """See `run_stream`."""

    def __init__(self, job: StreamJob, source: StreamSource, run_dir: Path, digest: str) -> None:
        self.job, self.source, self.run_dir, self.digest = job, source, run_dir, digest
        self.learner = StreamLearner(job.learner, job.spec, job.pages, job.training)
        self.position: str | None = None
        self.days: list[int] = []
        self.records: list[Record] = []
        self.resumed = (run_dir / FILE).exists()
        if self.resumed:
            self._resume()
        JsonlTracker(run_dir / METRICS, after_step=self.learner.steps)

    def _resume(self) -> None:
        state = load_state(self.run_dir)
        if state.get("hash") != self.digest:
            raise ConfigError(
                f"{self.run_dir / FILE} belongs to another run", hint="remove the folder to learn anew"
            )
        self.learner.load_state(state)
        self.position, self.days = state["position"], state["days"]
        if self.position is not None:
            self.source.committed(self.position)

    def go(self, stop: Callable[[], bool]) -> dict[str, Any]:
        started, first = time.perf_counter(), self.learner.sessions
        training = self.job.training
        size, why = training.batch_sessions, "stopped"
        progress = _Progress()
        while not stop():
            if training.stop_after is not None and self.learner.sessions + size > training.stop_after:
                why = "stop_after"
                break
            rows = self.source.read(self.position, size)
            if rows is None:
                if self.source.ended():
                    why = "end of the source"
                    break
                continue
            self._learn(rows)
            progress.show(self.learner)
        progress.close()
        self._commit()
        version = self._publish()
        seconds = time.perf_counter() - started
        summary = self._summary(version, why, self.learner.sessions - first, seconds)
        write_json(self.run_dir / "summary.json", summary)
        return summary

    def _learn(self, rows: StreamRows) -> None:
        training, before = self.job.training, self.learner.sessions
        _, record = self.learner.step(rows)
        self.position = rows.position
        found = np.unique(np.asarray(rows.outcome["entry_ms"]) // DAY_MS).tolist()
        self.days = sorted({*self.days, *found})
        if record is not None:
            self.records.append(record)
        if self.learner.sessions // training.publish_every > before // training.publish_every:
            self._publish()
        # counted from the beginning, so that a commit in between (a signal) moves no later one
        if self.learner.batches % training.commit_every == 0:
            self._commit()

    def _commit(self) -> None:
        """Records, then state and position in one file, then the source's acknowledgement."""
        append(self.run_dir / METRICS, self.records)
        self.records = []
        state = self.learner.state()
        save_state(state | {"position": self.position, "days": self.days, "hash": self.digest}, self.run_dir)
        if self.position is not None:
            self.source.committed(self.position)

    def _publish(self) -> str:
        """The present weights as a bundle of their own, then `bundle` points to it; gives its version."""
        job = self.job
        bundle = Bundle.of_learner(
            job.learner,
            job.spec,
            job.pages,
            job.stats,
            metrics=_plain(self.learner.overall.record()) | {"sessions": self.learner.sessions},
            data={
                "dataset": job.dataset,
                "train_days": [day_name(d) for d in self.days],
                "stream": self.source.identity,
                "position": self.position,
                "start": job.started_from,
            },
            plugins=job.plugins,
        )
        publish(bundle, self.run_dir, self.learner.sessions, job.training.keep_bundles)
        return bundle.version

    def _summary(self, version: str, why: str, learned: int, seconds: float) -> dict[str, Any]:
        config = self.job.learner.config.model_dump(mode="json")
        return {
            "command": "stream",
            "learner": self.job.learner.name,
            "config": config,
            "dataset": self.job.dataset,
            "pages": list(self.job.pages.names),
            "version": version,
            "ended": why,
            "resumed": self.resumed,
            "sessions": self.learner.sessions,
            "batches": self.learner.batches,
            "steps": self.learner.steps,
            "position": self.position,
            "days": [day_name(d) for d in self.days],
            "metrics": self.learner.overall.record(),
            "source": self.source.identity,
            "learned": learned,
            "seconds": round(seconds, 2),
            "sessions_per_s": round(learned / max(seconds, 1e-9), 1),
        }


def publish(bundle: Bundle, run_dir: Path, sessions: int, keep: int) -> Path:
    """Writes `bundles/sessions-<n>` and then makes `bundle` a link to it, each at once; the oldest beyond `keep` are removed.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = run_dir / "bundles" / f"sessions-{sessions:012d}"
    # after a crash the same bundle is published again; readers of the first one are left in peace
    if not _holds(path, bundle.version):
        save_bundle(bundle, path)
    with storage_errors(f"publishing {path}"):
        link, temporary = run_dir / "bundle", run_dir / ".bundle.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("bundles") / path.name, target_is_directory=True)
        os.replace(temporary, link)
        for staging in path.parent.glob(".sessions-*"):
            shutil.rmtree(staging, ignore_errors=True)
        kept = sorted(p for p in path.parent.iterdir() if not p.name.startswith("."))
        for old in [p for p in kept if p != path][: max(0, len(kept) - keep)]:
            shutil.rmtree(old)
    return path


def _holds(path: Path, version: str) -> bool:
    try:
        return read_json(path / "bundle.json").get("version") == version
    except StorageError:
        return False


def append(path: Path, records: Sequence[Record]) -> None:
    """Adds records to a JSONL file and waits until they are on the disk."""
    if records:
        with storage_errors(f"writing {path}"), path.open("a") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
            file.flush()
            os.fsync(file.fileno())


def _plain(record: Record) -> dict[str, float]:
    return {name: value for name, value in record.items() if value is not None}


class _Progress:
    """One line on the terminal that is written over; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = 0.0

    def show(self, learner: StreamLearner) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and now - self._shown > 1:
            found = learner.overall.record()
            auc = "-" if found["auc"] is None else f"{found['auc']:.4f}"
            sys.stderr.write(
                f"\r\033[K{learner.sessions:,} sessions  auc {auc}  log loss {found['log_loss']:.4f}"
            )
            sys.stderr.flush()
            self._shown = now

    def close(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
