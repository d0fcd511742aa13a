"""Uplift models side by side on a held-out trial: metrics, intervals, paired differences, Qini curves.

What a metric is stands where it is computed: `uplift_curves` (Qini, AUUC, uplift at k), `uplift_policy` (value of
arg max), `uplift_truth` (error against potential outcomes), `uplift_bootstrap` (intervals).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.storage import write_json
from plpm_ray.evaluation.uplift_curves import check_share
from plpm_ray.evaluation.uplift_models import ModelPart
from plpm_ray.evaluation.uplift_policy import check_table
from plpm_ray.evaluation.uplift_rows import Rows, SingleArms, draw_all
from plpm_ray.evaluation.uplift_text import report_text
from plpm_ray.evaluation.uplift_trial import Trial


@dataclass(frozen=True)
class UpliftSettings:
    """How a trial is read.

    Attributes:
        shares: best-scored shares of users for the uplift at k.
        control_is_choice: users without a predicted effect above 0 stay in control; otherwise everybody is given
            one of the treatment arms.
        repeats: bootstrap draws.
        level: nominal coverage of the intervals.
        seed: of the draws.
        curve_points: points of the stored Qini curves.

    Raises:
        ConfigError: values out of range.
    """

    shares: tuple[float, ...] = (0.1, 0.3)
    control_is_choice: bool = True
    repeats: int = 500
    level: float = 0.95
    seed: int = 0
    curve_points: int = 101

    def __post_init__(self) -> None:
        for share in self.shares:
            check_share(share)
        if self.repeats < 2 or not 0 < self.level < 1 or self.curve_points < 2:
            raise ConfigError(
                f"{self.repeats} draws at level {self.level} with {self.curve_points} curve points",
                hint="at least 2 draws (200 or more for a 95 % interval), a level in (0, 1), at least 2 points",
            )


@dataclass(frozen=True)
class UpliftReport:
    """Result of `uplift_report`; its lists are those of `uplift.json`.

    Attributes:
        data: label of the trial.
        unit: unit of the response.
        users: number of users.
        arms: users in control and each arm, by name.
        models: labels, the reference first.
        settings: how it was computed.
        rows: {"model", "arm" (None: all arms together), "metric", "value", "low", "high", "unit"}.
        differences: as rows, of a model minus "against", on the same draws.
        references: rows without a model: "average_effect" of each arm, "policy_value" of one arm for everybody.
        curves: {"model", "arm", "share", "qini", "low", "high", "random"}, gain per user and its interval.
    """

    data: str
    unit: str
    users: int
    arms: dict[str, int]
    models: list[str]
    settings: UpliftSettings
    rows: list[dict[str, Any]] = field(repr=False)
    differences: list[dict[str, Any]] = field(repr=False)
    references: list[dict[str, Any]] = field(repr=False)
    curves: list[dict[str, Any]] = field(repr=False)

    def as_record(self) -> dict[str, Any]:
        """`uplift.json` as plain values; NaN is None."""
        return {
            "kind": "uplift",
            "data": self.data,
            "users": self.users,
            "arms": self.arms,
            "seed": self.settings.seed,
            "level": self.settings.level,
            "repeats": self.settings.repeats,
            "models": self.models,
            "unit": self.unit,
            "rows": self.rows,
            "differences": self.differences,
            "references": self.references,
            "curves": self.curves,
        }

    def write(self, folder: str | Path) -> Path:
        """Writes `uplift.json` into the folder of a run; gives its path."""
        path = Path(folder) / "uplift.json"
        write_json(path, self.as_record())
        return path

    def as_text(self) -> str:
        """Tables of all numbers with their intervals, for a terminal."""
        return report_text(self.as_record())


def uplift_report(
    models: Mapping[str, Any],
    arm: Any,
    response: Any,
    *,
    names: Sequence[str] | None = None,
    control: str = "control",
    potential_outcomes: Any = None,
    predicted_responses: Mapping[str, Any] | None = None,
    propensity: Any = None,
    weight: Any = None,
    settings: UpliftSettings | None = None,
    data: str = "trial",
    unit: str = "s",
) -> UpliftReport:
    """Judges models on a randomised trial that none of them was trained on.

    Args:
        models: predicted effects of each model, float [U, K] ([U] where K is 1), by label. The first one is what
            the others are compared with.
        arm: int [U], 0 = control, 1..K.
        response: float [U], binary or continuous.
        names: of the K arms.
        control: name of arm 0.
        potential_outcomes: float [U, K + 1], response of every user in control and in each arm; of a simulated
            world only.
        predicted_responses: float [U, K + 1] by label, for the doubly robust policy value of these models. They
            must not have been fitted on these users.
        propensity, weight: as `Trial.of`.
        settings: shares, draws, level, seed.
        data: label of the trial.
        unit: unit of the response.

    Raises:
        DataError: input that is wrong, naming the array and the row.
        ConfigError: settings out of range, no model, or predictions of an unknown model.
    """
    settings = settings or UpliftSettings()
    trial = _trial(models, arm, response, names, control, propensity, weight)
    weight = np.ones(len(trial)) if trial.weight is None else trial.weight
    if potential_outcomes is not None:
        potential_outcomes = np.asarray(potential_outcomes, dtype=np.float64)
        check_table(potential_outcomes, len(trial), len(trial.labels), "potential outcomes")
    singles = SingleArms(trial)
    first = 0 if settings.control_is_choice else 1
    best_single = first + int(np.argmax(singles.means(weight[None])[0, first:]))
    grid = np.linspace(0, 1, settings.curve_points)
    predictions = _predictions(predicted_responses, models)
    parts = {
        label: ModelPart(
            _effects(label, values, trial),
            trial,
            predicted=predictions.get(label),
            outcomes=potential_outcomes,
            shares=settings.shares,
            grid=grid,
            best_single=best_single,
            control_is_choice=settings.control_is_choice,
        )
        for label, values in models.items()
    }
    drawn = draw_all(parts, singles, trial, settings.repeats, settings.seed)
    return UpliftReport(
        data=data,
        unit=unit,
        users=len(trial),
        arms=dict(zip(trial.labels, np.bincount(trial.arm).tolist(), strict=True)),
        models=list(models),
        settings=settings,
        **Rows(trial, unit, settings.level).tables(parts, singles, drawn, weight, grid),
    )


def _trial(
    models: Mapping[str, Any],
    arm: Any,
    response: Any,
    names: Sequence[str] | None,
    control: str,
    propensity: Any,
    weight: Any,
) -> Trial:
    if not models:
        raise ConfigError("no model was given", hint="pass predicted effects [users, arms] by label")
    shape = np.shape(next(iter(models.values())))
    n_arms = shape[1] if len(shape) == 2 else 1
    if names is not None and len(names) != n_arms:
        raise DataError(
            f"{len(names)} arm names ({', '.join(names)}), but the models predict {n_arms} effects",
            hint="name the treatment arms only, in the order of the columns; control is not among them",
        )
    return Trial.of(
        arm, response, names=names, n_arms=n_arms, control=control, propensity=propensity, weight=weight
    )


def _effects(label: str, values: Any, trial: Trial) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    check_table(array, len(trial), len(trial.names), f"effects of model {label!r}")
    return array


def _predictions(given: Mapping[str, Any] | None, models: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [label for label in given or {} if label not in models]
    if unknown:
        raise ConfigError(
            f"responses of {', '.join(map(repr, unknown))} were given, but no effects",
            hint=f"the models are {', '.join(models)}",
        )
    return dict(given or {})
