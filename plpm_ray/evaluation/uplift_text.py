"""An uplift report as text: one line per metric and arm, one column per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plpm_ray.evaluation.table import number

_TITLES = {
    "qini": "Qini coefficient",
    "auuc": "AUUC",
    "policy_value": "policy value (SNIPS)",
    "policy_value_ips": "policy value (IPS)",
    "policy_value_dr": "policy value (DR)",
    "policy_value_true": "policy value (true)",
    "policy_gain": "gain over control for all",
    "policy_gain_best_arm": "gain over the best arm for all",
    "assigned": "users given",
    "pehe": "PEHE",
    "bias": "bias of the effect",
    "spearman": "rank correlation (Spearman)",
    "best_arm_share": "users given their best arm",
    "regret": "regret",
    "average_effect": "average effect",
}


def title(metric: str) -> str:
    """Name of a metric for people: "uplift in the top 10 %" for "uplift_at_10"."""
    if metric.startswith("uplift_at_"):
        return f"uplift in the top {metric.removeprefix('uplift_at_')} %"
    return _TITLES.get(metric, metric)


def report_text(record: Mapping[str, Any]) -> str:
    """Tables of the record of an `UpliftReport`."""
    arms = ", ".join(f"{name} {users:,}" for name, users in record["arms"].items())
    parts = [
        f"{record['data']}: {record['users']:,} users ({arms}); responses in {record['unit']} per user",
        _table(record["rows"], record["models"]),
    ]
    if record["differences"]:
        against = record["models"][0]
        parts += [f"Differences to {against}", _table(record["differences"], record["models"][1:])]
    alone = [{**row, "model": "everybody"} for row in record["references"]]
    parts += ["One arm for everybody", _table(alone, ["everybody"])]
    parts.append(
        f"[low, high]: {record['level']:.0%} bootstrap interval over users, {record['repeats']:,} draws, seed "
        f"{record['seed']}; it does not cover the training of a model."
    )
    return "\n\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> str:
    lines: dict[tuple, dict[str, str]] = {}
    for row in rows:
        key = (title(row["metric"]), row["arm"] or "all", row["unit"] or "-")
        lines.setdefault(key, {})[row["model"]] = _cell(row)
    cells = [["metric", "arm", "unit", *models]]
    cells += [[*key, *(line.get(model, "-") for model in models)] for key, line in lines.items()]
    width = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    text = ["  ".join(cell.ljust(width[i]) for i, cell in enumerate(row)).rstrip() for row in cells]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _cell(row: Mapping[str, Any]) -> str:
    return f"{number(row['value'])} [{number(row['low'])}, {number(row['high'])}]"
