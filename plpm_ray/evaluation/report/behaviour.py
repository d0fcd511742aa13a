"""What users did: moves between absent, single- and multi-page days (KLAN fig. 6), landings and entries by page."""

from __future__ import annotations

from collections.abc import Sequence

from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.bars import stacked_shares
from plpm_ray.evaluation.report.layout import (
    Cell,
    Group,
    folded,
    panel,
    panels,
    section,
    shorten,
    sub,
    table,
    wide_figure,
)
from plpm_ray.evaluation.report.lines import responsive
from plpm_ray.evaluation.report.markup import Markup, label
from plpm_ray.evaluation.report.metrics import detail
from plpm_ray.evaluation.report.rows import Dot, Row, row_chart, row_range
from plpm_ray.evaluation.report.view import PERIODS, Experiment, share

_STATES = ("absent", "single", "multi")
_STATE_NAMES = {"absent": "absent", "single": "one page", "multi": "several pages"}
_MOVES = (
    ("single", "multi"),
    ("multi", "single"),
    ("absent", "single"),
    ("absent", "multi"),
    ("single", "absent"),
    ("multi", "absent"),
)
_MOST_BARS, _MOST_PANELS = 6, 8


def moves(experiment: Experiment) -> Markup:
    """Day-to-day moves of users, AA against AB days, by arm."""
    rates = {
        (arm, period, before, after): _rate(experiment, arm, period, before, after)
        for arm in experiment.everyone
        for period in PERIODS
        for before in _STATES
        for after in _STATES
    }
    charts = []
    for before, after in _MOVES:
        rows = [
            _before_after(experiment, arm, [rates[arm, p, before, after] for p in PERIODS], 1, "%", 100)
            for arm in experiment.everyone
        ]
        rows = [r for r in rows if r.dots]
        if rows:
            title = f"{_STATE_NAMES[before]} → {_STATE_NAMES[after]}"
            unit = f"% of users with {_STATE_NAMES[before]} the day before"
            if before == "absent":
                unit = "% of users absent the day before"
            chart = row_chart(
                rows, unit, title, _said(rows), _control(rows), row_range(rows, least=0.1), join=True
            )
            charts.append(panel(title, chart))
    note = (
        "A day of a user is absent, spent on one page, or on several. Each panel: of the users in the first state, the share "
        "in the second on the day after. Hollow: mean of the AA days; filled: of the AB days."
    )
    if experiment.record.design == "split":
        note += " How far the hollow points of the arms lie apart shows what chance does."
    return section("Moves between one page and several", note, panels(charts), _states(experiment))


def _rate(experiment: Experiment, arm: str, period: str, before: str, after: str) -> float | None:
    where = {"arm": arm, "period": period, "from": before}
    return share(
        experiment.total("moves", "users", **where, to=after), experiment.total("moves", "users", **where)
    )


def _states(experiment: Experiment) -> Markup:
    """Shares of the three kinds of days, and how much more they changed than in the control."""
    header = ["arm", *(f"{_STATE_NAMES[s]}, {p.upper()} days" for s in _STATES for p in PERIODS)]
    header += ["more change to several pages than in the control"]

    def part(arm: str, period: str, state: str) -> float | None:
        where = {"arm": arm, "period": period}
        return share(
            experiment.total("moves", "users", **where, to=state), experiment.total("moves", "users", **where)
        )

    def shift(arm: str) -> float | None:
        aa, ab = (part(arm, p, "multi") for p in PERIODS)
        return None if aa is None or ab is None else ab - aa

    base, rows = shift(experiment.control), []
    for arm in experiment.everyone:
        cells = [n.percent(part(arm, p, s), 2) for s in _STATES for p in PERIODS]
        own = shift(arm)
        extra = None if own is None or base is None or arm == experiment.control else 100 * (own - base)
        rows.append([experiment.arm(arm), *cells, n.with_unit(n.fixed(extra, 2, sign=True), "points")])
    return table("Share of user-days by what was visited", header, rows, note="Points: percentage points.")


def landings(experiment: Experiment) -> Markup:
    """Where sessions land, and effective entries, by page and arm."""
    pages = experiment.record.pages
    entries = _entries(experiment)
    parts = []
    if len(pages) <= _MOST_BARS:
        parts.append(_bars(experiment))
    parts.append(_share_table(experiment))
    if entries and len(pages) <= _MOST_PANELS:
        parts += [
            sub("Effective entries (EPEF)", "Hollow: AA days; filled: AB days. The axes do not begin at 0."),
            panels([_entry_panel(experiment, page, entries) for page in pages]),
        ]
    return section("Pages", None, *parts, detail(experiment, pages=True))


