"""What the commands do: read the config, call the package, end with a summary. Heavy imports stand inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from plpm_ray.cli.names import run_rows, take_name
from plpm_ray.cli.summary import Clock, constraint_rows, finish, refuse_foreign
from plpm_ray.core.config import ConfigSource, config_hash, read_config, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.storage import storage_errors

Sets = list[str]


def data(config: Path, sets: Sets) -> dict[str, Any]:
    """`plpm data`: ingest, then transitions, then the trial table; all replace only what changed."""
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.data.ingest import IngestConfig, ingest
    from plpm_ray.data.tables import build_transitions
    from plpm_ray.data.trials import build_trial

    clock, source = Clock(), read_config(config, sets)
    settings = validate(IngestConfig, source)
    summary = ingest(settings, source)
    warehouse = Warehouse.open(settings.output)
    if warehouse.info.history:
        summary["transitions"] = build_transitions(warehouse, backend=settings.backend).to_dict()
        if warehouse.assignments_file.exists():
            summary["trial"] = build_trial(warehouse, backend=settings.backend).to_dict()
    summary["seconds"] = clock.seconds
    finish("data", settings.output, summary, _tables_shown(summary, settings.output))
    return summary


def _tables_shown(summary: dict[str, Any], output: str) -> dict[str, Any]:
    shown = {
        k: summary[k]
        for k in ("rows_in", "sessions", "users", "days", "quarantined", "landing_shares")
        if k in summary
    }
    if "days" in shown:
        days = shown["days"]
        shown["days"] = f"{len(days)} ({days[0]} to {days[-1]})" if days else 0
    if summary.get("shrunk_days"):
        shown["shrunk_days"] = {
            day: f"{before:,} -> {after:,}" for day, (before, after) in summary["shrunk_days"].items()
        }
    if "transitions" in summary:
        built = summary["transitions"]
        shown |= {"transitions_built": built["rows"], "days_recomputed": len(built["recomputed"])}
    if "trial" in summary:
        shown["users_per_arm"] = summary["trial"]["arm_users"]
    return {**shown, "tables": output, "seconds": summary["seconds"]}


def train_config(config: Path | None, sets: Sets) -> tuple[Any, Any, ConfigSource]:
    """The run config, the learner's own validated config (None where a navigator is trained), and their source."""
    from plpm_ray.cli.configs import TrainRunConfig

    source = read_config(config, sets)
    settings = validate(TrainRunConfig, source)
    load_plugins(settings.plugins)
    if settings.navigator is not None:
        return settings, None, source
    assert settings.learner is not None
    learner = lookup("learner", settings.learner.name)
    return settings, validate(learner.Config, source, ("learner",), settings.learner.options), source


def train(config: Path, sets: Sets) -> Any:
    """`plpm train`: one learner, from tables to bundle."""
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.data.split import split_days
    from plpm_ray.training.run import train as run

    settings, learner, source = train_config(config, sets)
    if settings.navigator is not None:
        return _train_navigator(settings, source)
    days: tuple[list[int], list[int]] = [], []
    if lookup("learner", settings.learner.name).grain != "user":
        split = split_days(Warehouse.open(settings.tables).transitions.days(), settings.split)
        days = split.train, split.valid
    result = run(
        settings.learner.name,
        learner,
        settings.training,
        settings.tables,
        *days,
        settings.run_root,
        settings.name,
        settings.plugins,
        users=settings.users,
        rewards=settings.rewards,
    )
    print(
        "train done"
        + (" before; nothing was run" if result.finished_before else " (resumed)" if result.resumed else "")
    )
    rows = run_rows(result) | {"epochs": result.epochs, "steps": result.steps}
    rows |= {"samples": result.samples, "seconds": round(result.seconds, 2)}
    rows |= {f"valid {k}": v for k, v in result.metrics.items()}
    _print(rows | constraint_rows(result.run_dir))
    return result


def _train_navigator(settings: Any, source: ConfigSource) -> Any:
    from plpm_ray.cli.navigators import train_navigator

    result = train_navigator(settings, source)
    print("train done" + (" before; nothing was run" if result.finished_before else ""))
    for role, path in result.parts.items():
        if role not in settings.parts or settings.parts[role].bundle is None:
            take_name(path.parent)  # some of them may have been finished before
    rows = run_rows(result) | {f"part {role}": path.parent for role, path in result.parts.items()}
    rows |= {"seconds": round(result.seconds, 2)}
    # those by page stand in the parts' own folders
    rows |= {f"valid {name}": value for name, value in result.metrics.items() if "/" not in name}
    for role, path in result.parts.items():
        rows |= constraint_rows(path.parent, f"{role}.")
    _print(rows)
    return result


