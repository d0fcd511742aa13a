"""The results of an experiment as text, at most `WIDTH` columns wide."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from plpm_ray.core.errors import ConfigError
from plpm_ray.evaluation.experiment_metrics import ADJUSTED_BY, SIGNIFICANCE, metric_catalogue
from plpm_ray.evaluation.table import number

WIDTH = 110
_LABEL, _CELL = 13, 16
_NOTHING = "-"
_COMPARED = {
    "split": "Change against the control, [95 % interval]; adjusted for the AA period where there is one.",
    "twins": "Change against the control, [95 % interval]; the same users under every arm, paired.",
}
_LEGEND = (
    "{compared}",
    "* better, ! worse, ~ changed (p < 0.05); twice: also after {adjustment} over all arms and main metrics.",
    "gap: share of the way from {random} to {oracle}, shown where {oracle} is significantly better.",
)


def format_experiment(
    result: Mapping[str, Any], *, metrics: Sequence[str] | None = None, width: int = WIDTH
) -> str:
    """Arms as rows, metrics as columns: relative change, its interval, a mark for significance, share of the gap.

    Metrics that do not fit beside one another continue in a further table below.

    Args:
        result: of `experiment.analyse`.
        metrics: keys; the main metrics where not given.

    Raises:
        ConfigError: an unknown metric.
    """
    catalogue = {metric.key: metric for metric in metric_catalogue(result["pages"])}
    keys = [key for key, metric in catalogue.items() if metric.main] if metrics is None else list(metrics)
    if unknown := set(keys) - set(catalogue):
        raise ConfigError(f"unknown metrics {sorted(unknown)}", hint=f"known are {list(catalogue)}")
    rows = {(row["metric"], row["arm"]): row for row in result["metrics"]}
    control = result["control"]
    per_table = max(1, (width - _LABEL - 1) // _CELL)
    blocks = []
    for start in range(0, len(keys), per_table):
        shown = keys[start : start + per_table]
        table = _grid(["arm", *(catalogue[key].short for key in shown)], _LABEL)
        cells = (_control_cell(rows[key, control]) for key in shown)
        table.add_row(f"{control}\n(control)", *cells, end_section=True)
        for arm in result["arms"]:
            if arm != control:
                table.add_row(arm, *(_cell(rows[key, arm]) for key in shown))
        blocks.append(_render(table, width))
    return "\n".join([_head(result, width), "", *blocks, _legend(result, width)])


def format_experiment_long(result: Mapping[str, Any], *, width: int = WIDTH) -> str:
    """One line a metric and arm, for every metric.

    Args:
        result: of `experiment.analyse`.
    """
    control = result["control"]
    table = _grid(
        ["metric and arm", "value", "change", "95 % interval", "p", "p adj.", "var. -", "gap [95 %]"]
    )
    for key in dict.fromkeys(row["metric"] for row in result["metrics"]):
        rows = [row for row in result["metrics"] if row["metric"] == key]
        table.add_row(f"{rows[0]['title']}, {_unit(rows[0])}")
        for row in sorted(rows, key=lambda row: row["arm"] != control):
            table.add_row(f"  {row['arm']}", *_line(row, row["arm"] == control))
        table.add_section()
    foot = (
        "p adj.: adjusted for all arms and main metrics.  "
        "var. -: variance taken away by the AA period or by pairing."
    )
    return "\n".join([_head(result, width), "", _render(table, width), _legend(result, width), foot])


def format_false_positives(result: Mapping[str, Any]) -> str:
    """The table of `experiment_checks.false_positives`, with its verdict."""
    level = f"{result['level']:.0%}"
    table = _grid(
        ["metric", "experiments", f"p < {result['level']}", "rate", "one metric", "all metrics", ""]
    )
    for row in result["rows"]:
        if not row["experiments"]:
            table.add_row(row["title"], "0", *[_NOTHING] * 4, "no variance")
            continue
        ranges = (f"{row[f'{name}_low']:.1%} to {row[f'{name}_high']:.1%}" for name in ("expected", "family"))
        mark = "ok" if row["ok"] else "outside one" if row["family_ok"] else "OUTSIDE"
        counts = (f"{row['experiments']:,}", str(row["rejections"]), f"{row['rate']:.1%}")
        table.add_row(row["title"], *counts, *ranges, mark)
    n, outside = result["metrics"], result["outside"]
    verdict = textwrap.fill(
        f"{n - outside} of {n} metrics lie within the 95 % binomial range around {level} for one metric (of {n} correct "
        f"tests about {n * 0.05:.1f} fall outside); "
        f"{'all lie' if result['family_ok'] else 'NOT all lie'} within the range that holds for all together.",
        WIDTH,
    )
    return f"{_render(table, WIDTH)}\n{verdict}"


def _head(result: Mapping[str, Any], width: int) -> str:
    check = result["sample_ratio"]
    arms = f"{len(result['arms'])} arms" + (", the same users in each" if result["design"] == "twins" else "")
    head = (
        f"{result['users']:,} users, {arms}, {result['aa_days']} AA days, {result['ab_days']} AB days, "
        f"control: {result['control']}"
    )
    if check["p_value"] is None:
        return head
    ratio = f"sample ratio ok (p = {check['p_value']:.3g})" if check["ok"] else check["message"]
    return f"{head}\n{textwrap.fill(ratio, width)}"


def _legend(result: Mapping[str, Any], width: int) -> str:
    has_gap = any(row["gap_share"] is not None for row in result["metrics"])
    lines = _LEGEND if has_gap else _LEGEND[:2]
    words = {
        "compared": _COMPARED[result["design"]],
        "adjustment": f"{ADJUSTED_BY[result['adjustment']]}'s correction",
        "random": result["random"],
        "oracle": result["oracle"],
    }
    return "\n".join(textwrap.fill(line.format(**words), width) for line in lines)


def _unit(row: Mapping[str, Any]) -> str:
    return row["unit"].replace("per user and day", "/user/day")


def _control_cell(row: Mapping[str, Any]) -> str:
    return f"{number(row['control'])}\n{_unit(row)}\n{_gap(row)}".rstrip()


def _cell(row: Mapping[str, Any]) -> str:
    return (
        f"{_change(row['relative'])}{_mark(row)}\n{_interval(row['low'], row['high'])}\n{_gap(row)}".rstrip()
    )


def _gap(row: Mapping[str, Any]) -> str:
    return "" if row["gap_share"] is None else f"gap {_share(row['gap_share'])}"


def _line(row: Mapping[str, Any], is_control: bool) -> list[str]:
    gap = _NOTHING
    if row["gap_share"] is not None:
        gap = _share(row["gap_share"])
        gap += "" if row["gap_low"] is None else f" [{_share(row['gap_low'])}, {_share(row['gap_high'])}]"
    if is_control:
        return [number(row["control"]), "control", *[_NOTHING] * 4, gap]
    reduction = row["variance_reduction"]
    return [
        number(row["value"]),
        _change(row["relative"]) + _mark(row),
        _interval(row["low"], row["high"]),
        _p_value(row["p_value"]),
        _p_value(row["p_adjusted"]),
        _NOTHING if reduction is None else _share(reduction),
        gap,
    ]


def _mark(row: Mapping[str, Any]) -> str:
    if row["p_value"] is None or row["p_value"] >= SIGNIFICANCE:
        return ""
    sign = "~"
    if row["better"] != "neutral":
        sign = "*" if (row["difference"] > 0) == (row["better"] == "higher") else "!"
    held = row["p_adjusted"] is not None and row["p_adjusted"] < SIGNIFICANCE
    return f" {sign * (2 if held else 1)}"


def _change(value: float | None) -> str:
    return _NOTHING if value is None else f"{_percent(value)}%"


def _interval(low: float | None, high: float | None) -> str:
    return _NOTHING if low is None or high is None else f"[{_percent(low)}, {_percent(high)}]"


def _percent(value: float) -> str:
    size = abs(value)
    decimals = 2 if size < 0.1 else 1 if size < 1 else 0
    return f"{100 * value:+,.{decimals}f}"


def _share(value: float) -> str:
    return f"{round(100 * value):,}%"  # an integer has no minus zero


def _p_value(p: float | None) -> str:
    return _NOTHING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _grid(titles: Sequence[str], first_width: int | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for i, title in enumerate(titles):
        if i == 0:
            table.add_column(title, max_width=first_width, overflow="fold")
        else:
            table.add_column(title, justify="right")
    return table


def _render(table: Table, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
