"""What a sweep in the world is: a composed navigator, what is searched of it, and the world that judges it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from plpm_ray.core.config import ConfigSource, StrictConfig
from plpm_ray.core.errors import ConfigError
from plpm_ray.data.split import SplitConfig, UserSplitConfig
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.simulation.config import WorldConfig, WorldRef, load_world
from plpm_ray.training.config import TrainingConfig
from plpm_ray.tuning.config import SearchConfig, refuse_unshared
from plpm_ray.tuning.space import SearchRange

# the fingerprint of the data holds bundle and world in full; final seeds only refuse
_IN_FINGERPRINT = ("bundle", "world", "seed", "final_seeds")


class EpefConstraint(StrictConfig):
    """No page may lose effective entries."""

    tolerance: float = Field(
        default=0.0,
        ge=0,
        description="how far a page's effective entries per user and day may lie below the logging policy's, as a "
        "share of these; point estimates are compared",
    )


class Constraints(StrictConfig):
    """What a trial must keep to; one that does not is refused and cannot win."""

    epef: EpefConstraint | None = Field(
        default_factory=EpefConstraint,
        description="effective entries of every page against the logging policy's; null: they may fall",
    )
    latency_us: float | None = Field(
        default=None,
        gt=0,
        description="most CPU microseconds of a decision: features, scores and draw, up to 4096 entries at once; "
        "null: any. A measured time differs from run to run, so leave room",
    )


class WorldSweepConfig(SearchConfig):
    """`plpm sweep` with a `world`: searches a composed navigator by what it is worth to the users of a simulated world.

    A parameter under `search` is a setting of the navigator (`navigator.gamma`), of the policy (`policy.epsilon`), of
    the learner in a role (`iit.alpha`) or of its training (`iit.training.lr`). A part of which something is searched is
    trained in the trial, on tables that all trials share, and so is a part that learns from the rewards of one that is
    (GLAN's `dt` from its `hrm`): its labels have changed. All other parts are those of the bundle.
    """

    tables: str = Field(
        description="warehouse folder made by `plpm data`: rows that searched parts are trained on"
    )
    split: SplitConfig = Field(
        default_factory=SplitConfig,
        description="which days train the parts; the world judges, so no validation day is read",
    )
    user_split: UserSplitConfig = Field(
        default_factory=UserSplitConfig,
        description="which users train a part that learns from a trial's users (klan.isp), as `users` of `plpm train`",
    )
    bundle: str = Field(description="composed navigator: bundle folder, run folder, or `runs/<name>`")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of the navigator that differ from the bundle's, in all trials",
    )
    policy: PolicyConfig = Field(
        default_factory=PolicyConfig, description="how pages are drawn from the navigator's scores"
    )
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig.model_validate({"epochs": 6}),
        description="loop and optimiser of the parts that trials train",
    )
    trainings: dict[str, TrainingConfig] = Field(
        default_factory=dict, description="the same of single roles, instead of `training`"
    )
    world: WorldRef = Field(description="shipped world, path of a YAML file, or the world itself")
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="validation seed, of the world's users and their luck; null: the world's own. What an interest of "
        "the profile means hangs on it, so it should be that of the logs that the parts are trained on",
    )
    final_seeds: tuple[int, ...] = Field(
        default=(), description="seeds kept for the final table; a sweep on one of them is refused"
    )
    users: int = Field(default=4000, ge=4, description="users, the same in every trial")
    first_user: int = Field(
        default=1_000_000_000, ge=0, description="id of the first; others than those of the logs"
    )
    warmup_days: int = Field(
        default=7, ge=0, description="days under the logging policy before anything is counted"
    )
    aa_days: int = Field(
        default=3, ge=0, description="counted days under the logging policy; twins need none of them"
    )
    ab_days: int = Field(default=7, ge=1, description="days under the trial's navigator")
    groups: int = Field(
        default=4,
        ge=1,
        description="a trial lives through its users in so many groups, and reports after each: the scheduler's epochs",
    )
    rank_by: Literal["lower", "value"] = Field(
        default="lower",
        description="lower: the lower end of the gain's interval; value: the value itself",
    )
    constraints: Constraints = Field(
        default_factory=Constraints, description="what a trial must keep to; else it is refused"
    )
    suggestions: int = Field(default=0, ge=0, description="seed of the suggestions")
    search: dict[str, SearchRange | None] = Field(
        min_length=1, description="parameter, named by its section -> range, null: the declared one"
    )

    @model_validator(mode="after")
    def _possible(self) -> WorldSweepConfig:
        for training in (self.training, *self.trainings.values()):
            refuse_unshared(training)
        if self.users < 2 * self.groups:
            raise ValueError(f"{self.users} users in {self.groups} groups: a group needs two")
        return self

    @classmethod
    def _flat(cls, name: str, given: Any) -> dict[str, Any]:
        """Every parameter has a section here, so a name without a dot is one."""
        if not isinstance(given, Mapping) or "." in name:
            return {name: given}
        flat: dict[str, Any] = {}
        for inner, each in given.items():
            deeper = (
                {f"training.{k}": v for k, v in each.items()}
                if inner == "training" and each
                else {inner: each}
            )
            flat.update({f"{name}.{key}": value for key, value in deeper.items()})
        return flat

    @property
    def steps(self) -> int:
        return self.groups

    @property
    def suggestions_seed(self) -> int:
        return self.suggestions

    def world_config(self, source: ConfigSource | None = None) -> WorldConfig:
        """The world with the validation seed.

        Raises:
            ConfigError: an unknown or wrong world, or a seed that is kept for the final table.
        """
        source = source or ConfigSource({}, "config", {}, {})
        world = load_world(self.world)
        if self.seed is not None:
            world = world.model_copy(update={"seed": self.seed})
        if world.seed in self.final_seeds:
            raise ConfigError(
                f"{source.where(('seed',))}: seed {world.seed} is one of final_seeds {list(self.final_seeds)}, and what "
                "is chosen on a seed cannot be judged on it",
                hint="give the sweep a seed of its own",
            )
        return world

    def identity(self) -> dict[str, Any]:
        """Without what the fingerprint of the data holds in full: bundle and world."""
        values = {k: v for k, v in super().identity().items() if k not in _IN_FINGERPRINT}
        values["tables"] = str(Path(self.tables).name)
        values["training"] = self.training.identity()
        values["trainings"] = {role: training.identity() for role, training in self.trainings.items()}
        return values
