"""Run folders as the report reads them: which kind each is, its record and its tables, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from plpm_ray.core.errors import DataError
from plpm_ray.core.storage import newest_run, read_json, read_parquet
from plpm_ray.evaluation.report import records
from plpm_ray.evaluation.report.assess_records import AssessRun

# file -> kind, record; the order decides where a folder holds several
_FILES: Mapping[str, tuple[str, type[records.Record]]] = {
    "ab.json": ("ab", records.ABRun),
    "calibration.json": ("calibration", records.CalibrationRun),
    "coverage.json": ("coverage", records.CoverageRun),
    "aa.json": ("aa", records.AARun),
    "uplift.json": ("uplift", records.UpliftRun),
}
_RESULTS = (*_FILES, "summary.json")
_COMMANDS: Mapping[str, type[records.Record]] = {
    "evaluate": records.EvaluateRun,
    "assess": AssessRun,
    "sweep": records.SweepRun,
    "stream": records.StreamRun,
}
_AGAIN = {
    "ab": "plpm simulate ab",
    "calibration": "plpm simulate calibrate",
    "coverage": "plpm simulate coverage",
    "aa": "plpm simulate aa",
    "uplift": "plpm uplift` or `plpm simulate uplift",
    "evaluate": "plpm evaluate",
    "assess": "plpm assess",
    "sweep": "plpm sweep",
    "train": "plpm train",
    "stream": "plpm stream",
}
_TABLES: Mapping[str, Sequence[str]] = {
    "daily": ("arm", "day", "period", "users", "active_users", "lt"),
    "hourly": ("arm", "period", "hour", "sessions"),
    "moves": ("arm", "period", "from", "to", "users"),
    "pages": ("arm", "period", "page", "assigned", "entries_effective"),
}
Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it lies.
        kind: "ab", "calibration", "coverage", "aa", "uplift", "evaluate", "assess", "sweep", "navigator", "train" or "stream".
        record: its checked JSON.
        config: its config.json, or nothing.
    """

    folder: Path
    kind: str
    record: Any
    config: Mapping[str, Any] = field(default_factory=dict)

    def table(self, name: str) -> Columns:
        """A Parquet table of an experiment, column by column.

        Raises:
            DataError: it is missing, damaged, or lacks a column or an arm.
        """
        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            raise _incomplete(self.folder, path.name, self.kind)
        read = read_parquet(path, list(_TABLES[name]))
        columns = {c: _plain(read[c]) for c in read.column_names}
        strays = sorted(set(columns["arm"]) - set(self.record.arms))
        if strays:
            raise DataError(
                f"{path} holds the arm {strays[0]!r}, which {self.folder / 'ab.json'} does not name",
                hint="the files of this run come from different experiments; run it again",
            )
        return columns


def read_run(path: str | Path) -> Run:
    """A run folder, or a run's name without its hash (the newest such run).

    Raises:
        DataError: there is no such folder, it is no run that a report knows, or its file lacks something.
        StorageError: a file cannot be read.
    """
    folder = _find(Path(path))
    for name, (kind, model) in _FILES.items():
        if (folder / name).is_file():
            return _run(folder, name, kind, model)
    if not (folder / "summary.json").is_file():
        raise _unknown(folder)
    summary = _object(folder / "summary.json")
    command = str(summary.get("command", "train" if "learner" in summary and "status" in summary else ""))
    if command in _AGAIN and command not in _COMMANDS and command != "train":
        raise _incomplete(folder, f"{command}.json", command)
    if not command and "navigator" in summary and "status" in summary:
        return _run(folder, "summary.json", "navigator", records.NavigatorRun)
    model = records.TrainRun if command == "train" else _COMMANDS.get(command)
    if model is None:
        raise DataError(
            f"{folder / 'summary.json'} is of a command that a report does not show: {command or 'none named'}",
            hint=f"it shows runs of {', '.join(sorted(_AGAIN.values()))}",
        )
    return _run(folder, "summary.json", command, model)


def _find(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.is_file():
        raise DataError(f"{path} is a file", hint=f"give the run folder: {path.parent}")
    found = newest_run(path, _RESULTS)
    if found is None:
        raise DataError(f"there is no run at {path}", hint="give a run folder, as printed when the run ended")
    return found


def _unknown(folder: Path) -> DataError:
    inside = sorted(p.name for p in folder.iterdir() if any((p / f).is_file() for f in _RESULTS))
    if inside:
        shown = " ".join(str(folder / name) for name in inside[:3]) + (" ..." if len(inside) > 3 else "")
        return DataError(f"{folder} holds runs, but is none itself", hint=f"name the runs: {shown}")
    if (folder / "config.json").is_file():
        return DataError(
            f"{folder} holds config.json, but no result",
            hint="the run has not ended; start its command again",
        )
    return DataError(
        f"{folder} is not a run folder: it holds none of {', '.join(sorted(_RESULTS))}",
        hint="give the folder of a run of `plpm simulate`, `plpm evaluate`, `plpm assess`, `plpm sweep`, "
        "`plpm train` or `plpm stream`",
    )


def _incomplete(folder: Path, missing: str, kind: str) -> DataError:
    hint = f"run `{_AGAIN[kind]}` again with the same config"
    return DataError(f"the run {folder} is incomplete: {missing} is missing", hint=hint)


def _run(folder: Path, name: str, kind: str, model: type[records.Record]) -> Run:
    path = folder / name
    try:
        record = model.model_validate(_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise DataError(
            f"{path}: {where + ': ' if where else ''}{reason[:1].lower()}{reason[1:]}",
            hint="the file was edited, or another version wrote it; run it again with this one",
        ) from None
    config = folder / "config.json"
    return Run(folder, kind, record, _object(config) if config.is_file() else {})


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a JSON object", hint="it was damaged; run it again")
    return value


def _plain(column: Any) -> np.ndarray:
    values = column.combine_chunks()
    if hasattr(values.type, "value_type") and hasattr(values, "dictionary_decode"):
        values = values.dictionary_decode()
    return values.to_numpy(zero_copy_only=False)
