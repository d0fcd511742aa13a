"""What an A/B experiment measures: every metric as a ratio of per-user totals.

A metric is sum_u n_u / sum_u d_u over the users u of an arm. With d_u = 1 it is a mean per user, and users
who were not active count with zeros. With another d_u it is a ratio of means, whose variance needs the
delta method because numerator and denominator of one user belong together (Deng, Knoblich and Lu 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plpm_ray.core.errors import ConfigError

SIGNIFICANCE = 0.05
"""A p-value below this is called a difference."""

ADJUSTED_BY = {"holm": "Holm", "benjamini_hochberg": "Benjamini and Hochberg"}
"""Adjustment for many comparisons -> whose it is."""

Better = Literal["higher", "lower", "neutral"]

ANY_ACTIVE = "any_active"
"""The denominator that no table carries: 1 for users active on at least one day of the period, else 0."""


@dataclass(frozen=True)
class Metric:
    """One metric of an experiment.

    Attributes:
        key: its name in files.
        title: its name for people.
        short: its name as a column title.
        unit: what the number counts, after `scale`.
        better: the direction that is an improvement.
        numerator: the measured total `<m>`, read from the columns `aa_<m>` and `ab_<m>`.
        denominator: another total, `ANY_ACTIVE`, or None for a mean over all users.
        per_day: divide by the days of the period.
        scale: factor of the value, 100 for per cent.
        page: the page it belongs to.
        main: one of the columns of the short table, and a member of the family over which p-values are adjusted.
    """

    key: str
    title: str
    short: str
    unit: str
    better: Better
    numerator: str
    denominator: str | None = None
    per_day: bool = False
    scale: float = 1.0
    page: str | None = None
    main: bool = False

    def factor(self, days: int) -> float:
        """What the ratio of totals over a period of `days` is multiplied by to read in `unit`."""
        return self.scale / days if self.per_day else self.scale

    def totals(self) -> tuple[str, ...]:
        """The measured totals it needs, without their period."""
        below = "active_days" if self.denominator == ANY_ACTIVE else self.denominator
        return (self.numerator,) if below is None else (self.numerator, below)


def metric_catalogue(pages: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of KLAN tables 1 and 2, for any pages, in the order in which they are shown.

    LT is KLAN eq. 15,

        LT_T = sum_{i = max(T-6, T0)}^{T} DAU_i / number of users active at least once from T0 to T,

    with T0 and T the first and last day of the period: the sum runs over the days a user was active among the
    last seven, so the numerator is `last7_active_days`. The experiment may change who is ever active and so
    the denominator; it is a part of the metric, not a filter.

    The share of sessions that land on a page has no good direction: it says what an arm does, not how well.

    Raises:
        ConfigError: a page is named twice.
    """
    if len(set(pages)) != len(pages):
        raise ConfigError(f"a page is named twice in {list(pages)}", hint="give every page once")
    a_day, sessions = "per user and day", "% of sessions"
    general = (
        Metric("dau", "Daily active users", "DAU", "% of users", "higher", "active_days",
               per_day=True, scale=100, main=True),
        Metric("lt", "Lifetime (LT)", "LT", "days", "higher", "last7_active_days", ANY_ACTIVE, main=True),
        Metric("use_s", "App use time", "use", f"s {a_day}", "higher", "use_s", per_day=True, main=True),
        Metric("watch_s", "Watch time", "watch", f"s {a_day}", "higher", "watch_s", per_day=True, main=True),
        Metric("video_views", "Video views", "views", a_day, "higher", "video_views", per_day=True, main=True),
        Metric("sessions", "Sessions", "sessions", a_day, "higher", "sessions", per_day=True),
        Metric("pdr", "Page drop-off ratio (PDR)", "PDR", sessions, "lower", "drop_offs", "sessions",
               scale=100, main=True),
    )  # fmt: skip
    entries = [
        Metric(f"epef_{page}", f"Effective entries (EPEF), {page}", f"EPEF {page}", a_day, "higher",
               f"effective_{page}", per_day=True, page=page)
        for page in pages
    ]  # fmt: skip
    shares = [
        Metric(f"assigned_{page}", f"Sessions landing on {page}", f"to {page}", sessions, "neutral",
               f"assigned_{page}", "sessions", scale=100, page=page)
        for page in pages
    ]  # fmt: skip
    return (*general, *entries, *shares)
