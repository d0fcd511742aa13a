"""Charts with one row per thing: values with intervals, and before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plpm_ray.evaluation.report import svg
from plpm_ray.evaluation.report.lines import PANEL
from plpm_ray.evaluation.report.markup import Markup
from plpm_ray.evaluation.report.scales import Scale, extent, tick_labels

_ROW = 24.0


@dataclass(frozen=True)
class Dot:
    """A value on a row, with its interval if it has one; `open_` draws it hollow (what was before)."""

    value: float
    low: float | None = None
    high: float | None = None
    open_: bool = False
    alarm: bool = False


@dataclass(frozen=True)
class Row:
    """A named row, its points, and the text at its right end."""

    name: str
    dots: Sequence[Dot]
    note: str = ""


def row_chart(
    rows: Sequence[Row],
    x_label: str,
    title: str,
    description: str,
    reference: tuple[float, str] | None = None,
    x_range: tuple[float, float] | None = None,
    join: bool = False,
) -> Markup:
    """A panel with one line of points per row.

    Args:
        rows: from top to bottom.
        x_label: with unit.
        reference: an x with its name, drawn as a line through all rows.
        x_range: shared by panels that are to be compared; from the data where None.
        join: connect the points of a row.
    """
    low, high = x_range or row_range(rows, () if reference is None else (reference[0],))
    left = min(max((svg.text_width(r.name) for r in rows), default=0.0), PANEL * 0.33) + 8
    right = max((svg.text_width(r.note, svg.SMALL) for r in rows), default=0.0) + 10
    top = 20.0 if reference is not None else 6.0
    bottom = top + _ROW * len(rows)
    x = Scale(low, high, left + 4, PANEL - right - 4)
    content: list[Markup | list[Markup]] = [_grid(x, top, bottom)]
    if reference is not None:
        content += _reference(x, reference, top, bottom)
    for index, row in enumerate(rows):
        y = top + _ROW * (index + 0.5)
        content.append(svg.write(0, y + 4, svg.fitted(row.name, left - 6), class_="name", full=row.name))
        content += draw_dots(row.dots, x, y, join)
        content.append(svg.write(PANEL - 1, y + 3.7, row.note, "end", "note"))
    content.append(svg.write((x.start + x.end) / 2, bottom + 31, _centred(x_label, x), "middle", "axis"))
    return svg.drawing(PANEL, bottom + 36, title, description, *content)


def row_range(rows: Sequence[Row], include: Sequence[float] = (), least: float = 0.0) -> tuple[float, float]:
    """The range of x of some rows, at least `least` times its middle wide, so that small differences look small."""
    low, high = extent(
        [v for row in rows for d in row.dots for v in (d.value, d.low, d.high)], include, margin=0.08
    )
    middle, half = (low + high) / 2, max(high - low, least * abs(low + high) / 2) / 2
    return middle - half, middle + half


def _centred(label: str, x: Scale) -> str:
    middle = (x.start + x.end) / 2
    return svg.fitted(label, 2 * min(middle, PANEL - middle), svg.SMALL)


def _grid(x: Scale, top: float, bottom: float) -> list[Markup]:
    content = []
    for value, label in fitting_ticks(x.low, x.high, x.end - x.start):
        content.append(svg.line(x(value), top, x(value), bottom, "grid"))
        content.append(svg.write(x(value), bottom + 15, label, "middle", "axis"))
    return content


def fitting_ticks(low: float, high: float, room: float, sign: bool = False) -> list[tuple[float, str]]:
    """As many round ticks, up to six, as have room for their texts beside one another."""
    for about in (6, 5, 4, 3, 2):
        found = tick_labels(low, high, about, sign)
        steps = max(len(found) - 1, 1)
        apart = room * (found[-1][0] - found[0][0]) / (high - low) / steps if len(found) > 1 else room
        if found and max(svg.text_width(text, svg.SMALL) for _, text in found) + 5 < apart:
            return found
    return tick_labels(low, high, 1, sign)


def _reference(x: Scale, reference: tuple[float, str], top: float, bottom: float) -> list[Markup]:
    at, name = reference
    place = x.inside(at)
    half = svg.text_width(name, svg.SMALL) / 2
    middle = min(max(place, half), PANEL - half)
    return [
        svg.line(place, top - 6, place, bottom, "reference-line"),
        svg.write(middle, top - 9, name, "middle", "axis"),
    ]


def draw_dots(dots: Sequence[Dot], x: Scale, y: float, join: bool) -> list[Markup]:
    content = []
    if join and len(dots) > 1:
        content.append(svg.line(x.inside(dots[0].value), y, x.inside(dots[-1].value), y, "joint"))
    for dot in dots:
        colour = "alarm" if dot.alarm else "accent"
        if dot.low is not None and dot.high is not None:
            content.append(svg.line(x.inside(dot.low), y, x.inside(dot.high), y, f"whisker {colour}"))
        shape = "diamond" if dot.alarm else "circle"
        fill = f"open {colour}" if dot.open_ else f"full {colour}"
        content.append(svg.mark(shape, x.inside(dot.value), y, fill, 4.2))
    return content
