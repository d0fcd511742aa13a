"""`plpm sweep` with a `world`: begins or continues a sweep that a simulated world judges."""

from __future__ import annotations

from plpm_ray.core.config import ConfigSource
from plpm_ray.core.storage import read_json, write_json
from plpm_ray.tuning.ledger import open_ledger
from plpm_ray.tuning.report import best_of, rank, write_telling
from plpm_ray.tuning.run import SweepResult, check_trials, claim, run_trials
from plpm_ray.tuning.world import WorldSweepConfig
from plpm_ray.tuning.world_prepare import prepare_world
from plpm_ray.tuning.world_report import telling
from plpm_ray.tuning.world_subject import open_subject


def sweep_world(config: WorldSweepConfig, source: ConfigSource | None = None) -> SweepResult:
    """Runs a sweep in the world, or what is missing of it; the same config continues, more `trials` extend.

    Args:
        config: what is searched, and how it is judged.
        source: where the config came from, so that errors name file and line.

    Raises:
        ConfigError, BundleError: see `open_subject`.
        StorageError: no tables. ConfigError: another process runs this sweep.
        PlpmError: the sweep was interrupted, or every trial failed.
    """
    subject = open_subject(config, source)
    data = subject.fingerprint()
    run_dir = config.run_dir(data)
    with open_ledger(run_dir) as ledger:
        claim(run_dir, config, data)
        resumed = len(ledger.records)
        if resumed < config.trials:
            task, facts = prepare_world(subject)
            write_json(run_dir / "facts.json", facts)
            run_trials(config, subject.space, ledger, task, run_dir, subject.first())
        facts = read_json(run_dir / "facts.json")
        records = list(ledger.records.values())
        told = telling(subject, facts)
        summary = write_telling(run_dir, told, subject.space, records, {**facts, "resumed": resumed})
        check_trials(records, ledger, config.trials, run_dir)
    return SweepResult(run_dir, best_of(rank(records)), run_dir / "table.md", len(records), resumed, summary)
