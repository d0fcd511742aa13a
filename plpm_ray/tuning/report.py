"""What a sweep leaves behind: the ranked table, the summary, the best point as a config, and the response plot."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plpm_ray.core.storage import atomic_writer, write_json
from plpm_ray.evaluation.objective import ESTIMATORS
from plpm_ray.training.config import TrainingConfig
from plpm_ray.tuning.config import SweepConfig
from plpm_ray.tuning.ledger import EpochReport, TrialRecord
from plpm_ray.tuning.space import Space

RANKED_BY = {
    "lower": "the lower end of the interval of the gain (of the value, without a baseline)",
    "value": "the value",
}
_RANK = {"finished": 0, "stopped": 1, "refused": 2, "failed": 3, "lost": 4}
_SHOWN = ("epochs", "batch_size", "lr", "seed")
_NUMBERS = (
    "score",
    "value",
    "low",
    "high",
    "standard_error",
    "effective_samples",
    "gain",
    "gain_low",
    "gain_high",
)


@dataclass(frozen=True)
class Telling:
    """How one kind of sweep tells what it found.

    Attributes:
        about: what summary.json says of the sweep itself, from "name" to "judged_on".
        ranked_by: what decides.
        notes: sentences below the table.
        best: text of best.yaml.
        step: what a report of a trial is called in the table.
        gain: title of the gain.
        measured: title -> name in `EpochReport.metrics`, columns of their own; without them the effective sample size.
        meets: what no trial does where all are refused.
        loosen: what to do about that.
    """

    about: Mapping[str, Any]
    ranked_by: str
    notes: Sequence[str]
    best: Callable[[TrialRecord], str]
    step: str = "epochs"
    gain: str = "gain over baseline"
    measured: Mapping[str, str] = field(default_factory=dict)
    meets: str = "meets the constraints"
    loosen: str = (
        "loosen `constraints` (--set constraints.epef=null or constraints.latency_us=null switches one off), "
        "which begins a sweep of its own"
    )


def rank(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Best first: trials that ran to their end by score, then those stopped early, then refused and failed ones.

    A trial that was stopped early never stands above one that was not: fewer epochs make another model.
    """
    return sorted(
        records, key=lambda r: (_RANK[r.status], -r.score if r.score is not None else 0.0, r.number)
    )


def best_of(ranked: Sequence[TrialRecord]) -> TrialRecord | None:
    """The winner: the first with a value, or None where every estimate was refused or failed."""
    return next((record for record in ranked if record.value is not None), None)


