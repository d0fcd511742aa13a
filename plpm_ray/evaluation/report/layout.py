"""Building blocks of the page: sections, tables that scroll in their own box, panels of charts, names of arms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from plpm_ray.evaluation.report.markup import Child, Markup, el, label, plain
from plpm_ray.evaluation.report.numbers import DASH

LONGEST_NAME = 40


@dataclass(frozen=True)
class Part:
    """What a run contributes to the page.

    Attributes:
        kind: what was done, as in "A/B experiment".
        title: of the run, text or markup.
        headline: the result in one sentence.
        alerts: what must be known before the numbers are believed.
        facts: name and value of what was run.
        sections: of the run; empty ones are left out.
    """

    kind: str
    title: Child
    headline: Child
    facts: Sequence[tuple[str, Child]]
    sections: Sequence[Markup]
    alerts: Sequence[Markup] = ()


class Names:
    """Short, distinct names for labels that users chose, for places with little room.

    Args:
        labels: the full labels.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self._short: dict[str, str] = {}
        taken: set[str] = set()
        for full in labels:
            if full in self._short:
                continue
            short = base = shorten(full)
            number = 2
            while short in taken:
                ending = f" ({number})"
                short, number = base[: LONGEST_NAME - len(ending)] + ending, number + 1
            taken.add(short)
            self._short[full] = short

    def short(self, full: str) -> str:
        """As plain text."""
        return self._short.get(full) or shorten(full)

    def __call__(self, full: str) -> Markup:
        """As markup, with the full label to point at."""
        return label(plain(full), self.short(full))


def shorten(full: str, longest: int = LONGEST_NAME) -> str:
    """The label on one line; a long one loses its middle, as names often differ at their ends."""
    full = plain(full) or "(no name)"
    if len(full) <= longest:
        return full
    tail = longest // 3
    return f"{full[: longest - tail - 1].rstrip()}…{full[-tail:].lstrip()}"


def section(title: str, note: Child, *content: Markup | None) -> Markup:
    """A section of a run with its heading; empty where all its content is."""
    kept = [c for c in content if c]
    if not kept:
        return Markup()
    return el("section", el("h3", title), el("p", note, class_="lead") if note else None, kept)


def sub(title: Child, note: Child = None) -> Markup:
    """A heading inside a section, with a line below it."""
    return Markup(el("h4", title) + (el("p", note, class_="note") if note else ""))


def facts(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """Names and values side by side; pairs without a value are left out."""
    shown = [el("div", el("dt", name), el("dd", value)) for name, value in pairs if value not in (None, "")]
    return el("dl", shown, class_="facts")


def alert(title: str, *content: Child) -> Markup:
    """A warning that comes before the numbers."""
    return el("div", el("p", el("strong", "⚠ ", title)), el("p", *content), class_="alert", role="alert")


def panel(title: Child, chart: Markup, note: Child = None) -> Markup:
    """One chart with its caption."""
    below = el("span", note, class_="sub") if note else None
    return el("figure", el("figcaption", el("strong", title), below), chart, class_="panel")


def panels(charts: Sequence[Markup]) -> Markup:
    """Charts side by side, as many as there is room for."""
    return el("div", charts, class_="panels") if charts else Markup()


def wide_figure(title: Child, chart: Markup, note: Child = None) -> Markup:
    """A chart over the whole width."""
    below = el("span", note, class_="sub") if note else None
    return el("figure", el("figcaption", el("strong", title), below), chart, class_="whole")


@dataclass(frozen=True)
class Group:
    """Rows of a table under a heading of their own: cells, the first of a row being its name."""

    heading: Child | None
    rows: Sequence[Sequence[Any]]


def table(
    caption: str,
    header: Sequence[Child],
    groups: Sequence[Group] | Sequence[Sequence[Any]],
    class_: str = "",
    note: Child = None,
) -> Markup:
    """A table in a box of its own that scrolls sideways where the window is narrow.

    Args:
        caption: what it shows.
        header: names of the columns, with units.
        groups: rows under headings, or plain rows. A cell that is a `Cell` carries a class.
        class_: of the table.
        note: below it.
    """
    plain_rows = [g for g in groups if not isinstance(g, Group)]
    parts = [g for g in groups if isinstance(g, Group)] or [Group(None, plain_rows)]
    if not any(part.rows for part in parts):
        return Markup()
    head = el("thead", el("tr", [_head(h, i) for i, h in enumerate(header)]))
    bodies = [_body(part, len(header)) for part in parts if part.rows]
    box = el(
        "div",
        el("table", el("caption", caption), head, bodies, class_=class_ or None),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )
    return Markup(box + (el("p", note, class_="note") if note else ""))


@dataclass(frozen=True)
class Cell:
    """A cell with a class: "text" for words, "word" for few of them, "better", "worse", "bad", "mini" for a drawing."""

    content: Child
    class_: str = ""


def verdict_cell(ok: bool | None, good: str, bad: str) -> Cell:
    """A check's result in words with its sign; a dash where there is none."""
    if ok is None:
        return Cell(DASH, "word")
    return Cell(el("span", f"✓ {good}" if ok else f"✗ {bad}", class_="good" if ok else "bad"), "word")


def _head(content: Any, position: int) -> Markup:
    words = position == 0 or isinstance(content, Cell)
    shown = content.content if isinstance(content, Cell) else content
    return el("th", shown, scope="col", class_=None if words else "num")


def _body(group: Group, columns: int) -> Markup:
    rows = []
    if group.heading is not None:
        heads = group.heading if isinstance(group.heading, (list, tuple)) else [group.heading]
        first = el("th", heads[0], colspan=columns - len(heads) + 1, scope="rowgroup")
        rows.append(el("tr", first, [el("td", h, class_="mini") for h in heads[1:]], class_="group"))
    for row in group.rows:
        cells = [_cell(cell) for cell in row[1:]]
        rows.append(el("tr", el("th", row[0], scope="row"), cells))
    return el("tbody", rows)


def _cell(cell: Any) -> Markup:
    if isinstance(cell, Cell):
        return el(
            "td",
            cell.content,
            class_=cell.class_ if cell.class_ in ("text", "word") else f"num {cell.class_}".strip(),
        )
    return el("td", cell, class_="num")


def folded(summary: str, content: Markup) -> Markup:
    """Content behind a line to click on; open in print."""
    return el("details", el("summary", summary), content) if content else Markup()
