"""Drawings small enough for the cells of a table; the numbers stand beside them as text."""

from __future__ import annotations

from plpm_ray.evaluation.report import svg
from plpm_ray.evaluation.report.markup import Markup, el
from plpm_ray.evaluation.report.rows import Dot, draw_dots, fitting_ticks
from plpm_ray.evaluation.report.scales import Scale

MINI = 152
_START, _END = 5.0, MINI - 22.0  # room for the unit behind the last number of an axis
DRAWN = el("span", "interval, drawn", class_="unseen")


def mini_axis(
    low: float, high: float, zero: float | None = None, sign: bool = False, unit: str = ""
) -> Markup:
    """The axis that stands above a column of `mini_interval`s of the same range."""
    x = Scale(low, high, _START, _END)
    content = []
    shown = fitting_ticks(low, high, _END - _START, sign)
    for value, tick in shown:
        half = svg.text_width(tick, svg.SMALL) / 2
        named = tick + (unit if value == shown[-1][0] else "")
        left = min(max(x(value) - half, 0.0), MINI - svg.text_width(named, svg.SMALL))
        content.append(svg.write(left, 11, named, class_="axis"))
        content.append(svg.line(x(value), 15, x(value), 20, "tick"))
    if zero is not None and low <= zero <= high:
        content.append(svg.line(x(zero), 15, x(zero), 20, "zero"))
    return svg.ornament(MINI, 20, content)


def mini_interval(
    dot: Dot | None,
    low: float,
    high: float,
    zero: float | None = None,
    expected: tuple[float, float] | None = None,
) -> Markup:
    """A point and its interval for a table cell; an arrow head marks an end beyond the range.

    Args:
        dot: the value; an empty cell with the line at `zero` where None.
        zero: where no difference is.
        expected: a range to be in, drawn as a grey bar.
    """
    x = Scale(low, high, _START, _END)
    content = []
    if expected is not None:
        start, end = x.inside(expected[0]), x.inside(expected[1])
        content.append(el("rect", x=start, y=2, width=max(end - start, 1.0), height=18, class_="expected"))
    if zero is not None and low <= zero <= high:
        content.append(svg.line(x(zero), 0, x(zero), 22, "zero"))
    if dot is not None:
        if low <= dot.value <= high:
            content += draw_dots([dot], x, 11, join=False)
        if (dot.value if dot.low is None else dot.low) < low:
            content.append(_arrow(0, -1, dot.alarm))
        if (dot.value if dot.high is None else dot.high) > high:
            content.append(_arrow(MINI, 1, dot.alarm))
    return svg.ornament(MINI, 22, content)


def _arrow(tip: float, direction: int, alarm: bool) -> Markup:
    base = tip - direction * 7
    points = f"{tip:g},11 {base:g},6.5 {base:g},15.5"
    return el("polygon", points=points, class_="full alarm" if alarm else "full accent")
