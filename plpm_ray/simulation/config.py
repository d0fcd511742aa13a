"""What describes a world: one section per mechanism, each with its parameters and a switch (`enabled`).

The mechanisms are those that KLAN and GLAN report from their logs; no navigator is known here. Logit means: added to the
utility of a page, before the softmax from which the page wanted in a session is drawn.
"""

from __future__ import annotations

import datetime as dt
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from plpm_ray.core.config import ConfigSource, StrictConfig, nearest, read_config, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.pages import MAX_PAGES, PageCatalogue


# YAML reads the bare word null, the name of a shipped world, as nothing at all
WorldRef = Annotated[str | dict[str, Any], BeforeValidator(lambda ref: "null" if ref is None else ref)]
"""A world in other configs: the name of a shipped one, the path of a YAML file, or the world itself."""


class Mechanism(StrictConfig):
    """Base of the sections that can be switched off."""

    enabled: bool = Field(default=True, description="false switches the whole mechanism off")


class WorldPage(StrictConfig):
    """One page of the simulated app."""

    name: str = Field(min_length=1, description="the page's name")
    popularity: float = Field(default=0.0, description="mean logit of the page among all users")
    dwell_s: float = Field(default=180.0, gt=0, description="mean seconds of an engaged visit")
    view_s: float = Field(default=25.0, gt=0, description="seconds per video view")
    watch_share: float = Field(
        default=0.85, ge=0, le=1, description="share of the dwell time that is watched"
    )
    peak_hour: float = Field(
        default=20.0, ge=0, le=24, description="local hour at which the page is wanted most"
    )
    hour_logit: float = Field(
        default=0.0, ge=0, description="logit at the peak hour, minus that 12 hours later, halved"
    )
    weekend_logit: float = Field(default=0.0, description="logit on Saturdays and Sundays")
    returning: float = Field(
        default=0.0, description="log rate of further entries the same evening, after an engaged visit"
    )
    live: bool = Field(default=False, description="shows the live broadcasts of followed creators")


class Population(Mechanism):
    """Static preferences, and how much the profile tells of them."""

    preference_sd: float = Field(
        default=1.0, ge=0, description="standard deviation of a user's static page logits"
    )
    profile_share: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="share of the preference's variance that the profile's interest explains",
    )
    interests: int = Field(default=6, ge=1, le=64, description="kinds of interest in the profile")
    multi_page: float = Field(default=0.42, ge=0, le=1, description="share of multi-page users")
    single_sharpness: float = Field(
        default=3.0,
        ge=1,
        description="factor on all logits of a single-page user: one page wins nearly always",
    )
    mode_flip: float = Field(
        default=0.15, ge=0, le=0.5, description="probability that a user is the other type for one day"
    )
    dwell_sd: float = Field(
        default=0.5, ge=0, description="sd of a user's log dwell factor, common to all pages"
    )
    page_dwell_sd: float = Field(
        default=0.25, ge=0, description="sd of a user's log dwell factor for each page"
    )


class Tide(Mechanism):
    """The daily curve of entries, in local time; switched off it is flat."""

    hours: tuple[float, ...] = Field(default=(1.0,) * 24, description="24 weights of the local hours 0 to 23")
    utc_offset_min: tuple[int, ...] = Field(
        default=(480,), min_length=1, description="local times of the users, drawn evenly, minutes from UTC"
    )

    @field_validator("hours")
    @classmethod
    def _day(cls, hours: tuple[float, ...]) -> tuple[float, ...]:
        if len(hours) != 24 or min(hours) <= 0:
            raise ValueError("hours are 24 positive weights")
        return hours

    @field_validator("utc_offset_min")
    @classmethod
    def _offsets(cls, offsets: tuple[int, ...]) -> tuple[int, ...]:
        if any(abs(offset) > 840 for offset in offsets):
            raise ValueError("offsets lie between -840 and 840 minutes")
        return offsets


class Week(Mechanism):
    """The weekly rhythm of activity."""

    activity: tuple[float, ...] = Field(
        default=(1.0,) * 7, description="7 factors of the number of entries, Monday to Sunday"
    )

    @field_validator("activity")
    @classmethod
    def _seven(cls, activity: tuple[float, ...]) -> tuple[float, ...]:
        if len(activity) != 7 or min(activity) <= 0:
            raise ValueError("activity is 7 positive factors")
        return activity