def _landing_shares(experiment: Experiment, arm: str, period: str) -> list[float] | None:
    where = {"arm": arm, "period": period}
    whole = experiment.total("pages", "assigned", **where)
    if whole <= 0:
        return None
    return [
        experiment.total("pages", "assigned", **where, page=page) / whole for page in experiment.record.pages
    ]


def _bars(experiment: Experiment) -> Markup:
    rows = []
    for arm in experiment.everyone:
        found = _landing_shares(experiment, arm, "ab")
        if found is not None:
            rows.append((experiment.names.short(arm), found))
    if not rows:
        return Markup()
    title = "Share of sessions landing on each page, AB days"
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{p} {n.percent(s, 0)}" for p, s in zip(experiment.record.pages, shares, strict=True))
        for name, shares in rows
    )
    chart = responsive(lambda width: stacked_shares(rows, experiment.record.pages, title, said, width))
    return wide_figure(title, chart)


def _share_table(experiment: Experiment) -> Markup:
    """Arms by pages where pages are few, else pages by arms and periods in one long table."""
    pages = experiment.record.pages
    shares = {(a, p): _landing_shares(experiment, a, p) for a in experiment.everyone for p in PERIODS}
    caption = "Share of sessions landing on each page, AA days → AB days"
    if len(pages) <= _MOST_PANELS:
        rows = [
            [
                experiment.arm(arm),
                *(_arrow(shares[arm, "aa"], shares[arm, "ab"], k) for k in range(len(pages))),
            ]
            for arm in experiment.everyone
        ]
        return table(caption, ["arm", *(label(p, shorten(p)) for p in pages)], rows)
    groups = [
        Group(
            experiment.arm(arm),
            [
                [label(page, shorten(page)), _arrow(shares[arm, "aa"], shares[arm, "ab"], k)]
                for k, page in enumerate(pages)
            ],
        )
        for arm in experiment.everyone
    ]
    return folded(caption, table(caption, ["arm and page", "share of sessions"], groups))


def _arrow(before: Sequence[float] | None, after: Sequence[float] | None, k: int) -> Cell:
    first, second = (n.percent(None if s is None else s[k]) for s in (before, after))
    return Cell(f"{first} → {second}")


def _entries(experiment: Experiment) -> dict[tuple[str, str, str], float]:
    """Effective entries per user and day by arm, period and page."""
    found = {}
    for arm in experiment.everyone:
        for period in PERIODS:
            user_days = experiment.total("daily", "users", arm=arm, period=period)
            for page in experiment.record.pages:
                entered = experiment.total("pages", "entries_effective", arm=arm, period=period, page=page)
                if user_days > 0:
                    found[arm, period, page] = entered / user_days
    return found


def _entry_panel(experiment: Experiment, page: str, entries: dict[tuple[str, str, str], float]) -> Markup:
    rows = [
        _before_after(experiment, arm, [entries.get((arm, p, page)) for p in PERIODS], 3)
        for arm in experiment.everyone
    ]
    rows = [r for r in rows if r.dots]
    title = f"Effective entries, {page}"
    limits = row_range(rows, least=0.1)
    chart = row_chart(
        rows, "effective entries per user and day", title, _said(rows), _control(rows), limits, join=True
    )
    return panel(label(page, shorten(page)), chart)


def _before_after(
    experiment: Experiment,
    arm: str,
    values: Sequence[float | None],
    decimals: int,
    unit: str = "",
    scale: float = 1.0,
) -> Row:
    """A row with the AA value hollow and the AB value filled, in `unit` after multiplying by `scale`."""
    dots = [Dot(v * scale, open_=i == 0) for i, v in enumerate(values) if v is not None]
    shown = [n.fixed(None if v is None else v * scale, decimals) for v in values]
    return Row(experiment.names.short(arm), dots, n.with_unit(" → ".join(shown), unit))


def _control(rows: Sequence[Row]) -> tuple[float, str]:
    """The last value of the first row, which is the control's."""
    return rows[0].dots[-1].value, "control"


def _said(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row.name}: {row.note}" for row in rows)
