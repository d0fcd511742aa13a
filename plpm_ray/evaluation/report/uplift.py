"""What the report says of uplift runs: Qini curves and the metrics with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.layout import (
    Cell,
    Group,
    Names,
    Part,
    folded,
    panel,
    panels,
    section,
    shorten,
    sub,
    table,
    wide_figure,
)
from plpm_ray.evaluation.report.lines import PANEL, Axes, Series, line_chart, responsive, y_range
from plpm_ray.evaluation.report.markup import Child, Markup, el, label
from plpm_ray.evaluation.report.mini import DRAWN, mini_axis, mini_interval
from plpm_ray.evaluation.report.reading import Run
from plpm_ray.evaluation.report.records import QiniCurve, UpliftRow, UpliftRun
from plpm_ray.evaluation.report.rows import Dot
from plpm_ray.evaluation.report.scales import extent
from plpm_ray.evaluation.uplift_text import title

_TOGETHER, _POINTS, _MOST_OPEN = 4, 120, 60
_HEADLINE_METRICS = ("policy_gain", "qini")
_MAIN_METRICS = ("qini", "auuc", "policy_value", "policy_gain")
_TRUTH = "true effects"  # what a simulated trial knows, and no model can


def uplift_part(run: Run) -> Part:
    """Sections of an uplift run."""
    record: UpliftRun = run.record
    models = Names([*record.models, *(r.model for r in record.rows), *(c.model for c in record.curves)])
    note = (
        "Users are treated in the order of their predicted uplift, highest first; the further a curve bends above the dashed "
        "line of a random order, the better the order."
    )
    return Part(
        "Uplift",
        el("span", n.plural(len(record.models), "model"), " on ", label(record.data)),
        _headline(record, models),
        [
            ("data", label(record.data)),
            ("users", n.count(record.users)),
            ("models", ", ".join(models.short(m) for m in record.models)),
            ("seed", None if record.seed is None else str(record.seed)),
        ],
        [
            section("Qini curves", note, *_curves(record, models)),
            section("Metrics", None, *_tables(record, models)),
        ],
    )


def _headline(record: UpliftRun, models: Names) -> Child:
    """The best model by the gain of following it, or by the first metric."""
    known = [r for r in record.rows if r.value is not None and r.model != _TRUTH]
    metric = next(
        (m for m in _HEADLINE_METRICS if any(r.metric == m for r in known)),
        known[0].metric if known else None,
    )
    rows = [r for r in known if r.metric == metric]
    if metric is None or not rows:
        return ""
    best = max(rows, key=lambda r: r.value or 0.0)
    shown, interval = n.estimate(best.value, best.low, best.high)
    arm = f" (arm {shorten(best.arm)})" if best.arm else ""
    inside = f" (95{n.SPACE}% interval {interval})" if interval else ""
    unit = best.unit if best.unit != "-" else ""
    return el(
        "span",
        f"The highest {title(metric)}{arm} is that of ",
        models(best.model),
        f": {n.with_unit(shown, unit)}{inside}.",
    )


def _curves(record: UpliftRun, models: Names) -> list[Markup]:
    """One figure per arm; where models are many, a panel per model instead, the others behind it in grey."""
    arms = list(dict.fromkeys(c.arm for c in record.curves))
    by_arm = {arm: [c for c in record.curves if c.arm == arm] for arm in arms}
    unit = f"gain, {record.unit}" if record.unit else "gain"
    if max(map(len, by_arm.values()), default=0) > _TOGETHER:
        return [part for arm in arms for part in (sub(_heading(arm)), _apart(arm, by_arm[arm], models, unit))]
    if len(arms) == 1:
        chart = responsive(lambda width: _together(arms[0], by_arm[arms[0]], models, unit, width))
        return [wide_figure(_heading(arms[0]), chart)]
    return [panels([panel(_heading(arm), _together(arm, by_arm[arm], models, unit, PANEL)) for arm in arms])]


def _heading(arm: str | None) -> Markup:
    return el("span", "arm ", label(arm, shorten(arm))) if arm else el("span", "all arms")


def _together(arm: str | None, curves: Sequence[QiniCurve], models: Names, unit: str, width: int) -> Markup:
    """All models of an arm in one drawing; the band only where there is one model."""
    lines = [
        *_by_chance(curves),
        *(_line(c, models, i, banded=len(curves) == 1) for i, c in enumerate(curves)),
    ]
    axes = Axes("share of users treated, %", unit, y_range(lines), zero=True)
    said = "; ".join(_top(c, models, unit) for c in curves)
    return line_chart(lines, axes, f"Qini curves, {arm or 'all arms'}", said, width, named=True)


def _apart(arm: str | None, curves: Sequence[QiniCurve], models: Names, unit: str) -> Markup:
    """A panel per model on one scale, with its band."""
    limits = y_range([*_by_chance(curves), *(_line(c, models, 0, banded=True) for c in curves)])
    axes = Axes("share of users treated, %", unit, limits, zero=True)
    charts = []
    for curve in curves:
        others = [_line(c, models, 0, context=True) for c in curves if c is not curve]
        lines = [*others, *_by_chance(curves), _line(curve, models, 0, banded=True)]
        name = f"Qini curve of {models.short(curve.model)}, {arm or 'all arms'}"
        charts.append(
            panel(
                models(curve.model),
                line_chart(lines, axes, name, _top(curve, models, unit)),
                "grey: other models",
            )
        )
    return panels(charts)


def _line(c: QiniCurve, models: Names, style: int, context: bool = False, banded: bool = False) -> Series:
    x, y = _thinned(c.share, c.qini)
    low, high = (_thinned(c.share, line)[1] if line and banded else None for line in (c.low, c.high))
    return Series(models.short(c.model), x, y, low, high, style, "context" if context else "line")


def _by_chance(curves: Sequence[QiniCurve]) -> list[Series]:
    first = next((c for c in curves if c.random), None)
    if first is None:
        return []
    x, y = _thinned(first.share, first.random)
    return [Series("random order", x, y, role="reference")]


def _thinned(
    share: Sequence[float], values: Sequence[float | None]
) -> tuple[list[float], list[float | None]]:
    """Percentages and values of at most _POINTS points, the last one kept."""
    step = max(1, -(-len(share) // _POINTS))
    kept = sorted({*range(0, len(share), step), len(share) - 1}) if share else []
    return [100 * share[i] for i in kept], [values[i] for i in kept]


def _top(c: QiniCurve, models: Names, unit: str) -> str:
    known = [(v, s) for v, s in zip(c.qini, c.share, strict=True) if v is not None]
    if not known:
        return f"{models.short(c.model)}: no curve"
    top, at = max(known)
    return f"{models.short(c.model)}: highest {unit} is {n.number(top)}, with {n.percent(at, 0)} of users treated"


def _tables(record: UpliftRun, models: Names) -> list[Markup]:
    """The main metrics, then the others, the differences to the first model, and what one arm for everybody gives."""
    main = [r for r in record.rows if r.metric in _MAIN_METRICS]
    further = [r for r in record.rows if r.metric not in _MAIN_METRICS]
    tables = [
        table("Uplift metrics by model", _header("model"), _groups(main, models), "detail"),
        _long("Further metrics by model", further, models),
    ]
    if record.models:
        tables.append(_long(f"Differences to {models.short(record.models[0])}", record.differences, models))
    alone = [
        _group([r for r in record.references if r.metric == m], models, None, by_arm=True)
        for m in _metrics(record.references)
    ]
    return [*tables, table("One arm for everybody", _header("arm"), alone, "detail")]


def _header(thing: str) -> list[Child]:
    return [f"metric and {thing}", "value", DRAWN, "95 % interval"]


def _long(caption: str, rows: Sequence[UpliftRow], models: Names) -> Markup:
    """A table, folded where it is long."""
    built = table(caption, _header("model"), _groups(rows, models), "detail")
    return folded(caption, built) if len(rows) > _MOST_OPEN else built


def _metrics(rows: Sequence[UpliftRow]) -> list[str]:
    return list(dict.fromkeys(r.metric for r in rows))


def _groups(rows: Sequence[UpliftRow], models: Names) -> list[Group]:
    """A group per metric and arm, one row per model."""
    pairs = sorted(
        dict.fromkeys((r.metric, r.arm) for r in rows), key=lambda pair: _metrics(rows).index(pair[0])
    )
    return [_group([r for r in rows if (r.metric, r.arm) == pair], models, pair[1]) for pair in pairs]


def _group(rows: Sequence[UpliftRow], models: Names, arm: str | None, by_arm: bool = False) -> Group:
    low, high = extent([v for r in rows for v in (r.value, r.low, r.high)], include=(0.0,), margin=0.08)
    about = [] if by_arm else [f"arm {shorten(arm)}" if arm else "all arms"]
    below = ", ".join(part for part in (*about, rows[0].unit) if part)
    heading = el("span", el("strong", title(rows[0].metric)), el("span", below, class_="sub"))
    body = [_row(r, label(r.arm or "all arms") if by_arm else models(r.model), low, high) for r in rows]
    return Group([heading, mini_axis(low, high, 0.0), ""], body)


def _row(r: UpliftRow, name: Markup, low: float, high: float) -> list[Child | Cell]:
    """The unit stands in the heading of the group where it is long."""
    shown, interval = n.estimate(r.value, r.low, r.high)
    unit = r.unit if len(r.unit) <= 3 else ""
    dot = None if r.value is None else Dot(r.value, r.low, r.high)
    return [
        name,
        n.with_unit(shown, unit),
        Cell(mini_interval(dot, low, high, 0.0), "mini"),
        interval or n.DASH,
    ]
