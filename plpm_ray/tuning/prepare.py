"""From a warehouse to what the trials share: encoder, training tensors, and the held-out log that judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plpm_ray.core.config import config_hash
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.split import Split, split_days
from plpm_ray.evaluation.held_out import Decisions, held_out_log, read_decisions
from plpm_ray.evaluation.objective import PolicyValue
from plpm_ray.navigators.inputs import encoded_tensors
from plpm_ray.policies.base import Policy
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.tuning.config import SweepConfig
from plpm_ray.tuning.space import Section, Space
from plpm_ray.tuning.trial import PackedTable, SweepTask, horizon_of


@dataclass(frozen=True)
class Days:
    """The days of a sweep and the fingerprint of their data."""

    warehouse: Warehouse
    split: Split
    fingerprint: str


def find_days(config: SweepConfig) -> Days:
    """Opens the tables and divides their days; cheap.

    Raises:
        StorageError: there are no tables. DataError: too few days. ConfigError: no validation days.
    """
    warehouse = Warehouse.open(config.tables)
    split = split_days(warehouse.transitions.days(), config.split)
    if not split.valid:
        raise ConfigError(
            "a sweep is judged on validation days, and the split has none",
            hint="set split.valid_days to 1 or more",
        )
    data = config_hash(
        [warehouse.info.to_dict(), warehouse.transitions.fingerprint([*split.train, *split.valid])]
    )
    return Days(warehouse, split, data)


def prepare(config: SweepConfig, space: Space, days: Days) -> tuple[SweepTask, dict[str, Any]]:
    """What the trials share, and the facts about it that the summary tells.

    Raises:
        ConfigError: the learner's scores are no decisions on single held-out rows.
        DataError: the days hold no sessions.
    """
    _refuse_other_scores(config)
    spec, stats = fit_spec(days.warehouse, days.split.train)
    held_out = read_decisions(days.warehouse, days.split.valid, config.objective.max_sessions)
    log = held_out_log(
        days.warehouse,
        spec,
        days.split.train,
        held_out,
        days.split.valid,
        propensity=config.objective.propensity_config(),
        reward=config.objective.reward_config(),
        fit_rows=config.objective.max_sessions,
    )
    baseline = _baseline(config, days.warehouse, stats, held_out)
    value = PolicyValue(log, config.objective, baseline)
    cls = config.learner_class()
    threads = max(1, int(config.cpus_per_trial)) if config.backend == "ray" else None
    task = SweepTask(
        learner=config.learner.name,
        plugins=tuple(str(Path(p).resolve()) if p.endswith(".py") else p for p in config.plugins),
        base=config.base(),
        space=space,
        spec=spec,
        pages=days.warehouse.info.pages,
        stats=stats,
        tables=training_tables(
            cls,
            config.learner.options,
            searched_horizons(space, "learner"),
            days.warehouse.root,
            days.split.train,
            spec,
        ),
        inputs=_inputs(cls, spec, held_out),
        value=value,
        threads=threads,
    )
    return task, _facts(days, value)


def _refuse_other_scores(config: SweepConfig) -> None:
    cls, name = config.learner_class(), config.learner.name
    if cls.grain == "user":
        why = f"{name} learns from a trial's users"
    elif cls.says is not None:
        why = f"{name} says {' and '.join(cls.says)}, and chooses no pages"
    elif cls.grain == "trajectory":
        why = f"{name} decides from the day so far, which single rows do not hold"
    else:
        return
    raise ConfigError(
        f"a sweep judges by the value of decisions on held-out days; {why}",
        hint="train it with `plpm train`, and sweep the learners of single sessions; or sweep a bundle that it is a part "
        "of in the world",
    )


def training_tables(
    cls: Any,
    options: Mapping[str, Any],
    horizons: Sequence[Any] | None,
    root: Path,
    days: Sequence[int],
    spec: FeatureSpec,
) -> dict[str, PackedTable]:
    """Training rows of a learner for every horizon that a search can reach; most learners have one.

    Args:
        cls, options: the learner's class and the settings outside the search.
        horizons: those searched, or None.
        root, days: warehouse folder and training days.
        spec: the encoder.
    """
    changes: list[dict[str, Any]] = [{}] if horizons is None else [{"horizon": h} for h in horizons]
    found: dict[str, PackedTable] = {}
    for change in changes:
        config = cls.Config.model_validate({**options, **change})
        source = TableSource(root, tuple(days), spec, Needs.of(cls, config))
        found[horizon_of(config)] = PackedTable.of(source.load())
    return found


def searched_horizons(space: Space, section: Section) -> tuple[Any, ...] | None:
    """The horizons among which a search chooses; None where it does not."""
    found = [d.choices for d in space if (d.section, d.path) == (section, ("horizon",))]
    return found[0] if found else None


def _inputs(cls: Any, spec: FeatureSpec, held_out: Decisions) -> Mapping[str, np.ndarray]:
    encoded = spec.encode(held_out.features, bins="bins" in cls.inputs, sequences="sequences" in cls.inputs)
    wanted = encoded_tensors(encoded)
    kept = {
        n: t
        for n, t in wanted.items()
        if n in cls.inputs or (n.startswith("seq.") and "sequences" in cls.inputs)
    }
    return {
        name: (tensor.int() if not tensor.is_floating_point() else tensor).numpy()
        for name, tensor in kept.items()
    }


def _baseline(
    config: SweepConfig, warehouse: Warehouse, stats: TableStats, held_out: Decisions
) -> np.ndarray | None:
    """(N, K) probabilities of the baseline, where it is a navigator.

    Raises:
        ConfigError: one that is composed of trained parts.
    """
    name = config.objective.baseline
    if name is None or name == "logged":
        return None
    cls = lookup("navigator", name)
    if getattr(cls, "roles", None):
        raise ConfigError(
            f"objective.baseline: {name} is composed of trained parts ({', '.join(cls.roles)})",
            hint="name a navigator without training, as heuristic.last_exit_page, or logged",
        )
    navigator = cls(cls.Config(), warehouse.info.pages, stats)
    return Policy(config.objective.policy).probabilities(navigator.scores(held_out.features))


def _facts(days: Days, value: PolicyValue) -> dict[str, Any]:
    name = value.config.baseline
    refused = value.baseline.refused if value.baseline else None
    return {
        "unit": value.unit,
        "baseline": name,
        "baseline_value": value.baseline_value,
        **({"baseline_refused": refused} if refused else {}),
        "days": {part: names for part, names in days.split.to_dict().items() if part != "test"},
        "data_fingerprint": days.fingerprint,
        "held_out": dict(value.log.diagnostics),
    }
