"""How close a world comes to what was published: simulates it under its logging policy and compares.

`calibrate` gives the record of `calibration.json`, `run_calibration` writes it, `format_calibration` is its table. Measured are:

* hours: video views by the local hour in which they happen, as shares; the total-variation distance to the target.
* sessions: runs of use by a gap of 30 minutes, as in KuaiRand's session statistics; entries: openings of the app.
* multi-page: active user-days with an effective visit (see `config.Visits`) on two or more pages (KLAN fig. 2b).
* use against entries: the mean use of the active user-days with n entries, fitted by a ln(1 + n) + b with least squares
  weighted by the number of days (GLAN fig. 2a and eq. 17); its R2 is that of these means.
* weekdays: video views of a weekday over the mean of the seven.
* drop-offs: landing pages left before the visit counts as effective, by landing page.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from plpm_ray.core.storage import write_json
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.simulation.calibration_rows import calibration_rows, shares
from plpm_ray.simulation.calibration_targets import with_aggregates
from plpm_ray.simulation.calibration_totals import CalibrationSink, CalibrationTotals
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import WorldConfig, load_world
from plpm_ray.simulation.runs import RunConfig, RunName, run_folder
from plpm_ray.simulation.simulation import Simulation, run_days
from plpm_ray.simulation.world import World

WIDTH = 110


class CalibrationConfig(RunConfig):
    """`plpm simulate calibrate`: which world, and how many users of it for how long."""

    operational: ClassVar[frozenset[str]] = RunConfig.operational | {"chunk_users"}

    name: RunName = "calibrate"
    users: int = Field(default=20_000, ge=100, description="simulated users")
    warmup_days: int = Field(default=28, ge=0, description="days before the measured ones")
    days: int = Field(default=28, ge=7, description="measured days; whole weeks are best")
    seed: int | None = Field(
        default=None, ge=0, description="seed of the users and their luck; null: the world's own"
    )
    aggregates: str | None = Field(
        default=None, description="folder of KuaiRand-27K's aggregate tables, to read the targets from"
    )
    chunk_users: int = Field(default=5_000, ge=1, description="users of one task; bounds the memory")


def run_calibration(config: CalibrationConfig) -> dict[str, Any]:
    """Calibrates and writes `calibration.json` into the run folder.

    Returns:
        Its content, with the run folder under "run".
    """
    with run_folder(config, load_world(config.world)) as run_dir:
        record = calibrate(config)
        write_json(run_dir / "calibration.json", record)
        return {**record, "run": str(run_dir)}


def calibrate(config: CalibrationConfig) -> dict[str, Any]:
    """Simulates a world under its logging policy and compares it with its targets.

    Returns:
        the record of `calibration.json`, and under `disagreements` one sentence for each constant of the world's YAML that
        the given aggregates contradict. The same whatever the chunks, backend and number of workers.

    Raises:
        ConfigError, DataError: the world or the aggregates are wrong.
    """
    described = load_world(config.world)
    if config.seed is not None:
        described = described.model_copy(update={"seed": config.seed})
    targets, disagreements = described.targets, []
    if config.aggregates is not None:
        targets, disagreements = with_aggregates(targets, config.aggregates)
    totals = measure(described, config)
    rows = calibration_rows(World(described), targets, totals, config.warmup_days)
    views = totals.hour_views.sum(axis=0)
    return {
        "kind": "calibration",
        "world": described.name,
        "users": config.users,
        "warmup_days": config.warmup_days,
        "days": config.days,
        "seed": described.seed,
        "rows": rows,
        "hourly": {
            "target": None if targets.hourly is None else shares(np.asarray(targets.hourly)).tolist(),
            "reached": shares(views).tolist(),
        },
        "disagreements": disagreements,
    }


def measure(world: WorldConfig, config: CalibrationConfig) -> CalibrationTotals:
    """The totals of all users, in tasks of `chunk_users`."""
    starts = range(0, config.users, config.chunk_users)
    chunks = [(start, min(start + config.chunk_users, config.users)) for start in starts]
    parts = run_tasks(
        partial(_chunk, world, config.warmup_days, config.days),
        chunks,
        backend=config.backend,
        workers=config.workers,
        progress="simulating",
    )
    totals = parts[0]
    for part in parts[1:]:
        totals = totals + part
    return totals


def _chunk(config: WorldConfig, warmup_days: int, days: int, users: tuple[int, int]) -> CalibrationTotals:
    simulation, policy = Simulation(World(config), np.arange(*users)), LoggingPolicy()
    run_days(simulation, warmup_days, policy)
    sink = CalibrationSink(simulation, days)
    for _ in range(days):
        run_days(simulation, 1, policy, sink)
        sink.end_day()
    return sink.totals()


def calibration_table(record: dict[str, Any]) -> Table:
    """The rows of a calibration record, target beside reached."""
    title = f"{record['world']}: {record['users']:,} users, {record['days']} days, seed {record['seed']}"
    table = Table(title=title, width=WIDTH, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("quantity", no_wrap=True)
    for name in ("target", "reached", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("source of the target", ratio=1)
    group = None
    for row in record["rows"]:
        if row["group"] != group and group is not None:
            table.add_section()
        group = row["group"]
        known = row["low"] is not None and row["high"] is not None
        interval = f"{_digits(row['low'])} to {_digits(row['high'])}" if known else "-"
        name = f"{row['quantity']}, {row['unit']}" if row["unit"] else row["quantity"]
        source = "" if row["target"] is None else row["source"]
        table.add_row(name, _digits(row["target"]), _digits(row["reached"]), interval, source)
    return table


def _digits(value: float | None) -> str:
    """Three decimals below 10, one from there on."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def format_calibration(record: dict[str, Any]) -> str:
    """The table as text of at most 110 columns, with what the aggregates contradict below it."""
    console = Console(width=WIDTH, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(calibration_table(record))
        for sentence in record.get("disagreements", ()):
            console.print(f"note: {sentence}", soft_wrap=True)
    return captured.get().rstrip()
