"""The metrics of an experiment: relative change of every arm against the control, as KLAN tables 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence

from plpm_ray.evaluation.experiment_metrics import ADJUSTED_BY, SIGNIFICANCE
from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.layout import Cell, Group, folded, table
from plpm_ray.evaluation.report.markup import Child, Markup, el
from plpm_ray.evaluation.report.mini import DRAWN, mini_axis, mini_interval
from plpm_ray.evaluation.report.records import MetricRow
from plpm_ray.evaluation.report.rows import Dot
from plpm_ray.evaluation.report.scales import extent
from plpm_ray.evaluation.report.view import Experiment

_COLUMNS = 8
_MOST_OPEN = 70
_DIRECTION = {"higher": "higher is better", "lower": "lower is better", "neutral": "neither way is better"}


def verdict(row: MetricRow) -> str:
    """`better`, `worse`, `differs` (of a metric without good direction) where p < 0.05, else nothing."""
    if row.p_value is None or row.p_value >= SIGNIFICANCE or not row.difference:
        return ""
    if row.better == "neutral":
        return "differs"
    return "better" if (row.difference > 0) == (row.better == "higher") else "worse"


def doubtful(row: MetricRow) -> bool:
    """Whether p < 0.05 does not outlast the adjustment for the number of comparisons."""
    return row.p_adjusted is not None and row.p_adjusted >= SIGNIFICANCE and verdict(row) != ""


def compared(experiment: Experiment, pages: bool) -> list[MetricRow]:
    """Rows of the arms against the control, of metrics of single pages or of the app."""
    control = experiment.control
    return [m for m in experiment.record.metrics if m.arm != control and (m.page is not None) == pages]


def overview(experiment: Experiment) -> Markup:
    """Arms by metrics: the relative change in each cell."""
    rows = compared(experiment, pages=False)
    first = {m.metric: m for m in reversed(rows)}
    metrics = list(dict.fromkeys(m.metric for m in rows))
    by_cell = {(m.arm, m.metric): m for m in rows}
    control = experiment.names.short(experiment.control)
    tables = [
        table(
            f"Relative change against {control}, with 95 % intervals",
            ["arm", *(_column(first[key]) for key in metrics[start : start + _COLUMNS])],
            [
                [
                    experiment.arm(arm),
                    *(_matrix_cell(by_cell.get((arm, key))) for key in metrics[start : start + _COLUMNS]),
                ]
                for arm in experiment.treated
            ],
            "matrix",
        )
        for start in range(0, len(metrics), _COLUMNS)
    ]
    return (
        Markup("".join(tables) + el("p", _verdicts_note(experiment, rows), class_="note"))
        if rows
        else Markup()
    )


def detail(experiment: Experiment, pages: bool) -> Markup:
    """Every number of every metric: a group of rows per metric, with a small chart of the intervals."""
    rows = compared(experiment, pages)
    keys = list(dict.fromkeys(m.metric for m in rows))
    groups = [_group([m for m in rows if m.metric == key], experiment) for key in keys]
    gaps, cuts = (
        any(m.gap_share is not None for m in rows),
        any(m.variance_reduction is not None for m in rows),
    )
    header = ["metric and arm", "change", DRAWN, "95 % interval", "p‑value"]
    header += [*["share of the gap"] * gaps, "value", *["variance cut"] * cuts]
    groups = [_cut(g, len(header), gaps, cuts) for g in groups]
    subject = "by page " if pages else ""
    control = experiment.names.short(experiment.control)
    built = table(
        f"Metrics {subject}against {control}", header, groups, "detail", _legend(experiment, gaps, cuts)
    )
    if len(rows) > _MOST_OPEN:
        return folded(f"All {n.plural(len(rows), 'comparison')} {subject}in numbers", built)
    return built


def _cut(group: Group, columns: int, gaps: bool, cuts: bool) -> Group:
    """The group without the columns that no row fills."""
    kept = [True] * 5 + [gaps, True, cuts]
    rows = [[cell for cell, keep in zip(row, kept, strict=True) if keep] for row in group.rows]
    heading = group.heading
    assert isinstance(heading, list)
    return Group([heading[0], heading[1], *[""] * (columns - 3)], rows)


def _group(rows: Sequence[MetricRow], experiment: Experiment) -> Group:
    """Rows of one metric: name, change, drawing, interval, p, gap, value, variance cut."""
    first = rows[0]
    low, high = _range(rows, experiment)
    base = next((m.control for m in rows if m.control is not None), None)
    decimals = _decimals([base, *(m.value for m in rows)])
    by_arm = {m.arm: m for m in rows}
    body = [_row(by_arm[arm], experiment, low, high, decimals) for arm in experiment.treated if arm in by_arm]
    shown = n.with_unit(n.fixed(base, decimals), first.unit)
    below = f"{experiment.names.short(experiment.control)}: {shown}; {_DIRECTION[first.better]}"
    heading = el("span", el("strong", first.title), el("span", below, class_="sub"))
    return Group([heading, mini_axis(low * 100, high * 100, 0.0, sign=True, unit=n.SPACE + "%")], body)


def _row(m: MetricRow, experiment: Experiment, low: float, high: float, decimals: int) -> list[Child | Cell]:
    shown, interval = n.change(m.relative, m.low, m.high)
    dot = None if m.relative is None else Dot(m.relative, m.low, m.high, alarm=verdict(m) == "worse")
    return [
        experiment.arm(m.arm),
        Cell(_marked(shown, m), verdict(m)),
        Cell(mini_interval(dot, low, high, 0.0), "mini"),
        interval or n.DASH,
        n.p_value(m.p_value),
        _gap(m),
        n.with_unit(n.fixed(m.value, decimals), m.unit),
        n.percent(m.variance_reduction, 0),
    ]


def _gap(m: MetricRow) -> Child:
    shown = n.percent(m.gap_share, 0)
    if m.gap_low is None or m.gap_high is None:
        return shown
    return el("span", shown, el("span", n.between(m.gap_low * 100, m.gap_high * 100, 0, "%"), class_="ci"))


def _range(rows: Sequence[MetricRow], experiment: Experiment) -> tuple[float, float]:
    """Of the candidates; reference arms, often far off, widen it by half at most on either side."""

    def ends(chosen: Sequence[MetricRow]) -> tuple[float, float]:
        return extent([v for m in chosen for v in (m.relative, m.low, m.high)], include=(0.0,), margin=0.08)

    low, high = ends([m for m in rows if m.arm not in experiment.references] or rows)
    full_low, full_high = ends(rows)
    return max(full_low, low - (high - low) / 2), min(full_high, high + (high - low) / 2)


def _decimals(values: Sequence[float | None]) -> int:
    """Decimals that show four digits of the smallest value."""
    known = [abs(v) for v in values if v]
    return min(5, n.decimals_for(None, min(known)) + 1) if known and min(known) < 1000 else 0


def _matrix_cell(m: MetricRow | None) -> Cell:
    if m is None:
        return Cell(n.DASH)
    shown, interval = n.change(m.relative, m.low, m.high)
    return Cell([_marked(shown, m), el("span", interval, class_="ci") if interval else None], verdict(m))


def _marked(shown: str, m: MetricRow) -> Markup:
    """The change with its verdict in words."""
    word = verdict(m)
    if not word:
        return el("span", shown)
    return el("span", el("strong", shown, "†" if doubtful(m) else ""), " ", el("span", word, class_="tag"))


def _verdicts_note(experiment: Experiment, rows: Sequence[MetricRow]) -> str:
    said = f"“better” and “worse” stand at p{n.SPACE}<{n.SPACE}0.05."
    tested = [m for m in rows if m.p_value is not None and m.arm not in experiment.references]
    if len(tested) < 2:
        return said
    chance = n.fixed(len(tested) * SIGNIFICANCE, 1)
    said += f" Of {len(tested)} comparisons, {chance} would be expected there if no arm differed"
    if all(m.p_adjusted is None for m in rows):
        return said + "."
    whose = ADJUSTED_BY.get(experiment.record.adjustment, experiment.record.adjustment)
    return said + f"; † marks those that do not outlast {whose}’s adjustment for the number of comparisons."


def _legend(experiment: Experiment, gaps: bool, cuts: bool) -> str:
    twins = experiment.record.design == "twins"
    source = "the pairing of users" if twins else "the AA days"
    parts = (
        []
        if twins or not experiment.record.aa_days
        else ["Values are adjusted for what the arm’s users did in the AA days."]
    )
    if gaps:
        parts.append(f"Share of the gap: 0{n.SPACE}% is the random policy, 100{n.SPACE}% the oracle.")
    if cuts:
        parts.append(f"Variance cut: by how much {source} lowered the variance of the difference.")
    return " ".join([*parts, "Arrow heads mark what reaches beyond the axis."])


def _column(m: MetricRow) -> Markup:
    return el("span", m.title, el("span", _DIRECTION[m.better], class_="sub"))
