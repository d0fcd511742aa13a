"""HTML and SVG written from Python: everything that is not `Markup` is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# what HTML and XML forbid, and what would turn the direction of the text around it
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]"
)
_VOID = frozenset({"meta", "link", "br", "hr", "col"})

Child = object


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: Child) -> Markup:
    """The value as escaped text; Markup passes, None is nothing, an iterable is joined."""
    if value is None:
        return Markup()
    if isinstance(value, Markup):
        return value
    if isinstance(value, (list, tuple)) or (isinstance(value, Iterable) and not isinstance(value, str)):
        return Markup("".join(text(item) for item in value))
    return Markup(html.escape(_FORBIDDEN.sub("", str(value)), quote=True))


def plain(value: str) -> str:
    """The text on one line, without characters that no document may hold."""
    return " ".join(_FORBIDDEN.sub("", value).split())


def el(tag: str, *children: Child, **attributes: object) -> Markup:
    """An element. `class_` and `for_` lose their underscore, others turn it into a hyphen; None and False are left out."""
    shown = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = _attribute(name)
        shown.append(f" {name}" if value is True else f' {name}="{_quoted(value)}"')
    opening = f"{tag}{''.join(shown)}"
    return Markup(f"<{opening}>" if tag in _VOID else f"<{opening}>{text(children)}</{tag}>")


def label(full: str, short: str | None = None) -> Markup:
    """A name that a user chose, kept from mixing its direction of writing with the text around it."""
    shown = full if short is None else short
    return el("bdi", shown, title=full if shown != full else None)


def _attribute(name: str) -> str:
    if name.endswith("_"):
        return name[:-1]
    return name if name in _CAMEL else name.replace("_", "-")


_CAMEL = frozenset({"viewBox", "textLength", "preserveAspectRatio"})


def _quoted(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(_FORBIDDEN.sub("", str(value)), quote=True)
