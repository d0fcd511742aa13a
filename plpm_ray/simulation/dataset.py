"""The logs of a world: days of sessions of any users under any policy, and the dataset `world` that reads them.

Users do not touch each other and their luck is a hash, so a range of users has the same logs alone as among all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from plpm_ray.core.config import ConfigSource, StrictConfig
from plpm_ray.core.registry import register
from plpm_ray.data.contract import DatasetInfo
from plpm_ray.data.datasets.base import Adapter, Raw, Slice
from plpm_ray.simulation.config import WorldConfig, WorldRef, load_world
from plpm_ray.simulation.logged_by import PolicySection, chooser_name, make_policy, policy_version
from plpm_ray.simulation.logs import SessionLog
from plpm_ray.simulation.population import make_users
from plpm_ray.simulation.simulation import SESSION_ID_DAYS, Chooser, Simulation, run_days
from plpm_ray.simulation.trial import Responses, Trial, TrialChooser, TrialConfig
from plpm_ray.simulation.world import CONTEXT, PROFILE, World

_MOST_USERS = 1 << 40


class WorldLogsConfig(StrictConfig):
    """Which sessions of which world are logged."""

    world: WorldRef = Field(description="shipped world, path of a YAML file, or the world itself")
    users: int = Field(default=3000, ge=1, le=_MOST_USERS, description="number of users")
    first_user: int = Field(
        default=0, ge=0, le=_MOST_USERS, description="id of the first of them; ids have no gaps"
    )
    days: int = Field(default=10, ge=1, description="logged local days")
    warmup_days: int = Field(default=7, ge=0, description="days that are simulated before, and not logged")
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="seed of the users and their luck; null: that of the world"
    )
    replicate: int = Field(default=0, ge=0, description="another luck for the same users")
    policy: PolicySection = Field(
        default="logging",
        description="what chooses landing pages: logging, random, an oracle, a page, or a section of an arm "
        "({navigator: ...} or {bundle: ..., policy: ...}) with an optional `explore`, the share of even draws",
    )
    trial: TrialConfig | None = Field(
        default=None, description="a randomised trial of page arms; `policy` is its control"
    )

    @model_validator(mode="after")
    def _not_too_long(self) -> WorldLogsConfig:
        if self.warmup_days + self.days > SESSION_ID_DAYS:
            raise ValueError(f"warmup_days and days add up to more than {SESSION_ID_DAYS}")
        return self

    def world_config(self) -> WorldConfig:
        """The world with this config's seed.

        Raises:
            ConfigError: unknown world, or a world that is wrong.
        """
        config = load_world(self.world)
        return config if self.seed is None else config.model_copy(update={"seed": self.seed})


@dataclass(frozen=True)
class UserLogs:
    """What some users did.

    Attributes:
        sessions: canonical sessions of the logged days, by user and time.
        responses, potential_outcomes: one row a user, see `Trial`; None where they were not asked for.
    """

    sessions: pa.Table
    responses: pa.Table | None = None
    potential_outcomes: pa.Table | None = None


class WorldLogs:
    """Simulates the logs that a config describes, for any of its users.

    Args:
        config: what is logged.
        plugins: modules that the navigators of `policy` need.
        source, section: where the config came from, for errors.

    Raises:
        ConfigError, BundleError: the world, the policy or the trial is wrong.
    """

    def __init__(
        self,
        config: WorldLogsConfig,
        plugins: tuple[str, ...] = (),
        source: ConfigSource | None = None,
        section: tuple[str | int, ...] = (),
    ) -> None:
        self.config, self.plugins = config, plugins
        self.world = World(config.world_config())
        self.trial = config.trial and Trial(config.trial, self.world, config.warmup_days, config.days)
        self.policy_version = policy_version(self.world, config.policy, plugins, source, (*section, "policy"))

    def profiles(self, user_id: np.ndarray) -> pa.Table:
        """(U,) user_id and profile columns; nothing is simulated."""
        return make_users(self.world, user_id).profile()

    def run(self, user_id: np.ndarray, replicates: int = 0) -> UserLogs:
        """Lives through all days of the given users.

        Args:
            user_id: (U,) distinct ids.
            replicates: lucks over which the potential outcomes of the trial are averaged; 0 leaves them out.
        """
        config, trial = self.config, self.trial
        simulation = Simulation(self.world, user_id, config.replicate)
        control = make_policy(self.world, config.policy, self.plugins)
        run_days(simulation, config.warmup_days, control)
        if trial is None:
            log = SessionLog(self.world, len(user_id), [chooser_name(control)])
            run_days(simulation, config.days, control, log)
            return UserLogs(log.table())
        return self._run_trial(trial, simulation, control, replicates)

    def _run_trial(self, trial: Trial, simulation: Simulation, control: Chooser, replicates: int) -> UserLogs:
        users = simulation.users.user_id
        chooser = TrialChooser(trial, control, users)
        log = SessionLog(self.world, len(users), chooser.policies, trial.arms, chooser.labels)
        run_days(simulation, trial.start - self.config.warmup_days, chooser, log)
        outcomes = trial.potential_outcomes(simulation, control, replicates) if replicates else None
        responses = Responses(len(users), trial.days)
        run_days(simulation, trial.days, chooser, log, responses)
        run_days(
            simulation, self.config.warmup_days + self.config.days - trial.start - trial.days, chooser, log
        )
        return UserLogs(log.table(), trial.responses(users, responses), outcomes)


class WorldDatasetConfig(WorldLogsConfig):
    """Settings of the dataset `world`."""

    users_per_slice: int = Field(
        default=4000, ge=1, description="users that are simulated together, in one task"
    )
    title: str | None = Field(default=None, min_length=1, description="name in reports; null: the world's")


@register("dataset", "world")
class WorldDataset(Adapter):
    """The logs of a world as a dataset, simulated while they are read."""

    Config = WorldDatasetConfig
    config: WorldDatasetConfig
    unique_sessions = True

    def __init__(self, config: WorldDatasetConfig) -> None:
        super().__init__(config)
        self.logs = WorldLogs(config)

    def info(self, n_buckets: int) -> DatasetInfo:
        world = self.logs.world
        name = self.config.title or world.config.name
        return DatasetInfo(name, world.pages, CONTEXT, PROFILE, n_buckets=n_buckets, propensity_known=True)

    def inputs(self) -> list[Slice]:
        first, size, world = self.config.first_user, self.config.users_per_slice, self.logs.world.config.name
        stop = first + self.config.users
        bounds = [(a, min(a + size, stop)) for a in range(first, stop, size)]
        return [Slice(f"world {world} users {a} to {b - 1}", a, b) for a, b in bounds]

    def read(self, item: Slice) -> Raw:
        return Raw(self.logs.run(np.arange(item.start, item.stop)).sessions)

    def profile_inputs(self) -> list[Slice]:
        return self.inputs()

    def read_profile(self, item: Slice) -> Raw:
        return Raw(self.logs.profiles(np.arange(item.start, item.stop)))

    def assignment_inputs(self) -> list[Slice]:
        return self.inputs() if self.logs.trial else []

    def read_assignments(self, item: Slice) -> Raw:
        assert self.logs.trial is not None
        return Raw(self.logs.trial.assignments(np.arange(item.start, item.stop)))
