"""What a world is calibrated to."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from plpm_ray.core.config import StrictConfig, nearest


class Targets(StrictConfig):
    """What the world is calibrated to; null where nothing was published. The simulation itself never reads it."""

    source: str = Field(default="", description="where the numbers come from")
    sources: dict[str, str] = Field(
        default_factory=dict, description="the same for single targets: name of the field -> source"
    )
    hourly: tuple[float, ...] | None = Field(
        default=None, description="24 weights of the local hours by video views"
    )
    weekday: tuple[float, ...] | None = Field(
        default=None,
        description="7 factors of the video views of a weekday, Monday first",
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
