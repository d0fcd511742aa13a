"""What became of the constraints of a learner that is trained under some: a record for the summary, and a drawing."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from plpm_ray.core.storage import atomic_writer, storage_errors
from plpm_ray.nn.duals import HOLDS_WITHIN

_INK, _MUTED, _ACCENT = "#1f3a5f", "#9aa5b1", "#d1495b"


@runtime_checkable
class Constrained(Protocol):
    """A learner with constraints; its losses hold `<name>` and `lambda_<name>` for each."""

    def constraints(self) -> dict[str, dict[str, Any]]:
        """Name -> "value", "bound", "lambda" and "holds" (see `plpm_ray.nn.DualVariables.report`)."""
        ...


def write_constraints(
    learner: object, metrics: Mapping[str, float], run_dir: Path
) -> dict[str, dict[str, Any]] | None:
    """The learner's constraints as they stand, drawn over training in `<run>/constraints.svg`; None if it has none.

    Where the metrics of the validation rows tell ("excess_<name>"), each also has its "valid" value and whether it
    "holds_valid".

    Raises:
        StorageError: the run folder cannot be read or written.
    """
    if not isinstance(learner, Constrained):
        return None
    found = learner.constraints()
    for name, constraint in found.items():
        if f"excess_{name}" in metrics:
            value, bound = metrics[f"excess_{name}"] + constraint["bound"], constraint["bound"]
            constraint |= {"valid": value, "holds_valid": value <= bound * (1 + HOLDS_WITHIN)}
    with storage_errors(f"reading {run_dir / 'metrics.jsonl'}"):
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    with atomic_writer(run_dir / "constraints.svg") as file:
        file.write(constraint_plot([json.loads(line) for line in lines], found))
    return found


def constraint_plot(
    records: Sequence[Mapping[str, Any]], constraints: Mapping[str, Mapping[str, Any]]
) -> bytes:
    """An SVG with a column for each constraint: its loss with the bound above, its dual variable below, over the steps.

    Args:
        records: those of a run's metrics.jsonl; where some were written within epochs, the epochs' own are left out.
        constraints: name -> its "bound".
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    within = [record for record in records if "samples_per_s" not in record]
    shown = sorted(within or records, key=lambda record: record["step"])
    figure = Figure(figsize=(4.2 * len(constraints) + 0.4, 4.6), layout="constrained")
    axes = figure.subplots(2, len(constraints), squeeze=False, sharex=True)
    for column, (name, constraint) in enumerate(constraints.items()):
        loss, multiplier = axes[0][column], axes[1][column]
        loss.plot(*_line(shown, f"train/{name}"), color=_INK, linewidth=1.4)
        loss.axhline(constraint["bound"], color=_ACCENT, linewidth=1.2, linestyle="--", label="bound")
        loss.set_title(name, fontsize=10)
        loss.set_ylabel("loss")
        loss.legend(frameon=False, fontsize=8)
        multiplier.plot(*_line(shown, f"train/lambda_{name}"), color=_INK, linewidth=1.4)
        multiplier.set_ylabel("dual variable")
        multiplier.set_xlabel("step")
        for axis in (loss, multiplier):
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color=_MUTED, alpha=0.3, linewidth=0.8)
    out = io.BytesIO()
    # the same run gives the same file, and text that can be searched
    with rc_context({"svg.hashsalt": "constraints", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    return out.getvalue()


def _line(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    known = [record for record in records if name in record]
    return [record["step"] for record in known], [record[name] for record in known]
