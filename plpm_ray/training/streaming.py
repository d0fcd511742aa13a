"""A learner on a stream: every micro-batch is first scored, then learned from (KLAN 5.1.3); `StreamLearner` is its state.

Letters: B sessions of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from plpm_ray.core.errors import ConfigError, PlpmError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.navigators.base import Batch, Learner
from plpm_ray.navigators.inputs import encoded_tensors
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.device import make_optimiser, take_step
from plpm_ray.training.prequential import Prequential
from plpm_ray.training.stream_config import StreamTraining
from plpm_ray.training.stream_sources import StreamRows

_COLUMNS = ("action", "use_s", "landing_dwell_s", "switches", "hour")
_COUNTS = ("sessions", "batches", "steps", "windows", "window_from_ms", "window_to_ms")
Record = dict[str, Any]


class Judged(Protocol):
    """What a learner needs besides, so that a stream can judge it."""

    def predicted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """((B,) chance of the label 1 on the assigned page, from the learner's inputs; (B,) label)."""
        ...


@dataclass(frozen=True)
class Scored:
    """A micro-batch as it was scored before it was learned from: (B,) chances and labels."""

    chance: np.ndarray
    label: np.ndarray


class StreamLearner:
    """A learner, its optimiser, and how well it has foretold what came; knows no files and no source.

    Args:
        learner: with its first weights.
        spec: fitted encoder.
        pages: catalogue.
        config: how it learns.

    Attributes:
        sessions, batches, steps: learned, in micro-batches, and optimiser steps.
        overall: prequential judgement of all sessions.
        window: the same since the last record.

    Raises:
        ConfigError: the learner reads more than single finished sessions, or cannot be judged by a chance.
    """

    def __init__(
        self, learner: Learner, spec: FeatureSpec, pages: PageCatalogue, config: StreamTraining
    ) -> None:
        check_learner(type(learner))
        torch.set_num_threads(config.num_threads)
        self.learner, self.spec, self.pages, self.config = learner, spec, pages, config
        options = {"lr": config.lr, "weight_decay": config.weight_decay}
        self.optimiser = make_optimiser(learner, TrainingConfig.model_validate(options))
        self.overall, self.window = Prequential(pages.names), Prequential(pages.names)
        self.sessions = self.batches = self.steps = self.windows = 0
        self.window_from_ms = self.window_to_ms = 0
        torch.manual_seed(config.seed * 1_009)

    def judge(self, rows: StreamRows) -> Scored:
        """Scores sessions with the present weights and adds them to the judgements."""
        return self._judge(self.batch(rows), rows)

    def step(self, rows: StreamRows) -> tuple[Scored, Record | None]:
        """Scores a micro-batch, then learns from it; the record of a window is given when it ends here.

        Raises:
            PlpmError: the loss is no longer finite.
        """
        batch = self.batch(rows)
        scored = self._judge(batch, rows)
        self.learner.train()
        loss = math.nan
        for _ in range(self.config.passes):
            loss = self._learn(batch)
        if not math.isfinite(loss):
            raise self._diverged(f"loss {loss}")
        self.sessions += len(rows)
        self.batches += 1
        return scored, self._window_record() if self.window.rows >= self.config.window_sessions else None

    def batch(self, rows: StreamRows) -> dict[str, Tensor]:
        """What the learner reads of some sessions."""
        wanted = self.learner.inputs
        encoded = self.spec.encode(rows.features, bins="bins" in wanted, sequences="sequences" in wanted)
        columns: dict[str, Any] = {k: rows.outcome[k] for k in self.learner.columns if k != "hour"}
        if "hour" in self.learner.columns:
            columns["hour"] = np.asarray(rows.features.categorical["hour"]).astype(np.int64)
        return encoded_tensors(encoded) | {k: torch.tensor(values) for k, values in columns.items()}

    def _judge(self, batch: Batch, rows: StreamRows) -> Scored:
        self.learner.eval()
        with torch.inference_mode():
            chance, label = cast(Judged, self.learner).predicted(batch)
        scored = Scored(chance.numpy(), label.numpy())
        if not np.isfinite(scored.chance).all():
            raise self._diverged("a chance is not a number")
        if not self.window.rows:
            self.window_from_ms = int(rows.outcome["entry_ms"][0])
        self.window_to_ms = int(rows.outcome["entry_ms"][-1])
        for judgement in (self.overall, self.window):
            judgement.add(scored.chance, scored.label, rows.outcome["action"])
        return scored

    def _learn(self, batch: Batch) -> float:
        terms = self.learner(batch)
        take_step(self.optimiser, terms["loss"], self.config.grad_clip)
        self.steps += 1
        with torch.no_grad():
            self.learner.after_losses({name: term.detach() for name, term in terms.items()})
            self.learner.after_step(self.steps)
        return float(terms["loss"].detach())

    def _diverged(self, what: str) -> PlpmError:
        return PlpmError(
            f"training diverged: {what} after {self.sessions} sessions",
            hint="lower training.lr, set training.grad_clip, or look for extreme feature values",
        )

    def _window_record(self) -> Record:
        """Of the window that ends, which is then emptied. "step" and everything else follow from the stream alone."""
        record: Record = {
            "step": self.steps,
            "sessions": self.sessions,
            "window": self.windows,
            "window_sessions": self.window.rows,
            "from_ms": self.window_from_ms,
            "to_ms": self.window_to_ms,
            **self.window.record(),
        }
        whole = self.overall.record()
        record |= {f"overall/{name}": whole[name] for name in ("auc", "log_loss", "brier", "label_share")}
        self.window = Prequential(self.pages.names)
        self.windows += 1
        return record

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to go on bit for bit."""
        return {
            "learner": self.learner.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "overall": self.overall.state(),
            "window": self.window.state(),
            "random": torch.get_rng_state(),
            "counts": {name: getattr(self, name) for name in _COUNTS},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state()` was called."""
        self.learner.load_state_dict(state["learner"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.overall.load_state(state["overall"])
        self.window.load_state(state["window"])
        for name in _COUNTS:
            setattr(self, name, state["counts"][name])
        torch.set_rng_state(state["random"])


def check_learner(cls: type[Learner]) -> None:
    """Refuses learners that a stream of single sessions cannot teach.

    Raises:
        ConfigError: why.
    """
    strange: Sequence[str] = [name for name in cls.columns if name not in _COLUMNS]
    if cls.grain != "session" or strange or not hasattr(cls, "predicted"):
        reason = (
            f"it learns from rows of grain {cls.grain!r}, a stream holds single sessions"
            if cls.grain != "session"
            else f"it reads column {strange[0]!r}, a stream holds {', '.join(_COLUMNS)}"
            if strange
            else "it has no `predicted`, by which it would be judged before it learns"
        )
        raise ConfigError(
            f"learner {cls.name!r} cannot learn from a stream: {reason}",
            hint="klan.am can; train others with `plpm train`",
        )
