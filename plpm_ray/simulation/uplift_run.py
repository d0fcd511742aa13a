"""Uplift metrics on a simulated trial, where every user's potential outcomes are known.

Users are drawn into arms, their features are read on the evening before, uplift learners and simple meta-learners are fitted
on one part of the users, and judged on the other: by what a real trial shows (Qini, AUUC, policy value) and by the truth (error
against the potential outcomes). The true effects stand in the table as a model too; averaged over few lucks they are noisy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from plpm_ray.core.config import Named
from plpm_ray.core.feature_fitting import fitted_spec
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.hashing import user_draws
from plpm_ray.data.features.sessions import EntryArrays
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.evaluation.held_out import model_features
from plpm_ray.evaluation.ridge import ActionRidge
from plpm_ray.evaluation.uplift import UpliftReport, UpliftSettings, uplift_report
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import WorldConfig, load_world
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.simulation.runs import RunConfig, RunName, run_folder
from plpm_ray.simulation.simulation import Simulation, run_days
from plpm_ray.simulation.trial import Responses, Trial, TrialChooser, TrialConfig
from plpm_ray.simulation.world import World
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.job import resolve_config
from plpm_ray.training.uplift import TrialUsers, fit_users, predict_responses, uplift_class

_LEARNERS = ("klan.isp", "reference.s_learner", "reference.t_learner", "reference.tarnet")
_TRAINING = {"epochs": 30, "batch_size": 512, "lr": 2e-3, "patience": 5, "device": "cpu"}
# of the shared part; of an arm's own part in the T- and in the S-learner; each times the rows of data
_PENALTIES = (1e-3, 1e-3, 1e3)


class UpliftRunConfig(RunConfig):
    """`plpm simulate uplift`: a trial, uplift learners and simple models, and every uplift metric with its interval."""

    operational: ClassVar[frozenset[str]] = RunConfig.operational | {"users_per_task"}

    name: RunName = "uplift"
    users: int = Field(default=12_000, ge=100, description="users of the trial")
    first_user: int = Field(default=3_000_000_000, ge=0, description="id of the first user")
    warmup_days: int = Field(
        default=14, ge=1, description="days before the trial, which the features tell of"
    )
    trial_days: int = Field(
        default=7, ge=1, description="length of the trial; the response is use per day in it"
    )
    train_share: float = Field(
        default=0.5, gt=0, lt=1, description="share of the users that models are fitted on"
    )
    learners: tuple[Named, ...] = Field(
        default=tuple(Named(name=name) for name in _LEARNERS),
        description="uplift learners trained on these users, and their options; the ridge models are always there",
    )
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig.model_validate(_TRAINING),
        description="how the learners are trained: loop, optimiser, early stopping",
    )
    valid_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the learners' training users that they stop early by, where training.patience is set",
    )
    replicates: int = Field(
        default=8,
        ge=1,
        description="lucks, other than that of the trial, over which the true outcomes are averaged",
    )
    draws: int = Field(default=300, ge=2, description="bootstrap draws of the intervals")
    seed: int = Field(default=0, ge=0, description="seed of the arms, of the parts and of the draws")
    users_per_task: int = Field(default=8192, ge=1, description="users simulated at once")
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register learners of your own"
    )

    @field_validator("learners", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class _Part:
    config: UpliftRunConfig
    world: WorldConfig
    users: np.ndarray


@dataclass(frozen=True)
class _Made:
    """Some users: arm (U,), response (U,), outcomes (U, A), features (U rows)."""

    arm: np.ndarray
    response: np.ndarray
    outcomes: np.ndarray
    features: RawFeatures


def run_uplift(config: UpliftRunConfig) -> dict[str, Any]:
    """Simulates the trial, fits, judges, and writes `uplift.json` into the run folder.

    Returns:
        Its content, with the run folder under "run" and the tables for people under "text".
    """
    world = load_world(config.world)
    for learner in config.learners:  # wrong names and options are told before the world is simulated
        resolve_config(uplift_class(learner.name), learner.options)
    with run_folder(config, world) as run_dir:
        report = _report(config, world)
        report.write(run_dir)
        return {**report.as_record(), "text": report.as_text(), "run": str(run_dir)}


def _report(config: UpliftRunConfig, world: WorldConfig) -> UpliftReport:
    """Simulates the trial, fits the models on one part of the users and judges them on the other."""
    ids = config.first_user + np.arange(config.users)
    parts = [
        _Part(config, world, ids[i : i + config.users_per_task])
        for i in range(0, config.users, config.users_per_task)
    ]
    made = run_tasks(
        _simulate, parts, backend=config.backend, workers=config.workers, progress="simulating the trial"
    )
    arm = np.concatenate([m.arm for m in made])
    response = np.concatenate([m.response for m in made])
    outcomes = np.concatenate([m.outcomes for m in made])
    raw = RawFeatures.concat([m.features for m in made])
    train = user_draws(ids, config.seed + 1) < config.train_share
    test = ~train
    users = TrialUsers(raw, arm, response)
    predicted = _learn(config, world, users, ids, train) | _predict(raw, arm, response, train)
    effects = {"true effects": outcomes[test, 1:] - outcomes[test, :1]}
    effects |= {label: y[test, 1:] - y[test, :1] for label, y in predicted.items()}
    return uplift_report(
        effects,
        arm[test],
        response[test],
        names=list(world.catalogue.names),
        potential_outcomes=outcomes[test],
        predicted_responses={label: y[test] for label, y in predicted.items()},
        settings=UpliftSettings(repeats=config.draws, seed=config.seed),
        data=f"simulated trial in {world.name}, {config.trial_days} days",
        unit="s of app use per user and day",
    )


def _simulate(part: _Part) -> _Made:
    config, world = part.config, World(part.world)
    simulation, control = Simulation(world, part.users), LoggingPolicy()
    online = OnlineFeatures(world, simulation.users.profile())
    run_days(simulation, config.warmup_days, control, online.observe)
    trial = Trial(
        TrialConfig(seed=config.seed, start_day=0, days=config.trial_days),
        world,
        config.warmup_days,
        config.trial_days,
    )
    # what is known at the midnight on which the trial begins
    offset = simulation.users.utc_offset_min
    raw = online.at(EntryArrays(world.day_start_ms(config.warmup_days, offset), offset))
    # other lucks than that of the trial: effects that hold a part of the responses would rank users by their noise
    truth = trial.potential_outcomes(simulation, control, config.replicates, first=1)
    chooser = TrialChooser(trial, control, part.users)
    responses = Responses(len(part.users), config.trial_days)
    run_days(simulation, config.trial_days, chooser, responses)
    outcomes = np.column_stack([truth[name].to_numpy() for name in truth.column_names if name != "user_id"])
    return _Made(chooser.arm, responses.use_s_per_day, outcomes, raw)


def _learn(
    config: UpliftRunConfig, world: WorldConfig, users: TrialUsers, ids: np.ndarray, train: np.ndarray
) -> dict[str, np.ndarray]:
    """Learner -> (U, A) responses under every arm, fitted on the users of `train`."""
    stop = np.zeros_like(train)
    if config.training.patience is not None:
        stop = train & (user_draws(ids, config.seed + 2) < config.valid_share)
    fit_on, stop_by = users.take(train & ~stop), users.take(stop) if stop.any() else None
    predicted = {}
    for chosen in config.learners:
        label = ", ".join([chosen.name, *(f"{k} {v}" for k, v in chosen.options.items())])
        learner, spec = fit_users(chosen, world.catalogue, fit_on, stop_by, config.training)
        predicted[label] = predict_responses(learner, users.table(spec)).astype(np.float64)
    return predicted


def _predict(
    raw: RawFeatures, arm: np.ndarray, response: np.ndarray, train: np.ndarray
) -> dict[str, np.ndarray]:
    """Model -> (U, A) responses under every arm, fitted on the users of `train`."""
    x = model_features(fitted_spec(raw.take(train)), raw)
    arms, rows = int(arm.max()) + 1, int(train.sum())
    ridge = ActionRidge(x[train], arm[train], arms)
    shared, own, stiff = (rows * penalty for penalty in _PENALTIES)
    design = ridge.design(x)
    means = np.array([response[train & (arm == a)].mean() for a in range(arms)])
    return {
        "T-learner (ridge)": design @ ridge.solver(shared, own)(response[train]),
        "S-learner (ridge)": design @ ridge.solver(shared, stiff)(response[train]),
        "average effect": np.tile(means, (len(x), 1)),
    }
