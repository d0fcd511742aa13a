"""Drawing in SVG: text that stays text and knows its width, marks that differ by shape, lines that differ by dash."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from plpm_ray.evaluation.report.markup import Markup, el, plain

FONT = 11.5
SMALL = 10.5
# widths in hundredths of the font size, of a wide sans serif: a narrower one leaves space, a wider one is rare
_WIDTHS = {1: "ijlI'|", 2: " \u00a0.,:;!()[]/\\tfrJ-", 4: "mMW@%w"}
_WIDTH_OF = {c: {1: 0.30, 2: 0.42, 4: 0.98}[k] for k, letters in _WIDTHS.items() for c in letters}
MARKS = ("circle", "square", "triangle", "diamond", "plus", "star")
DASHES = (None, "7 3", "2 3", "9 3 2 3", "4 2", "12 4")


def text_width(value: str, size: float = FONT) -> float:
    """Width of a line of text, estimated on the wide side."""
    return size * sum(_letter(c) for c in value)


def _letter(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.1
    return _WIDTH_OF.get(letter, 0.79 if letter.isupper() else 0.64)


def fitted(value: str, width: float, size: float = FONT) -> str:
    """The text; where it is wider than `width` it loses its middle, as names often differ at their ends."""
    value = plain(value)
    if text_width(value, size) <= width:
        return value
    for kept in range(len(value) - 1, 0, -1):
        tail = kept // 3
        cut = f"{value[: kept - tail].rstrip()}…{value[len(value) - tail :].lstrip()}"
        if text_width(cut, size) <= width:
            return cut
    return "…"


def drawing(
    width: float, height: float, title: str, description: str, *content: object, class_: str = "chart"
) -> Markup:
    """An image with a name and a description for those who do not see it."""
    return el(
        "svg",
        el("title", title),
        el("desc", description),
        *content,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        class_=class_,
        width=width,
        height=height,
    )


def ornament(width: float, height: float, *content: object, class_: str = "mini") -> Markup:
    """A drawing of numbers that stand beside it as text; not read aloud."""
    return el(
        "svg",
        *content,
        viewBox=f"0 0 {width:g} {height:g}",
        aria_hidden="true",
        class_=class_,
        width=width,
        height=height,
    )


def write(
    x: float, y: float, value: str, anchor: str = "start", class_: str | None = None, full: str | None = None
) -> Markup:
    """A line of text; `full` is shown when pointed at."""
    inner = [el("title", full)] if full is not None and full != value else []
    return el(
        "text", *inner, value, x=x, y=y, text_anchor=anchor if anchor != "start" else None, class_=class_
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[float, float] | None], class_: str, dash: str | None = None) -> Markup:
    """A line through the points; None leaves a gap."""
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    return el("path", d="".join(parts), class_=f"line {class_}", stroke_dasharray=dash)


def area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], class_: str) -> Markup:
    """The band between two lines."""
    points = [*upper, *reversed(lower)]
    return el("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def mark(kind: str, x: float, y: float, class_: str, size: float = 4.0, title: str | None = None) -> Markup:
    """A point of one of MARKS, about `size` to each side."""
    inner = el("title", title) if title else None
    if kind == "circle":
        return el("circle", inner, cx=x, cy=y, r=size, class_=class_)
    if kind == "square":
        return el(
            "rect",
            inner,
            x=x - size * 0.9,
            y=y - size * 0.9,
            width=size * 1.8,
            height=size * 1.8,
            class_=class_,
        )
    shapes = {
        "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        "diamond": [(0, -1.3), (1.1, 0), (0, 1.3), (-1.1, 0)],
        "plus": [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2)]
        + [(-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)],
        "star": [
            (0, -1.4),
            (0.4, -0.4),
            (1.4, 0),
            (0.4, 0.4),
            (0, 1.4),
            (-0.4, 0.4),
            (-1.4, 0),
            (-0.4, -0.4),
        ],
    }
    points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in shapes[kind])
    return el("polygon", inner, points=points, class_=class_)
