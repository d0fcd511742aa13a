"""One trial in the world: the searched parts trained, the navigator put together, and its users lived through.

What a trial comes to depends on its parameters alone: parts begin with weights of the training's seed, users have luck of
their own. So a process may keep the parts that it trained for the trials that ask for the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch

from plpm_ray.core.config import config_hash
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Navigator
from plpm_ray.navigators.bundle import Bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.simulation.navigated import NavigatorChooser
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.training.comm import Comm
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.job import build_learner
from plpm_ray.training.loop import Loop, pick_device
from plpm_ray.training.rewards import REWARD
from plpm_ray.training.table import TensorTable
from plpm_ray.tuning.ledger import EpochReport
from plpm_ray.tuning.local import StartTrial
from plpm_ray.tuning.space import Section, Space
from plpm_ray.tuning.trial import PackedTable, horizon_of
from plpm_ray.tuning.world_rewards import Blocks, Judged, judge
from plpm_ray.tuning.world_value import WorldValue

_KEPT_PARTS = 16


@dataclass(frozen=True)
class PartData:
    """What a part is trained from.

    Attributes:
        spec, stats: encoder and totals of the training days.
        tables: training rows by the learner's horizon ("" where it has none).
        rewarded_by: role, trained in the trials too, from whose rewards it learns; they are no columns of `tables`.
        reward_s: total of the rewards that are columns of `tables`; None where there are none.
        blocks: of a part that judges sessions, how they lie in its table.
    """

    spec: FeatureSpec
    stats: TableStats
    tables: Mapping[str, PackedTable]
    rewarded_by: str | None = None
    reward_s: float | None = None
    blocks: Blocks = ()


@dataclass(frozen=True)
class WorldTask:
    """What all trials of a sweep share.

    Attributes:
        bundle: the composed navigator.
        plugins: files that register learners and navigators.
        base: the settings outside the search, by section.
        space: the searched parameters.
        parts: role -> what it is trained from, of the roles that trials train.
        value: judges a navigator.
        threads: CPU threads of a process that runs trials.
    """

    bundle: Bundle
    plugins: tuple[str, ...]
    base: Mapping[Section, Mapping[str, Any]]
    space: Space
    parts: Mapping[str, PartData]
    value: WorldValue
    threads: int = 1

    def open(self) -> StartTrial:
        """Sets this process up for trials."""
        # the order of a sum depends on the threads: the same number everywhere gives the same weights everywhere
        torch.set_num_threads(self.threads)
        place = WorldPlace(self)
        return lambda params: WorldTrial(place, params)

    def settings(self, section: Section, params: Mapping[str, Any]) -> dict[str, Any]:
        """A section's settings in a trial."""
        return self.space.apply(params, section, self.base[section])


@dataclass
class WorldPlace:
    """What a process keeps between trials: tensors on its device, the parts that it trained, and the newest rewards."""

    task: WorldTask
    trained: int = 0
    _tables: dict[tuple[str, str, str], TensorTable] = field(default_factory=dict)
    _parts: dict[str, Bundle] = field(default_factory=dict)
    _judged: tuple[str, Judged] | None = None

    def __post_init__(self) -> None:
        load_plugins(self.task.plugins)

    def bundle(self, params: Mapping[str, Any]) -> Bundle:
        """The composed navigator at a point."""
        task = self.task
        parts = {role: self.part(role, params) for role in task.parts}
        return task.bundle.with_parts(parts).with_options(task.settings("navigator", params))

    def part(self, role: str, params: Mapping[str, Any]) -> Bundle:
        """The part of a role, trained with a point's settings.

        Raises:
            PlpmError: the training diverged.
        """
        config = self.task.settings(role, params)
        training = self.task.settings(f"{role}.training", params)
        model = self._model(role, config, params)
        key = config_hash([role, config, training, model and model.version])
        if key not in self._parts:
            while len(self._parts) >= _KEPT_PARTS:
                self._parts.pop(next(iter(self._parts)))
            self._parts[key] = self._train(role, config, TrainingConfig.model_validate(training), model)
        return self._parts[key]

    def _model(self, role: str, options: Mapping[str, Any], params: Mapping[str, Any]) -> Bundle | None:
        """The reward model of this point, from which a part with such settings learns."""
        by = self.task.parts[role].rewarded_by
        return self.part(by, params) if by is not None and self._reads_rewards(role, options) else None

    def _reads_rewards(self, role: str, options: Mapping[str, Any]) -> bool:
        cls = lookup("learner", self.task.bundle.parts[role].name)
        return REWARD in cls.needed_columns(cls.Config.model_validate(options))

    def _train(
        self, role: str, options: Mapping[str, Any], training: TrainingConfig, model: Bundle | None
    ) -> Bundle:
        data, old = self.task.parts[role], self.task.bundle.parts[role]
        cls, device = lookup("learner", old.name), pick_device(training)
        config, stats = cls.Config.model_validate(options), data.stats
        table = self._table(role, horizon_of(config), device)
        if model is not None:
            assert data.rewarded_by is not None
            judged = self.rewards_of(data.rewarded_by, model, device)
            table, stats = judged.beside(table), stats.judged(judged.total)
        elif self._reads_rewards(role, options):
            stats = stats if data.reward_s is None else stats.judged(data.reward_s)
        learner = build_learner(cls, config, data.spec, old.pages, stats, training.seed)
        Loop(learner, table, None, training, Comm()).run([])
        self.trained += 1
        return Bundle.of_learner(learner, data.spec, old.pages, stats, plugins=old.plugins)

    def rewards_of(self, role: str, model: Bundle, device: torch.device) -> Judged:
        """What the reward model of a role says of the sessions of its table."""
        if self._judged is None or self._judged[0] != model.version:
            learner = model.learner().to(device)
            table = self._table(role, horizon_of(learner.config), device)
            self._judged = model.version, judge(learner, table, self.task.parts[role].blocks)
        return self._judged[1]

    def _table(self, role: str, horizon: str, device: torch.device) -> TensorTable:
        key = (role, horizon, str(device))
        if key not in self._tables:
            self._tables[key] = self.task.parts[role].tables[horizon].table(device)
        return self._tables[key]


class WorldTrial:
    """A navigator whose users live through the AB days, a group at a time.

    Args:
        place: what this process keeps between trials.
        params: the searched parameters' values.
    """

    def __init__(self, place: WorldPlace, params: Mapping[str, Any]) -> None:
        started = time.perf_counter()
        self.task = place.task
        self.navigator: Navigator = place.bundle(params).navigator()
        self.policy = PolicyConfig.model_validate(self.task.settings("policy", params))
        self._lived: list[pa.Table] = []
        self._decisions, self._cpu_s = 0, 0.0
        self._before_s = time.perf_counter() - started

    @property
    def done(self) -> bool:
        return len(self._lived) == len(self.task.value)

    def run_epoch(self) -> EpochReport:
        """The next group of users, then the value on all so far."""
        started = time.perf_counter()
        made: list[NavigatorChooser] = []

        def chooser(online: OnlineFeatures) -> NavigatorChooser:
            world = self.task.value.twins[0].world
            made.append(NavigatorChooser(world, self.navigator, self.policy, online))
            return made[0]

        self._lived.append(self.task.value.live(len(self._lived), chooser))
        self._decisions += made[0].decisions
        self._cpu_s += made[0].cpu_s
        latency = 1e6 * self._cpu_s / self._decisions if self._decisions else None
        seconds = time.perf_counter() - started + self._before_s
        self._before_s = 0.0
        return self.task.value.report(self._lived, latency, seconds)