def sweep(config: Path, sets: Sets) -> Any:
    """`plpm sweep`: search by policy value on the validation days, or, where there is a `world`, in that world."""
    source = read_config(config, sets)
    result = _sweep_world(source) if "world" in source.data else _sweep_learner(source)
    without = "" if result.best is not None else "; no best.yaml, for the reason below the table"
    print(f"sweep done: {result.n_trials} trials" + (" (resumed)" if result.resumed else "") + without)
    print(Path(result.table).read_text(encoding="utf-8").rstrip())
    return result


def _sweep_world(source: ConfigSource) -> Any:
    from plpm_ray.tuning.world import WorldSweepConfig
    from plpm_ray.tuning.world_run import sweep_world

    return sweep_world(validate(WorldSweepConfig, source), source)


def _sweep_learner(source: ConfigSource) -> Any:
    from plpm_ray.tuning.config import SweepConfig
    from plpm_ray.tuning.run import sweep as run

    settings = validate(SweepConfig, source)
    load_plugins(settings.plugins)
    validate(lookup("learner", settings.learner.name).Config, source, ("learner",), settings.learner.options)
    return run(settings, source)


def evaluate(config: Path, sets: Sets) -> Path:
    """`plpm evaluate`: every policy on held-out days, one table."""
    from plpm_ray.cli.configs import EvaluateConfig
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.data.fit import fit_spec
    from plpm_ray.data.split import split_days
    from plpm_ray.evaluation.run import evaluate as run

    clock, source = Clock(), read_config(config, sets)
    settings = validate(EvaluateConfig, source)
    load_plugins(settings.plugins)
    warehouse = Warehouse.open(settings.tables)
    split = split_days(warehouse.transitions.days(), settings.split)
    spec, stats = fit_spec(warehouse, split.train)
    held_out = split.test if settings.part == "test" else split.valid
    policies = [
        _judged(entry, source, ("policies", i), warehouse, stats, split, settings)
        for i, entry in enumerate(settings.policies)
    ]
    outcome = run(warehouse, split.train, held_out, spec, policies, settings.judge)
    identity = [settings, warehouse.transitions.fingerprint(), [p.navigator.version for p in policies]]
    run_dir = Path(settings.run_root) / f"{settings.name}-{config_hash([_plain(i) for i in identity])}"
    with storage_errors(f"writing {run_dir}"):
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "table.md").write_text(outcome.table("markdown") + "\n", encoding="utf-8")
    print(outcome.table())
    print()
    summary = {
        "part": settings.part,
        "pages": list(warehouse.info.pages.names),
        "split": split.to_dict(),
        "diagnostics": dict(outcome.diagnostics),
        "results": outcome.records(),
    }
    shown = {
        k: v
        for k, v in outcome.diagnostics.items()
        if k in ("rows", "users", "propensities", "behaviour_log_loss", "reward_r2")
    }
    finish(
        "evaluate",
        run_dir,
        {**summary, "config": settings.model_dump(mode="json"), "seconds": clock.seconds},
        shown,
    )
    return run_dir


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _judged(
    entry: Any,
    source: ConfigSource,
    section: tuple[str | int, ...],
    warehouse: Any,
    stats: Any,
    split: Any,
    settings: Any,
) -> Any:
    """A policy of the evaluation config, its navigator loaded and checked against the tables."""
    from plpm_ray.evaluation.run import Judged
    from plpm_ray.navigators.bundle import find_bundle, load_bundle
    from plpm_ray.policies.base import Policy

    if entry.navigator is not None:
        cls = lookup("navigator", entry.navigator.name)
        options = validate(cls.Config, source, (*section, "navigator"), entry.navigator.options)
        navigator = cls(options, warehouse.info.pages, stats)
        return Judged(entry.label or entry.navigator.name, navigator, Policy(entry.policy))
    bundle = load_bundle(find_bundle(entry.bundle), settings.plugins).with_options(entry.options)
    if bundle.spec.schema != warehouse.info.features:
        raise ConfigError(
            f"{source.where(section)}: bundle {entry.bundle} was trained on other pages or columns than {warehouse.root}",
            hint="evaluate it on the tables of its own dataset",
        )
    refuse_seen_days(entry.bundle, bundle, split.test if settings.part == "test" else split.valid)
    # a realised return ends with the day; values that look beyond it cannot be compared with one
    gamma = bundle.config.get("gamma") if bundle.config.get("horizon", "day") == "day" else None
    return Judged(entry.label or bundle.name, bundle.navigator(), Policy(entry.policy), gamma)


