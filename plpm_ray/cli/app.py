"""Command line: each command reads a YAML config and `--set key=value`, runs, and ends with a short summary."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from plpm_ray.cli import simulate
from plpm_ray.cli.names import names_told
from plpm_ray.core.errors import PlpmError

app = typer.Typer(
    name="plpm",
    help="Personalised landing pages: from logs to a trained, judged and served navigator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(simulate.app, name="simulate")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML config file")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a config key; may be repeated"),
]


def quiet_environment() -> None:
    """Usage statistics off, and a token of this process' own for a Ray that it may start; called by entry points only.

    A local Ray would otherwise write a token into the home folder, and later clusters would ask every client for it;
    matplotlib would keep its list of fonts there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"plpm-matplotlib-{os.getuid()}"))
    joins_a_cluster = (
        "RAY_ADDRESS" in os.environ or (Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster").exists()
    )
    if not joins_a_cluster and not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def run() -> None:
    """Runs the command line; errors raised on purpose end with their message and exit status 2."""
    quiet_environment()
    try:
        with names_told():
            app()
    except PlpmError as error:
        sys.exit(_show(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _show(error: PlpmError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _command(name: str) -> Callable[..., Any]:
    from plpm_ray.cli import commands

    return getattr(commands, name)


@app.command()
def data(config: ConfigPath, sets: Sets = None) -> None:
    """Logs -> canonical sessions -> point-in-time features and transitions."""
    _command("data")(config, sets or [])


@app.command()
def train(config: ConfigPath, sets: Sets = None) -> None:
    """Trains one learner on the tables and writes its bundle."""
    _command("train")(config, sets or [])


@app.command()
def stream(config: ConfigPath, sets: Sets = None) -> None:
    """Learns finished sessions in the order of their entries, each scored before it is learned; goes on after a crash."""
    from plpm_ray.cli.stream import stream as run

    run(config, sets or [])


@app.command()
def sweep(config: ConfigPath, sets: Sets = None) -> None:
    """Searches a learner's parameters by policy value on validation days."""
    _command("sweep")(config, sets or [])


@app.command()
def evaluate(config: ConfigPath, sets: Sets = None) -> None:
    """Judges bundles and heuristics on held-out days, in one table with intervals."""
    _command("evaluate")(config, sets or [])


@app.command()
def assess(config: ConfigPath, sets: Sets = None) -> None:
    """Judges models that say numbers (GLAN's L-RTG and HRM) on held-out days: errors, calibration, constraints."""
    from plpm_ray.cli.assess import assess as run

    run(config, sets or [])


@app.command()
def uplift(config: ConfigPath, sets: Sets = None) -> None:
    """Judges uplift models on held-out users of a randomised trial: Qini, AUUC, policy value, with intervals."""
    from plpm_ray.cli.uplift import uplift as run

    run(config, sets or [])


@app.command()
def decide(config: ConfigPath, sets: Sets = None) -> None:
    """Scores a Parquet file of app entries: page, scores and propensity per row."""
    _command("decide")(config, sets or [])


@app.command()
def score(config: ConfigPath, sets: Sets = None) -> None:
    """Scores every user for a day with an uplift model (KLAN-ISP's delta), for decisions to look up."""
    _command("score")(config, sets or [])


@app.command()
def reward(config: ConfigPath, sets: Sets = None) -> None:
    """Judges every session with a reward model (GLAN-HRM): a reward column beside the trajectory table."""
    _command("reward")(config, sets or [])


@app.command()
def serve(config: ConfigPath, sets: Sets = None) -> None:
    """Serves a bundle over HTTP until interrupted."""
    _command("serve")(config, sets or [])


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="run folders, or `runs/<name>` for the newest run of that name"
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="the file; default: report.html in the first run folder")
    ] = None,
) -> None:
    """Writes one self-contained HTML file about experiments, checks of the world, and evaluations."""
    _command("report")(runs, output)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]")] = None, sets: Sets = None
) -> None:
    """Checks this machine (and a config, if given): versions, cores, memory, disk, Ray, and what would not fit."""
    _command("doctor")(config, sets or [])


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option(help="where tables and runs go")] = Path("runs/quickstart"),
) -> None:
    """Everything once on a small simulated app: tables, training, evaluation, an A/B experiment, a served decision, a report."""
    # nets this small lose more to waiting threads than they win, above all where other programs run
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _command("quickstart")(folder)
