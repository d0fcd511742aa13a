"""How every command ends: a short summary on the terminal and `summary.json` in its run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plpm_ray.core import storage
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.storage import read_json, write_json


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self.start, 2)


def finish(
    command: str, run_dir: str | Path, summary: Mapping[str, Any], shown: Mapping[str, Any] | None = None
) -> None:
    """Writes `summary.json` and prints the short form.

    Args:
        command: name of the command.
        run_dir: folder of the run.
        summary: everything, JSON-like; written.
        shown: what is printed; default: the summary's plain values.
    """
    path = Path(run_dir) / "summary.json"
    write_json(path, {"command": command, **summary})
    print(f"{command} done")
    for key, value in (shown if shown is not None else _plain(summary)).items():
        print(f"  {key.replace('_', ' '):<22} {show(value)}")
    print(f"  {'summary':<22} {path}")


def refuse_foreign(command: str, run_dir: str | Path) -> None:
    """Refuses a folder whose `summary.json` another command wrote: it would be replaced.

    Raises:
        ConfigError: there is one.
    """
    path = Path(run_dir) / "summary.json"
    if path.exists() and read_json(path).get("command") != command:
        raise ConfigError(
            f"{run_dir} holds a run of another command, whose summary.json would be lost",
            hint="give the output a folder of its own",
        )


def newest_run(path: str | Path) -> Path:
    """A run folder as it is, or the newest of the run `runs/<name>`, whose folders end with a hash.

    Raises:
        ConfigError: there is none.
    """
    found = storage.newest_run(path, ("summary.json",))
    if found is None:
        raise ConfigError(
            f"{path} holds no finished run",
            hint="give a run folder, or `runs/<name>` for the newest run of that name",
        )
    return found


def constraint_rows(run_dir: Path, role: str = "") -> dict[str, str]:
    """A line for each constraint of a learner that was trained under some, as its run ended; `role.` stands before its name."""
    path = run_dir / "summary.json"
    found = read_json(path).get("constraints", {}) if path.is_file() else {}
    verdict = {True: "holds", False: "does not hold", None: "was never measured"}
    return {
        f"constraint {role}{name}": f"{verdict[c['holds']]}: {show(c['value'])}, bound {show(c['bound'])}, "
        f"dual variable {show(c['lambda'])}"
        + (f"; on validation days {verdict[c['holds_valid']]}: {show(c['valid'])}" if "valid" in c else "")
        for name, c in found.items()
    }


def _plain(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if isinstance(v, str | int | float | bool) or v is None}


def show(value: Any) -> str:
    """A value as people read it: thousands separated, four digits of a fraction, paths from the working folder."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, Path):
        return str(value.relative_to(Path.cwd()) if value.is_relative_to(Path.cwd()) else value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {show(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value)) or "none"
    return str(value)
