"""What the report says of `plpm assess`: models that say numbers, on held-out days."""

from __future__ import annotations

from collections.abc import Sequence

from plpm_ray.evaluation.assess_text import CONSTANT, REFERENCE, WEEKDAYS
from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.assess_records import (
    AssessRun,
    Constraint,
    DayErrors,
    DayModel,
    Interval,
    SessionModel,
)
from plpm_ray.evaluation.report.layout import (
    Cell,
    Names,
    Part,
    panel,
    panels,
    section,
    shorten,
    table,
    verdict_cell,
    wide_figure,
)
from plpm_ray.evaluation.report.lines import PANEL, Axes, Series, line_chart, responsive, y_range
from plpm_ray.evaluation.report.markup import Child, Markup, el, label
from plpm_ray.evaluation.report.reading import Run

_TOGETHER = 5
_BY = {
    "prediction": (
        "By what was foretold",
        "tenth of the days",
        "the shortest forecast first; a calibrated model is at 0 everywhere",
    ),
    "use": (
        "By what came",
        "tenth of the days",
        "the shortest day first; no model is at 0 everywhere, as none knows which of two like days will be the long one",
    ),
    "weekday": ("By weekday", "weekday", None),
}


def assess_part(run: Run) -> Part:
    """Errors and bias of models of days, drop-offs and seconds of models of sessions."""
    record: AssessRun = run.record
    names = Names(m.label for m in record.models)
    held = record.split.get(record.part, [])
    days, sessions = record.days, record.sessions
    return Part(
        "Models that say numbers",
        el("span", n.plural(len(record.models), "model"), " on ", label(record.data or "held-out days")),
        _headline(days, sessions),
        [
            ("data", label(record.data) if record.data else None),
            ("judged on", f"{record.part} days {held[0]} to {held[-1]}" if held else record.part),
            ("user-days", n.count(days[0].rows) if days else None),
            ("sessions", n.count(sessions[0].rows) if sessions else None),
        ],
        [
            *(_day_sections(days, names) if days else ()),
            *(_session_sections(sessions, names) if sessions else ()),
        ],
    )


def _headline(days: Sequence[DayModel], sessions: Sequence[SessionModel]) -> str:
    """The best model of each kind."""
    said = []
    if days:
        best = min(days, key=lambda m: m.model.mae_s.value or 0.0)
        mae, mean = (n.with_unit(n.number(e.mae_s.value), "s") for e in (best.model, best.reference))
        gain, interval = n.estimate(best.mae_gain.value, best.mae_gain.low, best.mae_gain.high)
        inside = f", {interval}" if interval else ""
        said.append(
            f"{best.label} misses a day's use by {mae} on average, the mean of the last seven days by {mean} (gain "
            f"{n.with_unit(gain, 's')}{inside})."
        )
    if sessions:
        best_drop = max(sessions, key=lambda m: m.drop_off.auc or 0.0)
        drop = best_drop.drop_off
        said.append(
            f"{best_drop.label} tells drop-offs apart with AUC {n.fixed(drop.auc, 3)}, calibration error "
            f"{n.fixed(drop.calibration_error, 3)}."
        )
    return " ".join(said)


def _day_sections(models: Sequence[DayModel], names: Names) -> list[Markup]:
    told = [(REFERENCE, models[0].reference)] + [(names.short(m.label), m.model) for m in models]
    rows = []
    constant = models[0].constant
    listed = [(CONSTANT, constant), *told] if constant is not None else told
    gains = [*(None for _ in listed[: -len(models)]), *(m.mae_gain for m in models)]
    for (name, errors), gain in zip(listed, gains, strict=True):
        cells = [_shown(i) for i in (errors.mae_s, errors.rmse_s, errors.spearman, errors.bias_s)]
        rows.append([name, *cells, n.DASH if gain is None else _shown(gain)])
    head = ["model", "MAE, s", "RMSE, s", "Spearman", "bias, s", "gain in MAE, s"]
    note = "A row is a user's active day. Small print: 95 % intervals, clustered by user."
    kept = told[: _TOGETHER + 1]
    charts = [_bias(by, kept) for by in _BY]
    lead = "Foretold minus what came, mean over the days of each group, with 95 % intervals."
    constraints = [
        [names(m.label), Cell(name, "word"), *_constraint(c)]
        for m in models
        for name, c in m.constraints.items()
    ]
    heads = ["model", Cell("constraint", "text"), "on these days", "bound", Cell("here"), Cell("in training")]
    return [
        section("Use of a day", None, table("Errors of the seconds of a day", head, rows, note=note)),
        section("Bias", lead, panels([c for c in charts if c])),
        section("Constraints", None, table("Constraints on held-out days", heads, constraints)),
    ]


