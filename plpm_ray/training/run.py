"""A training run from config to bundle: `train`. The run folder says all about it and is where it is resumed.

<run_root>/<name>-<hash>/   config.json  metrics.jsonl  checkpoints/  bundle/  summary.json  (constraints.svg)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plpm_ray.core.errors import ConfigError, StorageError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.core.storage import exclusive_folder, read_json, write_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.fit_trial import fit_trial
from plpm_ray.data.ray_exec import Backend
from plpm_ray.data.split import UserSplitConfig
from plpm_ray.navigators.base import LearnerConfig
from plpm_ray.navigators.bundle import save_bundle
from plpm_ray.training.callbacks import Callback, Record
from plpm_ray.training.checkpoint import CheckpointFolder
from plpm_ray.training.comm import Comm, together
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.constraints import write_constraints
from plpm_ray.training.data import Part, PartReader
from plpm_ray.training.device import pick_device
from plpm_ray.training.job import TrainJob, make_job, resolve_config
from plpm_ray.training.loop import Loop, fit_learner
from plpm_ray.training.rewards import REWARD, reward_sessions, reward_total
from plpm_ray.training.stream import LocalReader, StreamTable
from plpm_ray.training.table import BatchSource, TensorTable, assemble
from plpm_ray.training.trackers import open_trackers


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        run_dir, bundle_path: its folder, and the bundle in it.
        metrics: validation metrics of the saved weights (empty without validation days).
        history: a record an epoch: "step", "epoch", "train/<term>", "valid/<metric>", "samples_per_s".
        epochs, steps: done in all.
        samples: rows drawn in all, of all workers.
        seconds: wall time of this call.
        resumed: it went on from a checkpoint.
        finished_before: the run had ended before this call, which did nothing.
    """

    run_dir: Path
    bundle_path: Path
    metrics: dict[str, float]
    history: list[Record]
    epochs: int
    steps: int
    samples: int
    seconds: float
    resumed: bool
    finished_before: bool


def train(
    learner_name: str,
    learner_config: Mapping[str, Any] | LearnerConfig,
    training: TrainingConfig,
    warehouse_root: str | Path,
    train_days: Sequence[int] = (),
    valid_days: Sequence[int] = (),
    run_root: str | Path = "runs",
    name: str | None = None,
    plugins: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
    fitted: tuple[FeatureSpec, TableStats] | None = None,
    users: UserSplitConfig | None = None,
    rewards: str | Path | None = None,
    notify: Callable[[str], None] | None = None,
) -> TrainResult:
    """Trains a learner on the transition table of a warehouse, or goes on with, or reads, a run that is there.

    A learner of users (`grain` "user") is trained on the trial table, and `users` says which of them; days are not read.

    Args:
        learner_name: registered name.
        learner_config: of the learner; what is not given takes its default.
        training: how; `workers` other than 0 trains on Ray.
        warehouse_root: folder with the transition table.
        train_days, valid_days: local days (days since 1970-01-01).
        run_root, name: the folder is `<run_root>/<name>-<hash of config and data>`; `name` is the learner's by default.
        plugins: files or modules that register the learner, loaded in every process.
        run_dir: the very folder, instead of run_root and name.
        fitted: encoder and totals of the training days or users; fitted here (and cached in the warehouse) by default.
        users: how a trial's users are divided; only for a learner of users.
        rewards: bundle or run of a reward model, for a learner that reads rewards; its days are judged first, unless they
            have been. Learners that read none leave it alone.
        notify: is told notices, such as fewer workers than asked for; by default they go to stderr.

    Raises:
        ConfigError: a bad config; a folder that holds another run, or one that is being trained right now.
        DataError: no rows on those days, unreadable tables, or no trial for a learner of users.
        StorageError: the run folder cannot be written.
        PlpmError: training diverged, or its workers were lost more often than `max_failures` allows.
    """
    warehouse = Warehouse.open(warehouse_root)
    load_plugins(tuple(plugins))
    backend: Backend = "ray" if training.workers != 0 else "local"
    if lookup("learner", learner_name).grain == "user":
        users = users or UserSplitConfig()
        fitted = fitted or fit_trial(warehouse, users, backend=backend)
        days: tuple[tuple[int, ...], tuple[int, ...]] = tuple(warehouse.trial.days()), ()
    else:
        users, days = None, (tuple(sorted(set(train_days))), tuple(sorted(set(valid_days))))
        fitted = fitted or fit_spec(warehouse, days[0], backend=backend)
    of: str | None = None
    if _reads_rewards(learner_name, learner_config):
        of, fitted = _judged(warehouse, rewards, days, fitted, backend, plugins)
    folder = Path(run_root) / (name or learner_name) if run_dir is None else Path(run_dir)
    what = learner_name, learner_config, training
    exact = run_dir is not None
    job = make_job(
        *what, warehouse, *days, fitted, folder, tuple(plugins), exact=exact, users=users, rewards=of
    )
    return run_job(job, notify or _to_stderr)


