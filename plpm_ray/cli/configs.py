"""Configs of the commands that join several rooms; the others live beside the code they steer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from plpm_ray.core.config import Named, StrictConfig
from plpm_ray.data.ray_exec import Backend
from plpm_ray.data.split import SplitConfig, UserSplitConfig
from plpm_ray.evaluation.config import JudgeConfig
from plpm_ray.policies.entry import PolicyEntry
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.stream_config import StreamTraining


class PartConfig(StrictConfig):
    """One part of a composed navigator."""

    learner: Named | None = Field(
        default=None,
        description="registered learner and its options; null: the one that usually fills the role",
    )
    training: TrainingConfig | None = Field(
        default=None, description="how it is trained; null: as the run's `training` says"
    )
    stream: StreamTraining | None = Field(
        default=None,
        description="instead of `training`: the training days replayed in time order, scored before they are learned, as "
        "`plpm stream` does; the way of learners that are made for it, where neither is given",
    )
    bundle: str | None = Field(
        default=None, description="a bundle or run folder that is taken as it is, instead of training"
    )

    @model_validator(mode="after")
    def _one_way(self) -> PartConfig:
        if self.bundle is not None and any((self.learner, self.training, self.stream)):
            raise ValueError("give a bundle, or a learner and its training, not both")
        if self.training is not None and self.stream is not None:
            raise ValueError("give training or stream, one of the two")
        return self


class TrainRunConfig(StrictConfig):
    """`plpm train`: one learner, or a navigator with all its parts, on one warehouse."""

    name: str = Field(
        default="train", min_length=1, description="run name; the run folder adds a hash of config and data"
    )
    run_root: str = Field(default="runs", description="folder that holds the run folders")
    tables: str = Field(description="warehouse folder made by `plpm data`")
    split: SplitConfig = Field(default=SplitConfig(), description="which days train, validate and test")
    users: UserSplitConfig = Field(
        default=UserSplitConfig(),
        description="for learners of a trial's users (klan.isp): which users train, validate and test; days do not count",
    )
    learner: Named | None = Field(default=None, description="registered learner and its options")
    rewards: str | None = Field(
        default=None,
        description="for a learner that reads rewards (glan.dt): bundle or run of the reward model (glan.hrm), which judges "
        "the sessions first, unless it has",
    )
    navigator: Named | None = Field(
        default=None,
        description="instead of a learner: a registered navigator and its options. One that is composed of learners has "
        "them all trained, into one bundle",
    )
    parts: dict[str, PartConfig] = Field(
        default_factory=dict, description="role of the navigator -> how that part is made"
    )
    parts_name: str | None = Field(
        default=None,
        min_length=1,
        description="run name of the parts, each with its role added; null: `name`. With the name of another run, a "
        "navigator of a name of its own takes the parts that were trained for that run, where their settings are the same",
    )
    backend: Backend = Field(
        default="local",
        description="parts of a navigator: one after the other here, or side by side in processes or on Ray",
    )
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig.model_validate({}),
        description="loop, optimiser, workers, checkpoints",
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register learners of your own"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> TrainRunConfig:
        if (self.learner is None) == (self.navigator is None):
            raise ValueError("give a learner or a navigator, one of the two")
        if (self.parts or self.parts_name) and self.navigator is None:
            raise ValueError("parts and parts_name belong to a navigator")
        return self


class HeldOutConfig(StrictConfig):
    """What judging on held-out days needs to know, whatever is judged."""

    run_root: str = Field(default="runs", description="folder that holds the run folders")
    tables: str = Field(description="warehouse folder made by `plpm data`")
    split: SplitConfig = Field(default=SplitConfig(), description="the same split as training")
    part: Literal["valid", "test"] = Field(default="test", description="which held-out days to judge on")
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register learners of your own"
    )


class EvaluateConfig(HeldOutConfig):
    """`plpm evaluate`: policies on held-out days, in one table."""

    name: str = Field(
        default="evaluate",
        min_length=1,
        description="run name; the run folder adds a hash of config and data",
    )
    policies: tuple[PolicyEntry, ...] = Field(min_length=1, description="what to judge")
    judge: JudgeConfig = Field(
        default=JudgeConfig(), description="estimators, models of behaviour and reward, refusals"
    )


class JudgedBundle(StrictConfig):
    """One uplift model to judge on a trial."""

    bundle: str = Field(
        description="bundle or run folder of an uplift learner, or of a navigator that holds one"
    )
    label: str | None = Field(default=None, description="name in the tables; default: that of the learner")


class UpliftConfig(StrictConfig):
    """`plpm uplift`: trained uplift models on held-out users of a randomised trial."""

    name: str = Field(
        default="uplift_trial",
        min_length=1,
        description="run name; the run folder adds a hash of config and data",
    )
    run_root: str = Field(default="runs", description="folder that holds the run folders")
    tables: str = Field(description="warehouse folder with a trial table, made by `plpm data`")
    users: UserSplitConfig = Field(
        default=UserSplitConfig(),
        description="how users are divided: the same as in the training of every bundle",
    )
    part: Literal["valid", "test"] = Field(default="test", description="which held-out users to judge on")
    bundles: tuple[JudgedBundle, ...] = Field(
        min_length=1, description="what to judge; the first is what the others are compared with"
    )
    control_is_choice: bool = Field(
        default=True,
        description="users whom no page is predicted to add anything stay in control; false: all get their best page",
    )
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.1, 0.3), description="best-scored shares of users for the uplift at k"
    )
    draws: int = Field(default=500, ge=2, description="bootstrap draws of the intervals")
    level: float = Field(default=0.95, gt=0, lt=1, description="coverage of the intervals")
    seed: int = Field(default=0, ge=0, description="seed of the draws")
    unit: str = Field(default="s", description="unit of the response, for tables and report")
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register learners of your own"
    )


class AssessedBundle(StrictConfig):
    """One model that says numbers."""

    bundle: str = Field(
        description="bundle or run folder of a model that says numbers (glan.lrtg, glan.hrm), or of a navigator with such parts"
    )
    label: str | None = Field(
        default=None,
        description="name in the tables; default: that of the learner. Of a navigator with several such parts their roles are "
        "added",
    )


class AssessConfig(HeldOutConfig):
    """`plpm assess`: models that say numbers, on held-out days."""

    name: str = Field(
        default="assess",
        min_length=1,
        description="run name; the run folder adds a hash of config and data",
    )
    bundles: tuple[AssessedBundle, ...] = Field(min_length=1, description="what to judge")