def write_results(
    run_dir: Path, config: SweepConfig, space: Space, records: Iterable[TrialRecord], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes what a sweep of a learner leaves; see `write_telling`."""
    notes = []
    note = ESTIMATORS[config.objective.estimator].note
    if note is not None:
        notes.append(f"{config.objective.estimator}: {note}.")
    if facts.get("held_out", {}).get("propensities") == "modelled":
        notes.append("Propensities are modelled from the training days, not recorded.")
    notes.append(
        "Intervals are clustered by user; n eff. is the effective sample size of the importance weights."
    )
    telling = Telling(
        about={
            "name": config.name,
            "learner": config.learner.name,
            "searched": list(space.names),
            "objective": config.objective.estimator,
            "judged_on": "validation days",
        },
        ranked_by=RANKED_BY[config.objective.rank_by],
        notes=notes,
        best=lambda record: best_yaml(config, space, record),
        meets="has an estimate that the logs support",
        loosen="search policies nearer to the logs, or loosen the limits in `objective`, which begins a sweep of its own",
    )
    return write_telling(run_dir, telling, space, records, facts)


def write_telling(
    run_dir: Path, telling: Telling, space: Space, records: Iterable[TrialRecord], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes table.csv, table.md, response.svg, best.yaml and summary.json.

    Args:
        facts: what else the summary holds, such as the objective's unit, the baseline and the models' diagnostics.

    Returns:
        The summary.
    """
    ranked = rank(records)
    best, unit = best_of(ranked), str(facts.get("unit", ""))
    write_text(run_dir / "table.csv", _csv(ranked, space, telling))
    write_text(run_dir / "table.md", markdown(ranked, space, unit, telling))
    if best is not None:
        write_text(run_dir / "best.yaml", telling.best(best))
    else:
        (run_dir / "best.yaml").unlink(missing_ok=True)
    from plpm_ray.tuning.plot import response_plot

    with atomic_writer(run_dir / "response.svg") as file:
        file.write(response_plot(ranked, space, unit, facts.get("baseline_value")))
    summary = _summary(telling, ranked, best, facts)
    write_json(run_dir / "summary.json", summary)
    return summary


def markdown(ranked: Sequence[TrialRecord], space: Space, unit: str, telling: Telling) -> str:
    """The ranked table for people; notes stand below it, with what was refused and what failed."""
    gains = any(r.last is not None and r.last.gain is not None for r in ranked)
    header = ["rank", "trial", *space.names, "status", telling.step, f"value ({unit})" if unit else "value"]
    header += ["interval", *(telling.measured or ("n eff.",)), *([telling.gain] if gains else [])]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for place, record in enumerate(ranked, start=1):
        last = record.last
        cells = [str(place), str(record.number), *(setting(record.params.get(n)) for n in space.names)]
        cells += [record.status, str(record.epochs), number(record.value)]
        cells.append(
            interval(last, "low", "high") if record.value is not None or not telling.measured else "-"
        )
        if telling.measured:
            cells += [number(last.metrics.get(key)) if last else "-" for key in telling.measured.values()]
        else:
            cells.append(number(last.effective_samples, 0) if last else "-")
        if gains:
            cells.append(_gain(last))
        lines.append("| " + " | ".join(cells) + " |")
    ordered = f"Ranked by {telling.ranked_by}; trials stopped early stand below those that ran on."
    notes = [*telling.notes, *_reasons(ranked), *no_best(ranked, telling)]
    return "\n".join([*lines, "", ordered, *notes]) + "\n"


def no_best(ranked: Sequence[TrialRecord], telling: Telling) -> list[str]:
    """Where trials were refused and none won: that there is no best.yaml, what refused most of them, and what to do."""
    refused = [(r, r.last.refused) for r in ranked if r.last is not None and r.last.refused]
    if best_of(ranked) is not None or not refused:
        return []
    # reasons that differ in their numbers only are one; the best of the trials that it refused is the example
    trials: dict[str, list[tuple[TrialRecord, str]]] = {}
    for record, reasons in refused:
        for reason in reasons.split("; "):
            trials.setdefault(re.sub(r"\d[\d.,]*", "#", reason), []).append((record, reason))
    most = max(trials.values(), key=len)
    example, reason = most[0]
    return [
        f"No trial {telling.meets}, so there is no best.yaml. Most often ({len(most)} of {len(ranked)} trials), as in trial "
        f"{example.number}: {reason}.",
        f"To go on: {telling.loosen}.",
    ]


def best_yaml(config: SweepConfig, space: Space, best: TrialRecord) -> str:
    """A config for `plpm train` that trains the best point on the same days."""
    base = config.base()
    defaults = TrainingConfig.model_validate({}).model_dump(mode="json")
    sections = {
        name: space.apply(best.params, name, base[name]) for name in ("learner", "training", "policy")
    }
    trained = {
        "name": f"{config.name}-best",
        "run_root": config.run_root,
        "tables": config.tables,
        "split": config.split.model_dump(mode="json"),
        "learner": {"name": config.learner.name, **sections["learner"]},
        "training": {k: v for k, v in sections["training"].items() if v != defaults[k] or k in _SHOWN},
    }
    if config.plugins:
        trained["plugins"] = list(config.plugins)
    last = best.last
    assert last is not None
    found = f"{number(last.value)} {interval(last, 'low', 'high')}"
    head = [f"# Trial {best.number} of the sweep {config.name!r}, on the validation days: {found}."]
    head.append(
        "# The best of several noisy estimates is flattered; judge it on the test days with `plpm evaluate`."
    )
    searched = [name for name in space.names if name.startswith("policy.")]
    if searched:
        chosen = ", ".join(f"{name} = {number(best.params[name])}" for name in searched)
        head.append(f"# Found for the policy that draws the pages, which training does not know: {chosen}.")
    return "\n".join(head) + "\n" + yaml.safe_dump(trained, sort_keys=False, allow_unicode=True)


def _summary(
    telling: Telling, ranked: Sequence[TrialRecord], best: TrialRecord | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    counts = Counter(record.status for record in ranked)
    reasons = Counter(r.last.refused for r in ranked if r.status == "refused" and r.last is not None)
    shown = None
    if best is not None and best.last is not None:
        shown = {
            "trial": best.number,
            "params": dict(best.params),
            "status": best.status,
            "epochs": best.epochs,
            **{name: getattr(best.last, name) for name in _NUMBERS},
            **{key: best.last.metrics.get(key) for key in telling.measured.values()},
            "ranked_by": telling.ranked_by,
        }
    return {
        "command": "sweep",
        **telling.about,
        "trials": len(ranked),
        **{status: counts.get(status, 0) for status in ("finished", "stopped", "refused", "failed")},
        "best": shown,
        "refusals": [{"trials": n, "reason": reason} for reason, n in reasons.most_common()],
        "failures": [{"trial": r.number, "error": r.error} for r in ranked if r.status == "failed"],
        "seconds_in_trials": round(sum(r.seconds for r in ranked), 1),
        **facts,
    }


def _csv(ranked: Sequence[TrialRecord], space: Space, telling: Telling) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["rank", "trial", *space.names, "status", "epochs", *_NUMBERS]
    writer.writerow([*head, *telling.measured.values(), "seconds", "reason"])
    for place, record in enumerate(ranked, start=1):
        last = record.last
        params = [record.params.get(name) for name in space.names]
        row = [place, record.number, *params, record.status, record.epochs]
        row += [getattr(last, name) if last else None for name in _NUMBERS]
        row += [last.metrics.get(key) if last else None for key in telling.measured.values()]
        reason = record.error or (last.refused if last else None)
        writer.writerow([*row, round(record.seconds, 2), reason])
    return out.getvalue()


def _reasons(ranked: Sequence[TrialRecord]) -> list[str]:
    refused = [r for r in ranked if r.status == "refused" and r.last is not None]
    lines = [f"Trial {r.number} refused: {r.last.refused}." for r in refused if r.last is not None]
    return lines + [f"Trial {r.number} failed: {r.error}." for r in ranked if r.status == "failed"]


def interval(report: EpochReport | None, low: str, high: str) -> str:
    """An interval of a report, or a dash."""
    if report is None or getattr(report, low) is None:
        return "-"
    return f"[{number(getattr(report, low))}, {number(getattr(report, high))}]"


def _gain(report: EpochReport | None) -> str:
    if report is None or report.gain is None:
        return "-"
    return f"{number(report.gain)} {interval(report, 'gain_low', 'gain_high')}"


def number(value: Any, digits: int = 4) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if digits == 0 else f"{value:.{digits}g}"
    return str(value)


def setting(value: Any) -> str:
    """A parameter's value for people; null is a value."""
    return "null" if value is None else number(value)


def write_text(path: Path, text: str) -> None:
    """A whole file at once."""
    with atomic_writer(path) as file:
        file.write(text.encode())
