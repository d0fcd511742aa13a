"""Off-policy estimators against the truth: how often their intervals cover it, and whether they refuse where they should.

Each repetition has users and luck of its own: logs under the world's logging policy, features kept as serving keeps them, the
models of evaluation fitted on the first days and its estimators run on the days after. What they should have said comes from
a large population of other users (`coverage_truth`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from scipy.stats import binomtest

from plpm_ray.core.storage import write_json
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.evaluation.config import EstimatorName, ModelsConfig
from plpm_ray.evaluation.estimators import Estimate
from plpm_ray.evaluation.held_out import prepare_log
from plpm_ray.evaluation.run import ESTIMATORS, LogJudge
from plpm_ray.simulation.config import WorldConfig, load_world
from plpm_ray.simulation.coverage_logs import simulate_log
from plpm_ray.simulation.coverage_targets import Regression, Target, TargetConfig
from plpm_ray.simulation.coverage_truth import Truth, truths
from plpm_ray.simulation.runs import RunConfig, RunName, run_folder
from plpm_ray.simulation.world import World

Name = Literal[EstimatorName, "fqe_plug_in", "pdis", "sequential_dr"]
_TRUTH_FIRST, _REGRESSION_FIRST = 1 << 38, 1 << 39
_TRUTH_USERS = 4000  # simulated at once

_TARGETS: tuple[dict[str, Any], ...] = (
    {"label": "logging", "builtin": "logging"},
    {
        "label": "most frequent, soft",
        "navigator": "heuristic.most_frequent",
        "policy": {"kind": "epsilon", "epsilon": 0.2},
    },
    {
        "label": "last exit page, soft",
        "navigator": "heuristic.last_exit_page",
        "policy": {"kind": "epsilon", "epsilon": 0.2},
    },
    {"label": "regression, greedy", "builtin": "regression"},
    {"label": "random", "builtin": "random"},
    {"label": "always following", "page": "following"},
)


class CoverageConfig(RunConfig):
    """`plpm simulate coverage`: which estimators are checked on which policies, and how often."""

    name: RunName = "coverage"
    explore: float | None = Field(
        default=0.2, ge=0, le=1, description="even draws of the logging policy; null: as the world has it"
    )
    targets: tuple[TargetConfig, ...] = Field(
        default=tuple(TargetConfig.model_validate(t) for t in _TARGETS),
        min_length=1,
        description="policies to value",
    )
    estimators: tuple[Name, ...] = Field(
        default=("snips", "dr", "fqe"),
        min_length=1,
        description="snips, ips, dr, dm: seconds per decision; fqe, fqe_plug_in (without the correction by the log), pdis, "
        "sequential_dr: seconds per user-day",
    )
    repetitions: int = Field(default=100, ge=1, description="logs that are judged, each of users of its own")
    users: int = Field(default=1500, ge=50, description="users of one repetition")
    warmup_days: int = Field(default=7, ge=0, description="days before the logs")
    train_days: int = Field(default=2, ge=1, description="logged days on which the models are fitted")
    days: int = Field(default=2, ge=1, description="logged days after them, on which policies are valued")
    truth_users: int = Field(
        default=60_000, ge=100, description="other users, whose simulation gives the truth"
    )
    gamma: float = Field(
        default=1.0, gt=0, le=1, description="discount per entry of the day, of fqe and its truth"
    )
    models: ModelsConfig = Field(default=ModelsConfig(), description="models, level, and when to refuse")
    refits: int = Field(
        default=20, ge=0, description="fits of fqe_plug_in on resampled users, for its interval"
    )
    seed: int = Field(default=0, ge=0, description="seed of the users")
    plugins: tuple[str, ...] = Field(default=(), description="files or modules that register navigators")

    @model_validator(mode="after")
    def _distinct(self) -> CoverageConfig:
        titles = [target.title for target in self.targets]
        if len(set(titles)) < len(titles):
            raise ValueError("two targets have the same name; give them labels")
        return self


@dataclass(frozen=True)
class _Task:
    """A part of the truth, or one repetition."""

    config: CoverageConfig
    world: WorldConfig
    targets: Sequence[Target]
    number: int


@dataclass(frozen=True)
class Answer:
    """What one estimator said of one target: value, interval and standard error, or that it refused."""

    estimator: str
    target: str
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    error: float = float("nan")
    refused: str | None = None


def run_coverage(config: CoverageConfig) -> dict[str, Any]:
    """Runs all repetitions and writes `coverage.json` into the run folder.

    Returns:
        Its content, with the run folder under "run".
    """
    world = _world(config)
    with run_folder(config, world) as run_dir:
        result = _result(config, world)
        write_json(run_dir / "coverage.json", result)
        return {**result, "run": str(run_dir)}


def _result(config: CoverageConfig, world: WorldConfig) -> dict[str, Any]:
    """The content of `coverage.json`."""
    execution: dict[str, Any] = {"backend": config.backend, "workers": config.workers}
    targets = _targets(config, World(world))
    parts = [_Task(config, world, targets, n) for n in range(-(-config.truth_users // _TRUTH_USERS))]
    known = [
        reduce(add, truth)
        for truth in zip(*run_tasks(_truth, parts, progress="simulating the truth", **execution), strict=True)
    ]
    tasks = [_Task(config, world, targets, n) for n in range(config.repetitions)]
    answers = run_tasks(_repetition, tasks, progress="judging logs", **execution)
    return {
        "kind": "coverage",
        "world": world.name,
        "repetitions": config.repetitions,
        "users": config.users,
        "nominal": config.models.level,
        "seed": config.seed,
        "rows": _rows(config, known, [a for part in answers for a in part]),
    }


def _world(config: CoverageConfig) -> WorldConfig:
    world = load_world(config.world)
    if config.explore is None:
        return world
    logging = world.logging.model_copy(update={"explore": config.explore})
    return WorldConfig.model_validate({**world.model_dump(), "logging": logging.model_dump()})


def _targets(config: CoverageConfig, world: World) -> list[Target]:
    regression = None
    if any(target.builtin == "regression" for target in config.targets):
        ids = np.arange(1500) + _REGRESSION_FIRST
        regression = Regression.of(simulate_log(world, ids, config.warmup_days, 2), len(world))
    return [Target(target, world, regression, config.plugins) for target in config.targets]


def _truth(task: _Task) -> list[Truth]:
    config, world = task.config, World(task.world)
    first = task.number * _TRUTH_USERS
    ids = np.arange(first, min(first + _TRUTH_USERS, config.truth_users)) + _TRUTH_FIRST + config.seed * 10**9
    before = config.warmup_days + config.train_days
    return truths(world, task.targets, ids, before, config.days, config.gamma)


def _repetition(task: _Task) -> list[Answer]:
    config, world = task.config, World(task.world)
    ids = np.arange(config.users) + task.number * config.users + config.seed * 10**9
    log = simulate_log(world, ids, config.warmup_days, config.train_days + config.days)
    border = config.warmup_days + config.train_days
    train, held_out = (
        log.of_days(config.warmup_days, border - 1),
        log.of_days(border, border + config.days - 1),
    )
    models = config.models
    ready = prepare_log(
        train.decisions,
        held_out.decisions,
        train.fit_spec(),
        models.propensity_config(task.number),
        models.reward_config(task.number),
    )
    judge = LogJudge(ready, models, task.number, gamma=config.gamma, refits=config.refits)
    return [
        _answer(name, target.title, judge.estimate(name, pi))
        for target in task.targets
        for pi in [target.probabilities(held_out.moment)]
        for name in config.estimators
    ]


def _answer(name: str, target: str, estimate: Estimate) -> Answer:
    if estimate.refused:
        return Answer(name, target, refused=estimate.refused)
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return Answer(name, target, refused="no value")
    return Answer(
        name, target, estimate.value, estimate.low, estimate.high, float(estimate.standard_error or 0.0)
    )


def _rows(config: CoverageConfig, known: Sequence[Truth], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    rows = []
    for target, truth in zip(config.targets, known, strict=True):
        for name in config.estimators:
            said = [a for a in answers if a.estimator == name and a.target == target.title]
            ratio = truth.decision if name in ESTIMATORS else truth.day
            rows.append(
                _row(name, target.title, ratio.value, ratio.standard_error, said, config.models.level)
            )
    return rows


def _row(
    name: str, target: str, truth: float, truth_se: float, said: Sequence[Answer], nominal: float
) -> dict[str, Any]:
    answered = [a for a in said if a.refused is None]
    row: dict[str, Any] = {
        "estimator": name,
        "policy": target,
        "unit": "s",
        "per": "decision" if name in ESTIMATORS else "user-day",
        "truth": truth,
        "truth_se": truth_se,
        "answered": len(answered),
        "refused": len(said) - len(answered),
        "refusal": next((a.refused for a in said if a.refused), None),
    }
    empty = dict.fromkeys(("mean", "bias", "sd", "standard_error", "rate", "rate_low", "rate_high", "ok"))
    if not answered:
        return {**row, **empty, "covered": 0}
    values = np.array([a.value for a in answered])
    covered = sum(a.low <= truth <= a.high for a in answered)
    interval = binomtest(covered, len(answered)).proportion_ci(0.95, method="exact")
    return {
        **row,
        "mean": float(values.mean()),
        "bias": float(values.mean() - truth),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "standard_error": float(np.mean([a.error for a in answered])),
        "covered": covered,
        "rate": covered / len(answered),
        "rate_low": float(interval.low),
        "rate_high": float(interval.high),
        "ok": bool(interval.low <= nominal <= interval.high),
    }


def format_coverage(result: Mapping[str, Any]) -> str:
    """The table for a terminal, and why estimators refused."""
    nominal = 100 * result["nominal"]
    title = f"{result['world']}: {result['repetitions']} logs of {result['users']:,} users"
    columns = (
        f"{'truth':>14}{'mean':>9}{'bias':>8}{'sd':>8}{'error':>8}{'covered':>12}   95 % range of the rate"
    )
    lines = [
        f"{title}; how often does the {nominal:.0f} % interval hold the truth?",
        "",
        f"{'policy':<22}{'estimator':<15}{columns}",
    ]
    reasons = []
    for row in result["rows"]:
        head = f"{row['policy'][:21]:<22}{row['estimator']:<15}{row['truth']:>8.1f} ±{row['truth_se']:>4.1f}"
        if not row["answered"]:
            lines.append(f"{head}   refused {row['refused']} of {row['refused']}")
        else:
            sd = f"{row['sd']:>8.1f}" if row["sd"] is not None else f"{'-':>8}"
            sd += f"{row['standard_error']:>8.1f}"
            note = "" if row["ok"] else "  too low" if row["rate_high"] < result["nominal"] else "  too high"
            note += f"  (refused {row['refused']})" if row["refused"] else ""
            lines.append(
                f"{head}{row['mean']:>9.1f}{row['bias']:>8.1f}{sd}{row['covered']:>5} of {row['answered']:<4}"
                f"{100 * row['rate_low']:>6.0f} to {100 * row['rate_high']:.0f} %{note}"
            )
        if row["refused"]:
            reasons.append(f"{row['policy']}, {row['estimator']}: {row['refusal']}")
    lines += [
        "",
        "seconds per decision (fqe, pdis, sequential_dr: per user-day); sd: of the estimates over the logs; error: mean of "
        "their standard errors",
    ]
    return "\n".join(lines + [f"refused: {reason}" for reason in reasons])
