"""The mechanisms of a world: one section each, with its parameters and a switch (`enabled`).

They are those that KLAN and GLAN report from their logs; no navigator is known here. Logit means: added to the utility of a
page, before the softmax from which the page wanted in a session is drawn.
"""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from plpm_ray.core.config import StrictConfig


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
    """Who the users are: static preferences, how much the profile tells of them, page types and dwell.

    Switched off, all users want the same, stay equally long and are single-page users without their sharpness; when and how
    often they come still differs (see Entries).
    """

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
    """The weekly rhythm: of how many users are active, and of how often these come."""

    activity: tuple[float, ...] = Field(
        default=(1.0,) * 7,
        description="7 factors of the rate of entries and of the odds to be active, Monday to Sunday",
    )

    @field_validator("activity")
    @classmethod
    def _seven(cls, activity: tuple[float, ...]) -> tuple[float, ...]:
        if len(activity) != 7 or min(activity) <= 0:
            raise ValueError("activity is 7 positive factors")
        return activity


class Entries(StrictConfig):
    """How often users come: whether on a day at all, and then a Poisson process along the tide, of one entry at least."""

    active: float = Field(
        default=0.8, gt=0, lt=1, description="probability to be active on a day, of a median user"
    )
    active_sd: float = Field(default=1.0, ge=0, description="sd of the logit of that probability among users")
    per_day: float = Field(
        default=4.0,
        gt=0,
        description="rate of the entries of an active day, of which there is at least one; of a median user",
    )
    user_sd: float = Field(default=0.5, ge=0, description="sd of the log rate among users")
    dwell_correlation: float = Field(
        default=0.0, ge=-1, le=1, description="correlation of a user's log rate with the log dwell factor"
    )
    day_sd: float = Field(default=0.8, ge=0, description="sd of the log rate among the days of a user")
    light_days: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of active days on which a user only looks in, seldom more than once",
    )
    light_rate: float = Field(
        default=0.05, gt=0, le=1, description="factor on the rate of entries on such a day"
    )
    multi_active: float = Field(
        default=0.4, description="logit of being active that multi-page users have more"
    )
    rest_min: float = Field(
        default=30.0,
        ge=0,
        le=720,
        description="minutes after an exit in which coming back is no new entry: the app goes on where it was left",
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
    most: float = Field(
        default=1.5, gt=0, description="most that a user's log rate factor reaches; it has no lower bound"
    )


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