def _reads_rewards(learner: str, config: Mapping[str, Any] | LearnerConfig) -> bool:
    cls = lookup("learner", learner)
    return REWARD in cls.needed_columns(cls.Config.model_validate(resolve_config(cls, config)))


def _judged(
    warehouse: Warehouse,
    bundle: str | Path | None,
    days: tuple[tuple[int, ...], tuple[int, ...]],
    fitted: tuple[FeatureSpec, TableStats],
    backend: Backend,
    plugins: Sequence[str],
) -> tuple[str, tuple[FeatureSpec, TableStats]]:
    """Name of the reward table, and encoder and totals with the rewards of the training days among them.

    Raises:
        ConfigError: no reward model is named.
        DataError: it gives next to nothing to all sessions.
    """
    if bundle is None:
        raise ConfigError(
            "the learner reads rewards, and no reward model is named",
            hint="set `rewards` to a run or bundle of one (glan.hrm), or the learner's `reward` to duration",
        )
    wanted = sorted({*days[0], *days[1]})
    name = reward_sessions(warehouse.root, bundle, days=wanted, backend=backend, plugins=plugins).name
    total = reward_total(warehouse, name, days[0], backend=backend)
    return name, (fitted[0], fitted[1].judged(total))


def run_job(job: TrainJob, notify: Callable[[str], None]) -> TrainResult:
    """Trains, goes on with, or reads a run; see `train`."""
    started = time.perf_counter()
    with exclusive_folder(job.run_dir):
        known = job.claim()
        if (job.run_dir / "summary.json").exists():
            notify(f"{job.run_dir.name} finished before; its results are returned")
            return _result(
                read_json(job.run_dir / "summary.json"), job.run_dir, started, finished_before=True
            )
        if job.training.workers == 0:
            resumed = run_local(job)
        else:
            from plpm_ray.training.trainer import run_on_ray

            resumed = run_on_ray(job, notify)
        summary = _finish(job, known and resumed)
    return _result(summary, job.run_dir, started, finished_before=False)


def run_local(job: TrainJob) -> bool:
    """Trains in this process until the last checkpoint is written; True if it went on from an earlier one."""
    device = pick_device(job.training)
    folder = CheckpointFolder(job.run_dir / "checkpoints", job.training.keep_checkpoints)
    state = folder.latest()
    source, held_out = job.train_source(), job.valid_source()
    window = job.training.data.window_rows if job.training.data.mode == "stream" else None
    table = make_table(job, source.parts(max_rows=window), LocalReader(source), device)
    valid = held_out.load().to(device) if held_out is not None else None
    callback = RunCallback(job, Comm(), folder.save, state)
    execute(job, table, valid, Comm(), callback, state)
    return state is not None


def make_table(job: TrainJob, parts: Sequence[Part], reader: PartReader, device: torch.device) -> BatchSource:
    """The training rows of one process: a table on the device, or a stream."""
    if job.training.data.mode == "stream":
        return StreamTable(parts, reader, job.training.data.window_rows, device, job.learner_class().grain)
    return assemble(reader(parts), sum(part.rows for part in parts)).to(device)


def execute(
    job: TrainJob,
    table: BatchSource,
    valid: TensorTable | None,
    comm: Comm,
    callback: RunCallback,
    state: Mapping[str, Any] | None,
) -> None:
    """The part that every process of a run goes through alike."""
    try:
        fit_learner(job.build_learner(), table, valid, job.training, [callback], comm=comm, state=state)
    finally:
        callback.close()