class Entries(StrictConfig):
    """How often users come on a day on which they come at all; later entries follow a Poisson process along the tide."""

    active: float = Field(
        default=0.8, gt=0, lt=1, description="probability to be active on a day, of a median user"
    )
    active_sd: float = Field(default=1.0, ge=0, description="sd of the logit of that probability among users")
    per_day: float = Field(
        default=4.0, gt=0, description="rate of further entries on an active day, of a median user"
    )
    user_sd: float = Field(default=0.5, ge=0, description="sd of the log rate among users")
    day_sd: float = Field(default=0.8, ge=0, description="sd of the log rate among the days of a user")
    light_days: float = Field(
        default=0.0, ge=0, le=1, description="share of active days on which a user only looks in, seldom more than once"
    )
    light_rate: float = Field(default=0.05, gt=0, le=1, description="factor on the rate of entries on such a day")
    multi_active: float = Field(
        default=0.4, description="logit of being active that multi-page users have more"
    )
    most: int = Field(default=40, ge=1, le=200, description="no more entries than this on one day")
    fatigue: float = Field(
        default=0.35,
        ge=0,
        description="dwell of the n-th entry of a day falls as n^-fatigue (use ~ a ln(1+entries) + b)",
    )


class DayIntent(Mechanism):
    """What a user is after on one day: drawn anew each day, lasts all day, and shows only in what the user does."""

    sd: float = Field(default=0.8, ge=0, description="standard deviation of the day's logits")


class Satiation(Mechanism):
    """Use of a page lowers the wish for it for some hours."""

    logit: float = Field(
        default=0.5, ge=0, description="logit lost per mean visit's worth of dwell on the page"
    )
    decay_h: float = Field(default=4.0, gt=0, description="hours in which it falls to 1/e")
    most: float = Field(default=3.0, gt=0, description="no more than this many visits' worth is felt")


class Unfinished(Mechanism):
    """A page that was wanted and not reached, or left in the middle, is wanted again the same day."""

    logit: float = Field(default=1.0, ge=0, description="logit of the page until it was visited again")
    interrupted: float = Field(
        default=0.2, ge=0, le=1, description="probability that an engaged last visit is broken off"
    )


class Live(Mechanism):
    """Live broadcasts of followed creators at entry: visible context `live_followed`."""

    logit: float = Field(default=0.8, ge=0, description="logit of the live pages, times ln(1 + broadcasts)")
    rate: float = Field(
        default=0.5, ge=0, description="mean broadcasts at the tide's mean, of a user with median follows"
    )


class Push(Mechanism):
    """Some entries follow a push notification for one page: visible context `push`."""

    share: float = Field(default=0.1, ge=0, le=1, description="share of entries that follow a notification")
    logit: float = Field(default=2.0, ge=0, description="logit of the page that was pushed")


class Landing(Mechanism):
    """What a landing page other than the wanted one does; switched off, the landing page changes nothing at all.

    Then the user does what the wanted page would have brought, and only the first page's name is that of the landing page.
    """

    drop_off: float = Field(
        default=0.75, ge=0, le=1, description="probability to leave such a page within seconds ..."
    )
    tolerance: float = Field(
        default=1.0, ge=0, description="... times (1 - probability that the page had been wanted) ^ tolerance"
    )
    drop_off_matched: float = Field(
        default=0.05, ge=0, le=1, description="the same where the page was the wanted one"
    )
    drop_off_s: float = Field(
        default=3.0, gt=0, description="mean seconds on a page left so, above the first half second"
    )
    leave: float = Field(
        default=0.25, ge=0, le=1, description="probability to leave the app after a drop-off, not walk on"
    )
    compensation: float = Field(
        default=1.05,
        ge=0,
        description="factor on the dwell of the wanted page, reached by walking after a drop-off",
    )
    mismatch_dwell: float = Field(
        default=0.4, ge=0, le=1, description="factor on the dwell of an unwanted page that was not dropped"
    )
    walk_on: float = Field(
        default=0.7, ge=0, le=1, description="probability to walk on from there to the wanted page"
    )


class Browsing(Mechanism):
    """Pages visited after the wanted one."""

    multi: float = Field(
        default=0.3, ge=0, le=1, description="probability of a further page, on a multi-page day"
    )
    single: float = Field(default=0.02, ge=0, le=1, description="the same on a single-page day")
    dwell: float = Field(default=0.6, ge=0, description="factor on the dwell of such a page")


class Visits(StrictConfig):
    """The length of a session."""

    most_pages: int = Field(default=5, ge=2, le=16, description="pages of one session at most")
    dwell_sd: float = Field(default=0.9, ge=0, description="sd of the log dwell time of an engaged visit")
    effective_s: float = Field(
        default=10.0,
        gt=0,
        description="visits as long as this count as effective; shorter landings as drop-offs",
    )


class Returning(Mechanism):
    """The delayed effect: some pages raise the rate of further entries the same evening (see WorldPage.returning)."""

    evening_hour: float = Field(
        default=17.0, ge=0, lt=24, description="local hour from which the effect holds"
    )
    most: float = Field(default=1.5, gt=0, description="bound of a user's log rate factor")


