"""What describes a world: its pages, its mechanisms (`simulation.mechanisms`), and what it is calibrated to."""

from __future__ import annotations

import datetime as dt
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from plpm_ray.core.config import ConfigSource, StrictConfig, nearest, read_config, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.pages import MAX_PAGES, PageCatalogue
from plpm_ray.simulation.mechanisms import (
    Browsing,
    DayIntent,
    Entries,
    Landing,
    Live,
    Logging,
    Population,
    Push,
    Retention,
    Returning,
    Satiation,
    Tide,
    Unfinished,
    Visits,
    Week,
    WorldPage,
)
from plpm_ray.simulation.targets import Targets

# YAML reads the bare word null, the name of a shipped world, as nothing at all
WorldRef = Annotated[str | dict[str, Any], BeforeValidator(lambda ref: "null" if ref is None else ref)]
"""A world in other configs: the name of a shipped one, the path of a YAML file, or the world itself."""


class WorldConfig(StrictConfig):
    """A world."""

    name: str = Field(min_length=1, description="name in reports and logs")
    description: str = Field(default="", description="one sentence")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the users and of their luck")
    first_day: dt.date = Field(default=dt.date(2024, 3, 4), description="first local day")
    pages: tuple[WorldPage, ...] = Field(description="2 to 32 pages")
    population: Population = Field(default_factory=Population)
    tide: Tide = Field(default_factory=Tide)
    week: Week = Field(default_factory=Week)
    entries: Entries = Field(default_factory=Entries)
    day_intent: DayIntent = Field(default_factory=DayIntent)
    satiation: Satiation = Field(default_factory=Satiation)
    unfinished: Unfinished = Field(default_factory=Unfinished)
    live: Live = Field(default_factory=Live)
    push: Push = Field(default_factory=Push)
    visits: Visits = Field(default_factory=Visits)
    landing: Landing = Field(default_factory=Landing)
    browsing: Browsing = Field(default_factory=Browsing)
    returning: Returning = Field(default_factory=Returning)
    retention: Retention = Field(default_factory=Retention)
    logging: Logging = Field(default_factory=Logging)
    targets: Targets = Field(default_factory=Targets)

    @model_validator(mode="after")
    def _pages(self) -> WorldConfig:
        if not 2 <= len(self.pages) <= MAX_PAGES:
            raise ValueError(f"a world has 2 to {MAX_PAGES} pages, this one has {len(self.pages)}")
        names = self.catalogue.names
        for section, used in (
            ("logging.default_page", {self.logging.default_page} - {None}),
            ("targets.page_share", set(self.targets.page_share)),
            ("targets.drop_off", set(self.targets.drop_off)),
            ("targets.tabs", set(self.targets.tabs)),
        ):
            if used - set(names):
                raise ValueError(
                    f"{section}: {sorted(map(str, used - set(names)))} is not among the pages {list(names)}"
                )
        return self

    @property
    def catalogue(self) -> PageCatalogue:
        return PageCatalogue.model_validate([page.name for page in self.pages])


def shipped_worlds() -> list[str]:
    """Names of the worlds that come with the package."""
    folder = resources.files("plpm_ray.simulation") / "worlds"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_world(world: str | dict[str, Any], overrides: tuple[str, ...] = ()) -> WorldConfig:
    """A world by the name of a shipped one, by the path of a YAML file, or from a section of a config.

    Raises:
        ConfigError: unknown name, missing file, unknown key or bad value.
    """
    if isinstance(world, dict):
        return validate(WorldConfig, ConfigSource(world, "world", {}, {}))
    path = Path(world)
    if path.suffix not in (".yaml", ".yml"):
        if world not in shipped_worlds():
            raise ConfigError(
                f"unknown world {world!r}",
                hint=f"{nearest(world, shipped_worlds())}; or give the path of a YAML file; "
                f"shipped are {', '.join(shipped_worlds())}",
            )
        path = Path(str(resources.files("plpm_ray.simulation") / "worlds" / f"{world}.yaml"))
    return validate(WorldConfig, read_config(path, overrides))
