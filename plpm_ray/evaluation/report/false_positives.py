"""What the report says of an A/A run: how often the statistics see a difference where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.layout import Cell, Group, Part, alert, section, table, verdict_cell
from plpm_ray.evaluation.report.markup import Markup, el, label
from plpm_ray.evaluation.report.mini import DRAWN, mini_axis, mini_interval
from plpm_ray.evaluation.report.reading import Run
from plpm_ray.evaluation.report.records import AARow
from plpm_ray.evaluation.report.rows import Dot
from plpm_ray.evaluation.report.scales import extent


def aa_part(run: Run) -> Part:
    """How often each metric is found significant where nothing differs."""
    record = run.record
    tested = [r for r in record.rows if r.ok is not None]
    right = sum(r.ok for r in tested)
    level = n.percent(record.level, 0)
    called = f"{n.plural(len(tested), 'metric')} {'is' if right == 1 else 'are'} called significant"
    said = f"Where no arm differs, {right} of {called} about as often as the {level} that a right test allows"
    if record.family_ok is not None:
        joint = "stay" if record.family_ok else "do not stay"
        said += f"; all together they {joint} within what chance explains"
    return Part(
        "A/A experiments",
        el("span", "False positives on ", label(record.world)),
        said + "." if tested else "",
        [
            ("world", label(record.world)),
            ("experiments", n.count(record.experiments)),
            ("users", f"{n.count(record.users)} each"),
            ("level", level),
            ("seed", None if record.seed is None else str(record.seed)),
        ],
        [section("False-positive rates", None, _aa_table(record.rows, record.level))],
        [] if record.family_ok is not False else [_failed()],
    )


def _failed() -> Markup:
    return alert(
        "The false-positive rates are not explained by chance",
        "A test that finds differences where there are none, or too few of them, makes p-values and intervals of "
        "experiments on this world unreliable for the metrics marked below.",
    )


def _aa_table(rows: Sequence[AARow], level: float) -> Markup:
    ends = [v for r in rows for v in (r.rate, r.expected_low, r.expected_high, r.family_low, r.family_high)]
    low, high = extent(ends, include=(0.0, level), margin=0.08)
    axis = mini_axis(100 * low, 100 * high, 100 * level, unit=n.SPACE + "%")
    header = ["metric", "false positives", DRAWN, "expected", Cell("verdict", "word"), "rejections"]
    body = []
    for r in rows:
        expected = n.DASH
        if r.expected_low is not None and r.expected_high is not None:
            expected = n.between(100 * r.expected_low, 100 * r.expected_high, 1, "%")
        drawn = Markup()
        if r.rate is not None and r.expected_low is not None and r.expected_high is not None:
            drawn = mini_interval(
                Dot(r.rate, alarm=r.ok is False), low, high, level, (r.expected_low, r.expected_high)
            )
        verdict = verdict_cell(r.ok, "as it should", "too rare" if (r.rate or 0) < level else "too often")
        if r.ok is False and r.family_ok:
            verdict = Cell(el("span", "(✓) by chance, given their number", class_="good"), "word")
        rejections = f"{n.count(r.rejections)} of {n.count(r.experiments)}"
        body.append([r.title, n.percent(r.rate), Cell(drawn, "mini"), expected, verdict, rejections])
    note = (
        f"Expected (grey): where the rate of a right test lies with 95{n.SPACE}% probability, one metric on its own; "
        "a metric a little outside is explained by chance where the wider range for all metrics together still holds it."
    )
    caption = f"Share of A/A experiments with p{n.SPACE}<{n.SPACE}{level:g}"
    heading = ["all metrics", axis, "", "", ""]
    return table(caption, header, [Group(heading, body)], "detail", note)
