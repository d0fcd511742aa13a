"""Drawings of the record of `plpm assess`, for the run folder: SVG files that stand for themselves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plpm_ray.evaluation.assess_text import REFERENCE, group_names

_MUTED = "#9aa5b1"
_COLOURS = ("#6b7480", "#0072b2", "#c24e00", "#00805d", "#a84a86", "#8a6100")
_TITLES = {
    "use": "tenths of the days by what came",
    "prediction": "tenths by what was foretold",
    "weekday": "weekday",
}


def drawings(record: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> SVG: `bias.svg` where there are models of days, `drop_off.svg` where there are models of sessions."""
    days = [m for m in record["models"] if m["kind"] == "day"]
    sessions = [m for m in record["models"] if m["kind"] == "session"]
    found: dict[str, bytes] = {}
    if days:
        found["bias.svg"] = _bias(days)
    if sessions:
        found["drop_off.svg"] = _drop_off(sessions)
    return found


def _bias(models: Sequence[Mapping[str, Any]]) -> bytes:
    """A panel for each grouping: foretold minus came, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.6, 3.6), layout="constrained")
    told = {REFERENCE: models[0]["reference"]} | {m["label"]: m["model"] for m in models}
    for axis, (by, title) in zip(figure.subplots(1, len(_TITLES)), _TITLES.items(), strict=True):
        names = group_names(by)
        for i, (label, errors) in enumerate(told.items()):
            known = [(x, group) for x, group in enumerate(errors["bias_by"][by]) if group is not None]
            x = np.array([at for at, _ in known]) + (i - len(told) / 2) * 0.08
            value, low, high = (
                np.array([np.nan if g[n] is None else g[n] for _, g in known], dtype=np.float64)
                for n in ("value", "low", "high")
            )
            colour = _COLOURS[i % len(_COLOURS)]
            axis.errorbar(
                x, value, [value - low, high - value], color=colour, label=label, fmt="o-", ms=3, lw=1.2
            )
        axis.axhline(0.0, color=_MUTED, linewidth=1.0)
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_xlabel(title)
        _plain(axis)
    figure.axes[0].set_ylabel("foretold minus came, s")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return _svg(figure)


def _drop_off(models: Sequence[Mapping[str, Any]]) -> bytes:
    """Share of sessions with a drop-off over the chance that was given."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=_MUTED, linestyle="--", linewidth=1.0, label="calibrated")
    for i, model in enumerate(models, start=1):
        chance, share, sessions = (
            np.array(column) for column in zip(*model["drop_off"]["bins"], strict=True)
        )
        colour = _COLOURS[i % len(_COLOURS)]
        axis.plot(chance, share, color=colour, linewidth=1.2, label=model["label"])
        axis.scatter(chance, share, s=8 + 60 * sessions / sessions.max(), color=colour)
    axis.set_xlabel("chance of a drop-off, mean of a bin")
    axis.set_ylabel("share with a drop-off")
    axis.legend(frameon=False, fontsize=8)
    _plain(axis)
    return _svg(figure)


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color=_MUTED, alpha=0.3, linewidth=0.8)


def _svg(figure: Any) -> bytes:
    """The same record gives the same file, and text that can be searched."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "assess", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    return out.getvalue()
