"""`plpm simulate ...`: the world's logs, experiments on it, and the checks of what judges them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plpm_ray.cli.summary import Clock, finish
from plpm_ray.core.config import ConfigSource, read_config, validate
from plpm_ray.core.registry import load_plugins

app = typer.Typer(
    help="The simulated world: logs, A/B experiments, and the checks that hold them against the truth.",
    no_args_is_help=True,
)

ConfigPath = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG]", help="YAML config file; without one, all defaults")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a config key; may be repeated"),
]


_LOGS_SHOWN = (
    *(
        "output",
        "world",
        "users",
        "first_day",
        "last_day",
        "sessions",
        "files",
        "reused_files",
        "bytes",
        "landing_shares",
    ),
    *("arms", "seed", "policy", "hash", "seconds"),
)


def _read(model: type[Any], config: Path | None, sets: list[str] | None) -> tuple[Any, ConfigSource]:
    source = read_config(config, sets or [])
    settings = validate(model, source)
    load_plugins(getattr(settings, "plugins", ()))
    return settings, source


def _finish(command: str, result: dict[str, Any], clock: Clock, shown: dict[str, Any]) -> None:
    """Writes the summary beside the result, which has its own file."""
    kept = {k: v for k, v in result.items() if isinstance(v, str | int | float | bool)}
    print()
    finish(
        command,
        result["run"],
        {**kept, **shown, "seconds": clock.seconds},
        {**shown, "seconds": clock.seconds},
    )


@app.command()
def ab(config: ConfigPath = None, sets: Sets = None) -> None:
    """An A/B experiment: AA days, then AB days, any policies as arms; every metric with interval and p-value."""
    experiment(config, sets)


def experiment(config: Path | None, sets: list[str] | None) -> dict[str, Any]:
    """`plpm simulate ab`, for other commands too."""
    from plpm_ray.evaluation.experiment_table import format_experiment
    from plpm_ray.simulation.experiment import ExperimentConfig, run_experiment

    clock = Clock()
    settings, source = _read(ExperimentConfig, config, sets)
    result = run_experiment(settings, source)
    print(f"world {result['world']}: {len(result['pages'])} pages, seed of the split {result['seed']}")
    print(format_experiment(result))
    shown = {"run": Path(result["run"]), "world": result["world"], "users": result["users"]}
    _finish("simulate ab", result, clock, shown)
    return result


@app.command()
def aa(config: ConfigPath = None, sets: Sets = None) -> None:
    """Many A/A experiments: how often each metric's test calls a difference where there is none."""
    from plpm_ray.evaluation.experiment_table import format_false_positives
    from plpm_ray.simulation.aa import AAConfig, run_aa

    clock = Clock()
    settings, source = _read(AAConfig, config, sets)
    result = run_aa(settings, source)
    print(format_false_positives(result))
    _finish("simulate aa", result, clock, {"run": Path(result["run"]), "experiments": result["experiments"]})


@app.command()
def calibrate(config: ConfigPath = None, sets: Sets = None) -> None:
    """What the world was calibrated to, and what it reaches, side by side."""
    from plpm_ray.simulation.calibration import CalibrationConfig, format_calibration, run_calibration

    clock = Clock()
    settings, _ = _read(CalibrationConfig, config, sets)
    result = run_calibration(settings)
    print(format_calibration(result))
    _finish("simulate calibrate", result, clock, {"run": Path(result["run"]), "users": result["users"]})


@app.command()
def coverage(config: ConfigPath = None, sets: Sets = None) -> None:
    """Off-policy estimators against the truth: how often their intervals cover it, and when they refuse."""
    from plpm_ray.simulation.coverage import CoverageConfig, format_coverage, run_coverage

    clock = Clock()
    settings, _ = _read(CoverageConfig, config, sets)
    result = run_coverage(settings)
    print(format_coverage(result))
    _finish(
        "simulate coverage", result, clock, {"run": Path(result["run"]), "repetitions": result["repetitions"]}
    )


@app.command()
def uplift(config: ConfigPath = None, sets: Sets = None) -> None:
    """A randomised trial of pages: uplift metrics of simple models, held against every user's potential outcomes."""
    from plpm_ray.simulation.uplift_run import UpliftRunConfig, run_uplift

    clock = Clock()
    settings, _ = _read(UpliftRunConfig, config, sets)
    result = run_uplift(settings)
    print(result["text"])
    _finish(
        "simulate uplift",
        {**result, "text": None},
        clock,
        {"run": Path(result["run"]), "users": result["users"]},
    )


@app.command()
def rllib(config: ConfigPath = None, sets: Sets = None) -> None:
    """Trains a reference agent of RLlib (DQN or PPO in the world, BC or MARWIL from logs) and writes its bundle."""
    from plpm_ray.simulation.ray_rllib import RLlibConfig, train_rllib

    clock = Clock()
    settings, _ = _read(RLlibConfig, config, sets)
    result = train_rllib(settings)
    _finish(
        "simulate rllib", result, clock, {k: v for k, v in result.items() if k not in ("kind", "seconds")}
    )


@app.command()
def logs(config: ConfigPath = None, sets: Sets = None) -> None:
    """Logs of any size: canonical sessions with true propensities, a randomised trial, potential outcomes."""
    from plpm_ray.simulation.logs_run import LogsConfig, write_logs

    clock = Clock()
    settings, source = _read(LogsConfig, config, sets)
    summary = {**write_logs(settings, source), "seconds": clock.seconds}
    shown = {k: v for k, v in summary.items() if k in _LOGS_SHOWN and v is not None}
    finish("simulate logs", settings.output, summary, shown)
