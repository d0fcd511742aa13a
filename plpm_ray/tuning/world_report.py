"""What a sweep in the world tells: its table, and the best point as a config that puts the navigator together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plpm_ray.training.config import TrainingConfig
from plpm_ray.tuning.ledger import TrialRecord
from plpm_ray.tuning.report import Telling, interval, number, setting
from plpm_ray.tuning.world_subject import Subject, settings_of

_SHOWN = ("epochs", "batch_size", "lr", "seed")
_RANKED_BY = {"lower": "the lower end of the interval of the gain", "value": "the value"}


def telling(subject: Subject, facts: Mapping[str, Any]) -> Telling:
    """How a sweep's results are told.

    Args:
        facts: of the sweep, as `prepare_world` gives them.
    """
    config, pages = subject.config, subject.bundle.pages.names
    measured = {"PDR, change %": "pdr_change", "DAU, change %": "dau_change"}
    measured |= {f"EPEF {page}, change %": f"epef_{page}_change" for page in pages}
    measured |= {f"to {page}, %": f"to_{page}" for page in pages}
    measured |= {"CPU us a decision": "latency_us"}
    return Telling(
        about={
            "name": config.name,
            "learner": subject.bundle.name,
            "navigator": subject.bundle.name,
            "searched": list(subject.space.names),
            "retrained_parts": list(subject.trained),
            "objective": "world value",
            "judged_on": f"validation seed {subject.world.seed} of the world {subject.world.name!r}",
        },
        ranked_by=_RANKED_BY[config.rank_by],
        notes=_notes(subject, facts),
        best=lambda record: best_yaml(subject, record),
        step="groups",
        gain="gain, %",
        measured=measured,
    )


def _notes(subject: Subject, facts: Mapping[str, Any]) -> list[str]:
    config = subject.config
    base = facts.get("baseline_metrics", {})
    reserved = f"; kept for the final table: {list(config.final_seeds)}" if config.final_seeds else ""
    notes = [
        f"The value is app use of {config.users} users of the world {subject.world.name!r} under seed "
        f"{subject.world.seed}{reserved}, over {config.ab_days} days; the gain is over the logging policy "
        f"({number(base.get('use_s'))} s), the same users with the same luck, with its 95 % interval, paired by user. "
        "The interval of the value is that of the gain, in seconds.",
        f"PDR, DAU and EPEF are changes against the logging policy's (PDR {number(base.get('pdr'))} %).",
    ]
    if any(name.endswith("policy.epsilon") for name in subject.space.names):
        notes.append(
            "Exploration pays in what later models learn from its logs; the value of these days only shows its cost."
        )
    return notes


def best_yaml(subject: Subject, best: TrialRecord) -> str:
    """A config for `plpm train` that puts the best point together: searched parts trained, the others as they are."""
    config, settings = subject.config, settings_of(subject, best.params)
    trained: dict[str, Any] = {
        "name": f"{config.name}-best",
        "run_root": config.run_root,
        "tables": config.tables,
        "split": config.split.model_dump(mode="json"),
        "navigator": {"name": subject.bundle.name, **settings["navigator"]},
        "parts": {role: _part(subject, role, settings) for role in subject.bundle.parts},
    }
    if subject.of_users:
        trained["users"] = config.user_split.model_dump(mode="json")
    if config.plugins:
        trained["plugins"] = list(config.plugins)
    last = best.last
    assert last is not None
    chosen = ", ".join(f"{name} = {setting(value)}" for name, value in best.params.items())
    head = [
        f"# Trial {best.number} of the sweep {config.name!r}: {chosen}.",
        f"# Gain over the logging policy: {number(last.gain)} % {interval(last, 'gain_low', 'gain_high')}, on seed "
        f"{subject.world.seed} of the world {subject.world.name!r}.",
        "# The best of several noisy estimates is flattered; judge it on other seeds with `plpm simulate ab`.",
        f"# Found for pages drawn so, which belongs to the arm and not to training: policy: {_flow(settings['policy'])}",
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(trained, sort_keys=False, allow_unicode=True)


def _part(subject: Subject, role: str, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if role not in subject.trained:
        return {"bundle": str(Path(subject.path) / "parts" / role)}
    defaults = TrainingConfig.model_validate({}).model_dump(mode="json")
    training = settings[f"{role}.training"]
    return {
        "learner": {"name": subject.bundle.parts[role].name, **settings[role]},
        "training": {k: v for k, v in training.items() if v != defaults[k] or k in _SHOWN},
    }


def _flow(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, width=1000).strip()
