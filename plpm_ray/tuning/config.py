"""What a sweep is: the parameters to search, how, and for one learner the policy value that decides."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from plpm_ray.core.config import ConfigSource, Named, StrictConfig, config_hash, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import load_plugins, lookup, plugin_digest
from plpm_ray.data.split import SplitConfig
from plpm_ray.evaluation.objective import ObjectiveConfig
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.training.config import TrainingConfig
from plpm_ray.tuning.space import SearchRange, Section, Space, build_space, check_space

# These change where and how fast a sweep runs, not what it is: it resumes under other values of them.
OPERATIONAL = ("name", "run_root", "trials", "backend", "concurrency", "cpus_per_trial", "retrain")
MODELS: dict[Section, Any] = {"training": TrainingConfig, "policy": PolicyConfig}


class SchedulerConfig(StrictConfig):
    """Early stopping of poor trials. `scheduler: none` is short for `scheduler: {name: none}`."""

    name: Literal["asha", "none"] = Field(
        default="asha", description="asha: successive halving; none: every trial runs on"
    )
    grace_epochs: int = Field(default=2, ge=1, description="epochs that every trial is given")
    reduction: float = Field(default=3.0, gt=1, description="about one of so many trials passes each rung")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data


class SearchConfig(StrictConfig):
    """What every sweep says: what is searched, by what, where trials run."""

    sections: ClassVar[tuple[str, ...]] = ()

    name: str = Field(
        default="sweep", min_length=1, description="run name; the run folder adds a hash of config and data"
    )
    run_root: str = Field(default="runs", description="folder that holds the run folders")
    search: dict[str, SearchRange | None] = Field(
        default_factory=dict, description="parameter -> range, null: the declared one"
    )
    trials: int = Field(
        default=24, ge=1, description="trials in all; a finished sweep grows when this is raised"
    )
    searcher: Literal["optuna", "random"] = Field(
        default="optuna", description="optuna: tree-structured Parzen estimator"
    )
    startup_trials: int = Field(
        default=10, ge=1, description="trials drawn at random before optuna's estimator takes over"
    )
    try_defaults: bool = Field(
        default=True, description="try the values outside `search` first, where the ranges hold them"
    )
    scheduler: SchedulerConfig = Field(
        default_factory=SchedulerConfig, description="early stopping of poor trials"
    )
    backend: Literal["ray", "local"] = Field(
        default="ray", description="ray: side by side; local: here, one by one"
    )
    concurrency: int | None = Field(
        default=None, ge=1, description="most trials at a time (ray); null: as many as fit"
    )
    cpus_per_trial: float = Field(
        default=1.0, gt=0, description="CPUs reserved by each trial (ray); may be a fraction"
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register learners of your own"
    )

    @field_validator("search", mode="before")
    @classmethod
    def _with_dots(cls, value: Any) -> Any:
        """`--set search.training.lr=...` comes as nested mappings; a file may write it so, too."""
        if not isinstance(value, Mapping):
            return value
        flat: dict[str, Any] = {}
        for name, given in value.items():
            flat.update(cls._flat(str(name), given))
        return flat

    @classmethod
    def _flat(cls, name: str, given: Any) -> dict[str, Any]:
        if name in cls.sections and isinstance(given, Mapping):
            return {f"{name}.{inner}": each for inner, each in given.items()}
        return {name: given}

    @property
    @abstractmethod
    def steps(self) -> int:
        """Reports of a full trial: what the scheduler counts."""

    @property
    @abstractmethod
    def suggestions_seed(self) -> int:
        """Seed of the suggestions."""

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON-like values: a sweep resumes only under the same."""
        values = {k: v for k, v in self.model_dump(mode="json").items() if k not in OPERATIONAL}
        values["plugins"] = [plugin_digest(plugin) for plugin in self.plugins]
        return values

    def run_dir(self, data: str) -> Path:
        """The folder of this sweep on data of the given fingerprint."""
        return Path(self.run_root) / f"{self.name}-{config_hash([self.identity(), data])}"


