"""What the files of runs must hold for a report; further keys are allowed.

Relative changes, shares, rates and probabilities are fractions; every other value is in the unit that stands beside it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Maybe = Annotated[float | None, BeforeValidator(_finite)]


class Record(BaseModel):
    """Base of all: frozen, keys that are not named here are kept but not read."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class MetricRow(Record):
    """One metric of one arm against the control; see `ABRun`."""

    metric: str
    title: str
    unit: str
    better: Literal["higher", "lower", "neutral"]
    page: str | None = None
    arm: str
    value: Maybe = None
    control: Maybe = None
    difference: Maybe = None
    relative: Maybe = None
    low: Maybe = None
    high: Maybe = None
    p_value: Maybe = None
    p_adjusted: Maybe = None
    variance_reduction: Maybe = None
    gap_share: Maybe = None
    gap_low: Maybe = None
    gap_high: Maybe = None


class SampleRatio(Record):
    """The check that users fell to the arms as planned."""

    p_value: Maybe = None
    counts: dict[str, float]
    expected: dict[str, float]
    ok: bool


class ABRun(Record):
    """`ab.json` of an experiment.

    Attributes:
        control: label of the arm that the others are compared with.
        design: "split" for users in one arm each, "twins" for the same users under every arm.
        metrics: one row per metric and arm, as `evaluation.experiment.analyse` gives them; the control's own
            rows are not shown.
        adjustment: how `p_adjusted` was made: "holm" or "benjamini_hochberg".
        latency: CPU time of a decision by arm, microseconds.
        versions: of what chooses the pages, by arm.
    """

    kind: Literal["ab"]
    world: str
    pages: list[str]
    control: str
    arms: list[str] = Field(min_length=1)
    design: str = "split"
    users: int
    warmup_days: int = 0
    aa_days: int
    ab_days: int
    seed: int | None = None
    metrics: list[MetricRow]
    adjustment: str = "holm"
    sample_ratio: SampleRatio | None = None
    latency: dict[str, Maybe] = {}
    versions: dict[str, str | None] = {}

    @model_validator(mode="after")
    def _arms_fit(self) -> ABRun:
        if self.control not in self.arms:
            raise ValueError(f"the control {self.control!r} is not among the arms")
        stray = next((m.arm for m in self.metrics if m.arm not in self.arms), None)
        if stray is not None:
            raise ValueError(f"a metric row names the arm {stray!r}, which is not among the arms")
        return self


class CalibrationRow(Record):
    """One quantity of the world against its target, in `unit`."""

    group: str
    quantity: str
    unit: str
    target: Maybe = None
    reached: Maybe = None
    low: Maybe = None
    high: Maybe = None
    source: str = ""


class Hourly(Record):
    """Shares of the video views of a day in its 24 local hours."""

    target: list[float] | None = Field(None, min_length=24, max_length=24)
    reached: list[float] = Field(min_length=24, max_length=24)


class CalibrationRun(Record):
    """`calibration.json`; `disagreements` are sentences on constants of the world that its sources contradict."""

    kind: Literal["calibration"]
    world: str
    users: int
    days: int
    warmup_days: int = 0
    seed: int | None = None
    rows: list[CalibrationRow]
    hourly: Hourly | None = None
    disagreements: list[str] = []


class CoverageRow(Record):
    """One estimator on one policy, over many repetitions; truth, mean, bias and sd in `unit`, rates as fractions.

    `per` says of what: a decision, or a user-day. A policy has another true value for each.
    """

    estimator: str
    policy: str
    per: str = ""
    truth: Maybe
    mean: Maybe = None
    bias: Maybe = None
    sd: Maybe = None
    covered: int
    answered: int
    refused: int
    rate: Maybe = None
    rate_low: Maybe = None
    rate_high: Maybe = None
    ok: bool | None = None
    unit: str = ""

    @property
    def value(self) -> str:
        """The value that was estimated: policy, and per what."""
        return f"{self.policy}, per {self.per}" if self.per else self.policy


