"""Growth of DAU and LT day by day (KLAN fig. 5), and the tidal curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.layout import panel, panels, section, sub, table, wide_figure
from plpm_ray.evaluation.report.lines import Axes, Series, line_chart, responsive, y_range
from plpm_ray.evaluation.report.markup import Markup
from plpm_ray.evaluation.report.reading import Columns
from plpm_ray.evaluation.report.view import Experiment, share

_Z = 1.959963984540054
_TOGETHER = 3
_HOURS = tuple((float(h), f"{h}") for h in (0, 6, 12, 18, 23))


@dataclass(frozen=True)
class _Daily:
    """An arm's growth against the control: days [D], relative differences and bands in percent [D]."""

    day: list[float]
    value: list[float | None]
    low: list[float | None] | None
    high: list[float | None] | None

    def mean(self, first: float, last: float) -> float | None:
        """Mean over the days from `first` to before `last`, in percent."""
        chosen = [v for d, v in zip(self.day, self.value, strict=True) if v is not None and first <= d < last]
        return float(np.mean(chosen)) if chosen else None

    def series(self, name: str, style: int, context: bool = False) -> Series:
        band = (None, None) if context else (self.low, self.high)
        return Series(name, self.day, self.value, *band, style=style, role="context" if context else "line")


def growth(experiment: Experiment) -> Markup:
    """DAU and LT of each arm relative to the control, over AA and AB days."""
    dau = {arm: _dau(experiment, arm) for arm in experiment.treated}
    lt = {arm: _lt(experiment, arm) for arm in experiment.treated}
    banded = any(g.low is not None for g in dau.values())
    band = f" Bands: 95{n.SPACE}% intervals of single days." if banded else ""
    note = "Relative difference to the control on each day."
    if experiment.record.aa_days:
        chance = ", so what is seen there is chance" if experiment.record.design == "split" else ""
        note += f" Left of the line all arms ran the control’s policy (AA days){chance}; right of it each ran its own (AB days)."
    lt_note = "Mean number of active days within the last 7, over users active since the first AA day (KLAN eq. 15)."
    content = [
        sub("Daily active users", f"Share of users with a session on the day.{band}"),
        _charts(experiment, dau, "DAU"),
        sub("Lifetime (LT)", lt_note),
        _charts(experiment, lt, "LT"),
        _growth_table(experiment, dau, lt),
    ]
    return section("Growth of DAU and LT", note, *content) if experiment.treated else Markup()


def _charts(experiment: Experiment, growths: dict[str, _Daily], metric: str) -> Markup:
    parts = []
    banded = any(g.low is not None for g in growths.values())
    if 0 < len(experiment.candidates) <= (1 if banded else _TOGETHER):
        parts.append(_together(experiment, growths, metric))
    else:
        parts.append(_apart(experiment, growths, experiment.candidates, metric))
    references = [a for a in experiment.treated if a in experiment.references]
    if references:
        parts.append(sub(f"{metric} of the reference arms", "On a scale of their own."))
        parts.append(_apart(experiment, growths, references, metric))
    return Markup("".join(parts))


def _axes(experiment: Experiment, metric: str, limits: tuple[float, float]) -> Axes:
    days = experiment.record.aa_days
    border = (days - 0.5, "AA days", "AB days") if days and experiment.record.ab_days else None
    return Axes(
        "day, counted from the first AA day",
        f"{metric} against control, %",
        limits,
        y_sign=True,
        zero=True,
        border=border,
    )


def _together(experiment: Experiment, growths: dict[str, _Daily], metric: str) -> Markup:
    names = experiment.names
    series = [growths[arm].series(names.short(arm), i) for i, arm in enumerate(experiment.candidates)]
    axes = _axes(experiment, metric, y_range(series))
    said = _said(experiment, growths, experiment.candidates)
    title = f"{metric} relative to {names.short(experiment.control)}"
    chart = responsive(lambda width: line_chart(series, axes, title, said, width, named=True))
    return wide_figure(title, chart)


def _apart(experiment: Experiment, growths: dict[str, _Daily], arms: Sequence[str], metric: str) -> Markup:
    """A panel per arm on one scale; the others behind it in grey, unless there are bands to read it by."""
    names = experiment.names
    limits = y_range([growths[arm].series("", 0) for arm in arms])
    axes = _axes(experiment, metric, limits)
    charts = []
    for arm in arms:
        others = [
            growths[other].series("", 0, context=True)
            for other in arms
            if other != arm and growths[other].low is None
        ]
        said = _said(experiment, growths, [arm])
        title = f"{metric} of {names.short(arm)} relative to {names.short(experiment.control)}"
        chart = line_chart([*others, growths[arm].series(names.short(arm), 0)], axes, title, said)
        charts.append(panel(names(arm), chart, _means(experiment, growths[arm])))
    return panels(charts)


def _said(experiment: Experiment, growths: dict[str, _Daily], arms: Sequence[str]) -> str:
    """The means of each arm in words."""
    return "; ".join(f"{experiment.names.short(arm)}: {_means(experiment, growths[arm])}" for arm in arms)


def _means(experiment: Experiment, g: _Daily) -> str:
    """`mean over AA days +0.1 %, AB days +1.2 %`."""
    border = experiment.record.aa_days
    means = [("AA", g.mean(-math.inf, border)), ("AB", g.mean(border, math.inf))]
    return f"mean over {', '.join(f'{p} days {_percent(v)}' for p, v in means if v is not None) or 'no days'}"


