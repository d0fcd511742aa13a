"""Trials in this process, one after the other, without Ray; the same files come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from plpm_ray.core.errors import PlpmError
from plpm_ray.tuning.halving import Halving
from plpm_ray.tuning.ledger import EpochReport, TrialRecord, close_record
from plpm_ray.tuning.suggest import Suggester


class RunningTrial(Protocol):
    """What a driver needs of a trial."""

    @property
    def done(self) -> bool: ...

    def run_epoch(self) -> EpochReport: ...


StartTrial = Callable[[Mapping[str, Any]], RunningTrial]


class SharedTask(Protocol):
    """What all trials share; it travels to the processes that run them."""

    def open(self) -> StartTrial:
        """Called once in every process: what starts a trial there from its parameters."""
        ...


OnReport = Callable[[int, EpochReport], None]


def run_local(
    suggester: Suggester, halving: Halving, start: StartTrial, trials: int, epochs: int, on_report: OnReport
) -> None:
    """Asks for trials and runs each to its end, until `trials` are on record.

    Args:
        start: builds a trial from its parameters.
        epochs: of a full trial.
        on_report: told of every epoch.
    """
    while len(suggester.ledger.records) < trials:
        number, params = suggester.ask()
        suggester.tell(_run_one(number, params, halving, start, epochs, on_report))


def _run_one(
    number: int,
    params: Mapping[str, Any],
    halving: Halving,
    start: StartTrial,
    epochs: int,
    on_report: OnReport,
) -> TrialRecord:
    reports: list[EpochReport] = []
    try:
        trial = start(params)
        while not trial.done:
            report = trial.run_epoch()
            reports.append(report)
            on_report(number, report)
            if halving.stops(number, report):
                break
    except (
        Exception
    ) as error:  # one bad point must not end the sweep; the ledger and the table say what it said
        return TrialRecord(number, params, "failed", tuple(reports), describe(error))
    return close_record(number, params, tuple(reports), epochs)


def describe(error: BaseException) -> str:
    """One line for the ledger."""
    text = error.message if isinstance(error, PlpmError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0] if text else type(error).__name__