class RunCallback(Callback):
    """Writes trackers in rank 0 and hands checkpoints to `save` in every process."""

    def __init__(
        self,
        job: TrainJob,
        comm: Comm,
        save: Callable[[dict[str, Any], int], None],
        state: Mapping[str, Any] | None,
    ) -> None:
        self._job, self._comm, self._save = job, comm, save
        after = state["position"]["total"] if state is not None else 0
        config = {"learner": job.learner, **job.learner_config, **job.training.identity()}
        self._trackers = (
            open_trackers(job.training.trackers, job.run_dir, after, config) if comm.rank == 0 else []
        )
        self._progress = _Progress(job.training.epochs) if comm.rank == 0 else None

    def on_log(self, record: Record) -> None:
        self._log(record)

    def on_epoch(self, record: Record) -> bool | None:
        self._log(record)

    def on_checkpoint(self, loop: Loop, record: Record) -> None:
        self._save(loop.state() | {"hash": self._job.hash}, loop.total)

    def close(self) -> None:
        """Ends trackers and progress."""
        for tracker in self._trackers:
            tracker.close()
        if self._progress is not None:
            self._progress.close()

    def _write(self, record: Record) -> None:
        for tracker in self._trackers:
            tracker.log(record)

    def _log(self, record: Record) -> None:
        together(self._comm, lambda: self._write(record))
        if self._progress is not None:
            self._progress.show(record)


class _Progress:
    """One line on the terminal that is written over; nothing elsewhere."""

    def __init__(self, epochs: int) -> None:
        self._epochs, self._shown = epochs, False

    def show(self, record: Record) -> None:
        if sys.stderr.isatty():
            losses = "  ".join(f"{k} {v:.4g}" for k, v in record.items() if k in ("train/loss", "valid/loss"))
            sys.stderr.write(f"\r\033[Kepoch {record['epoch']:.2f}/{self._epochs}  {losses}")
            sys.stderr.flush()
            self._shown = True

    def close(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")


def last_state(job: TrainJob) -> dict[str, Any]:
    """State of the newest checkpoint of a run, whoever wrote it.

    Raises:
        ConfigError: it belongs to another run.
        StorageError: there is none.
    """
    state = CheckpointFolder(job.run_dir / "checkpoints", job.training.keep_checkpoints).latest()
    if state is None:
        raise StorageError(f"{job.run_dir} holds no checkpoint", hint="remove the folder and train again")
    return check_state(job, state)


def check_state(job: TrainJob, state: dict[str, Any]) -> dict[str, Any]:
    """The state, if it is this run's.

    Raises:
        ConfigError: it belongs to another run.
    """
    if state.get("hash") != job.hash:
        raise ConfigError(
            f"a checkpoint in {job.run_dir} belongs to another run", hint="remove the folder to train anew"
        )
    return state


def _finish(job: TrainJob, resumed: bool) -> dict[str, Any]:
    """Writes bundle and summary from the last checkpoint, so that this, too, can be repeated after a crash."""
    state = last_state(job)
    learner = job.build_learner()
    best = state["best"]
    learner.load_state_dict(state["learner"] if best["weights"] is None else best["weights"])
    history, position = state["history"], state["position"]
    metrics = best["metrics"] or {k[6:]: v for k, v in history[-1].items() if k.startswith("valid/")}
    bundle = job.bundle(learner, metrics)
    save_bundle(bundle, job.run_dir / "bundle")
    summary = {
        "status": "finished",
        "learner": job.learner,
        "version": bundle.version,
        "metrics": metrics,
        "history": history,
        "epochs": position["epoch"],
        "steps": position["total"],
        "samples": position["samples"],
        "resumed": resumed,
        "data": job.identity["data"],
    }
    constraints = write_constraints(learner, metrics, job.run_dir)
    if constraints is not None:
        summary["constraints"] = constraints
    write_json(job.run_dir / "summary.json", summary)
    return summary


def _result(summary: Mapping[str, Any], run_dir: Path, started: float, finished_before: bool) -> TrainResult:
    return TrainResult(
        run_dir=run_dir,
        bundle_path=run_dir / "bundle",
        seconds=time.perf_counter() - started,
        resumed=summary["resumed"] and not finished_before,
        finished_before=finished_before,
        **{k: summary[k] for k in ("metrics", "history", "epochs", "steps", "samples")},
    )


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
