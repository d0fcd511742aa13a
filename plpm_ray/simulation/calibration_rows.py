"""The rows of the calibration table: each quantity of the totals, its target, and where the target comes from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from plpm_ray.simulation.calibration_totals import CalibrationTotals, jackknife
from plpm_ray.simulation.targets import Targets
from plpm_ray.simulation.world import World

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ENTRY_BINS = {"1 entry": (1, 1), "2 entries": (2, 2), "3 to 4 entries": (3, 4), "5 to 9 entries": (5, 9)}
_MS_PER_MIN = 60_000
_UNKNOWN = float("nan")


class Row(NamedTuple):
    """One quantity of totals with G = 1; `field` names the target among those of `Targets`, empty for none."""

    group: str
    quantity: str
    unit: str
    reached: float
    target: float | None = None
    field: str = ""


def calibration_rows(
    world: World, targets: Targets, totals: CalibrationTotals, first_day: int
) -> list[dict[str, Any]]:
    """The rows of `calibration.json`: target, reached, and the interval of what was reached.

    Args:
        totals: of G groups of users.
        first_day: the first measured day, counted from the world's first.
    """

    def statistics(part: CalibrationTotals) -> np.ndarray:
        return np.array([row.reached for row in quantities(world, targets, part, first_day)])

    _, low, high = jackknife(totals, statistics)
    return [
        {
            "group": row.group,
            "quantity": row.quantity,
            "unit": row.unit,
            "target": row.target,
            "reached": _number(row.reached),
            "low": _number(low[i]),
            "high": _number(high[i]),
            "source": _source(targets, row),
        }
        for i, row in enumerate(quantities(world, targets, totals.without(None), first_day))
    ]


def quantities(world: World, targets: Targets, totals: CalibrationTotals, first_day: int) -> list[Row]:
    """Everything that is measured, for totals with G = 1."""
    return [
        *_hours(targets, totals),
        *_entries(targets, totals),
        *_use(targets, totals),
        *_pages(world, targets, totals),
        *_weekdays(world, targets, totals, first_day),
        *_steadiness(totals),
    ]


def _hours(t: Targets, totals: CalibrationTotals) -> list[Row]:
    """The distance to the target, where there is one; the curve itself stands beside the rows."""
    if t.hourly is None:
        return []
    apart = np.abs(shares(totals.hour_views[0]) - shares(np.asarray(t.hourly))).sum() / 2
    return [Row("hours", "distance of the hourly curve (total var.)", "%", 100 * float(apart), 0.0, "hourly")]


def _entries(t: Targets, totals: CalibrationTotals) -> list[Row]:
    user_days, days = totals.users * totals.day_active.shape[1], totals.days_by_entries[0]
    sessions, users = _ratio(totals.gap_sessions, user_days), p90_over_median(totals.user_sessions)
    rows = [
        ("sessions (30-minute gap) per user and day", "", sessions, "sessions_per_user_day"),
        ("sessions of a user, 90th percentile / median", "", users, "sessions_p90"),
        ("gaps of 2 h and more among those of 30 min", "%", _ratio(totals.long_gaps, totals.gap_sessions), "long_gaps"),
        ("entries per user and day", "", _ratio(totals.entries, user_days), ""),
        ("active days with more than one entry", "%", _ratio(days[2:], days), "several_entries"),
        *((f"active days with {name}", "%", _ratio(days[a : b + 1], days), "") for name, (a, b) in _ENTRY_BINS.items()),
        ("active days with 10 or more entries", "%", _ratio(days[10:], days), ""),
    ]  # fmt: skip
    return [_row("entries", t, *row) for row in rows]


def _use(t: Targets, totals: CalibrationTotals) -> list[Row]:
    user_days = totals.users * totals.day_active.shape[1]
    a, b, r2 = fit_use(totals)
    rows = [
        (
            "use",
            "video views per user and day",
            "",
            _ratio(totals.day_views, user_days),
            "views_per_user_day",
        ),
        (
            "use",
            "views of a user, 90th percentile / median",
            "",
            p90_over_median(totals.user_views),
            "views_p90",
        ),
        ("use", "app use per user and day", "min", _ratio(totals.use_ms, user_days) / _MS_PER_MIN, ""),
        ("use", "users active on a day", "%", _ratio(totals.day_active, user_days), "active_share"),
        ("use by entries", "R2 of a ln(1 + entries) + b", "", r2, "use_fit_r2"),
        ("use by entries", "a", "min", a, ""),
        ("use by entries", "b", "min", b, ""),
    ]
    return [_row(group, t, name, unit, reached, field) for group, name, unit, reached, field in rows]


def _pages(world: World, t: Targets, totals: CalibrationTotals) -> list[Row]:
    multi = _ratio(totals.multi_days, totals.day_active)
    rows = [_row("pages", t, "active days on more than one page", "%", multi, "multi_page_days")]
    names = world.pages.names
    for what, count, field in (
        ("share of video views", totals.page_views[0], "page_share"),
        ("share of app use", totals.page_use_ms[0], ""),
        ("share of landings", totals.landings[0], ""),
    ):
        rows += [
            _row("pages", t, f"{what}, {name}", "%", _ratio(count[k], count), field, name)
            for k, name in enumerate(names)
        ]
    dropped, landings = totals.page_drop_offs[0], totals.landings[0]
    rows += [
        _row(
            "drop-off",
            t,
            f"drop-offs of landings, {name}",
            "%",
            _ratio(dropped[k], landings[k]),
            "drop_off",
            name,
        )
        for k, name in enumerate(names)
    ]
    return [
        *rows,
        _row("drop-off", t, "drop-offs of landings, all pages", "%", _ratio(dropped, landings), ""),
    ]


def _weekdays(world: World, t: Targets, totals: CalibrationTotals, first_day: int) -> list[Row]:
    views = totals.day_views[0]
    weekday = (world.first_day + first_day + np.arange(len(views)) + 3) % 7
    mean = np.array([views[weekday == w].mean() for w in range(7)])
    factor = mean / mean.mean() if mean.any() else np.full(7, np.nan)
    if t.weekday is None:
        return [Row("weekdays", name, "", float(factor[w])) for w, name in enumerate(_WEEKDAYS)]
    goal = np.asarray(t.weekday) / np.mean(t.weekday)
    return [
        Row("weekdays", name, "", float(factor[w]), float(goal[w]), "weekday")
        for w, name in enumerate(_WEEKDAYS)
    ]


def _steadiness(totals: CalibrationTotals) -> list[Row]:
    half = totals.day_use_ms.shape[1] // 14 * 7  # whole weeks
    if not half:
        return []
    use = totals.day_use_ms[0]
    change = 100 * (_ratio(use[-half:], use[:half]) - 1)
    return [Row("steadiness", f"use, last {half} days against first {half}", "%", change, 0.0, "steadiness")]


def _row(group: str, t: Targets, quantity: str, unit: str, reached: float, field: str, page: str = "") -> Row:
    """A row whose target is a field of `Targets`; shares become per cent."""
    target = getattr(t, field) if field else None
    if isinstance(target, dict):
        target = target.get(page)
    scale = 100.0 if unit == "%" else 1.0
    return Row(group, quantity, unit, scale * reached, None if target is None else scale * target, field)


def _source(targets: Targets, row: Row) -> str:
    if row.target is None:
        return "not published"
    if row.field == "steadiness":
        return "no drift"
    return targets.sources.get(row.field) or targets.source or "the world's YAML"


def fit_use(totals: CalibrationTotals) -> tuple[float, float, float]:
    """a and b (minutes) of use = a ln(1 + entries) + b over the means by number of entries, and R2 of these means."""
    days, use = totals.days_by_entries.sum(axis=0), totals.use_ms_by_entries.sum(axis=0)
    n = np.flatnonzero(days)
    if len(n) < 2:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    weight, mean = days[n].astype(np.float64), use[n] / days[n] / _MS_PER_MIN
    x = np.log1p(n)
    x0, y0 = np.average(x, weights=weight), np.average(mean, weights=weight)
    a = (weight * (x - x0) * (mean - y0)).sum() / (weight * (x - x0) ** 2).sum()
    b = y0 - a * x0
    spread, left = (weight * (mean - y0) ** 2).sum(), (weight * (mean - a * x - b) ** 2).sum()
    return float(a), float(b), float(1 - left / spread) if spread else _UNKNOWN


def p90_over_median(values: np.ndarray) -> float:
    """90th percentile over median of (U,) counts, each count spread evenly over half a unit on both sides."""
    if not len(values):
        return _UNKNOWN
    below = np.concatenate([[0], np.cumsum(np.bincount(values))])
    middle, high = np.interp([0.5 * below[-1], 0.9 * below[-1]], below, np.arange(len(below)) - 0.5)
    return float(high / middle) if middle > 0 else _UNKNOWN


def shares(weights: np.ndarray) -> np.ndarray:
    """Weights over their sum, NaN where they are all zero."""
    return weights / weights.sum() if weights.sum() else np.full(len(weights), np.nan)


def _ratio(above: np.ndarray, below: np.ndarray) -> float:
    total = float(np.sum(below))
    return float(np.sum(above)) / total if total else _UNKNOWN


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
