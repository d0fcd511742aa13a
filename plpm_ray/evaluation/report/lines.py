"""Line charts: one panel with axes, bands, a border between periods, and names at the ends of the lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from plpm_ray.evaluation.report import svg
from plpm_ray.evaluation.report.markup import Markup, el
from plpm_ray.evaluation.report.scales import Scale, extent, tick_labels

PANEL, WIDE = 340, 700
Role = Literal["line", "context", "reference"]


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: written at its end where lines are named.
        x, y: the points; a y of None leaves a gap.
        low, high: ends of the band around it, as long as y.
        style: which colour, dash and mark.
        role: "context" lines are thin, grey and without name; "reference" ones are dashed and neutral.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    style: int = 0
    role: Role = "line"


@dataclass(frozen=True)
class Axes:
    """What the lines are drawn on.

    Attributes:
        x_label, y_label: with units.
        y_range: shared by panels that are to be compared; from the data where None.
        y_sign: ticks carry their sign.
        zero: draw the line at 0.
        border: an x between two periods, with the names of what is left and right of it.
        x_ticks: positions and texts; round numbers where None.
    """

    x_label: str
    y_label: str
    y_range: tuple[float, float] | None = None
    y_sign: bool = False
    zero: bool = False
    border: tuple[float, str, str] | None = None
    x_ticks: Sequence[tuple[float, str]] | None = None


@dataclass(frozen=True)
class _Frame:
    x: Scale
    y: Scale
    left: float
    right: float
    top: float
    bottom: float
    height: float


def responsive(draw: Callable[[int], Markup]) -> Markup:
    """The drawing twice, for narrow and for wide windows; the style sheet shows one of them."""
    return el("div", el("div", draw(PANEL), class_="narrow"), el("div", draw(WIDE), class_="wide"))


def line_chart(
    series: Sequence[Series],
    axes: Axes,
    title: str,
    description: str,
    width: int = PANEL,
    named: bool = False,
) -> Markup:
    """A panel with the lines.

    Args:
        series: drawn in this order, those with the role "context" below the others.
        title, description: for those who cannot see it.
        width: PANEL or WIDE, in pixels at a scale of one.
        named: write the names at the ends of the lines.
    """
    shown = [s for s in series if s.role != "context"]
    frame = _frame(series, axes, width, _name_width(shown, width) if named else 8.0)
    content: list[Markup] = [*_axes(frame, axes, width)]
    content += [svg.path(_points(s, frame), "context") for s in series if s.role == "context"]
    content += [_band(s, frame) for s in shown if s.low is not None and s.high is not None]
    for s in shown:
        content += _drawn(s, frame)
    if named:
        content += _names(shown, frame, width)
    return svg.drawing(width, frame.height, title, description, *content)


def y_range(series: Sequence[Series], zero: bool = True) -> tuple[float, float]:
    """One range of y for several panels, bands included."""
    values = [v for s in series for side in (s.y, s.low or (), s.high or ()) for v in side]
    return extent(values, include=(0.0,) if zero else ())


def _frame(series: Sequence[Series], axes: Axes, width: int, right: float) -> _Frame:
    low, high = axes.y_range or y_range(series, axes.zero)
    height = 210 if width == PANEL else 300
    texts = [t for _, t in tick_labels(low, high, 4 if width == PANEL else 5, axes.y_sign)]
    left = max((svg.text_width(t, svg.SMALL) for t in texts), default=20) + 9
    top, bottom = (38.0 if axes.border else 24.0), height - 34.0
    xs = [x for s in series for x in s.x]
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    return _Frame(
        Scale(x_low, x_high, left, width - right),
        Scale(low, high, bottom, top),
        left,
        width - right,
        top,
        bottom,
        height,
    )


def _axes(frame: _Frame, axes: Axes, width: int) -> list[Markup]:
    about = 4 if width == PANEL else 5
    content = [svg.write(0, 12, svg.fitted(axes.y_label, width, svg.SMALL), class_="axis")]
    if axes.border is not None:
        content += _border(frame, *axes.border)
    for value, label in tick_labels(frame.y.low, frame.y.high, about, axes.y_sign):
        y = frame.y(value)
        content.append(
            svg.line(frame.left, y, frame.right, y, "zero" if axes.zero and value == 0 else "grid")
        )
        content.append(svg.write(frame.left - 5, y + 3.7, label, "end", "axis"))
    x_ticks = axes.x_ticks
    if x_ticks is None:
        x_ticks = tick_labels(frame.x.low, frame.x.high, 5 if width == PANEL else 10)
    for value, label in x_ticks:
        x = frame.x(value)
        content.append(svg.line(x, frame.bottom, x, frame.bottom + 4, "tick"))
        half = svg.text_width(label, svg.SMALL) / 2
        content.append(svg.write(min(max(x, half), width - half), frame.bottom + 16, label, "middle", "axis"))
    content.append(svg.line(frame.left, frame.bottom, frame.right, frame.bottom, "tick"))
    x_label = svg.fitted(axes.x_label, frame.right - frame.left, svg.SMALL)
    return [*content, svg.write((frame.left + frame.right) / 2, frame.bottom + 31, x_label, "middle", "axis")]


def _border(frame: _Frame, at: float, before: str, after: str) -> list[Markup]:
    x = frame.x.inside(at)
    height = frame.bottom - frame.top
    names = [svg.write(x + 5, frame.top - 5, after, class_="period")]
    fitting = next(
        (text for text in (before, before.split()[0]) if x > svg.text_width(text, svg.SMALL) + 6), None
    )
    if fitting is not None:
        names.append(svg.write(x - 5, frame.top - 5, fitting, "end", "period"))
    return [
        el("rect", x=frame.left, y=frame.top, width=x - frame.left, height=height, class_="before"),
        svg.line(x, frame.top - 14, x, frame.bottom, "border"),
        *names,
    ]


def _points(s: Series, frame: _Frame) -> list[tuple[float, float] | None]:
    return [None if y is None else (frame.x(x), frame.y.inside(y)) for x, y in zip(s.x, s.y, strict=True)]


def _band(s: Series, frame: _Frame) -> Markup:
    assert s.low is not None and s.high is not None
    rows = [
        (x, low, high)
        for x, low, high in zip(s.x, s.low, s.high, strict=True)
        if low is not None and high is not None
    ]
    upper = [(frame.x(x), frame.y.inside(high)) for x, _, high in rows]
    lower = [(frame.x(x), frame.y.inside(low)) for x, low, _ in rows]
    return svg.area(upper, lower, f"band f{s.style % 6}")


def _drawn(s: Series, frame: _Frame) -> list[Markup]:
    points = _points(s, frame)
    if s.role == "reference":
        return [svg.path(points, "reference", "5 4")]
    content = [svg.path(points, f"s{s.style % 6}", svg.DASHES[s.style % len(svg.DASHES)])]
    every = max(1, round(len(points) / 7))
    start = (s.style * every // 3) % every if every > 1 else 0
    marked = [p for p in points[start::every] if p is not None]
    kind = svg.MARKS[s.style % len(svg.MARKS)]
    return content + [svg.mark(kind, x, y, f"mark f{s.style % 6}", 3.2) for x, y in marked]


def _name_width(series: Sequence[Series], width: int) -> float:
    widest = max((svg.text_width(s.name) for s in series), default=0.0)
    return min(widest, width * 0.27) + 24


def _names(series: Sequence[Series], frame: _Frame, width: int) -> list[Markup]:
    """Names to the right of the lines' ends, moved apart where they would touch."""
    ends = []
    for s in series:
        last = next((y for y in reversed(s.y) if y is not None), None)
        if last is not None:
            known = [y for y in s.y if y is not None]
            ends.append((frame.y.inside(last), frame.y.inside(sum(known) / len(known)), s))
    # lines that end together are named in the order in which they run
    ends.sort(key=lambda end: (round(end[0] / 6), end[1]))
    places = spread([y for y, _, _ in ends], 15.0, frame.top - 4, frame.bottom + 4)
    content = []
    for (y, _, s), place in zip(ends, places, strict=True):
        x = frame.right
        content.append(svg.line(x + 2, y, x + 9, place, "leader"))
        if s.role == "line":
            content.append(
                svg.mark(svg.MARKS[s.style % len(svg.MARKS)], x + 13, place, f"mark f{s.style % 6}", 3.2)
            )
        name = svg.fitted(s.name, width - x - 20)
        content.append(svg.write(x + 20, place + 4, name, class_="name", full=s.name))
    return content


def spread(places: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Places in ascending order, moved as little as it takes to stand `apart` and between `low` and `high`."""
    moved = list(places)
    if not moved:
        return moved
    for _ in range(60):
        shift = 0.0
        for i in range(len(moved) - 1):
            overlap = apart - (moved[i + 1] - moved[i])
            if overlap > 1e-6:
                moved[i] -= overlap / 2
                moved[i + 1] += overlap / 2
                shift = max(shift, overlap)
        if moved[0] < low:
            moved[0] = low
        if moved[-1] > high:
            moved[-1] = high
        if shift < 0.1:
            break
    return moved
