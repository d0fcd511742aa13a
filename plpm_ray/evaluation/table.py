"""Results of several policies side by side: a table for people, records for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal

import numpy as np

from plpm_ray.core.errors import ConfigError
from plpm_ray.evaluation.estimators import Estimate
from plpm_ray.evaluation.metrics import Agreement, AssignmentRatio, Mean, OverestimationGap

_DASH = "-"


@dataclass(frozen=True)
class PolicyResult:
    """Everything that was measured of one policy.

    Attributes:
        policy: its name.
        estimates: off-policy values, one per estimator.
        metrics: further metrics by name: numbers, `Mean`s, or the records of `evaluation.metrics`.
    """

    policy: str
    estimates: Sequence[Estimate]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def as_record(self) -> dict:
        """Plain dicts, lists, numbers and strings; NaN and infinity become None."""
        record = {
            "policy": self.policy,
            "estimates": {estimate.estimator: estimate for estimate in self.estimates},
            "metrics": dict(self.metrics),
        }
        return _plain(record)


def format_table(
    results: Sequence[PolicyResult],
    *,
    style: Literal["text", "markdown"] = "text",
    pages: Sequence[str] | None = None,
) -> str:
    """One line per policy: value [interval] and effective sample size per estimator, then the metrics.

    Refused estimates show "refused" with a number; the reasons stand below the table, with a line on what the
    intervals mean. An interval that leaves out the error of a model is marked with an asterisk.

    Args:
        style: aligned text, or a Markdown table.
        pages: names for assignment ratios; positions where not given.
    """
    names = list(dict.fromkeys(e.estimator for result in results for e in result.estimates))
    metric_names = list(dict.fromkeys(name for result in results for name in result.metrics))
    notes: list[str] = []
    units = {e.estimator: f"{e.unit} per {e.per}" for result in results for e in result.estimates}
    rows = [["policy", *(f"{name} ({units[name]})" for name in names), *metric_names]]
    for result in results:
        by_name = {e.estimator: e for e in result.estimates}
        cells = [_estimate_cell(result.policy, by_name.get(name), notes) for name in names]
        metrics = [_metric_cell(result.metrics.get(name), pages) for name in metric_names]
        rows.append([result.policy, *cells, *metrics])
    table = laid_out(rows, style)
    footer = notes + _footer([e for result in results for e in result.estimates])
    return "\n".join([table, "", *footer]) if footer else table


def laid_out(rows: list[list[str]], style: Literal["text", "markdown"] = "text") -> str:
    """Rows of cells, the first being the heading, as aligned text or as a Markdown table."""
    return _text(rows) if style == "text" else _markdown(rows)


def _footer(estimates: Sequence[Estimate]) -> list[str]:
    if not estimates:
        return []
    levels = "/".join(f"{level:.0%}" for level in sorted({e.level for e in estimates}))
    lines = [f"[low, high]: {levels} interval, clustered by user; n: effective sample size."]
    if any(e.modelled for e in estimates):
        lines.append(
            "Propensities are modelled from the log, not recorded: values hold only if the features explain "
            "what the logging policy did."
        )
    lines += [
        f"* {name}: {note}." for name, note in dict.fromkeys((e.estimator, e.note) for e in estimates) if note
    ]
    return lines


def _estimate_cell(policy: str, estimate: Estimate | None, notes: list[str]) -> str:
    if estimate is None:
        return _DASH
    if estimate.refused is not None:
        notes.append(f"({len(notes) + 1}) {policy}, {estimate.estimator} refused: {estimate.refused}.")
        return f"refused ({len(notes)})"
    value, low, high = (number(x) for x in (estimate.value, estimate.low, estimate.high))
    mark = "*" if estimate.note else ""
    return f"{value} [{low}, {high}]{mark} n={estimate.support.effective_samples:,.0f}"


def _metric_cell(metric: Any, pages: Sequence[str] | None) -> str:
    if metric is None:
        return _DASH
    if isinstance(metric, Mean):
        return f"{number(metric.value)} [{number(metric.low)}, {number(metric.high)}]"
    if isinstance(metric, Agreement):
        return f"{metric.argmax_share.value:.1%} (p {metric.mean_probability.value:.3f})"
    if isinstance(metric, OverestimationGap):
        return f"{metric.logged_action.value:+.1f} / {metric.best_action.value:+.1f}"
    if isinstance(metric, AssignmentRatio):
        return _shares(metric.argmax, pages)
    if isinstance(metric, (list, tuple, np.ndarray)):
        return _shares(np.asarray(metric, dtype=np.float64), pages)
    if isinstance(metric, (int, float, np.integer, np.floating)):
        return number(float(metric))
    return str(metric)


def _shares(shares: np.ndarray, pages: Sequence[str] | None) -> str:
    names = pages if pages is not None else [str(k) for k in range(len(shares))]
    if len(names) != len(shares):
        raise ConfigError(f"{len(shares)} page shares, but {len(names)} page names")
    return " ".join(f"{name}:{share:.0%}" for name, share in zip(names, shares, strict=True))


def number(value: float | None) -> str:
    """Four significant digits without an exponent for the usual sizes: 1,234, 12.3, 0.00456."""
    if value is None or not math.isfinite(value):
        return _DASH
    size = abs(float(value))
    if size >= 1000:
        return f"{value:,.0f}"
    if size == 0:
        return "0"
    decimals = max(0, 3 - math.floor(math.log10(size)))
    return f"{value:.{min(decimals, 8)}f}"


def _text(rows: list[list[str]]) -> str:
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _plain(value: Any) -> Any:
    """value with dataclasses, arrays and NumPy scalars made plain."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