def _bias(by: str, told: Sequence[tuple[str, DayErrors]]) -> Markup:
    """One grouping, all models in one drawing."""
    title, x_label, note = _BY[by]
    series = [_line(name, errors.bias_by.get(by, []), i) for i, (name, errors) in enumerate(told)]
    series = [s for s in series if any(y is not None for y in s.y)]
    if not series:
        return Markup()
    count = max(len(s.x) for s in series)
    texts = WEEKDAYS if by == "weekday" else [str(i + 1) for i in range(count)]
    ticks = [(float(i + 1), text) for i, text in enumerate(texts[:count])]
    axes = Axes(x_label, "foretold minus came, s", y_range(series), zero=True, y_sign=True, x_ticks=ticks)
    said = "; ".join(_furthest(s, texts) for s in series)
    return panel(title, line_chart(series, axes, f"Bias, {title.lower()}", said, PANEL, named=True), note)


def _line(name: str, groups: Sequence[Interval | None], style: int) -> Series:
    x = [float(i + 1) for i in range(len(groups))]
    value, low, high = (
        [None if g is None else getattr(g, end) for g in groups] for end in ("value", "low", "high")
    )
    return Series(name, x, value, low, high, style)


def _furthest(series: Series, texts: Sequence[str]) -> str:
    known = [(abs(y), y, texts[i]) for i, y in enumerate(series.y) if y is not None]
    _, value, at = max(known)
    return f"{series.name}: furthest from 0 at {at}, {n.with_unit(n.number(value), 's')}"


def _constraint(c: Constraint) -> list[Child | Cell]:
    verdicts = [verdict_cell(ok, "holds", "does not hold") for ok in (c.holds, c.held)]
    return [_shown(c), n.number(c.bound), *verdicts]


def _session_sections(models: Sequence[SessionModel], names: Names) -> list[Markup]:
    rows = []
    for m in models:
        d = m.drop_off
        ranks = [n.fixed(value, 3) for value in (d.auc, d.pr_auc, d.calibration_error)]
        losses = [
            _shown(Interval(value=v, low=ends[0], high=ends[1]))
            for v, ends in ((d.brier, d.brier_interval), (d.log_loss, d.log_loss_interval))
        ]
        rows.append([names(m.label), *ranks, *losses])
    first = models[0].drop_off
    blind = [n.fixed(0.5, 3), n.fixed(first.share, 3), n.fixed(0.0, 3)]
    rows.append(
        ["the share for all", *blind, n.fixed(first.constant_brier, 4), n.fixed(first.constant_log_loss, 4)]
    )
    head = ["model", "AUC", "PR-AUC", "calibration error", "Brier score", "log loss"]
    within = n.with_unit(n.number(models[0].tau_s), "s")
    lead = f"A row is a session that has ended; {n.percent(first.share)} left their landing page within {within}."
    pages = [
        [
            names(m.label),
            Cell(label(p.page, shorten(p.page)), "word"),
            *map(n.number, (p.mean_s, p.mae_s, p.constant_mae_s, p.bias_s)),
        ]
        for m in models
        for p in m.pages
    ]
    columns = ["model", Cell("page", "text"), "mean, s", "MAE, s", "MAE of the mean, s", "bias, s"]
    return [
        section(
            "Drop-off of the landing page", lead, _calibration(models, names), table("Drop-offs", head, rows)
        ),
        section("Seconds on each page", None, table("Errors by page, over all sessions", columns, pages)),
    ]


def _calibration(models: Sequence[SessionModel], names: Names) -> Markup:
    """Share of sessions with a drop-off over the chance that was given."""
    lines = [
        Series(
            names.short(m.label),
            [100 * p for p, _, _ in m.drop_off.bins],
            [100 * s for _, s, _ in m.drop_off.bins],
            style=i,
        )
        for i, m in enumerate(models[:_TOGETHER])
    ]
    top = max((x for s in lines for x in s.x), default=100.0)
    series = [Series("calibrated", [0.0, top], [0.0, top], role="reference"), *lines]
    axes = Axes("chance given, mean of a bin, %", "share with a drop-off, %", y_range(series))
    said = "; ".join(
        f"{names.short(m.label)}: mean gap {n.percent(m.drop_off.calibration_error)}" for m in models
    )
    note = "Ten bins of the chance; dashed: what a calibrated chance would be."
    return wide_figure(
        "Calibration of the drop-off",
        responsive(
            lambda width: line_chart(series, axes, "Calibration of the drop-off", said, width, named=True)
        ),
        note,
    )


def _shown(interval: Interval) -> Markup:
    """The value, its interval below in small print."""
    value, ends = n.estimate(interval.value, interval.low, interval.high)
    return el("span", value, el("span", ends, class_="ci") if ends else None)
