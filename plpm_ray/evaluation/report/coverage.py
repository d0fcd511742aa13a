"""What the report says of a coverage run: off-policy estimators against the truth of a world."""

from __future__ import annotations

from collections.abc import Sequence

from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.layout import (
    Cell,
    Group,
    Names,
    Part,
    panel,
    panels,
    section,
    shorten,
    table,
    verdict_cell,
)
from plpm_ray.evaluation.report.markup import Child, Markup, el, label
from plpm_ray.evaluation.report.mini import DRAWN, mini_axis, mini_interval
from plpm_ray.evaluation.report.reading import Run
from plpm_ray.evaluation.report.records import CoverageRow, CoverageRun
from plpm_ray.evaluation.report.rows import Dot, Row, row_chart
from plpm_ray.evaluation.report.scales import extent


def coverage_part(run: Run) -> Part:
    """Off-policy estimators against the truth: where their estimates fall, and how often intervals hold it."""
    record: CoverageRun = run.record
    estimators = Names(r.estimator for r in record.rows)
    answered = [r for r in record.rows if r.answered]
    nominal = n.percent(record.nominal, 0)
    right = sum(r.ok is True for r in answered)
    judged = sum(r.ok is not None for r in answered)
    said = (
        f"The {nominal} intervals hold the true value as often as stated for {right} of "
        f"{n.plural(judged, 'combination')} of estimator and policy"
    )
    silent = len(record.rows) - len(answered)
    said += (
        f"; {silent} more {'is' if silent == 1 else 'are'} refused every time for lack of overlap."
        if silent
        else "."
    )
    policies = list(dict.fromkeys(r.value for r in record.rows))
    charts = [
        _truth_panel(policy, [r for r in record.rows if r.value == policy], estimators) for policy in policies
    ]
    note = (
        f"Point: mean of the estimates over {n.plural(record.repetitions, 'repetition')}; bar: the middle 95{n.SPACE}% that "
        "a normal distribution with their standard deviation would span; line: the true value."
    )
    return Part(
        "Off-policy estimators",
        el("span", "Estimators against the truth of ", label(record.world)),
        said if judged else "",
        [
            ("world", label(record.world)),
            ("repetitions", n.count(record.repetitions)),
            ("nominal coverage", nominal),
            ("seed", None if record.seed is None else str(record.seed)),
        ],
        [
            section("Estimates and truth", note, panels([c for c in charts if c])),
            section("Coverage", None, _coverage_table(record)),
        ],
    )


def _truth_panel(policy: str, rows: Sequence[CoverageRow], estimators: Names) -> Markup:
    truth = next((r.truth for r in rows if r.truth is not None), None)
    shown = []
    for r in rows:
        if r.mean is None or not r.answered:
            shown.append(Row(estimators.short(r.estimator), [], "refused"))
            continue
        half = 1.96 * r.sd if r.sd is not None else None
        ends = (None, None) if half is None else (r.mean - half, r.mean + half)
        mean = n.with_unit(n.fixed(r.mean, n.decimals_for(None, r.mean) + 1), r.unit)
        shown.append(Row(estimators.short(r.estimator), [Dot(r.mean, *ends, alarm=r.ok is False)], mean))
    if not any(row.dots for row in shown):
        return Markup()
    unit = rows[0].unit
    title = f"Estimates for {policy}"
    said = f"truth {n.with_unit(n.number(truth), unit)}; " + "; ".join(f"{r.name}: {r.note}" for r in shown)
    reference = None if truth is None else (truth, f"truth {n.with_unit(n.number(truth), unit)}")
    chart = row_chart(shown, f"policy value, {unit}" if unit else "policy value", title, said, reference)
    return panel(label(policy, shorten(policy)), chart)


def _coverage_table(record: CoverageRun) -> Markup:
    rates = [v for r in record.rows for v in (r.rate, r.rate_low, r.rate_high)]
    low, high = extent(rates, include=(record.nominal,), margin=0.08)
    low, high = max(low, 0.0), min(high, 1.0)
    axis = mini_axis(100 * low, 100 * high, 100 * record.nominal, unit=n.SPACE + "%")
    groups = [
        Group(
            [_policy(policy, record.rows), axis, *[""] * 6],
            [_coverage_row(r, low, high, record.nominal) for r in record.rows if r.value == policy],
        )
        for policy in dict.fromkeys(r.value for r in record.rows)
    ]
    header: list[Child] = [
        "policy and estimator",
        "covers",
        DRAWN,
        "95 % interval",
        Cell("verdict", "word"),
        "refused",
    ]
    header += ["mean", "bias", "sd"]
    caption = f"How often the {n.percent(record.nominal, 0)} intervals hold the true value"
    note = (
        "Refused: repetitions without an answer, for lack of overlap; they do not count. "
        "Sd: standard deviation of the estimates."
    )
    return table(caption, header, groups, "detail", note)


def _coverage_row(r: CoverageRow, low: float, high: float, nominal: float) -> list[Child | Cell]:
    asked = r.answered + r.refused
    decimals = n.decimals_for(None, r.truth or r.mean or 0.0)
    shown = (
        n.fixed(r.mean, decimals + 1),
        n.fixed(r.bias, decimals + 1, sign=True),
        n.fixed(r.sd, decimals + 1),
    )
    values = [n.with_unit(text, r.unit) for text in shown]
    refused = f"{n.count(r.refused)} of {n.count(asked)}"
    if not r.answered or r.rate is None:
        return [r.estimator, n.DASH, "", n.DASH, Cell("refused", "word"), refused, *values]
    interval = n.DASH
    if r.rate_low is not None and r.rate_high is not None:
        interval = n.between(100 * r.rate_low, 100 * r.rate_high, 1, "%")
    drawn = mini_interval(Dot(r.rate, r.rate_low, r.rate_high, alarm=r.ok is False), low, high, nominal)
    return [
        r.estimator,
        Cell(n.percent(r.rate), "bad" if r.ok is False else ""),
        Cell(drawn, "mini"),
        interval,
        verdict_cell(r.ok, "as stated", "not as stated"),
        refused,
        *values,
    ]


def _policy(policy: str, rows: Sequence[CoverageRow]) -> Markup:
    truth = next(
        (n.with_unit(n.number(r.truth), r.unit) for r in rows if r.value == policy and r.truth is not None),
        None,
    )
    return el(
        "span",
        el("strong", label(policy, shorten(policy))),
        el("span", f"truth {truth}", class_="sub") if truth else None,
    )
