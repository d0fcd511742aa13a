"""From a warehouse to what the trials share: encoder, training tensors, and the held-out log that judges them."""

from __future__ import annotations

from collections.abc import Mapping
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
from plpm_ray.navigators.base import encoded_tensors
from plpm_ray.policies.base import Policy
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.tuning.config import SweepConfig
from plpm_ray.tuning.space import Space
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
        ConfigError: the learner learns from a trial's users.
        DataError: the days hold no sessions.
    """
    if config.learner_class().grain == "user":
        raise ConfigError(
            f"a sweep judges by the value of decisions on held-out days; {config.learner.name} learns from a trial's users",
            hint="train it with `plpm train`, and sweep the learners of sessions",
        )
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
        tables=_tables(config, space, cls, days, spec),
        inputs=_inputs(cls, spec, held_out),
        value=value,
        threads=threads,
    )
    return task, _facts(days, value)


def _tables(
    config: SweepConfig, space: Space, cls: Any, days: Days, spec: FeatureSpec
) -> dict[str, PackedTable]:
    """Training rows for every horizon that the search can reach; most learners have one."""
    base = cls.Config.model_validate(config.learner.options)
    configs = [base]
    for dimension in space:
        if dimension.name == "horizon" and dimension.choices is not None:
            configs = [
                cls.Config.model_validate({**config.learner.options, "horizon": c}) for c in dimension.choices
            ]
    found: dict[str, PackedTable] = {}
    for each in configs:
        source = TableSource(days.warehouse.root, tuple(days.split.train), spec, Needs.of(cls, each))
        found[horizon_of(each)] = PackedTable.of(source.load())
    return found


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
    """(N, K) probabilities of the baseline, where it is a navigator."""
    name = config.objective.baseline
    if name is None or name == "logged":
        return None
    cls = lookup("navigator", name)
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
