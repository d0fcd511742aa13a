"""What the report says of an A/B run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report.behaviour import landings, moves
from plpm_ray.evaluation.report.growth import growth, tide
from plpm_ray.evaluation.report.layout import Cell, Part, alert, section, shorten, table
from plpm_ray.evaluation.report.markup import Child, Markup, el, label
from plpm_ray.evaluation.report.metrics import compared, detail, doubtful, overview, verdict
from plpm_ray.evaluation.report.reading import Run
from plpm_ray.evaluation.report.records import MetricRow
from plpm_ray.evaluation.report.view import Experiment

_SIGNS = "+" + n.MINUS
_HEADLINE_METRICS = ("lt", "dau", "use_s")


def ab_part(run: Run, targets: Mapping[str, tuple[str, Sequence[float]]]) -> Part:
    """The sections of an A/B run.

    Args:
        targets: world -> where its hourly target comes from, and the 24 shares.
    """
    experiment = Experiment.of(run)
    record = experiment.record
    count = n.plural(len(experiment.treated), "arm")
    metrics = section("Metrics", None, overview(experiment), detail(experiment, pages=False))
    return Part(
        kind="A/B experiment",
        title=el("span", count, " against ", experiment.names(record.control), " on ", label(record.world)),
        headline=headline(experiment),
        alerts=_alerts(experiment),
        facts=_facts(experiment),
        sections=[
            metrics,
            growth(experiment),
            moves(experiment),
            landings(experiment),
            tide(experiment, targets.get(record.world)),
            section("Arms", None, _arms(experiment)),
        ],
    )


def headline(experiment: Experiment) -> Child:
    """The candidate that moves the main metric most, in one sentence, with what speaks against believing it."""
    rows = compared(experiment, pages=False)
    candidates = [m for m in rows if m.arm in experiment.candidates and m.relative is not None]
    best = [_best([m for m in candidates if m.metric == key]) for key in _HEADLINE_METRICS]
    best = [m for m in best if m is not None]
    if not best:
        return ""
    first = best[0]
    number = sum(m.metric == first.metric for m in candidates)
    if verdict(first) == "better" and not doubtful(first):
        return _winner(experiment, first, number)
    if all(verdict(m) == "worse" for m in candidates if m.metric == first.metric):
        said = "the only candidate is" if number == 1 else f"all {number} candidates are"
        control = experiment.names(experiment.control)
        return el("span", f"By {first.title}, {said} worse than ", control, f"; at best {_change(first)}.")
    other = next((m for m in best[1:] if verdict(m) == "better" and not doubtful(m)), None)
    so_far = f"No candidate is reliably better by {first.title}"
    if other is not None:
        return el("span", so_far, ", but ", _winner(experiment, other, number))
    return el(
        "span",
        so_far,
        " than ",
        experiment.names(experiment.control),
        ": at best ",
        experiment.names(first.arm),
        f", {_change(first)}.",
    )


def _best(rows: Sequence[MetricRow]) -> MetricRow | None:
    """The row that is furthest in the metric's good direction."""
    return max(rows, key=lambda m: (m.relative or 0.0) * (-1 if m.better == "lower" else 1), default=None)


def _winner(experiment: Experiment, best: MetricRow, compared_with: int) -> Markup:
    verb = "raises" if (best.relative or 0) > 0 else "lowers"
    end = f" (best of {n.plural(compared_with, 'candidate')})" if compared_with > 1 else ""
    if best.gap_share is not None and best.gap_share > 0:
        end += f", {n.percent(best.gap_share, 0)} of the way from the random policy to the oracle"
    control = experiment.names(experiment.control)
    return el(
        "span",
        experiment.names(best.arm),
        f" {verb} {best.title} by {_change(best).lstrip(_SIGNS)} against ",
        control,
        end,
        ".",
    )


def _change(m: MetricRow) -> str:
    shown, interval = n.change(m.relative, m.low, m.high)
    inside = [f"95{n.SPACE}% interval {interval}"] if interval else []
    inside += [n.p_phrase(m.p_value)] if m.p_value is not None else []
    return shown + (f" ({', '.join(inside)})" if inside else "")


def _alerts(experiment: Experiment) -> list[Markup]:
    check = experiment.record.sample_ratio
    if check is None or check.ok:
        return []
    off = {arm: abs(count - check.expected.get(arm, 0.0)) for arm, count in check.counts.items()}
    furthest = sorted(off, key=lambda arm: -off[arm])[:3]
    counts = "; ".join(
        f"{experiment.names.short(arm)} has {n.count(check.counts[arm])} instead of {n.count(check.expected.get(arm))}"
        for arm in furthest
    )
    p = "" if check.p_value is None else f" ({n.p_phrase(check.p_value)})"
    return [
        alert(
            "Sample ratio check failed",
            f"The arms do not hold the users that they should{p}: {counts}. Users were lost or added unequally, "
            "so differences between the arms below may not be effects of the policies.",
        )
    ]


def _facts(experiment: Experiment) -> list[tuple[str, Child]]:
    record, check = experiment.record, experiment.record.sample_ratio
    days = f"{record.aa_days} AA, then {record.ab_days} AB"
    if record.warmup_days:
        days += f", after {record.warmup_days} to warm up"
    ratio = None
    if check is not None and record.design == "split":
        p = "" if check.p_value is None else f", {n.p_phrase(check.p_value)}"
        ratio = el("span", ("✓ passed" if check.ok else "✗ failed") + p, class_="good" if check.ok else "bad")
    twins = record.design == "twins"
    each = "in every arm" if twins else "in all"
    design = "the same users in every arm (twins)" if twins else "each user in one arm (split)"
    return [
        ("world", label(record.world)),
        (
            "pages",
            ", ".join(map(shorten, record.pages))
            if len(record.pages) <= 8
            else n.plural(len(record.pages), "page"),
        ),
        ("users", f"{n.count(record.users)} {each}"),
        ("days", days),
        ("design", design),
        ("seed", None if record.seed is None else str(record.seed)),
        ("sample ratio check", ratio),
    ]


def _arms(experiment: Experiment) -> Markup:
    record, check = experiment.record, experiment.record.sample_ratio
    counts, expected = (check.counts, check.expected) if check else ({}, {})
    header: list[Child] = ["arm", "users", "expected", "CPU time of a decision"]
    rows: list[list[Child]] = [
        [
            el("span", label(arm)),
            n.count(counts.get(arm)),
            n.count(expected.get(arm)),
            n.with_unit(n.number(record.latency.get(arm)), "µs"),
        ]
        for arm in experiment.everyone
    ]
    if any(record.versions.get(arm) for arm in record.arms):
        header.append(Cell("version", "text"))
        rows = [
            [*row, Cell(record.versions.get(a) or n.DASH, "text")]
            for row, a in zip(rows, experiment.everyone, strict=True)
        ]
    return table("Who was in each arm, and what chose the pages", header, rows)
