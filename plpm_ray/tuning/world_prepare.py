"""From a bundle and a world to what the trials share: the parts, the tables of those that are searched, and the twins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plpm_ray.core.config import ConfigSource, config_hash
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.split import split_days
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.simulation.arms import ArmConfig, check_arm
from plpm_ray.simulation.config import WorldConfig
from plpm_ray.simulation.twins import Twins
from plpm_ray.simulation.world import World
from plpm_ray.training.config import TrainingConfig
from plpm_ray.tuning.config import located
from plpm_ray.tuning.prepare import searched_horizons, training_tables
from plpm_ray.tuning.space import Section, Space, build_space, check_space
from plpm_ray.tuning.world import WorldSweepConfig
from plpm_ray.tuning.world_trial import PartData, WorldTask
from plpm_ray.tuning.world_value import WorldValue


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
        """Roles whose parts are trained in the trials."""
        sections = {dimension.section.partition(".")[0] for dimension in self.space}
        return tuple(role for role in self.bundle.parts if role in sections)

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
            ]
        )


def open_subject(config: WorldSweepConfig, source: ConfigSource | None = None) -> Subject:
    """Opens and checks all that a sweep names, before anything is simulated.

    Raises:
        ConfigError: a reserved seed, an unknown parameter, a range that its config refuses, or a bundle that is not
            composed of parts or was made for another world.
        BundleError, StorageError: there is no bundle, or there are no tables.
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
    models, base = section_models(bundle), base_settings(config, bundle)
    with located(config.search, source):
        space = build_space(config.search, models)
        _refuse_length(space)
        check_space(space, models, base)
    _refuse_users(space, bundle)
    warehouse = Warehouse.open(config.tables)
    split = split_days(warehouse.transitions.days(), config.split)
    subject = Subject(config, world, path, bundle, warehouse, tuple(split.train), space)
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
        base |= {role: part.config, f"{role}.training": config.training.model_dump(mode="json")}
    return base


def prepare_world(subject: Subject) -> tuple[WorldTask, dict[str, Any]]:
    """What the trials share, and the facts about it that the summary tells.

    Raises:
        DataError: the training days hold no sessions.
    """
    config, bundle = subject.config, subject.bundle
    parts = {}
    if subject.searched:
        spec, stats = fit_spec(subject.warehouse, subject.train_days)
        for role in subject.searched:
            part = bundle.parts[role]
            horizons = searched_horizons(subject.space, role)
            cls = lookup("learner", part.name)
            place = (subject.warehouse.root, subject.train_days, spec)
            parts[role] = PartData(spec, stats, training_tables(cls, part.config, horizons, *place))
    world = World(subject.world)
    users = np.array_split(config.first_user + np.arange(config.users), config.groups)
    days = (config.warmup_days, config.aa_days, config.ab_days)
    value = WorldValue(
        [Twins(world, some, *days) for some in users],
        config.aa_days,
        config.ab_days,
        config.constraints,
        config.rank_by,
    )
    task = WorldTask(
        bundle=bundle,
        plugins=tuple(str(Path(p).resolve()) if p.endswith(".py") else p for p in config.plugins),
        base=subject.base,
        space=subject.space,
        parts=parts,
        value=value,
        threads=max(1, int(config.cpus_per_trial)),
    )
    return task, _facts(subject, value)


def _facts(subject: Subject, value: WorldValue) -> dict[str, Any]:
    config = subject.config
    return {
        "unit": "s per user and day",
        "baseline": "logging",
        "baseline_value": value.baseline["use_s"],
        "baseline_metrics": value.baseline,
        "world": subject.world.name,
        "seeds": {
            "world": subject.world.seed,
            "final": list(config.final_seeds),
            "suggestions": config.suggestions,
            "training": config.training.seed,
            "policy": config.policy.seed,
        },
        "users": config.users,
        "first_user": config.first_user,
        "days": {"warm-up": config.warmup_days, "aa": config.aa_days, "ab": config.ab_days},
        "bundle_version": subject.bundle.version,
        "data_fingerprint": subject.fingerprint(),
        "constraints": config.constraints.model_dump(mode="json"),
    }


def _refuse_length(space: Space) -> None:
    """Epochs are the cost of a trial, not a setting of it."""
    for dimension in space:
        if dimension.section.endswith(".training") and dimension.path == ("epochs",):
            raise ConfigError(
                f"search.{dimension.name}: this is how long a part is trained",
                hint="set training.epochs, the same for all trials",
            )


def _refuse_users(space: Space, bundle: Bundle) -> None:
    """Trials train on rows of sessions only."""
    for dimension in space:
        part = bundle.parts.get(dimension.section.partition(".")[0])
        if part is not None and lookup("learner", part.name).grain == "user":
            raise ConfigError(
                f"search.{dimension.name}: {part.name!r} learns from the users of a randomised trial, which a sweep in "
                "the world does not read",
                hint="search it where uplift is evaluated, and give its bundle here",
            )


def settings_of(subject: Subject, params: Mapping[str, Any]) -> dict[Section, dict[str, Any]]:
    """All sections' settings at a point."""
    return {section: subject.space.apply(params, section, base) for section, base in subject.base.items()}