class SweepConfig(SearchConfig):
    """`plpm sweep`: searches a learner's parameters by policy value on the validation days.

    A parameter under `search` is a field of the learner (`alpha`), of the training (`training.lr`) or of the policy
    (`policy.temperature`); null takes the range that its config declares. Without `search`: all that the learner
    declares.
    """

    sections: ClassVar[tuple[str, ...]] = ("learner", *MODELS)

    tables: str = Field(description="warehouse folder made by `plpm data`")
    split: SplitConfig = Field(
        default_factory=SplitConfig, description="which days train and validate; the test days stay unseen"
    )
    learner: Named = Field(description="registered learner and the options that are the same in all trials")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig.model_validate({"epochs": 6}),
        description="loop and optimiser of a trial; its epochs are those of a full trial",
    )
    objective: ObjectiveConfig = Field(
        default_factory=ObjectiveConfig, description="the policy value that is maximised"
    )
    seed: int = Field(
        default=0, ge=0, description="seed of the suggestions; all trials train with training.seed"
    )
    retrain: TrainingConfig | None = Field(
        default=None,
        description="training of the best point on the training days, into bundle/; null writes best.yaml only",
    )

    @model_validator(mode="after")
    def _trials_are_simple(self) -> SweepConfig:
        refuse_unshared(self.training)
        return self

    @property
    def steps(self) -> int:
        return self.training.epochs

    @property
    def suggestions_seed(self) -> int:
        return self.seed

    def learner_class(self) -> Any:
        """The learner's class.

        Raises:
            ConfigError: it is not registered.
        """
        load_plugins(self.plugins)
        return lookup("learner", self.learner.name)

    def models(self) -> dict[Section, Any]:
        """Config class of each section that can be searched."""
        return {"learner": self.learner_class().Config, **MODELS}

    def base(self) -> dict[Section, dict[str, Any]]:
        """The settings that all trials share, by section."""
        return {
            "learner": self.learner.options,
            "training": self.training.model_dump(mode="json"),
            "policy": self.objective.policy.model_dump(mode="json"),
        }

    def space(self, source: ConfigSource | None = None) -> Space:
        """The search space, checked.

        Args:
            source: where the config came from, so that errors name file and line.

        Raises:
            ConfigError: an unknown or misspelt parameter, a range without ends, or one that the config refuses.
        """
        source = source or ConfigSource({}, "config", {}, {})
        load_plugins(self.plugins)
        try:
            models = self.models()
        except ConfigError as error:
            raise ConfigError(f"{source.where(('learner',))}: {error.message}", hint=error.hint) from None
        validate(models["learner"], source, ("learner",), self.learner.options)
        with located(self.search, source):
            space = build_space(self.search, models)
            if "training.epochs" in space.names:
                raise ConfigError(
                    "search.training.epochs: this is the length of a full trial",
                    hint="the scheduler ends poor trials sooner",
                )
            check_space(space, models, self.base())
        return space

    def first(self, space: Space) -> dict[str, Any]:
        """The point at which the config stands without its search."""
        models, base = self.models(), self.base()
        return space.point(
            {section: model.model_validate(base[section]) for section, model in models.items()}
        )

    def identity(self) -> dict[str, Any]:
        values = super().identity()
        values["tables"] = str(Path(self.tables).name)
        values["training"] = self.training.identity()
        return values


def refuse_unshared(training: TrainingConfig) -> None:
    """Refuses a training that trials cannot share one table, or one scheduler, with.

    Raises:
        ValueError: it has workers, streams its table, or stops by itself.
    """
    if training.workers != 0:
        raise ValueError("training.workers must be 0 in a sweep: trials are what runs side by side")
    if training.data.mode != "memory":
        raise ValueError("training.data.mode must be memory in a sweep: trials share one table")
    if training.patience is not None:
        raise ValueError("training.patience must be null in a sweep: the scheduler stops trials")


@contextlib.contextmanager
def located(search: Mapping[str, Any], source: ConfigSource) -> Iterator[None]:
    """Puts file and line before the message of an error about a searched parameter."""
    try:
        yield
    except ConfigError as error:
        named = [name for name in search if f"search.{name}:" in error.message]
        if not named:
            raise
        raise ConfigError(f"{source.where(('search', named[0]))}: {error.message}", hint=error.hint) from None
