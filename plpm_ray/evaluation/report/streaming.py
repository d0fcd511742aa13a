"""What the report says of `plpm stream`: how well each session was foretold before it was learned, over the stream."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from plpm_ray.core.errors import DataError
from plpm_ray.core.storage import storage_errors
from plpm_ray.data.day_table import day_name
from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.layout import Part, panel, panels, section, shorten, table, wide_figure
from plpm_ray.evaluation.report.lines import Axes, Series, line_chart, responsive, y_range
from plpm_ray.evaluation.report.markup import Markup, el, label
from plpm_ray.evaluation.report.reading import Run

_METRICS = {"auc": "AUC", "log_loss": "log loss", "brier": "Brier score", "label_share": "share of label 1"}
_DRAWN = ("auc", "log_loss")
_MOST_PAGES = 8
_DAY_MS = 86_400_000
Window = Mapping[str, Any]


def stream_part(run: Run) -> Part:
    """AUC and log loss by window of sessions, of all pages and of each."""
    record, windows = run.record, _windows(run)
    metrics = record.metrics
    headline = ""
    if metrics.get("log_loss") is not None:
        auc = "" if metrics.get("auc") is None else f"AUC {n.fixed(metrics['auc'], 3)}, "
        headline = (
            f"{n.count(record.sessions)} sessions, each scored before it was learned: {auc}log loss "
            f"{n.fixed(metrics['log_loss'], 3)}{_trend(windows)}."
        )
    days = f"{record.days[0]} to {record.days[-1]}" if record.days else None
    return Part(
        "Stream",
        el("span", label(record.learner)),
        headline,
        [
            ("learner", record.learner),
            ("version", label(record.version) if record.version else None),
            ("data", label(record.dataset) if record.dataset else None),
            ("sessions", n.count(record.sessions)),
            ("days", days),
            ("ended", record.ended),
        ],
        [
            section(
                "Foretold before learned",
                "Prequential: every micro-batch is scored by the weights of that moment, and learned from after that. A point "
                "is a window of sessions; dashed: all sessions up to there.",
                *(_over_the_stream(windows, metric) for metric in _DRAWN),
            ),
            _by_page(windows, record.pages),
            section("All sessions", None, _totals(metrics, record.pages)),
        ],
    )


def _windows(run: Run) -> list[Window]:
    """The records of metrics.jsonl; none where no window has ended.

    Raises:
        DataError: a line is damaged.
    """
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return []
    found = []
    with storage_errors(f"reading {path}"):
        lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            float(value["sessions"])
        except (ValueError, KeyError, TypeError):
            # a run at work, or killed, may leave the last line unfinished; it is written again
            if number < len(lines):
                raise DataError(
                    f"{path}:{number} is no record of a stream",
                    hint="the file was damaged; run `plpm stream` anew",
                ) from None
            continue
        found.append(value)
    return found


def _trend(windows: Sequence[Window]) -> str:
    known = [w["auc"] for w in windows if w.get("auc") is not None]
    if len(known) < 2:
        return ""
    return f"; by window the AUC went from {n.fixed(known[0], 3)} to {n.fixed(known[-1], 3)}"


def _series(
    windows: Sequence[Window], key: str, name: str, style: int = 0, reference: bool = False
) -> Series:
    x = [float(w["sessions"]) for w in windows]
    y = [None if w.get(key) is None else float(w[key]) for w in windows]
    return Series(name, x, y, style=style, role="reference" if reference else "line")


def _over_the_stream(windows: Sequence[Window], metric: str) -> Markup:
    if len(windows) < 2:
        return Markup()
    series = [
        _series(windows, f"overall/{metric}", "all so far", reference=True),
        _series(windows, metric, "window"),
    ]
    if not any(y is not None for y in series[1].y):
        return Markup()
    title = f"{_METRICS[metric]} over the stream"
    first, last = (
        next(y for y in order if y is not None) for order in (series[1].y, list(series[1].y)[::-1])
    )
    said = f"{_METRICS[metric]} from {n.number(first)} in the first window to {n.number(last)} in the last"
    dates = [day_name(int(w["to_ms"]) // _DAY_MS) for w in (windows[0], windows[-1]) if "to_ms" in w]
    note = f"{said}; entries of {dates[0]} to {dates[1]} (UTC)." if len(dates) == 2 else f"{said}."
    axes = Axes("sessions learned", _METRICS[metric])
    return wide_figure(
        title, responsive(lambda width: line_chart(series, axes, title, said, width, named=True)), note
    )


def _by_page(windows: Sequence[Window], pages: Sequence[str]) -> Markup:
    """AUC of each page's own sessions, all panels on one scale."""
    drawn = [
        (page, _series(windows, f"page/{page}/auc", page, style))
        for style, page in enumerate(pages[:_MOST_PAGES])
    ]
    drawn = [(page, series) for page, series in drawn if sum(y is not None for y in series.y) > 1]
    if not drawn:
        return Markup()
    limits = y_range([series for _, series in drawn], zero=False)
    axes = Axes("sessions learned", "AUC", y_range=limits)
    charts = []
    for page, series in drawn:
        known = [y for y in series.y if y is not None]
        said = f"AUC of sessions that landed on {page}: from {n.number(known[0])} to {n.number(known[-1])}"
        charts.append(panel(label(page, shorten(page)), line_chart([series], axes, f"AUC, {page}", said)))
    return section(
        "By landing page", "AUC of the sessions that landed on the page, by window.", panels(charts)
    )


def _totals(metrics: Mapping[str, Any], pages: Sequence[str]) -> Markup:
    def cells(prefix: str) -> list[str]:
        return [n.fixed(metrics.get(prefix + name), 4) for name in _METRICS]

    sessions = [metrics.get(f"page/{page}/sessions") for page in pages]
    whole = n.count(sum(s for s in sessions if s is not None))
    rows: list[list[Any]] = [["all pages", whole, *cells("")]]
    rows += [
        [label(page, shorten(page)), n.count(count), *cells(f"page/{page}/")]
        for page, count in zip(pages, sessions, strict=True)
    ]
    return table(
        "Judged before they were learned, by landing page", ["page", "sessions", *_METRICS.values()], rows
    )