class Retention(Mechanism):
    """Satisfaction moves the chance to be active on later days, which is what DAU and LT read."""

    logit: float = Field(
        default=1.5, ge=0, description="logit of being active, per unit of a user's satisfaction"
    )
    memory: float = Field(
        default=0.15, gt=0, le=1, description="weight of an active day in a user's satisfaction"
    )
    reference: float = Field(default=0.75, ge=0, le=1, description="satisfaction that moves nothing")
    walked: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="satisfaction of a session that reached the wanted page by walking",
    )


class Logging(StrictConfig):
    """The biased policy that made the logs: the rules of KLAN 5.2.1, with known probabilities.

    With probability `explore` an even draw; with `default_share` the default page; else on a user's first entry of the
    day the page used longest, on later ones the last exit page within `restore_h` hours, else the most frequent one.
    """

    explore: float = Field(default=0.1, ge=0, le=1, description="probability of an even draw")
    default_page: str | None = Field(
        default=None, description="page shown by default; null: the most popular one"
    )
    default_share: float = Field(default=0.25, ge=0, le=1, description="probability of the default page")
    restore_h: float = Field(default=3.0, gt=0, description="hours for which the last exit page is restored")
    memory_days: float = Field(default=7.0, gt=0, description="days in which remembered use falls to 1/e")

    @model_validator(mode="after")
    def _shares(self) -> Logging:
        if self.explore + self.default_share > 1:
            raise ValueError("explore and default_share add up to more than 1")
        return self


class Targets(StrictConfig):
    """What the world is calibrated to; null where nothing was published. The simulation itself never reads it."""

    source: str = Field(default="", description="where the numbers come from")
    sources: dict[str, str] = Field(
        default_factory=dict, description="the same for single targets: name of the field -> source"
    )
    hourly: tuple[float, ...] | None = Field(
        default=None, description="24 weights of the local hours by video views; null: the tide's own"
    )
    weekday: tuple[float, ...] | None = Field(
        default=None,
        description="7 factors of the video views of a weekday, Monday first; null: the week's own",
    )
    multi_page_days: float | None = Field(
        default=None, description="share of active user-days with an effective visit on two or more pages"
    )
    several_entries: float | None = Field(
        default=None, description="share of active user-days with more than one entry"
    )
    active_share: float | None = Field(
        default=None, description="share of the users that are active on a day"
    )
    sessions_per_user_day: float | None = Field(
        default=None, description="sessions by a gap of 30 minutes per user and day, idle days included"
    )
    sessions_p90: float | None = Field(
        default=None, description="90th percentile of the sessions of a user, over the median"
    )
    long_gaps: float | None = Field(
        default=None, description="share of the gaps of 30 minutes and more that last two hours or more"
    )
    views_per_user_day: float | None = Field(
        default=None, description="video views per user and day, idle days included"
    )
    views_p90: float | None = Field(
        default=None, description="90th percentile of the video views of a user, over the median"
    )
    use_fit_r2: float | None = Field(default=None, description="R2 of use against a ln(1 + entries) + b")
    page_share: dict[str, float] = Field(default_factory=dict, description="page -> share of video views")
    drop_off: dict[str, float] = Field(
        default_factory=dict, description="page -> share of landings left at once"
    )
    tabs: dict[str, int] = Field(
        default_factory=dict, description="page -> number of the tab that stands for it in KuaiRand's tables"
    )

    @field_validator("hourly", "weekday")
    @classmethod
    def _length(cls, values: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        expected = 24 if info.field_name == "hourly" else 7
        if values is not None and (len(values) != expected or min(values) <= 0):
            raise ValueError(f"{info.field_name} is {expected} positive numbers")
        return values

    @field_validator("sources")
    @classmethod
    def _known(cls, sources: dict[str, str]) -> dict[str, str]:
        for name in sources:
            if name not in cls.model_fields:
                raise ValueError(f"{name!r} is no target; {nearest(name, cls.model_fields)}")
        return sources


class WorldConfig(StrictConfig):
    """A world."""

    name: str = Field(min_length=1, description="name in reports and logs")
    description: str = Field(default="", description="one sentence")
    seed: int = Field(default=0, ge=0, description="seed of the users and of their luck")
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
            near = nearest(world, shipped_worlds())
            raise ConfigError(
                f"unknown world {world!r}",
                hint=(f"did you mean {near!r}? " if near else "")
                + f"shipped are {', '.join(shipped_worlds())}; or give the path of a YAML file",
            )
        path = Path(str(resources.files("plpm_ray.simulation") / "worlds" / f"{world}.yaml"))
    return validate(WorldConfig, read_config(path, overrides))
