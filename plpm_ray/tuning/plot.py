"""The response plot of a sweep: policy value against each searched parameter, with intervals."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from plpm_ray.tuning.ledger import TrialRecord
from plpm_ray.tuning.space import Dimension, Space

_INK, _MUTED, _ACCENT, _REFUSED = "#1f3a5f", "#9aa5b1", "#d1495b", "#6b7280"


def response_plot(
    ranked: Sequence[TrialRecord], space: Space, unit: str, baseline: float | None = None
) -> bytes:
    """An SVG with one panel per parameter, logarithmic where it is searched so.

    Filled points ran to their end, open ones were stopped early, the ring marks the best, crosses on the floor are
    trials whose estimate was refused or that failed. Bars are the intervals of the estimates.

    Args:
        ranked: trials, best first.
        unit: of the value.
        baseline: drawn as a line.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    columns = min(len(space.dimensions), 3)
    lines = -(-len(space.dimensions) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.4, 3.4 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for index, dimension in enumerate(space):
        _panel(axes[index // columns][index % columns], ranked, dimension, baseline)
    for index in range(len(space.dimensions), lines * columns):
        axes[index // columns][index % columns].set_visible(False)
    for line in range(lines):
        axes[line][0].set_ylabel(f"policy value, {unit}" if unit else "policy value")
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8
        )
    out = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    return out.getvalue()


def _panel(axis: Any, ranked: Sequence[TrialRecord], dimension: Dimension, baseline: float | None) -> None:
    if dimension.log:
        axis.set_xscale("log")
    if baseline is not None:
        axis.axhline(baseline, color=_MUTED, linewidth=1, linestyle="--", label="baseline", zorder=1)
    valued = [r for r in ranked if r.value is not None]
    for status, face in (("finished", _INK), ("stopped", "white")):
        _points(axis, [r for r in valued if r.status == status], dimension, status, face)
    if valued:
        x, y = _x(valued[0], dimension), valued[0].value
        axis.plot(
            [x],
            [y],
            "o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=_ACCENT,
            markeredgewidth=1.8,
            label="best",
            zorder=4,
        )
    without = [r for r in ranked if r.value is None]
    if without:
        xs = [_x(r, dimension) for r in without]
        floor = axis.get_xaxis_transform()
        axis.plot(
            xs,
            [0.02] * len(xs),
            "x",
            color=_REFUSED,
            markersize=6,
            transform=floor,
            label="refused or failed",
            zorder=3,
        )
    axis.set_xlabel(dimension.name)
    if dimension.choices is not None:
        axis.set_xticks(range(len(dimension.choices)), [str(choice) for choice in dimension.choices])
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axis.set_axisbelow(True)


def _points(axis: Any, records: Sequence[TrialRecord], dimension: Dimension, label: str, face: str) -> None:
    if not records:
        return
    xs = [_x(r, dimension) for r in records]
    values = [r.value or 0.0 for r in records]
    below = [
        v - r.last.low if r.last and r.last.low is not None else 0.0
        for v, r in zip(values, records, strict=True)
    ]
    above = [
        r.last.high - v if r.last and r.last.high is not None else 0.0
        for v, r in zip(values, records, strict=True)
    ]
    axis.errorbar(
        xs,
        values,
        yerr=[below, above],
        fmt="o",
        markersize=5,
        color=_INK,
        markerfacecolor=face,
        ecolor=_MUTED,
        elinewidth=1,
        label=label,
        zorder=2,
    )


def _x(record: TrialRecord, dimension: Dimension) -> float:
    """Where a trial stands on the axis: the value, or the position of the choice."""
    value = record.params[dimension.name]
    if dimension.choices is not None:
        position = dimension.encode(value)
        return -1.0 if position is None else float(position)
    return float(value)
