"""Configs of the commands that join several rooms; the others live beside the code they steer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plpm_ray.core.config import Named, StrictConfig
from plpm_ray.data.split import SplitConfig, UserSplitConfig
from plpm_ray.evaluation.config import JudgeConfig
from plpm_ray.policies.entry import PolicyEntry
from plpm_ray.training.config import TrainingConfig


class TrainRunConfig(StrictConfig):
    """`plpm train`: one learner on one warehouse."""

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
    learner: Named = Field(description="registered learner and its options")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig.model_validate({}),
        description="loop, optimiser, workers, checkpoints",
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register learners of your own"
    )


class EvaluateConfig(StrictConfig):
    """`plpm evaluate`: policies on held-out days, in one table."""

    name: str = Field(
        default="evaluate",
        min_length=1,
        description="run name; the run folder adds a hash of config and data",
    )
    run_root: str = Field(default="runs", description="folder that holds the run folders")
    tables: str = Field(description="warehouse folder made by `plpm data`")
    split: SplitConfig = Field(default=SplitConfig(), description="the same split as training")
    part: Literal["valid", "test"] = Field(default="test", description="which held-out days to judge on")
    policies: tuple[PolicyEntry, ...] = Field(min_length=1, description="what to judge")
    judge: JudgeConfig = Field(
        default=JudgeConfig(), description="estimators, models of behaviour and reward, refusals"
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register learners of your own"
    )
