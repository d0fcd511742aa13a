"""Trials side by side through Ray Tune: actors that are reused, tensors in the object store, ASHA, and the ledger.

Tune's own search adapter tells Optuna of stopped and refused trials as if they were complete, and its restore needs the
folder of the interrupted run as it was; `LedgerSearch` puts our suggestions and our ledger behind Tune's `Searcher`
interface instead, so that a local and a parallel sweep are the same sweep.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from plpm_ray.core.errors import ConfigError
from plpm_ray.data.ray_exec import ensure_ray
from plpm_ray.tuning.halving import REFUSED_SCORE, SCORE, score
from plpm_ray.tuning.ledger import EpochReport, TrialRecord, close_record
from plpm_ray.tuning.local import OnReport, RunningTrial, SharedTask, describe
from plpm_ray.tuning.suggest import Suggester

_LOST_RETRIES = 2


@dataclass(frozen=True)
class RaySettings:
    """Where and how wide trials run.

    Attributes:
        run_dir: Tune keeps its files in `tune/` under it.
        trials, epochs: in all, and of a full trial.
        cpus_per_trial: CPUs reserved by a trial.
        concurrency: most trials at a time; None for as many as fit.
    """

    run_dir: Path
    trials: int
    epochs: int
    cpus_per_trial: float
    concurrency: int | None


def run_ray(
    suggester: Suggester, scheduler: Any, task: SharedTask, settings: RaySettings, on_report: OnReport
) -> None:
    """Runs trials on the cluster of this process (started here if there is none) until `trials` are on record.

    A trial whose worker is killed starts again; one that is lost more often stays in the ledger as unfinished. Ctrl-C
    ends the call early; then fewer trials are on record.

    Args:
        scheduler: Tune's scheduler, or None.

    Raises:
        ConfigError: no node has room for a trial.
    """
    ensure_ray()
    missing = settings.trials - len(suggester.ledger.records)
    width = min(places(settings.cpus_per_trial), settings.concurrency or missing, missing)
    attempts = settings.run_dir / "tune"
    name = f"{len([*attempts.glob('attempt-*')]) + 1:03d}"
    with _quiet_tune():
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(LearnerTrainable, task=task), {"cpu": settings.cpus_per_trial}
            ),
            tune_config=tune.TuneConfig(
                search_alg=LedgerSearch(suggester, settings.epochs, on_report),
                scheduler=scheduler,
                num_samples=missing,
                max_concurrent_trials=width,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:04d}",
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{name}",
                storage_path=str(attempts.resolve()),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_LOST_RETRIES),
                verbose=0,
            ),
        )
        tuner.fit()


def places(cpus_per_trial: float) -> int:
    """How many trials the cluster's nodes hold at a time.

    Raises:
        ConfigError: none.
    """
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    held = sum(int(cpus / cpus_per_trial + 1e-9) for cpus in nodes)
    if held < 1:
        raise ConfigError(
            f"a trial reserves {cpus_per_trial:g} CPUs, and the largest node has {max(nodes, default=0):g}",
            hint="lower cpus_per_trial",
        )
    return held


class LearnerTrainable(tune.Trainable):
    """A trial as Tune sees it: one step is one epoch. The actor is reused; the shared tensors stay in it."""

    def setup(self, config: dict[str, Any], task: SharedTask) -> None:
        self._start = task.open()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        # an error of the trial is its result, so that the actor lives on and the ledger can tell it
        try:
            if self._trial is None:
                self._trial = self._start(self._params)
            report = self._trial.run_epoch()
        except Exception as error:
            return {SCORE: REFUSED_SCORE, "error": describe(error), "done": True}
        return {SCORE: score(report), "report": json.dumps(report.to_dict()), "done": self._trial.done}

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._params = config["params"]
        self._trial: RunningTrial | None = None


class LedgerSearch(Searcher):
    """Our suggestions behind Tune's interface; every end of a trial goes into the ledger at once."""

    def __init__(self, suggester: Suggester, epochs: int, on_report: OnReport) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._suggester = suggester
        self._epochs = epochs
        self._on_report = on_report
        self._numbers: dict[str, int] = {}
        self._reports: dict[str, dict[int, EpochReport]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        number, params = self._suggester.ask()
        self._numbers[trial_id] = number
        self._reports[trial_id] = {}
        return {"number": number, "params": params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "report" in result:
            report = EpochReport.from_dict(json.loads(result["report"]))
            if report.epoch not in self._reports[trial_id]:
                self._on_report(self._numbers[trial_id], report)
            self._reports[trial_id][report.epoch] = report

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers[trial_id]
        if number not in self._suggester.running:
            return
        if result:
            self.on_trial_result(trial_id, result)
        params = self._suggester.params(number)
        reports = tuple(report for _, report in sorted(self._reports.pop(trial_id).items()))
        if error or result is None:
            record = TrialRecord(number, params, "lost", reports, "its worker was lost")
        elif "error" in result:
            record = TrialRecord(number, params, "failed", reports, result["error"])
        else:
            record = close_record(number, params, reports, self._epochs)
        self._suggester.tell(record)

    def save(self, checkpoint_path: str) -> None:
        """Tune asks for it now and then; the ledger is what counts."""
        Path(checkpoint_path).write_text(json.dumps({"ledger": str(self._suggester.ledger.path)}))

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed from its ledger."""


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune without what it logs and prints (some of it at any verbosity); what went wrong is in ledger and table."""
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
