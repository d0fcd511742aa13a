"""From an opened subject to what the trials share: the tables of the parts that they train, and the twins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.fit_trial import fit_trial
from plpm_ray.data.split import TRAIN
from plpm_ray.simulation.twins import Twins
from plpm_ray.simulation.world import World
from plpm_ray.training.data import REWARD_COLUMNS, Needs, TableSource, UserPart
from plpm_ray.training.rewards import reward_sessions, reward_total
from plpm_ray.tuning.prepare import searched_horizons
from plpm_ray.tuning.trial import PackedTable, horizon_of
from plpm_ray.tuning.world_rewards import blocks_of
from plpm_ray.tuning.world_subject import Subject
from plpm_ray.tuning.world_trial import PartData, WorldTask
from plpm_ray.tuning.world_value import WorldValue


def prepare_world(subject: Subject) -> tuple[WorldTask, dict[str, Any]]:
    """What the trials share, and the facts about it that the summary tells.

    Raises:
        DataError: the training days hold no sessions.
    """
    config, bundle = subject.config, subject.bundle
    parts: dict[str, PartData] = {}
    if subject.trained:
        fitted = fit_spec(subject.warehouse, subject.train_days)
        for role in subject.trained:
            of_users = role in subject.of_users
            parts[role] = user_data(subject, role) if of_users else part_data(subject, role, *fitted)
    world = World(subject.world)
    users = np.array_split(config.first_user + np.arange(config.users), config.groups)
    days = (config.warmup_days, config.aa_days, config.ab_days)
    value = WorldValue(
        [Twins(world, some, *days) for some in users],
        config.aa_days,
        config.ab_days,
        config.constraints,
        config.rank_by,
    )
    task = WorldTask(
        bundle=bundle,
        plugins=tuple(str(Path(p).resolve()) if p.endswith(".py") else p for p in config.plugins),
        base=subject.base,
        space=subject.space,
        parts=parts,
        value=value,
        threads=max(1, int(config.cpus_per_trial)),
    )
    return task, _facts(subject, value)


def part_data(subject: Subject, role: str, spec: FeatureSpec, stats: TableStats) -> PartData:
    """What a part is trained from. Rewards of the bundle's own reward model are read from their table, which is brought up to
    date first; those of one that trials train are not there yet.

    Args:
        spec, stats: of the training days.
    """
    warehouse, days = subject.warehouse, subject.train_days
    cls, configs = lookup("learner", subject.bundle.parts[role].name), subject.configs(role)
    columns = dict.fromkeys(name for config in configs for name in cls.needed_columns(config))
    by, judged, total = subject.rewarded.get(role), None, None
    if by in subject.trained:
        columns = {name: None for name in columns if name not in REWARD_COLUMNS}
    elif by is not None:
        model = subject.path / "parts" / by
        judged = reward_sessions(warehouse.root, model, days=days, plugins=subject.config.plugins).name
        total, by = reward_total(warehouse, judged, days), None
    tables = {}
    for horizon in searched_horizons(subject.space, role) or (None,):
        change = {} if horizon is None else {"horizon": horizon}
        config = configs[0].model_copy(update=change)
        needs = replace(Needs.of(cls, config), columns=tuple(columns))
        source = TableSource(warehouse.root, days, spec, needs, rewards=judged)
        tables[horizon_of(config)] = PackedTable.of(source.load())
    judges = role in subject.rewarded.values()
    return PartData(spec, stats, tables, by, total, blocks_of(warehouse, days) if judges else ())


def user_data(subject: Subject, role: str) -> PartData:
    """What a part that learns from a trial's users is trained from: the training users, and an encoder of theirs."""
    warehouse, split = subject.warehouse, subject.config.user_split
    spec, stats = fit_trial(warehouse, split)
    cls, config = lookup("learner", subject.bundle.parts[role].name), subject.configs(role)[0]
    days, users = tuple(warehouse.trial.days()), UserPart(split, TRAIN)
    source = TableSource(warehouse.root, days, spec, Needs.of(cls, config), users)
    return PartData(spec, stats, {horizon_of(config): PackedTable.of(source.load())})


def _facts(subject: Subject, value: WorldValue) -> dict[str, Any]:
    config = subject.config
    return {
        "unit": "s per user and day",
        "baseline": "logging",
        "baseline_value": value.baseline["use_s"],
        "baseline_metrics": value.baseline,
        "world": subject.world.name,
        "seeds": {
            "world": subject.world.seed,
            "final": list(config.final_seeds),
            "suggestions": config.suggestions,
            "training": config.training.seed,
            "policy": config.policy.seed,
        },
        "users": config.users,
        "first_user": config.first_user,
        "days": {"warm-up": config.warmup_days, "aa": config.aa_days, "ab": config.ab_days},
        "bundle_version": subject.bundle.version,
        "data_fingerprint": subject.fingerprint(),
        "constraints": config.constraints.model_dump(mode="json"),
    }
