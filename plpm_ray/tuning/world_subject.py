"""What a sweep in the world is about: bundle, world, tables and space, opened and checked before anything is simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plpm_ray.core.config import ConfigSource, config_hash, nearest
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit_trial import need_trial
from plpm_ray.data.split import split_days
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.simulation.arms import ArmConfig, check_arm
from plpm_ray.simulation.config import WorldConfig
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.rewards import REWARD
from plpm_ray.tuning.config import located
from plpm_ray.tuning.space import Section, Space, build_space, check_space
from plpm_ray.tuning.world import WorldSweepConfig


@dataclass(frozen=True)
class Subject:
    """What a sweep in the world is about, opened and checked; cheap.

    Attributes:
        config: the sweep.
        world: with the validation seed.
        path, bundle: the composed navigator, under the config's options.
        warehouse, train_days: what searched parts are trained on.
        space: what is searched.
    """

    config: WorldSweepConfig
    world: WorldConfig
    path: Path
    bundle: Bundle
    warehouse: Warehouse
    train_days: tuple[int, ...]
    space: Space

    @property
    def searched(self) -> tuple[str, ...]:
        """Roles of whose parts something is searched."""
        sections = {dimension.section.partition(".")[0] for dimension in self.space}
        return tuple(role for role in self.bundle.parts if role in sections)

    @property
    def of_users(self) -> tuple[str, ...]:
        """Of those, the roles that learn from a trial's users."""
        return tuple(
            role for role in self.searched if lookup("learner", self.bundle.parts[role].name).grain == "user"
        )

    @cached_property
    def rewarded(self) -> dict[str, str]:
        """Role -> the role from whose rewards it learns, somewhere in the space."""
        roles = lookup("navigator", self.bundle.name).rewarded
        return {role: by for role, by in roles.items() if self._reads_rewards(role)}

    @property
    def trained(self) -> tuple[str, ...]:
        """Roles whose parts are trained in the trials: those searched, and those whose rewards these change."""
        searched = self.searched
        return tuple(
            role for role in self.bundle.parts if role in searched or self.rewarded.get(role) in searched
        )

    def configs(self, role: str) -> list[Any]:
        """A part's configs where the bundle stands, and at the ends of all that is searched of it."""
        model, first, base = section_models(self.bundle)[role], self.first(), self.base[role]
        points = [{**first, d.name: end} for d in self.space if d.section == role for end in d.ends()]
        return [model.model_validate(self.space.apply(point, role, base)) for point in [first, *points]]

    def _reads_rewards(self, role: str) -> bool:
        cls = lookup("learner", self.bundle.parts[role].name)
        return any(REWARD in cls.needed_columns(config) for config in self.configs(role))

    @property
    def base(self) -> dict[Section, dict[str, Any]]:
        """The settings that all trials share, by section."""
        return base_settings(self.config, self.bundle)

    def first(self) -> dict[str, Any]:
        """The point at which the bundle stands."""
        base = self.base
        models = section_models(self.bundle)
        return self.space.point({name: model.model_validate(base[name]) for name, model in models.items()})

    def fingerprint(self) -> str:
        """Of everything outside the config that decides the result."""
        return config_hash(
            [
                self.bundle.version,
                self.world.model_dump(mode="json"),
                self.warehouse.info.to_dict(),
                self.warehouse.transitions.fingerprint(self.train_days),
                *([self.warehouse.trial.fingerprint()] if self.of_users else []),
            ]
        )


def open_subject(config: WorldSweepConfig, source: ConfigSource | None = None) -> Subject:
    """Opens and checks all that a sweep names, before anything is simulated.

    Raises:
        ConfigError: a reserved seed, an unknown parameter, a range that its config refuses, or a bundle that is not
            composed of parts or was made for another world.
        BundleError, StorageError: there is no bundle, or there are no tables.
        DataError: a part learns from a trial's users, and the tables hold none.
    """
    source = source or ConfigSource({}, "config", {}, {})
    load_plugins(config.plugins)
    world = config.world_config(source)
    path = find_bundle(config.bundle)
    arm = ArmConfig(bundle=str(path), options=config.options, policy=config.policy)
    check_arm(world, arm, config.plugins, source, ("bundle",))
    bundle = load_bundle(path, config.plugins)
    if not bundle.parts:
        raise ConfigError(
            f"{source.where(('bundle',))}: {config.bundle} is {bundle.name!r}, which is not composed of parts",
            hint="a sweep in the world is of a composed navigator, such as klan; search a learner with `objective`",
        )
    bundle = bundle.with_options(config.options)
    for role in config.trainings:
        if role not in bundle.parts:
            raise ConfigError(
                f"{source.where(('trainings', role))}: {bundle.name!r} has no part {role!r}",
                hint=nearest(role, bundle.parts),
            )
    models, base = section_models(bundle), base_settings(config, bundle)
    with located(config.search, source):
        space = build_space(config.search, models)
        _refuse_length(space)
        check_space(space, models, base)
    warehouse = Warehouse.open(config.tables)
    split = split_days(warehouse.transitions.days(), config.split)
    subject = Subject(config, world, path, bundle, warehouse, tuple(split.train), space)
    _refuse_unread(subject)
    if subject.of_users:
        need_trial(warehouse)
    if subject.searched and warehouse.info.features != bundle.spec.schema:
        raise ConfigError(
            f"{source.where(('tables',))}: {config.tables} holds other pages or columns than {config.bundle} was made for",
            hint="give the tables that its parts were trained on",
        )
    return subject


def section_models(bundle: Bundle) -> dict[Section, Any]:
    """Config class of each section that can be searched: navigator, policy, and of every part learner and training."""
    models: dict[Section, Any] = {
        "navigator": lookup("navigator", bundle.name).Config,
        "policy": PolicyConfig,
    }
    for role, part in bundle.parts.items():
        if part.kind == "learner":
            load_plugins(part.plugins)
            models |= {role: lookup("learner", part.name).Config, f"{role}.training": TrainingConfig}
    return models


def base_settings(config: WorldSweepConfig, bundle: Bundle) -> dict[Section, dict[str, Any]]:
    """The settings that all trials share, by section."""
    base: dict[Section, dict[str, Any]] = {
        "navigator": bundle.config,
        "policy": config.policy.model_dump(mode="json"),
    }
    for role, part in bundle.parts.items():
        training = config.trainings.get(role, config.training)
        base |= {role: part.config, f"{role}.training": training.model_dump(mode="json")}
    return base


def _refuse_length(space: Space) -> None:
    """Epochs are the cost of a trial, not a setting of it."""
    for dimension in space:
        if dimension.section.endswith(".training") and dimension.path == ("epochs",):
            raise ConfigError(
                f"search.{dimension.name}: this is how long a part is trained",
                hint="set training.epochs (or trainings.<role>.epochs), the same for all trials",
            )


def _refuse_unread(subject: Subject) -> None:
    """A reward model whose rewards nothing learns from changes nothing."""
    usual = lookup("navigator", subject.bundle.name).rewarded
    for role in subject.searched:
        readers = [reader for reader, by in usual.items() if by == role]
        if readers and role not in subject.rewarded.values():
            named = next(d.name for d in subject.space if d.section.partition(".")[0] == role)
            raise ConfigError(
                f"search.{named}: no part learns from the rewards of {role!r}, so nothing would change",
                hint=f"give a bundle whose part {readers[0]!r} was trained on rewards",
            )


def settings_of(subject: Subject, params: Mapping[str, Any]) -> dict[Section, dict[str, Any]]:
    """All sections' settings at a point."""
    return {section: subject.space.apply(params, section, base) for section, base in subject.base.items()}
