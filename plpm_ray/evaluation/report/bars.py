"""Stacked bars of shares."""

from __future__ import annotations

from collections.abc import Sequence

from plpm_ray.evaluation.report import svg
from plpm_ray.evaluation.report.markup import Markup, el
from plpm_ray.evaluation.report.numbers import percent
from plpm_ray.evaluation.report.scales import Scale


def stacked_shares(
    rows: Sequence[tuple[str, Sequence[float]]],
    parts: Sequence[str],
    title: str,
    description: str,
    width: int,
) -> Markup:
    """Shares that add up to one as bars, a row each; every part carries its percentage where there is room.

    Args:
        rows: name and one share per part.
        parts: their names, in the same order; six at most.
    """
    left = min(max((svg.text_width(name) for name, _ in rows), default=0.0), width * 0.3) + 8
    legend, top = _legend(parts, width)
    x = Scale(0, 1, left, width - 2)
    content: list[Markup] = [legend]
    for index, (name, shares) in enumerate(rows):
        y = top + index * 26
        content.append(svg.write(0, y + 14, svg.fitted(name, left - 6), class_="name", full=name))
        at = 0.0
        for part, share in enumerate(shares):
            start, end = x(min(at, 1.0)), x(min(at + share, 1.0))
            tip = el("title", f"{name}, {parts[part]}: {percent(share)}")
            content.append(
                el(
                    "rect",
                    tip,
                    x=start,
                    y=y,
                    width=max(end - start, 0.0),
                    height=20,
                    class_=f"part f{part % 6}",
                )
            )
            shown = percent(share, 0)
            if end - start > svg.text_width(shown, svg.SMALL) + 6:
                content.append(svg.write((start + end) / 2, y + 14, shown, "middle", f"on{part % 6}"))
            at += share
    return svg.drawing(width, top + len(rows) * 26, title, description, *content)


def _legend(parts: Sequence[str], width: int) -> tuple[Markup, float]:
    """Names of the parts in the order of the bars, on as many lines as they need, and the height below them."""
    content, x, y = [], 0.0, 0.0
    for index, part in enumerate(parts):
        name = svg.fitted(part, width - 24, svg.SMALL)
        needed = 18 + svg.text_width(name, svg.SMALL) + 14
        if x and x + needed > width:
            x, y = 0.0, y + 18
        content.append(el("rect", x=x, y=y, width=12, height=12, class_=f"part f{index % 6}"))
        content.append(svg.write(x + 18, y + 10, name, class_="axis", full=part))
        x += needed
    return Markup("".join(content)), y + 24
