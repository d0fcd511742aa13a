"""What the report says of a calibration run: the world beside its targets."""

from __future__ import annotations

from collections.abc import Sequence

from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.growth import hour_chart, hour_series
from plpm_ray.evaluation.report.layout import Cell, Group, Part, section, sub, table
from plpm_ray.evaluation.report.markup import Child, Markup, el, label
from plpm_ray.evaluation.report.mini import DRAWN, mini_axis, mini_interval
from plpm_ray.evaluation.report.reading import Run
from plpm_ray.evaluation.report.records import CalibrationRow, CalibrationRun
from plpm_ray.evaluation.report.rows import Dot
from plpm_ray.evaluation.report.scales import extent

_CLOSE, _MOST_OFF = 0.05, 0.5


def calibration_part(run: Run) -> Part:
    """Target and reached side by side, and the hourly curve."""
    record = run.record
    contradicted = (
        el("ul", [el("li", said) for said in record.disagreements]) if record.disagreements else None
    )
    noted = Markup(sub("What the sources contradict") + contradicted) if contradicted else None
    sections = [section("Targets", None, _calibration_table(record.rows), noted)]
    if record.hourly is not None:
        series = [hour_series("reached", record.hourly.reached)]
        note = "solid: reached"
        if record.hourly.target is not None:
            series.append(hour_series("target", record.hourly.target, target=True))
            gap = max(abs(a - b) for a, b in zip(record.hourly.target, record.hourly.reached, strict=True))
            note += f"; dashed: target; largest difference {n.fixed(100 * gap, 2)} percentage points"
        sections.append(
            section(
                "Tidal curve", "When in the day videos are viewed.", hour_chart(series, note, "video views")
            )
        )
    return Part(
        "Calibration",
        el("span", "The world ", label(record.world), " against its targets"),
        _calibration_headline(record.rows),
        [
            ("world", label(record.world)),
            ("users", n.count(record.users)),
            ("days", _days(record)),
            ("seed", None if record.seed is None else str(record.seed)),
        ],
        sections,
    )


def _days(record: CalibrationRun) -> str:
    return n.count(record.days) + (f", after {record.warmup_days} to warm up" if record.warmup_days else "")


def _off(row: CalibrationRow, value: float | None = None) -> float | None:
    """Relative difference to the target."""
    value = row.reached if value is None else value
    return None if not row.target or value is None else (value - row.target) / abs(row.target)


def _calibration_headline(rows: Sequence[CalibrationRow]) -> Child:
    off = [(abs(d), row) for row in rows if (d := _off(row)) is not None]
    if not off:
        return ""
    close = sum(d <= _CLOSE for d, _ in off)
    worst = max(off, key=lambda pair: pair[0])[1]
    reached, target = (n.with_unit(n.number(v), worst.unit) for v in (worst.reached, worst.target))
    number = (
        f"All {len(off)} targets are"
        if close == len(off) > 1
        else f"{close} of {n.plural(len(off), 'target')} are"
    )
    met = f"{number} met within 5{n.SPACE}%"
    furthest = f"{worst.quantity}: {reached} instead of {target} ({n.percent(_off(worst), sign=True)})"
    return f"{met}; furthest off is {furthest}."


def _calibration_table(rows: Sequence[CalibrationRow]) -> Markup:
    reached = [
        v for row in rows for v in (_off(row), _off(row, row.low), _off(row, row.high)) if v is not None
    ]
    low, high = extent(reached, include=(0.0, -_CLOSE, _CLOSE), margin=0.08)
    low, high = max(low, -_MOST_OFF), min(high, _MOST_OFF)
    axis = mini_axis(100 * low, 100 * high, 0.0, sign=True, unit=n.SPACE + "%")
    groups = [
        Group(
            [name, axis if any(_off(r) is not None for r in rows if r.group == name) else "", "", ""],
            [_calibration_row(r, low, high) for r in rows if r.group == name],
        )
        for name in dict.fromkeys(r.group for r in rows)
    ]
    header = [
        "quantity",
        "target",
        "reached",
        "off by",
        DRAWN,
        "95 % interval of reached",
        Cell("source of the target", "text"),
    ]
    note = f"The grey bar is within 5{n.SPACE}% of the target; a diamond stands beyond it."
    return table("Target and reached", header, groups, "detail wordy", note)


def _calibration_row(row: CalibrationRow, low: float, high: float) -> list[Child | Cell]:
    off = _off(row)
    far = off is not None and abs(off) > _CLOSE
    dot = None if off is None else Dot(off, *_ascending(_off(row, row.low), _off(row, row.high)), alarm=far)
    drawn = mini_interval(dot, low, high, 0.0, (-_CLOSE, _CLOSE)) if off is not None else Markup()
    half = None if row.low is None or row.high is None else (row.high - row.low) / 2
    decimals = max(
        n.decimals_for(half, row.reached or 0.0), n.decimals_for(None, row.target or row.reached or 0.0)
    )
    interval = (
        n.DASH if row.low is None or row.high is None else n.between(row.low, row.high, decimals, row.unit)
    )
    return [
        row.quantity,
        n.with_unit(n.fixed(row.target, decimals), row.unit),
        n.with_unit(n.fixed(row.reached, decimals), row.unit),
        Cell(n.percent(off, sign=True), "bad" if far else ""),
        Cell(drawn, "mini"),
        interval,
        Cell(row.source if row.target is not None and row.source else n.DASH, "text"),
    ]


def _ascending(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """Both ends in ascending order, or nothing where one is missing."""
    return (None, None) if low is None or high is None else (min(low, high), max(low, high))