def _growth_table(experiment: Experiment, dau: dict[str, _Daily], lt: dict[str, _Daily]) -> Markup:
    record = experiment.record
    end = record.aa_days + record.ab_days
    last = max(record.aa_days, end - 7)
    spans = [
        (0, record.aa_days, "AA days"),
        (record.aa_days, end, "AB days"),
        (last, end, f"last {end - last} days"),
    ]
    spans = [s for s in spans if s[1] > s[0]]
    header = ["arm", *(f"{m}, {s[2]}" for m in ("DAU", "LT") for s in spans)]
    rows = [
        [experiment.arm(arm), *(_percent(g[arm].mean(s[0], s[1])) for g in (dau, lt) for s in spans)]
        for arm in experiment.treated
    ]
    return table("Mean relative difference to the control, not adjusted for the AA days", header, rows)


def _percent(value: float | None) -> str:
    return n.percent(None if value is None else value / 100, 2, sign=True)


def _dau(experiment: Experiment, arm: str) -> _Daily:
    """With bands by the delta method, users within a day being independent; none for twins, who are paired."""
    days, active, users = _by_day(experiment.daily, arm, "active_users", "users")
    base_days, base_active, base_users = _by_day(
        experiment.daily, experiment.control, "active_users", "users"
    )
    base = {d: (a, u) for d, a, u in zip(base_days, base_active, base_users, strict=True)}
    value: list[float | None] = []
    half: list[float | None] = []
    for day, a, u in zip(days, active, users, strict=True):
        a0, u0 = base.get(day, (0.0, 0.0))
        if not (a > 0 and u > 0 and a0 > 0 and u0 > 0):
            value.append(None)
            half.append(None)
            continue
        ratio = (a / u) / (a0 / u0)
        error = ratio * math.sqrt(max(1 / a - 1 / u + 1 / a0 - 1 / u0, 0.0))
        value.append(100 * (ratio - 1))
        half.append(100 * _Z * error)
    if experiment.record.design != "split":
        return _Daily(days, value, None, None)
    pairs = list(zip(value, half, strict=True))
    low = [None if v is None or h is None else v - h for v, h in pairs]
    high = [None if v is None or h is None else v + h for v, h in pairs]
    return _Daily(days, value, low, high)


def _lt(experiment: Experiment, arm: str) -> _Daily:
    days, lt = _by_day(experiment.daily, arm, "lt")
    base = dict(zip(*_by_day(experiment.daily, experiment.control, "lt"), strict=True))
    value = [
        100 * (v / base[d] - 1) if base.get(d) and math.isfinite(v) else None
        for d, v in zip(days, lt, strict=True)
    ]
    return _Daily(days, value, None, None)


def _by_day(daily: Columns, arm: str, *names: str) -> list[list[float]]:
    """Days and columns of one arm, by day."""
    rows = np.flatnonzero(daily["arm"] == arm)
    rows = rows[np.argsort(daily["day"][rows], kind="stable")]
    return [[float(v) for v in daily[name][rows]] for name in ("day", *names)]


def tide(experiment: Experiment, target: tuple[str, Sequence[float]] | None) -> Markup:
    """Share of the sessions by local hour: control, other arms, and the target of a calibration run.

    Args:
        target: where it comes from, and 24 shares.
    """
    names, shares = experiment.names, {arm: _hours(experiment, arm) for arm in experiment.everyone}
    series = [
        _tidal(names.short(arm), values, 0, "context")
        for arm, values in shares.items()
        if arm != experiment.control
    ]
    few = len(series) <= 1
    if few:
        series = [_tidal(names.short(a), v, i, "line") for i, (a, v) in enumerate(shares.items())]
    else:
        series.append(_tidal(names.short(experiment.control), shares[experiment.control], 0, "line"))
    if target is not None:
        series.append(_tidal("target (views)", target[1], 0, "reference"))
    peak = int(np.argmax(shares[experiment.control]))
    highest = n.percent(shares[experiment.control][peak])
    said = f"{names.short(experiment.control)} peaks at {peak}:00 with {highest} of its sessions"
    legend = [] if few else ["grey: the other arms"]
    legend += [f"dashed: share of video views in the targets of {target[0]}"] if target is not None else []
    note = f"{said}; {', '.join(legend)}." if legend else f"{said}."
    return section(
        "Tidal curve", "When in the day sessions begin, on AB days, in local time.", hour_chart(series, note)
    )


def hour_chart(series: Sequence[Series], note: str, of: str = "sessions") -> Markup:
    """Shares of 24 local hours in the sessions (or what else) of a day, in percent."""
    limits = y_range(series)
    axes = Axes("local hour", f"share of {of}, % per hour", (0.0, limits[1]), x_ticks=_HOURS)
    title = f"Share of {of} by local hour"
    chart = responsive(lambda width: line_chart(series, axes, title, note, width, named=True))
    return wide_figure(title, chart, note)


def hour_series(name: str, shares: Sequence[float], style: int = 0, target: bool = False) -> Series:
    """Shares of 24 hours as fractions -> a line in percent."""
    return _tidal(name, shares, style, "reference" if target else "line")


def _tidal(name: str, shares: Sequence[float], style: int, role: str) -> Series:
    return Series(name, list(range(24)), [100 * v for v in shares], style=style, role=role)  # type: ignore[arg-type]


def _hours(experiment: Experiment, arm: str) -> list[float]:
    """Share of each hour in the arm's sessions on AB days, or on all days where there are none."""
    period = {"period": "ab"} if experiment.total("hourly", "sessions", arm=arm, period="ab") > 0 else {}
    counts = [experiment.total("hourly", "sessions", arm=arm, hour=h, **period) for h in range(24)]
    return [share(c, sum(counts)) or 0.0 for c in counts]