class CoverageRun(Record):
    """`coverage.json`."""

    kind: Literal["coverage"]
    world: str
    repetitions: int
    nominal: float
    seed: int | None = None
    rows: list[CoverageRow]


class AARow(Record):
    """How often one metric was found significant where nothing differs."""

    metric: str
    title: str
    page: str | None = None
    rejections: int
    experiments: int
    rate: Maybe = None
    expected_low: Maybe = None
    expected_high: Maybe = None
    ok: bool | None = None
    family_low: Maybe = None
    family_high: Maybe = None
    family_ok: bool | None = None


class AARun(Record):
    """`aa.json`; `family_ok` is the verdict on all its metrics together."""

    kind: Literal["aa"]
    world: str
    experiments: int
    users: int
    seed: int | None = None
    level: float
    family_ok: bool | None = None
    rows: list[AARow]


class UpliftRow(Record):
    """One uplift metric of one model on one arm (None: all arms together); no model: one arm for everybody."""

    model: str = "everybody"
    arm: str | None = None
    metric: str
    value: Maybe = None
    low: Maybe = None
    high: Maybe = None
    unit: str = ""


class QiniCurve(Record):
    """Gain over the share of users treated, best first, with its interval, and what a random order gives."""

    model: str
    arm: str | None = None
    share: list[float]
    qini: list[Maybe]
    low: list[Maybe] = []
    high: list[Maybe] = []
    random: list[Maybe] = []

    @model_validator(mode="after")
    def _lengths(self) -> QiniCurve:
        optional = (self.low, self.high, self.random)
        if len(self.qini) != len(self.share) or any(
            len(line) not in (0, len(self.share)) for line in optional
        ):
            raise ValueError("share, qini, low, high and random must have the same length")
        return self


class UpliftRun(Record):
    """`uplift.json`, as `evaluation.uplift.UpliftReport` writes it."""

    kind: Literal["uplift"]
    data: str
    users: int
    seed: int | None = None
    models: list[str]
    rows: list[UpliftRow]
    differences: list[UpliftRow] = []
    references: list[UpliftRow] = []
    curves: list[QiniCurve] = []
    unit: str = ""


class PolicyRecord(Record):
    """One policy judged on logs, as `evaluation.table.PolicyResult.as_record` writes it."""

    policy: str
    estimates: dict[str, dict[str, Any]] = {}
    metrics: dict[str, Any] = {}


class EvaluateRun(Record):
    """`summary.json` of `plpm evaluate`; `pages` where it names them."""

    command: Literal["evaluate"]
    part: str = ""
    split: dict[str, list[str]] = {}
    diagnostics: dict[str, Any] = {}
    results: list[PolicyRecord]
    pages: list[str] = []
    config: dict[str, Any] = {}


class SweepRun(Record):
    """`summary.json` of `plpm sweep`."""

    command: Literal["sweep"]
    name: str
    learner: str
    searched: list[str]
    objective: str
    trials: int
    best: dict[str, Any] | None = None
    unit: str = ""
    judged_on: str = "validation days"


class TrainRun(Record):
    """`summary.json` of `plpm train`."""

    status: str
    learner: str
    version: str = ""
    metrics: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    epochs: int | None = None
    steps: int | None = None
    samples: int | None = None
    data: dict[str, Any] = {}


class NavigatorRun(Record):
    """`summary.json` of `plpm train` of a navigator."""

    status: str
    navigator: str
    version: str = ""
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}
    metrics: dict[str, Any] = {}
    part_metrics: dict[str, dict[str, Any]] = {}
    data: dict[str, Any] = {}


class StreamRun(Record):
    """`summary.json` of `plpm stream`; its windows stand in `metrics.jsonl`."""

    learner: str
    version: str = ""
    dataset: str = ""
    pages: list[str]
    sessions: int
    ended: str = ""
    days: list[str] = []
    metrics: dict[str, Maybe] = {}
