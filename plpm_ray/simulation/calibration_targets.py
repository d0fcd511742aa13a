"""Where the calibration's targets come from: the world's YAML, or a folder of public aggregate tables.

The folder holds tables of KuaiRand-27K under their published names (`log_standard_hourly.csv` and so on). Only pages that the
world's `targets.tabs` names are compared; which tab is which page was never published, so the mapping is an assumption.
"""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plpm_ray.core.config import ConfigSource, validate
from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.simulation.targets import Targets

HOLIDAYS_FROM = dt.date(2022, 4, 29)
"""Labour Day's holidays begin; the weekdays of KuaiRand are read from the three whole weeks before."""
_DIFFERENT = 0.005  # relative; constants in a YAML are rounded


def with_aggregates(targets: Targets, folder: str | Path) -> tuple[Targets, list[str]]:
    """Targets read from a folder of aggregates, those that it lacks as they were.

    Returns:
        the targets, and one sentence for each given constant that the folder contradicts by more than 0.5 %.

    Raises:
        ConfigError: the folder holds none of the tables.
        DataError: a table lacks a column or holds no number.
    """
    found = read_aggregates(folder, targets.tabs)
    if not found:
        raise ConfigError(
            f"{folder} holds none of the aggregate tables",
            hint="give the folder with log_standard_hourly.csv, log_standard_daily.csv and log_standard_tab_stats.csv",
        )
    values = {name: value for name, (value, _) in found.items()}
    sources = {
        **targets.sources,
        **{
            name: f"KuaiRand-27K, {Path(file).stem.removeprefix('log_standard_')}"
            for name, (_, file) in found.items()
        },
    }
    raw = {**targets.model_dump(), **values, "sources": sources}
    updated = validate(Targets, ConfigSource(raw, str(folder), {}, {}))
    return updated, [text for name in values if (text := _contradiction(name, targets, updated))]


def read_aggregates(folder: str | Path, tabs: Mapping[str, int]) -> dict[str, tuple[Any, str]]:
    """Field of `Targets` -> (value, name of the table it was read from), for the tables that are there."""
    root, found = Path(folder), {}
    days: int | None = None
    for file, read in (
        ("log_standard_basic_stats.csv", _basic),
        ("log_standard_hourly.csv", _hourly),
        ("log_standard_daily.csv", _daily),
        ("log_standard_session_summary.csv", _sessions),
        ("log_standard_time_gap_bins.csv", _gaps),
        ("log_standard_user_stats_summary.csv", _views),
        ("log_standard_tab_stats.csv", lambda rows, _: _tabs(rows, tabs)),
    ):
        path = root / file
        if not path.is_file():
            continue
        try:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                values = read(list(csv.DictReader(lines)), days)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise DataError(
                f"{path} is not as published: {type(error).__name__} {error}",
                hint="compare its header and rows",
            ) from None
        days = values.pop("days", days)
        found.update({name: (value, file) for name, value in values.items()})
    return found


_Rows = list[dict[str, str]]


def _date(text: str) -> dt.date:
    return dt.datetime.strptime(text, "%Y%m%d").date()


def _basic(rows: _Rows, _: int | None) -> dict[str, Any]:
    row = rows[0]
    days = (_date(row["max_date"]) - _date(row["min_date"])).days + 1
    return {"days": days, "views_per_user_day": float(row["exposure_cnt"]) / float(row["user_cnt"]) / days}


def _hourly(rows: _Rows, _: int | None) -> dict[str, Any]:
    views = np.zeros(24)
    for row in rows:
        views[int(row["hour"])] = float(row["exposures"])
    return {"hourly": (views / views.sum()).tolist()}


def _daily(rows: _Rows, _: int | None) -> dict[str, Any]:
    views: list[list[float]] = [[] for _ in range(7)]
    for row in rows:
        if _date(row["date"]) < HOLIDAYS_FROM:
            views[_date(row["date"]).weekday()].append(float(row["exposures"]))
    mean = np.array([sum(day) / len(day) for day in views])
    return {"weekday": (mean / mean.mean()).tolist()}


def _sessions(rows: _Rows, days: int | None) -> dict[str, Any]:
    row = rows[0]
    found = {"sessions_p90": float(row["session_p90"]) / float(row["session_p50"])}
    if days:
        found["sessions_per_user_day"] = float(row["session_mean"]) / days
    return found


def _gaps(rows: _Rows, _: int | None) -> dict[str, Any]:
    count = {row["gap_bin"]: float(row["cnt"]) for row in rows}
    return {"long_gaps": count[">=120min"] / (count[">=120min"] + count["30-120min"])}


def _views(rows: _Rows, _: int | None) -> dict[str, Any]:
    return {"views_p90": float(rows[0]["expo_p90"]) / float(rows[0]["expo_p50"])}


def _tabs(rows: _Rows, tabs: Mapping[str, int]) -> dict[str, Any]:
    if not tabs:
        return {}
    views = {int(row["tab"]): float(row["exposures"]) for row in rows}
    total = sum(views[tab] for tab in tabs.values())
    return {"page_share": {page: views[tab] / total for page, tab in tabs.items()}}


def _contradiction(name: str, given: Targets, found: Targets) -> str | None:
    """One sentence where a constant is given and the aggregates say something else."""
    before, after = getattr(given, name), getattr(found, name)
    if not before:
        return None
    if isinstance(before, dict):
        both = sorted(before.keys() & after.keys())
        before, after = [before[page] for page in both], [after[page] for page in both]
    old, new = np.atleast_1d(np.asarray(before, dtype=float)), np.atleast_1d(np.asarray(after, dtype=float))
    if name == "hourly":
        old, new = old / old.sum(), new / new.sum()
    off = np.abs(old / new - 1)
    if off.max() <= _DIFFERENT:
        return None
    i = int(off.argmax())
    at = f"[{i}]" if len(old) > 1 else ""
    return f"targets.{name}{at} is {old[i]:.4g} in the world's YAML, {new[i]:.4g} in the aggregates"