def refuse_seen_days(path: str, bundle: Any, held_out: list[int]) -> None:
    """Refuses a bundle that learned from one of the days it is to be judged on.

    Raises:
        ConfigError: it did.
    """
    from plpm_ray.data.day_table import day_name

    seen = set(bundle.data.get("train_days", ())) & {day_name(d) for d in held_out}
    if seen:
        raise ConfigError(
            f"bundle {path} was trained on {min(seen)}, a day it is to be judged on",
            hint="use the same `split` for training and evaluation",
        )


def report(runs: list[Path], output: Path | None) -> Path:
    """`plpm report`: one HTML file about runs."""
    from plpm_ray.cli.summary import newest_run
    from plpm_ray.evaluation.report import write

    folders = [newest_run(run) for run in runs]
    path = write(folders, output or folders[0] / "report.html")
    print("report done")
    _print({"report": path, "runs": len(folders), "bytes": path.stat().st_size})
    return path


def decide(config: Path, sets: Sets) -> Any:
    """`plpm decide`: page, scores and propensity for a Parquet of app entries."""
    from plpm_ray.serving.decide import DecideConfig, decide_file

    clock = Clock()
    settings = validate(DecideConfig, read_config(config, sets))
    refuse_foreign("decide", Path(settings.output).parent)
    summary = {**decide_file(settings), "seconds": clock.seconds}
    finish("decide", Path(settings.output).parent, summary, summary)
    return summary


def score(config: Path, sets: Sets) -> dict[str, Any]:
    """`plpm score`: delta of every user for a day."""
    from plpm_ray.serving.score import ScoreConfig, score_users

    settings = validate(ScoreConfig, read_config(config, sets))
    refuse_foreign("score", settings.output)
    summary = score_users(settings)
    finish("score", settings.output, summary, summary)
    return summary


def reward(config: Path, sets: Sets) -> dict[str, Any]:
    """`plpm reward`: rewards of all sessions by a reward model."""
    from plpm_ray.training.rewards import RewardConfig, reward_sessions

    clock, settings = Clock(), validate(RewardConfig, read_config(config, sets))
    done = reward_sessions(
        settings.tables,
        settings.bundle,
        batch=settings.sessions_per_batch,
        backend=settings.backend,
        workers=settings.workers,
        plugins=settings.plugins,
    )
    summary = {**done.to_dict(), "seconds": clock.seconds}
    shown = {
        "sessions": done.rows,
        "days_recomputed": len(done.recomputed),
        "days_unchanged": len(done.unchanged),
    }
    finish("reward", done.folder, summary, {**shown, "folder": done.folder, "seconds": clock.seconds})
    return summary


def serve(config: Path, sets: Sets) -> None:
    """`plpm serve`: HTTP until interrupted."""
    from plpm_ray.serving.config import ServeConfig
    from plpm_ray.serving.run import serve as run

    source = read_config(config, sets)
    if "applications" in source.data:
        raise ConfigError(
            f"{config} is a config of Ray Serve, not of `plpm serve`",
            hint=f"run `serve deploy {config}`, or write `bundle: <run folder>` into a file for `plpm serve`",
        )
    run(validate(ServeConfig, source))


def doctor(config: Path | None, sets: Sets) -> None:
    """`plpm doctor`: prints findings; status 1 if something is missing."""
    from plpm_ray.cli.doctor import diagnose

    findings = diagnose(config, sets)
    print("\n".join(map(str, findings)))
    if any(finding.level == "bad" for finding in findings):
        sys.exit(1)


def quickstart(folder: Path) -> None:
    """`plpm quickstart`: everything once."""
    from plpm_ray.cli.quickstart import run

    run(folder)


def _print(rows: dict[str, Any]) -> None:
    from plpm_ray.cli.summary import show

    for key, value in rows.items():
        print(f"  {key:<22} {show(value)}")
