"""What a sweep remembers: one line per event in `trials.jsonl`, so that a killed sweep loses no finished trial.

`{"event": "start", "number": 3, "params": {...}}` when a trial's parameters are chosen, `{"event": "end", ...}` when
it is over. Lines are flushed to disk one by one; a line torn by a crash is dropped when the ledger is next opened. A
trial that started and did not end is run again with the same parameters, under the same number.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from plpm_ray.core.errors import StorageError
from plpm_ray.core.storage import exclusive_folder, storage_errors

Status = Literal["finished", "stopped", "refused", "failed", "lost"]


@dataclass(frozen=True)
class EpochReport:
    """The policy value of a trial's learner after an epoch of training.

    Attributes:
        epoch: epochs trained so far.
        value, low, high, standard_error: policy value on the validation days, in the objective's unit; None where
            refused.
        effective_samples: effective sample size of the importance weights.
        refused: why there is no value, or None.
        goal: what trials are ranked by (`ObjectiveConfig.rank_by`); the value itself where it is not given.
        gain, gain_low, gain_high: value minus the baseline's, paired on the same rows; None without a baseline.
        metrics: training losses and the learner's own metrics, for reading only.
        seconds: time of the epoch, evaluation included.
    """

    epoch: int
    value: float | None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    effective_samples: float | None = None
    refused: str | None = None
    goal: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """What is maximised; None where the estimate was refused."""
        if self.value is None:
            return None
        return self.value if self.goal is None else self.goal

    def to_dict(self) -> dict[str, Any]:
        """JSON form: what is not finite becomes None."""
        return {k: _finite(v) for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EpochReport:
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in known})


@dataclass(frozen=True)
class TrialRecord:
    """A trial that is over.

    Attributes:
        number: 0, 1, ... in the order in which parameters were chosen.
        params: parameter -> value.
        status: "finished" ran every epoch; "stopped" was ended early by the scheduler; "refused" has no estimate
            that the logs support; "failed" raised an error; "lost" was ended from outside (worker killed) and is run
            again.
        reports: one per epoch.
        error: what a failed or lost trial said.
    """

    number: int
    params: Mapping[str, Any]
    status: Status
    reports: tuple[EpochReport, ...] = ()
    error: str | None = None

    @property
    def last(self) -> EpochReport | None:
        """The last report: the one that a trial is judged by."""
        return self.reports[-1] if self.reports else None

    @property
    def value(self) -> float | None:
        """Policy value of the last epoch; None where it was refused or the trial failed."""
        return self.last.value if self.last and self.status in ("finished", "stopped") else None

    @property
    def score(self) -> float | None:
        """What trials are ranked by, of the last epoch; None where there is no value."""
        return self.last.score if self.last and self.value is not None else None

    @property
    def epochs(self) -> int:
        return self.last.epoch if self.last else 0

    @property
    def seconds(self) -> float:
        return sum(report.seconds for report in self.reports)


def close_record(
    number: int, params: Mapping[str, Any], reports: tuple[EpochReport, ...], epochs: int
) -> TrialRecord:
    """The record of a trial that ended without an error, judged by its last report.

    Args:
        epochs: how many a full trial has.
    """
    last = reports[-1]
    status: Status = "refused" if last.value is None else ("finished" if last.epoch >= epochs else "stopped")
    return TrialRecord(number, params, status, reports)


class Ledger:
    """The trials of a sweep on disk. Open it with `open_ledger`; one process at a time may.

    Attributes:
        records: trial number -> record of every trial that is over ("lost" ones are not among them).
        unfinished: trial number -> parameters of trials that began and are not over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[int, TrialRecord] = {}
        self.unfinished: dict[int, dict[str, Any]] = {}
        self._replay()

    @property
    def next_number(self) -> int:
        return max([-1, *self.records, *self.unfinished]) + 1

    def start(self, number: int, params: Mapping[str, Any]) -> None:
        """Notes that a trial's parameters are chosen."""
        self._append({"event": "start", "number": number, "params": dict(params)})
        self.unfinished[number] = dict(params)

    def end(self, record: TrialRecord) -> None:
        """Notes that a trial is over."""
        self._append(
            {
                "event": "end",
                "number": record.number,
                "status": record.status,
                "params": dict(record.params),
                "reports": [report.to_dict() for report in record.reports],
                "error": record.error,
            }
        )
        self._close(record)

    def _close(self, record: TrialRecord) -> None:
        if record.status == "lost":
            self.unfinished[record.number] = dict(record.params)
            return
        self.unfinished.pop(record.number, None)
        self.records.pop(record.number, None)
        self.records[record.number] = record

    def _append(self, event: Mapping[str, Any]) -> None:
        with storage_errors(f"writing {self.path}"), self.path.open("ab") as file:
            file.write(json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _replay(self) -> None:
        if not self.path.exists():
            return
        with storage_errors(f"reading {self.path}"):
            data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with storage_errors(f"writing {self.path}"):
                os.truncate(self.path, len(whole))
        for line, text in enumerate(whole.splitlines(), start=1):
            try:
                self._replay_event(json.loads(text))
            except (KeyError, TypeError, ValueError) as error:
                raise StorageError(
                    f"{self.path}:{line} cannot be read: {error}",
                    hint="remove that line, or the run folder to begin anew",
                ) from None

    def _replay_event(self, event: Mapping[str, Any]) -> None:
        number, params = int(event["number"]), dict(event["params"])
        if event["event"] == "start":
            self.unfinished[number] = params
            return
        reports = tuple(EpochReport.from_dict(report) for report in event["reports"])
        self._close(TrialRecord(number, params, event["status"], reports, event.get("error")))


@contextmanager
def open_ledger(run_dir: str | Path) -> Iterator[Ledger]:
    """The ledger of a run folder, locked against a second driver. The lock goes with the process, however it ends.

    Raises:
        ConfigError: another process runs this sweep.
        StorageError: the ledger is damaged.
    """
    run_dir = Path(run_dir)
    with exclusive_folder(run_dir):
        yield Ledger(run_dir / "trials.jsonl")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return value
