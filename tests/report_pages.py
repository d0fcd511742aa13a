"""Reads pages of the report back: their words, and the elements that stand in them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from plpm_ray.core.storage import read_json, write_json
from plpm_ray.evaluation import report
from plpm_ray.evaluation.report.markup import text

_VOID = {"meta", "link", "br"}
_INLINE = {"bdi", "strong", "a"}


class Page(HTMLParser):
    """Elements with their attributes and path, the text, and whether every element is closed where it should be."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.words: list[str] = []
        self.feed(source)
        assert self.open == [], "elements are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag not in _INLINE:
            self.words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join("".join(self.words).replace("\u00a0", " ").split())

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes, _ in self.elements if tag in tags]


def page(*folders: Path) -> Page:
    return Page(report.render([report.read_run(folder) for folder in folders]))


def words(markup: Any) -> str:
    """The text of some markup."""
    return html.unescape(re.sub(r"<[^>]+>", "", text(markup))).replace("\u00a0", " ")


def edited(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    record = read_json(folder / name)
    change(record)
    write_json(folder / name, record)
    return folder


def outcome(folder: Path, metric: str, arm: str, **values: Any) -> Path:
    def change(record: dict[str, Any]) -> None:
        for row in record["metrics"]:
            if row["metric"] == metric and row["arm"] == arm:
                row.update(values)

    return edited(folder, "ab.json", change)
