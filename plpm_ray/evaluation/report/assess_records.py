"""What `summary.json` of `plpm assess` must hold for a report; further keys are allowed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plpm_ray.evaluation.report.records import Maybe, Record


class Interval(Record):
    """A value with its 95 % interval, clustered by user."""

    value: Maybe = None
    low: Maybe = None
    high: Maybe = None


class DayErrors(Record):
    """Errors of a model of days in seconds; `bias_by`: tenths by "use" and by "prediction", and "weekday"."""

    mae_s: Interval
    rmse_s: Interval
    spearman: Interval
    bias_s: Interval
    bias_by: dict[str, list[Interval | None]] = Field(default_factory=dict)


class Constraint(Interval):
    """A constraint on held-out days; `held` at the end of training."""

    bound: float
    holds: bool
    held: bool | None = None


class DropOff(Record):
    """Chances of a drop-off against what came; `bins`: mean chance, share, sessions."""

    share: float
    mean_chance: float
    auc: Maybe = None
    pr_auc: Maybe = None
    brier: float
    brier_interval: tuple[Maybe, Maybe] = (None, None)
    constant_brier: Maybe = None
    log_loss: float
    log_loss_interval: tuple[Maybe, Maybe] = (None, None)
    constant_log_loss: Maybe = None
    calibration_error: float
    bins: list[tuple[float, float, int]] = Field(default_factory=list)


class PageErrors(Record):
    """Seconds on one page; `constant_mae_s` is the error of its mean."""

    page: str
    mean_s: float
    mae_s: float
    constant_mae_s: Maybe = None
    bias_s: float


class DayModel(Record):
    """One model of days, the seven-day mean on the same days, and the mean day of the training window for all."""

    kind: Literal["day"]
    label: str
    learner: str = ""
    rows: int
    users: int
    model: DayErrors
    reference: DayErrors
    constant: DayErrors | None = None
    mae_gain: Interval
    constraints: dict[str, Constraint] = Field(default_factory=dict)


class SessionModel(Record):
    """One model of sessions."""

    kind: Literal["session"]
    label: str
    learner: str = ""
    rows: int
    users: int
    tau_s: float
    drop_off: DropOff
    pages: list[PageErrors] = Field(default_factory=list)


class AssessRun(Record):
    """`summary.json` of `plpm assess`."""

    command: Literal["assess"]
    data: str = ""
    part: str = ""
    split: dict[str, list[str]] = Field(default_factory=dict)
    models: list[DayModel | SessionModel] = Field(min_length=1)

    @property
    def days(self) -> list[DayModel]:
        return [m for m in self.models if isinstance(m, DayModel)]

    @property
    def sessions(self) -> list[SessionModel]:
        return [m for m in self.models if isinstance(m, SessionModel)]
