"""The record of `plpm assess` as tables, for the terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from plpm_ray.evaluation.table import laid_out, number

Style = Literal["text", "markdown"]
REFERENCE, CONSTANT = "7-day mean", "mean day for all"
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_GROUPS = {"use": "what came", "prediction": "what was foretold", "weekday": "weekday"}


def assess_text(record: Mapping[str, Any], style: Style = "text") -> str:
    """All tables, one below the other."""
    days = [m for m in record["models"] if m["kind"] == "day"]
    sessions = [m for m in record["models"] if m["kind"] == "session"]
    held = record["split"][record["part"]]
    parts = [f"{record['data']}, {record['part']} days {held[0]} to {held[-1]}"]
    if days:
        parts += _days(days, style)
    if sessions:
        parts += _sessions(sessions, style)
    return "\n\n".join([*parts, "[low, high]: 95 % interval, clustered by user."])


def group_names(by: str) -> list[str]:
    """Names of the groups that a bias is shown by."""
    return list(WEEKDAYS) if by == "weekday" else [str(i) for i in range(1, 11)]


def _days(models: Sequence[Mapping[str, Any]], style: Style) -> list[str]:
    first = models[0]
    told = {REFERENCE: first["reference"]} | {m["label"]: m["model"] for m in models}
    rows = [["seconds of use of a day", "MAE", "RMSE", "Spearman", "bias", "gain in MAE"]]
    gains = {m["label"]: _mean(m["mae_gain"]) for m in models}
    for label, errors in [(CONSTANT, first["constant"]), *told.items()]:
        cells = [_mean(errors[name]) for name in ("mae_s", "rmse_s", "spearman", "bias_s")]
        rows.append([label, *cells, gains.get(label, "-")])
    about = (
        f"{first['rows']:,} days of {first['users']:,} users, {number(first['mean_s'])} s of use on average"
    )
    parts = [_titled(about, rows, style)]
    for by, title in _GROUPS.items():
        rows = [[f"bias by {title}, s", *told]]
        for i, name in enumerate(group_names(by)):
            groups = [errors["bias_by"][by][i] for errors in told.values()]
            if any(groups):
                rows.append([name, *(_mean(group) for group in groups)])
        note = "" if by == "weekday" else "tenths of the days, the shortest first"
        parts.append(_titled(note, rows, style))
    constrained = [
        [m["label"], name, *_constraint(c)] for m in models for name, c in m["constraints"].items()
    ]
    head = [
        "model",
        "constraint",
        "on these days",
        "bound",
        "dual variable",
        "holds here",
        "held in training",
    ]
    return [*parts, *([laid_out([head, *constrained], style)] if constrained else [])]


def _constraint(c: Mapping[str, Any]) -> list[str]:
    said = {True: "yes", False: "no", None: "-"}
    return [_mean(c), number(c["bound"]), number(c["lambda"]), said[c["holds"]], said[c["held"]]]


def _sessions(models: Sequence[Mapping[str, Any]], style: Style) -> list[str]:
    first = models[0]["drop_off"]
    about = f"{first['sessions']:,} sessions of {models[0]['users']:,} users, {first['share']:.2%} with a drop-off"
    names = ["AUC", "PR-AUC", "calibration error", "Brier", "log loss", "mean chance"]
    rows = [["drop-off of the landing page", *names]]
    for m in models:
        drop = m["drop_off"]
        plain = [number(drop[name]) for name in ("auc", "pr_auc", "calibration_error")]
        ends = [_interval(drop[n], drop[f"{n}_interval"]) for n in ("brier", "log_loss")]
        rows.append([m["label"], *plain, *ends, number(drop["mean_chance"])])
    constant = [number(first[f"constant_{n}"]) for n in ("brier", "log_loss")]
    rows.append(["the share for all", "0.5", number(first["share"]), "0", *constant, number(first["share"])])
    parts = [_titled(about, rows, style)]
    bins = [["model", "sessions", "mean chance", "share with a drop-off"]]
    bins += [
        [m["label"], f"{n:,}", number(p), number(s)] for m in models for p, s, n in m["drop_off"]["bins"]
    ]
    pages = [["model", "page", "mean, s", "MAE, s", "MAE of the mean, s", "bias, s"]]
    for m in models:
        for p in m["pages"]:
            numbers = [number(p[name]) for name in ("mean_s", "mae_s", "constant_mae_s", "bias_s")]
            pages.append([m["label"], p["page"], *numbers])
    rewards = [["model", "mean reward, s", "mean use, s", "Spearman of the two"]]
    for m in models:
        r = m["reward"]
        rewards.append([m["label"], number(r["mean_s"]), number(r["mean_use_s"]), _mean(r["spearman_use"])])
    return [*parts, *(laid_out(rows, style) for rows in (bins, pages, rewards) if len(rows) > 1)]


def _titled(title: str, rows: list[list[str]], style: Style) -> str:
    return f"{title}\n\n{laid_out(rows, style)}" if title else laid_out(rows, style)


def _mean(mean: Mapping[str, Any] | None) -> str:
    return "-" if mean is None else _interval(mean["value"], [mean["low"], mean["high"]])


def _interval(value: float | None, ends: Sequence[float | None]) -> str:
    if value is None or None in ends:
        return number(value)
    return f"{number(value)} [{number(ends[0])}, {number(ends[1])}]"
