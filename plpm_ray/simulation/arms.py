"""The arms of an experiment: what can choose landing pages in the world, as a config and as a chooser."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np
from pydantic import Field

from plpm_ray.core.config import ConfigSource, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Navigator
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle
from plpm_ray.navigators.page_scores import page_scorer
from plpm_ray.policies.entry import PolicyEntry
from plpm_ray.simulation.choosers import Builtin, FixedPage, LoggingPolicy, builtin_chooser
from plpm_ray.simulation.config import WorldConfig
from plpm_ray.simulation.navigated import NavigatorChooser
from plpm_ray.simulation.online import world_schema
from plpm_ray.simulation.simulation import Chooser, Simulation, run_days
from plpm_ray.simulation.world import World

_STATS_USERS, _STATS_DAYS, _STATS_FIRST_USER = 2000, 7, 1 << 40


class ArmConfig(PolicyEntry):
    """One arm: exactly one of `bundle`, `navigator`, `builtin` and `page`."""

    ways: ClassVar[tuple[str, ...]] = ("bundle", "navigator", "builtin", "page")

    builtin: Builtin | None = Field(
        default=None,
        description="logging: the policy that makes the world's logs; random: any page; the oracles know the hidden truth",
    )
    page: str | None = Field(default=None, description="always this page")
    share: float = Field(default=1.0, gt=0, description="weight of the arm when users are split")


def check_arm(
    config: WorldConfig,
    arm: ArmConfig,
    plugins: tuple[str, ...],
    source: ConfigSource,
    section: tuple[str | int, ...],
) -> str:
    """Loads what an arm names, so that mistakes show before anything is simulated.

    Returns:
        The version of what chooses.

    Raises:
        ConfigError, BundleError: unknown name or page, bad option, a bundle that was made for other pages or columns, or one
            of a model that chooses no pages.
    """
    world = World(config)
    if arm.page is not None:
        world.pages.index(arm.page)
        return f"page-{arm.page}"
    if arm.builtin is not None:
        return arm.builtin
    if arm.navigator is not None:
        load_plugins(plugins)
        cls = lookup("navigator", arm.navigator.name)
        validate(cls.Config, source, (*section, "navigator"), arm.navigator.options)
        return arm.navigator.name
    bundle = load_bundle(find_bundle(str(arm.bundle)), plugins).with_options(arm.options)
    if bundle.spec.schema != world_schema(world):
        raise ConfigError(
            f"{source.where(section)}: bundle {arm.bundle} was made for the pages {list(bundle.pages.names)} and columns "
            f"{[*bundle.spec.schema.context, *bundle.spec.schema.profile]}, not for the world {config.name!r}",
            hint="train it on logs of this world: dataset: {name: world, world: ...}",
        )
    page_scorer(bundle.navigator())
    return bundle.version


def resolved_arm(arm: ArmConfig) -> ArmConfig:
    """The arm under its title, with the bundle's folder in full: tasks may run in another folder, and a newer run may appear."""
    if arm.bundle is None:
        return arm
    found = find_bundle(arm.bundle).resolve()
    return arm.model_copy(update={"label": arm.title, "bundle": str(found)})


def make_chooser(world: World, arm: ArmConfig, plugins: tuple[str, ...] = ()) -> Chooser:
    """What chooses the pages of an arm; it keeps the state of the users of one simulation."""
    if arm.page is not None:
        return FixedPage(world, world.pages.index(arm.page))
    if arm.builtin is not None:
        return builtin_chooser(arm.builtin, arm.policy)
    return NavigatorChooser(world, _navigator(world, arm, plugins), arm.policy)


def _navigator(world: World, arm: ArmConfig, plugins: tuple[str, ...]) -> Navigator:
    load_plugins(plugins)
    if arm.navigator is not None:
        cls = lookup("navigator", arm.navigator.name)
        options = validate(cls.Config, ConfigSource({}, "arm", {}, {}), (), arm.navigator.options)
        return cls(options, world.pages, world_stats(world.config))
    bundle = _bundle(str(find_bundle(str(arm.bundle))), plugins).with_options(arm.options)
    return page_scorer(bundle.navigator())


@lru_cache(maxsize=16)
def _bundle(path: str, plugins: tuple[str, ...]) -> Bundle:
    return load_bundle(path, plugins)


def world_stats(config: WorldConfig) -> TableStats:
    """Totals of a week of the world's own logs, for navigators that need them (popularity); other users than any run's."""
    return _world_stats(config.model_dump_json())


@lru_cache(maxsize=8)
def _world_stats(config: str) -> TableStats:
    world = World(WorldConfig.model_validate_json(config))
    simulation = Simulation(world, np.arange(_STATS_USERS) + _STATS_FIRST_USER)
    seen: list[dict[str, np.ndarray]] = []
    run_days(simulation, _STATS_DAYS, LoggingPolicy(), lambda sessions: seen.append(sessions.stat_columns()))
    return TableStats.of(
        len(world), **{name: np.concatenate([part[name] for part in seen]) for name in seen[0]}
    )
