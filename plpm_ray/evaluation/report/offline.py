"""What the report says of runs on logs: `plpm evaluate`, `plpm sweep` and `plpm train`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from plpm_ray.core.storage import storage_errors
from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.layout import Cell, Group, Names, Part, section, table, wide_figure
from plpm_ray.evaluation.report.lines import Axes, Series, line_chart, responsive
from plpm_ray.evaluation.report.markup import Child, Markup, el, label
from plpm_ray.evaluation.report.mini import DRAWN, mini_axis, mini_interval
from plpm_ray.evaluation.report.reading import Run
from plpm_ray.evaluation.report.records import PolicyRecord
from plpm_ray.evaluation.report.rows import Dot
from plpm_ray.evaluation.report.scales import extent

_LOG = "(the log itself)"
_BEST_TRIALS = 10


def evaluate_part(run: Run) -> Part:
    """Policies judged on logs, with off-policy estimates."""
    record = run.record
    results = record.results
    names = Names(r.policy for r in results)
    days = record.split.get(record.part) or []
    diagnostics = record.diagnostics
    modelled = diagnostics.get("propensities") == "modelled"
    lead = "Propensities are modelled from the log: values hold only if the features explain what it did."
    return Part(
        "Evaluation on logs",
        n.plural(sum(r.policy != _LOG for r in results), "policy", "policies") + " on held-out days",
        _evaluate_headline(results, names),
        [
            ("name", label(str(record.config["name"])) if record.config.get("name") else None),
            ("tables", label(str(record.config["tables"])) if record.config.get("tables") else None),
            ("days", f"{days[0]} to {days[-1]} ({record.part})" if days else None),
            ("decisions", n.count(diagnostics["rows"]) if diagnostics.get("rows") else None),
            ("users", n.count(diagnostics["users"]) if diagnostics.get("users") else None),
            ("propensities", diagnostics.get("propensities")),
        ],
        [
            section("Policy values", lead if modelled else None, _values(results, names)),
            section("What the policies do", None, _behaviour(results, names, record.pages)),
        ],
    )


def _estimates(results: Sequence[PolicyRecord]) -> list[str]:
    return list(dict.fromkeys(name for r in results for name in r.estimates))


def _evaluate_headline(results: Sequence[PolicyRecord], names: Names) -> Child:
    """The policy with the highest value by the first estimator, with that of the log to compare."""
    for name in _estimates(results):
        found = [(r, e) for r in results if (e := r.estimates.get(name)) and e.get("value") is not None]
        policies = [(r, e) for r, e in found if r.policy != _LOG]
        if not policies:
            continue
        best, e = max(policies, key=lambda pair: pair[1]["value"])
        log = next((x for r, x in found if r.policy == _LOG), None)
        shown, interval = n.estimate(e["value"], e.get("low"), e.get("high"))
        unit = _unit(e)
        against = "" if log is None else f", against {n.with_unit(n.number(log['value']), unit)} in the log"
        level = n.percent(e.get("level", 0.95), 0)
        inside = f" ({level} interval {interval})" if interval else ""
        verb = f" has the highest value by {name}: " if len(policies) > 1 else f" has by {name} a value of "
        return el("span", names(best.policy), f"{verb}{n.with_unit(shown, unit)}{inside}{against}.")
    return "Every estimate was refused: the logs hold too little of what the policies do."


def _unit(e: Mapping[str, Any]) -> str:
    return " per ".join(str(e[k]) for k in ("unit", "per") if e.get(k))


def _values(results: Sequence[PolicyRecord], names: Names) -> Markup:
    groups, notes = [], []
    header = ["estimator and policy", "value", DRAWN, "interval", "effective samples"]
    for name in _estimates(results):
        rows = [(r.policy, e) for r in results if (e := r.estimates.get(name))]
        log = next((e.get("value") for policy, e in rows if policy == _LOG), None)
        low, high = extent([e.get(k) for _, e in rows for k in ("value", "low", "high")], margin=0.08)
        heading = el("span", el("strong", name), el("span", _unit(rows[0][1]), class_="sub"))
        body = [_value_row(names, policy, e, low, high, log) for policy, e in rows]
        groups.append(Group([heading, mini_axis(low, high, log), "", ""], body))
        notes += sorted({f"{name}: {e['note']}." for _, e in rows if e.get("note")})
    levels = sorted({e.get("level", 0.95) for r in results for e in r.estimates.values()})
    notes.insert(
        0,
        f"Intervals: {', '.join(n.percent(v, 0) for v in levels)}, clustered by user. The line is the value of the log.",
    )
    return table("Off-policy values", header, groups, "detail", " ".join(notes))


def _value_row(
    names: Names, policy: str, e: Mapping[str, Any], low: float, high: float, log: float | None
) -> list[Child | Cell]:
    if e.get("refused"):
        return [names(policy), "refused", "", Cell(str(e["refused"]), "text"), _effective(e)]
    shown, interval = n.estimate(e.get("value"), e.get("low"), e.get("high"))
    dot = None if e.get("value") is None else Dot(e["value"], e.get("low"), e.get("high"))
    drawn = mini_interval(dot, low, high, log)
    return [
        names(policy),
        n.with_unit(shown, str(e.get("unit", ""))),
        Cell(drawn, "mini"),
        n.with_unit(interval, str(e.get("unit", ""))) if interval else n.DASH,
        _effective(e),
    ]


def _effective(e: Mapping[str, Any]) -> str:
    return n.count((e.get("support") or {}).get("effective_samples"))


def _behaviour(results: Sequence[PolicyRecord], names: Names, pages: Sequence[str]) -> Markup:
    shares = {r.policy: _shares(r.metrics.get("pages")) for r in results}
    count = max((len(s) for s in shares.values()), default=0)
    titles = list(pages) if len(pages) == count else [f"page {k}" for k in range(count)]
    rows = []
    for r in results:
        agreement = (r.metrics.get("agreement") or {}) if r.policy != _LOG else {}
        same = agreement.get("argmax_share") if isinstance(agreement, Mapping) else None
        cells = [n.percent(s) for s in shares[r.policy]] or [n.DASH] * count
        rows.append([names(r.policy), n.percent(same["value"]) if same else n.DASH, *cells])
    header = ["policy", "same page as the log", *(f"to {title}" for title in titles)]
    return (
        table("Agreement with the log, and share of decisions by page", header, rows) if count else Markup()
    )


def _shares(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        value = value.get("argmax")
    return [float(v) for v in value] if isinstance(value, list) else []


def sweep_part(run: Run) -> Part:
    """The best of a sweep and its ten highest trials."""
    record = run.record
    best = record.best or {}
    shown, interval = n.estimate(best.get("value"), best.get("low"), best.get("high"))
    headline: Child = "Every trial was refused or failed."
    if best:
        params = ", ".join(f"{k} {_short(v)}" for k, v in best.get("params", {}).items())
        inside = f" ({interval})" if interval else ""
        headline = (
            f"Best of {n.plural(record.trials, 'trial')} by {record.objective} is trial {best.get('trial')} ({params}): "
            f"{n.with_unit(shown, record.unit)}{inside} on the {record.judged_on}."
        )
    return Part(
        "Sweep",
        el("span", label(record.name), f" ({record.learner})"),
        headline,
        [
            ("learner", record.learner),
            ("searched", ", ".join(record.searched)),
            ("objective", record.objective),
            ("trials", n.count(record.trials)),
        ],
        [section("Best trials", None, _trials(run))],
    )


def _trials(run: Run) -> Markup:
    path = run.folder / "table.csv"
    if not path.is_file():
        return Markup()
    with storage_errors(f"reading {path}"):
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))[:_BEST_TRIALS]
    searched = [name for name in run.record.searched if rows and name in rows[0]]
    unit = f" ({run.record.unit})" if run.record.unit else ""
    header = ["rank", "trial", *searched, Cell("status", "word"), "epochs", f"value{unit}", f"interval{unit}"]
    body = []
    for r in rows:
        value, low, high = (_number(r.get(k)) for k in ("value", "low", "high"))
        shown, interval = n.estimate(value, low, high)
        params = [_short(r[name]) for name in searched]
        body.append(
            [
                r["rank"],
                r["trial"],
                *params,
                Cell(r["status"], "word"),
                r["epochs"],
                shown,
                interval or n.DASH,
            ]
        )
    return table("Highest trials, those that ran to their end first", header, body)


def train_part(run: Run) -> Part:
    """What was trained, and its validation loss by epoch."""
    record = run.record
    metrics = {k: v for k, v in record.metrics.items() if _is_number(v)}
    loss = metrics.get("loss")
    headline = (
        f"Trained for {n.plural(record.epochs or 0, 'epoch')}; validation loss {n.number(loss)}."
        if loss is not None
        else ""
    )
    rows = [[name, n.number(float(value))] for name, value in metrics.items()]
    return Part(
        "Training",
        el("span", label(record.learner)),
        headline,
        [
            ("learner", record.learner),
            ("version", label(record.version) if record.version else None),
            ("data", label(str(record.data["dataset"])) if record.data.get("dataset") else None),
            ("epochs", n.count(record.epochs) if record.epochs is not None else None),
            ("steps", n.count(record.steps) if record.steps is not None else None),
            ("samples", n.count(record.samples) if record.samples is not None else None),
        ],
        [
            section("Loss", None, _losses(record.history)),
            section(
                "Validation",
                None,
                table(
                    "Metrics on the validation days; names ending in _s are in seconds",
                    ["metric", "value"],
                    rows,
                ),
            ),
        ],
    )


def navigator_part(run: Run) -> Part:
    """What a navigator was put together from, and how its parts did on held-out data."""
    record = run.record
    groups = []
    for role, version in {"": record.version, **record.versions}.items():
        found = record.part_metrics.get(role, {}) if role else record.metrics
        rows = [[name, n.number(float(value))] for name, value in found.items() if _is_number(value)]
        if rows:
            heading = el("span", el("strong", label(role or record.navigator)), " ", label(version))
            groups.append(Group([heading, ""], rows))
    settings = [[name, _setting(value)] for name, value in record.config.items()]
    days = record.data.get("train_days") or []
    return Part(
        "Navigator",
        el("span", label(record.navigator)),
        f"Composed of {n.plural(len(record.versions), 'part')}." if record.versions else "Fitted whole.",
        [
            ("version", label(record.version) if record.version else None),
            *((f"part {role}", label(version)) for role, version in record.versions.items()),
            ("data", label(str(record.data["dataset"])) if record.data.get("dataset") else None),
            ("trained on", f"{days[0]} to {days[-1]}" if days else None),
        ],
        [
            section("Settings", None, table("How it decides", ["setting", "value"], settings)),
            section(
                "Validation",
                None,
                table("Metrics on held-out data, of each part its own", ["metric", "value"], groups)
                if groups
                else Markup(),
            ),
        ],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _setting(value: Any) -> Child:
    if value is None:
        return n.DASH
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return n.number(float(value)) if _is_number(value) else label(str(value))


def _losses(history: Sequence[Mapping[str, Any]]) -> Markup:
    series = []
    for style, (key, name) in enumerate({"train/loss": "training", "valid/loss": "validation"}.items()):
        points = [(float(h["epoch"]), float(h[key])) for h in history if key in h and "epoch" in h]
        if len(points) > 1:
            series.append(Series(name, [x for x, _ in points], [y for _, y in points], style=style))
    if not series:
        return Markup()
    said = "; ".join(f"{s.name} loss from {n.number(s.y[0])} to {n.number(s.y[-1])}" for s in series)
    axes = Axes("epoch", "loss")
    return wide_figure(
        "Loss by epoch",
        responsive(lambda w: line_chart(series, axes, "Loss by epoch", said, w, named=True)),
        said,
    )


def _number(value: str | None) -> float | None:
    return float(value) if value else None


def _short(value: Any) -> str:
    try:
        return n.number(float(value))
    except (TypeError, ValueError):
        return str(value)
