"""One trial: a learner trained on shared tensors, an epoch at a time, judged by policy value after each.

Knows no Ray. What all trials share is a `SweepTask`: plain arrays, so that Ray's object store hands the same memory to
every trial on a machine.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.evaluation.estimators import Estimate
from plpm_ray.evaluation.objective import PolicyValue
from plpm_ray.navigators.base import Learner
from plpm_ray.policies.base import Policy, PolicyConfig
from plpm_ray.training.callbacks import Callback, Record
from plpm_ray.training.comm import Comm
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.job import build_learner
from plpm_ray.training.loop import Loop, pick_device
from plpm_ray.training.table import TensorTable
from plpm_ray.tuning.ledger import EpochReport
from plpm_ray.tuning.local import StartTrial
from plpm_ray.tuning.space import Section, Space

SCORE_ROWS = 65_536


@dataclass(frozen=True)
class PackedTable:
    """A TensorTable as arrays: what the object store shares without copying."""

    columns: Mapping[str, np.ndarray]
    next_row: np.ndarray | None
    sampled: np.ndarray | None

    @classmethod
    def of(cls, table: TensorTable) -> PackedTable:
        columns = {name: column.numpy() for name, column in table.columns.items()}
        rest = [None if t is None else t.numpy() for t in (table.next_row, table.sampled)]
        return cls(columns, *rest)

    def table(self, device: torch.device) -> TensorTable:
        """Tensors over the same memory (copied only to another device)."""
        columns = {name: shared_tensor(column) for name, column in self.columns.items()}
        rest = [None if a is None else shared_tensor(a) for a in (self.next_row, self.sampled)]
        return TensorTable(columns, *rest).to(device)


@dataclass(frozen=True)
class SweepTask:
    """What all trials of a sweep share.

    Attributes:
        learner, plugins: registered name, and the files that register it.
        base: the settings outside the search, by section.
        space: the searched parameters.
        spec, pages, stats: what a learner is built from.
        tables: training rows by the learner's horizon ("" where it has none).
        inputs: the model's input in the rows of `value.log`, by name.
        value: judges a policy.
        threads: CPU threads of a process that runs trials; None leaves PyTorch's choice.
    """

    learner: str
    plugins: tuple[str, ...]
    base: Mapping[Section, Mapping[str, Any]]
    space: Space
    spec: FeatureSpec
    pages: PageCatalogue
    stats: TableStats
    tables: Mapping[str, PackedTable]
    inputs: Mapping[str, np.ndarray]
    value: PolicyValue
    threads: int | None = None

    def open(self) -> StartTrial:
        """Sets this process up for trials."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        place = Workplace(self)
        return lambda params: Trial(place, params)

    def settings(self, section: Section, params: Mapping[str, Any]) -> dict[str, Any]:
        """A section's settings in a trial."""
        return self.space.apply(params, section, self.base[section])


@dataclass
class Workplace:
    """What a process keeps between trials: tensors on its device, and the buffers that batches are gathered into."""

    task: SweepTask
    _tables: dict[tuple[str, str], TensorTable] = field(default_factory=dict)
    _inputs: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        load_plugins(self.task.plugins)

    def table(self, horizon: str, device: torch.device) -> TensorTable:
        key = (horizon, str(device))
        if key not in self._tables:
            self._tables[key] = self.task.tables[horizon].table(device)
        return self._tables[key]

    def inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        key = str(device)
        if key not in self._inputs:
            self._inputs[key] = {n: shared_tensor(a).to(device) for n, a in self.task.inputs.items()}
        return self._inputs[key]


class _OneEpoch(Callback):
    """Ends a call of the loop after an epoch, and keeps what it said."""

    record: Record

    def on_epoch(self, record: Record) -> bool:
        self.record = record
        return True


class Trial:
    """A learner in training.

    Args:
        place: this process' shared tensors.
        params: the searched parameters' values.
    """

    def __init__(self, place: Workplace, params: Mapping[str, Any]) -> None:
        self.place = place
        task = place.task
        cls: type[Learner] = lookup("learner", task.learner)
        config = cls.Config.model_validate(task.settings("learner", params))
        self.training = TrainingConfig.model_validate(task.settings("training", params))
        self.policy = Policy(PolicyConfig.model_validate(task.settings("policy", params)))
        self.device = pick_device(self.training)
        # the same seed in all trials: they differ by their parameters, not by luck
        self.learner = build_learner(cls, config, task.spec, task.pages, task.stats, self.training.seed)
        table = place.table(horizon_of(config), self.device)
        self.loop = Loop(self.learner, table, None, self.training, Comm())

    @property
    def done(self) -> bool:
        return self.loop.epoch >= self.training.epochs

    def run_epoch(self) -> EpochReport:
        """Trains an epoch, then judges the policy.

        Raises:
            PlpmError: the training diverged.
        """
        started = time.perf_counter()
        watcher = _OneEpoch()
        self.loop.stopped = False
        self.loop.run([watcher])
        value, gain = self.place.task.value.estimate(self.policy.probabilities(self.scores()))
        return EpochReport(
            epoch=self.loop.epoch,
            value=_number(value.value),
            low=_number(value.low),
            high=_number(value.high),
            standard_error=_number(value.standard_error),
            effective_samples=_number(value.support.effective_samples),
            refused=value.refused,
            goal=_number(self.place.task.value.goal(value, gain)),
            **_gain(gain),
            metrics={k: float(v) for k, v in watcher.record.items() if k.startswith("train/")},
            seconds=round(time.perf_counter() - started, 4),
        )

    @torch.inference_mode()
    def scores(self) -> np.ndarray:
        """(N, K) scores in the rows of the held-out log."""
        inputs = self.place.inputs(self.device)
        rows = len(next(iter(inputs.values())))
        self.learner.eval()
        parts = []
        for start in range(0, rows, SCORE_ROWS):
            piece = {name: widened(values[start : start + SCORE_ROWS]) for name, values in inputs.items()}
            parts.append(self.learner.scores(piece).float().cpu().numpy())
        return np.concatenate(parts)


def horizon_of(config: Any) -> str:
    """Which training table a learner's config reads: its `horizon`, or "" where it has none."""
    return str(getattr(config, "horizon", ""))


def shared_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory. Arrays of the object store are read-only, and nothing here writes to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def widened(values: torch.Tensor) -> torch.Tensor:
    """Codes as int64, as learners read them."""
    return values.long() if values.dtype in (torch.int8, torch.int16, torch.int32) else values


def _gain(gain: Estimate | None) -> dict[str, float | None]:
    if gain is None:
        return {}
    return {"gain": _number(gain.value), "gain_low": _number(gain.low), "gain_high": _number(gain.high)}


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
