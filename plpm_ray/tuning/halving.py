"""Early stopping by asynchronous successive halving (ASHA; Li et al. 2020), which remembers the trials of earlier runs.

Ray's own scheduler makes the decisions, whether a cluster runs the trials or this process does. It ranks trials by
`score`: what the objective says, or a number below all others where the estimate was refused, so that a refused trial is
stopped at the next rung as soon as enough others have a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plpm_ray.tuning.ledger import EpochReport, TrialRecord

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

REFUSED_SCORE = -1e30
TIME, SCORE = "training_iteration", "score"


@dataclass(frozen=True)
class _Stand:
    """What the scheduler reads of a trial: its id."""

    trial_id: str


def score(report: EpochReport) -> float:
    """What the scheduler compares: finite always, since it averages over trials."""
    return REFUSED_SCORE if report.score is None else report.score


def make_scheduler(
    grace_epochs: int, max_epochs: int, reduction: float, known: Iterable[TrialRecord]
) -> TrialScheduler:
    """Ray's ASHA scheduler with the rungs that earlier trials reached.

    Args:
        grace_epochs: no trial is stopped before.
        max_epochs: of a full trial.
        reduction: one of so many trials passes a rung.
        known: trials of earlier runs of the same sweep.
    """
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(
        time_attr=TIME,
        metric=SCORE,
        mode="max",
        max_t=max_epochs,
        grace_period=min(grace_epochs, max_epochs),
        reduction_factor=reduction,
        stop_last_trials=False,
    )
    for record in known:
        trial: Any = _Stand(f"known-{record.number}")
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]  # the controller is not used
        for report in record.reports:
            scheduler.on_trial_result(None, trial, result_of(report))  # type: ignore[arg-type]
        scheduler.on_trial_remove(None, trial)  # type: ignore[arg-type]
    return scheduler


class Halving:
    """The scheduler for trials that run in this process."""

    def __init__(self, scheduler: TrialScheduler | None) -> None:
        self._scheduler = scheduler
        self._known: set[int] = set()

    def stops(self, number: int, report: EpochReport) -> bool:
        """Whether a trial must end after this report."""
        if self._scheduler is None:
            return False
        trial: Any = _Stand(f"trial-{number}")
        if number not in self._known:
            self._known.add(number)
            self._scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        return self._scheduler.on_trial_result(None, trial, result_of(report)) == "STOP"  # type: ignore[arg-type]


def result_of(report: EpochReport) -> Mapping[str, Any]:
    """A report in the scheduler's words."""
    return {TIME: report.epoch, SCORE: score(report)}
