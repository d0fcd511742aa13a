"""What a sweep leaves behind: the ranked table, the summary, the best point as a config, and the response plot."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    """Writes table.csv, table.md, response.svg, best.yaml and summary.json.

    Args:
        facts: what else the summary holds, such as the objective's unit, the baseline and the models' diagnostics.

    Returns:
        The summary.
    """
    ranked = rank(records)
    best = best_of(ranked)
    _write_text(run_dir / "table.csv", _csv(ranked, space))
    notes = [
        f"Ranked by {RANKED_BY[config.objective.rank_by]}; trials stopped early stand below those that ran on."
    ]
    note = ESTIMATORS[config.objective.estimator].note
    if note is not None:
        notes.append(f"{config.objective.estimator}: {note}.")
    if facts.get("held_out", {}).get("propensities") == "modelled":
        notes.append("Propensities are modelled from the training days, not recorded.")
    _write_text(run_dir / "table.md", markdown(ranked, space, str(facts.get("unit", "")), notes))
    if best is not None:
        _write_text(run_dir / "best.yaml", best_yaml(config, space, best))
    else:
        (run_dir / "best.yaml").unlink(missing_ok=True)
    from plpm_ray.tuning.plot import response_plot

    with atomic_writer(run_dir / "response.svg") as file:
        file.write(response_plot(ranked, space, str(facts.get("unit", "")), facts.get("baseline_value")))
    summary = _summary(config, space, ranked, best, facts)
    write_json(run_dir / "summary.json", summary)
    return summary


def markdown(ranked: Sequence[TrialRecord], space: Space, unit: str, notes: Sequence[str] = ()) -> str:
    """The ranked table for people; `notes` stand below it, with what was refused and what failed."""
    gains = any(r.last is not None and r.last.gain is not None for r in ranked)
    header = [
        "rank",
        "trial",
        *space.names,
        "status",
        "epochs",
        f"value ({unit})" if unit else "value",
        "interval",
        "n eff.",
    ]
    header += ["gain over baseline"] if gains else []
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for place, record in enumerate(ranked, start=1):
        last = record.last
        cells = [str(place), str(record.number), *(_number(record.params.get(n)) for n in space.names)]
        cells += [record.status, str(record.epochs), _number(record.value), _interval(last, "low", "high")]
        cells.append(_number(last.effective_samples, 0) if last else "-")
        if gains:
            cells.append(
                f"{_number(last.gain)} {_interval(last, 'gain_low', 'gain_high')}"
                if last and last.gain is not None
                else "-"
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *notes, *_notes(ranked)]) + "\n"


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
    found = f"{_number(last.value)} {_interval(last, 'low', 'high')}"
    head = [f"# Trial {best.number} of the sweep {config.name!r}, on the validation days: {found}."]
    head.append(
        "# The best of several noisy estimates is flattered; judge it on the test days with `plpm evaluate`."
    )
    searched = [name for name in space.names if name.startswith("policy.")]
    if searched:
        chosen = ", ".join(f"{name} = {_number(best.params[name])}" for name in searched)
        head.append(f"# Found for the policy that draws the pages, which training does not know: {chosen}.")
    return "\n".join(head) + "\n" + yaml.safe_dump(trained, sort_keys=False, allow_unicode=True)


def _summary(
    config: SweepConfig,
    space: Space,
    ranked: Sequence[TrialRecord],
    best: TrialRecord | None,
    facts: Mapping[str, Any],
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
            "ranked_by": RANKED_BY[config.objective.rank_by],
        }
    return {
        "command": "sweep",
        "name": config.name,
        "learner": config.learner.name,
        "searched": list(space.names),
        "objective": config.objective.estimator,
        "judged_on": "validation days",
        "trials": len(ranked),
        **{status: counts.get(status, 0) for status in ("finished", "stopped", "refused", "failed")},
        "best": shown,
        "refusals": [{"trials": n, "reason": reason} for reason, n in reasons.most_common()],
        "failures": [{"trial": r.number, "error": r.error} for r in ranked if r.status == "failed"],
        "seconds_in_trials": round(sum(r.seconds for r in ranked), 1),
        **facts,
    }


def _csv(ranked: Sequence[TrialRecord], space: Space) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["rank", "trial", *space.names, "status", "epochs", *_NUMBERS, "seconds", "reason"])
    for place, record in enumerate(ranked, start=1):
        last = record.last
        numbers = [getattr(last, name) if last else None for name in _NUMBERS]
        reason = record.error or (last.refused if last else None)
        params = [record.params.get(name) for name in space.names]
        writer.writerow(
            [
                place,
                record.number,
                *params,
                record.status,
                record.epochs,
                *numbers,
                round(record.seconds, 2),
                reason,
            ]
        )
    return out.getvalue()


def _notes(ranked: Sequence[TrialRecord]) -> list[str]:
    lines = [
        "Intervals are clustered by user; n eff. is the effective sample size of the importance weights."
    ]
    refused = [r for r in ranked if r.status == "refused" and r.last is not None]
    lines += [f"Trial {r.number} refused: {r.last.refused}." for r in refused if r.last is not None]
    lines += [f"Trial {r.number} failed: {r.error}." for r in ranked if r.status == "failed"]
    return lines


def _interval(report: EpochReport | None, low: str, high: str) -> str:
    if report is None or getattr(report, low) is None:
        return "-"
    return f"[{_number(getattr(report, low))}, {_number(getattr(report, high))}]"


def _number(value: Any, digits: int = 4) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if digits == 0 else f"{value:.{digits}g}"
    return str(value)


def _write_text(path: Path, text: str) -> None:
    with atomic_writer(path) as file:
        file.write(text.encode())
