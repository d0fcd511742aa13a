"""`plpm sweep`: begins or continues a sweep and leaves its table, plot and best config in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plpm_ray.core.config import ConfigSource
from plpm_ray.core.errors import PlpmError, StorageError
from plpm_ray.core.storage import read_json, write_json
from plpm_ray.training.config import TrainingConfig
from plpm_ray.tuning.config import SearchConfig, SweepConfig
from plpm_ray.tuning.halving import Halving, make_scheduler
from plpm_ray.tuning.ledger import EpochReport, Ledger, TrialRecord, open_ledger
from plpm_ray.tuning.local import SharedTask, run_local
from plpm_ray.tuning.prepare import Days, find_days, prepare
from plpm_ray.tuning.progress import Progress
from plpm_ray.tuning.report import best_of, rank, write_results
from plpm_ray.tuning.space import Space
from plpm_ray.tuning.suggest import Suggester


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left.

    Attributes:
        run_dir: its folder: trials.jsonl, table.csv, table.md, response.svg, best.yaml, summary.json, metrics.jsonl.
        best: the winning trial; None where every estimate was refused or failed.
        table: the ranked table for people; table.csv beside it is for machines.
        n_trials: trials on record.
        resumed: of these, how many earlier calls had run.
        summary: what summary.json holds.
        bundle: the retrained best, if the config asks for it.
    """

    run_dir: Path
    best: TrialRecord | None
    table: Path
    n_trials: int
    resumed: int
    summary: Mapping[str, Any]
    bundle: Path | None = None


def sweep(config: SweepConfig, source: ConfigSource | None = None) -> SweepResult:
    """Runs a sweep, or what is missing of it.

    The run folder carries a hash of what the sweep is (data included), so that the same config continues, a larger
    `trials` extends, and another config never meets the trials of this one.

    Args:
        config: what is searched, and how.
        source: where the config came from, so that errors in its `search` section name file and line.

    Raises:
        ConfigError: an unknown learner or parameter, or a range that the config refuses.
        StorageError: no tables. ConfigError: another process runs this sweep.
        PlpmError: the sweep was interrupted, or every trial failed.
    """
    space = config.space(source)
    days = find_days(config)
    run_dir = config.run_dir(days.fingerprint)
    with open_ledger(run_dir) as ledger:
        claim(run_dir, config, days.fingerprint)
        resumed = len(ledger.records)
        if resumed < config.trials:
            task, facts = prepare(config, space, days)
            write_json(run_dir / "facts.json", facts)
            run_trials(config, space, ledger, task, run_dir, config.first(space))
        facts = read_json(run_dir / "facts.json")
        records = list(ledger.records.values())
        summary = write_results(run_dir, config, space, records, {**facts, "resumed": resumed})
        check_trials(records, ledger, config.trials, run_dir)
    best = best_of(rank(records))
    bundle = None
    if config.retrain is not None and best is not None:
        bundle = _retrain(config, space, days, best, run_dir)
        summary["bundle"] = str(bundle)
        write_json(run_dir / "summary.json", summary)
    return SweepResult(run_dir, best, run_dir / "table.md", len(records), resumed, summary, bundle)


def run_trials(
    config: SearchConfig,
    space: Space,
    ledger: Ledger,
    task: SharedTask,
    run_dir: Path,
    first: Mapping[str, Any],
) -> None:
    """Runs the trials that the ledger lacks, as the config says.

    Args:
        task: starts them.
        first: the point at which the config stands without its search.
    """
    suggester = Suggester(
        space,
        ledger,
        searcher=config.searcher,
        seed=config.suggestions_seed,
        startup=config.startup_trials,
        first=[first] if config.try_defaults else [],
    )
    steps, scheduler = config.steps, None
    if config.scheduler.name == "asha":
        scheduler = make_scheduler(
            config.scheduler.grace_epochs, steps, config.scheduler.reduction, ledger.records.values()
        )
    with Progress(run_dir / "metrics.jsonl", config.trials, steps, len(ledger.records)) as progress:

        def on_report(number: int, report: EpochReport) -> None:
            progress.on_report(number, report)
            progress.on_records(len(ledger.records))

        if config.backend == "local":
            run_local(suggester, Halving(scheduler), task.open(), config.trials, steps, on_report)
            return
        from plpm_ray.tuning.ray_driver import RaySettings, run_ray

        settings = RaySettings(run_dir, config.trials, steps, config.cpus_per_trial, config.concurrency)
        run_ray(suggester, scheduler, task, settings, on_report)


def claim(run_dir: Path, config: SearchConfig, fingerprint: str) -> None:
    """Notes what the folder belongs to; refuses one that belongs to something else."""
    path = run_dir / "config.json"
    identity = {"identity": config.identity(), "data": fingerprint}
    if path.exists():
        kept = read_json(path)
        if {name: kept.get(name) for name in identity} != identity:
            raise StorageError(
                f"{run_dir} holds the trials of another sweep",
                hint="remove the folder, or give this sweep another name",
            )
    write_json(path, {**identity, "config": config.model_dump(mode="json")})


def check_trials(records: list[TrialRecord], ledger: Ledger, trials: int, run_dir: Path) -> None:
    """Says so where the sweep has nothing to show, or less than was asked for.

    Raises:
        PlpmError: every trial failed, or some are missing.
    """
    failed = [r for r in records if r.status == "failed"]
    if records and len(failed) == len(records):
        raise PlpmError(
            f"every trial failed; the first said: {failed[0].error}", hint=f"see {run_dir / 'table.md'}"
        )
    if len(records) < trials:
        begun = len(ledger.unfinished)
        raise PlpmError(
            f"the sweep ended after {len(records)} of {trials} trials ({begun} more had begun)",
            hint="the same command goes on from there; no finished trial is lost",
        )


def _retrain(config: SweepConfig, space: Space, days: Days, best: TrialRecord, run_dir: Path) -> Path:
    """Trains the best point on the training days at full length; the bundle's folder."""
    from plpm_ray.training.run import train

    assert config.retrain is not None
    settings = space.apply(best.params, "training", config.retrain.model_dump(mode="json"))
    result = train(
        config.learner.name,
        space.apply(best.params, "learner", config.learner.options),
        TrainingConfig.model_validate(settings),
        config.tables,
        days.split.train,
        days.split.valid,
        run_root=run_dir,
        name="best",
        plugins=config.plugins,
    )
    return result.bundle_path
