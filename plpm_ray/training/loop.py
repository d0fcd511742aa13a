"""The training loop. It runs in one process or in every process of a group alike, and knows no Ray and no files."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plpm_ray.core.config import nearest
from plpm_ray.core.errors import ConfigError, PlpmError
from plpm_ray.navigators.base import Learner
from plpm_ray.training.callbacks import Callback, FitResult, Record
from plpm_ray.training.comm import Comm, shared
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.device import (
    make_optimiser,
    pick_device,
    random_state,
    set_random_state,
    set_rate,
    take_step,
)
from plpm_ray.training.evaluate import evaluate
from plpm_ray.training.graph import GraphedUpdate
from plpm_ray.training.table import BatchSource, TensorTable, no_rows, steps_per_epoch
from plpm_ray.training.trajectories import Rows, rows_of

_POSITION = ("epoch", "step", "steps", "total", "samples", "stopped")


def fit_learner(
    learner: Learner,
    table: BatchSource,
    valid: Rows | None,
    config: TrainingConfig,
    callbacks: Sequence[Callback] = (),
    *,
    comm: Comm | None = None,
    state: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a learner in place; in-process sweeps call this directly and share the tables.

    Args:
        learner: as built, on any device; it ends in evaluation mode on the config's device.
        table: training rows (of this process); a TensorTable should be on that device already. For a learner of
            trajectories it holds their sessions, and its rows, batches and samples are whole trajectories.
        valid: validation rows (of this process), or None.
        config: `workers` and what belongs to it are not read here.
        callbacks: told of logs, epochs and checkpoints, in order.
        comm: the group of processes; alone by default. Every process must hold the same initial weights.
        state: `Loop.state()` of an earlier run to go on from.

    Raises:
        ConfigError: early stopping without validation rows, or on a metric the learner does not have.
        DataError: there is no row to train on, or none to validate on.
        PlpmError: the loss is no longer finite.
    """
    loop = Loop(learner, table, valid, config, comm or Comm())
    if state is not None:
        loop.load_state(state)
    return loop.run(callbacks)


@dataclass
class _Best:
    """The best evaluation so far, for patience."""

    value: float = math.inf
    waited: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Tensor] | None = None


class Loop:
    """The state of a fit; see `fit_learner`."""

    def __init__(
        self,
        learner: Learner,
        table: BatchSource,
        valid: Rows | None,
        config: TrainingConfig,
        comm: Comm,
    ) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.device = pick_device(config)
        self.config, self.comm = config, comm
        self.learner = learner.to(self.device)
        table = rows_of(learner.grain, table) if isinstance(table, Rows) else table
        self.table = table
        self.valid = None if valid is None else rows_of(learner.grain, valid)
        recorded = [name for name in ("cuda_graph", "torch_compile") if getattr(config, name)]
        if recorded and learner.grain == "trajectory":
            raise ConfigError(
                f"{recorded[0]} cannot record a learner of trajectories, whose batches are never alike in shape",
                hint=f"set training.{recorded[0]} to false",
            )
        if config.patience is not None and valid is None:
            raise ConfigError(
                "patience needs validation rows",
                hint="set patience to null, or give the split validation days",
            )
        largest = comm.max(table.rows)
        if comm.max(int(not table.rows)):
            raise shared(no_rows("a worker has" if largest else "the training days hold"))
        # all take as many steps, so that a process of few rows draws each of them more often: it counts the less for it
        self._weight = table.rows * comm.world / comm.sum([table.rows])[0]
        # and trajectories differ in length, so that in a mean over sessions it counts by how many it holds
        self._by_length = learner.grain == "trajectory" and comm.world > 1
        self.batch_size = min(max(1, round(config.batch_size / comm.world)), largest)
        self.steps = steps_per_epoch(largest, self.batch_size)
        self.optimiser = make_optimiser(learner, config)
        self.model = self._wrap(learner)
        self.graphed = self._record()
        self.epoch = self.step = self.total = self.samples = 0
        self.stopped = False
        self.history: list[Record] = []
        self.best = _Best()
        self._terms: tuple[str, ...] = ()
        self._reads_losses = type(learner).after_losses is not Learner.after_losses
        self._window, self._window_steps, self._last = torch.zeros(0), 0, torch.zeros(0)
        self._sums: dict[str, float] = {}
        torch.manual_seed(config.seed * 1_009 + comm.rank)

    def _wrap(self, learner: Learner) -> nn.Module:
        model: nn.Module = learner
        if self.comm.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            model = nn.parallel.DistributedDataParallel(
                learner, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        if self.config.torch_compile:
            model = torch.compile(model)  # type: ignore[assignment]
        return model

    def _record(self) -> GraphedUpdate | None:
        if not self.config.cuda_graph:
            return None
        if self.device.type != "cuda" or self.comm.world > 1 or not isinstance(self.table, TensorTable):
            raise ConfigError(
                "cuda_graph needs a GPU, a single process and a table in memory",
                hint="set training.cuda_graph to false",
            )
        return GraphedUpdate(self._update, self.table)

    def run(self, callbacks: Sequence[Callback] = ()) -> FitResult:
        """Trains from where the state is to the end."""
        started = time.perf_counter()
        self.learner.train()
        while self.epoch < self.config.epochs and not self.stopped:
            record = self._run_epoch(callbacks)
            asked = [callback.on_epoch(record) for callback in callbacks]
            self.stopped = self._out_of_patience() or bool(self.comm.max(int(any(asked))))
            ended = self.stopped or self.epoch == self.config.epochs
            if ended or self.epoch % self.config.checkpoint_every_epochs == 0:
                for callback in callbacks:
                    callback.on_checkpoint(self, record)
        if self.config.patience is not None and self.best.weights is not None:
            self.learner.load_state_dict(self.best.weights)
        self.learner.eval()
        return FitResult(
            metrics=self._final_metrics(),
            history=self.history,
            epochs=self.epoch,
            steps=self.total,
            samples=self.samples,
            seconds=time.perf_counter() - started,
            stopped=self.epoch < self.config.epochs,
        )

    def _run_epoch(self, callbacks: Sequence[Callback]) -> Record:
        started, first = time.perf_counter(), self.step
        every = self.config.checkpoint_every_steps
        for _ in self.epoch_steps():
            self.step += 1
            if self.total % self.config.log_every == 0:
                record = self._flush()
                for callback in callbacks:
                    callback.on_log(record)
            if every is not None and self.step % every == 0 and self.step < self.steps:
                record = self._flush()
                for callback in callbacks:
                    callback.on_checkpoint(self, record)
        self._flush()
        self.epoch += 1
        record: Record = {"step": self.total, "epoch": self.epoch}
        record |= {f"train/{name}": total / self.steps for name, total in self._sums.items()}
        if self.valid is not None and (
            self.epoch % self.config.eval_every == 0 or self.epoch == self.config.epochs
        ):
            record |= {f"valid/{name}": value for name, value in self._evaluate(self.valid).items()}
        drawn = (self.steps - first) * self.batch_size * self.comm.world
        record["samples_per_s"] = drawn / max(time.perf_counter() - started, 1e-9)
        self.step, self._sums = 0, {}
        self.history.append(record)
        return record

    def train_step(self, batch: Mapping[str, Tensor]) -> None:
        """One optimiser step on one batch."""
        self._set_rate()
        self._update(batch)
        self._count()

    def _set_rate(self) -> None:
        # from the place in the epoch: a group of another size resumes at the same one
        set_rate(self.optimiser, self.config, (self.epoch + self.step / self.steps) / self.config.epochs)

    def _update(self, batch: Mapping[str, Tensor]) -> None:
        """Forward, backward and optimiser; without a word to the CPU, so that it can be recorded."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.config.amp == "bf16" else nullcontext():
            terms = self.model(batch)
        share = self._share(len(batch["step"])) if self._by_length else self._weight
        if self.comm.world > 1:
            terms = {name: term * share for name, term in terms.items()}
        take_step(self.optimiser, terms["loss"], self.config.grad_clip)
        if not self._terms:
            self._terms = tuple(terms)
            self._window = torch.zeros(len(terms), dtype=torch.float64, device=self.device)
        self._last = torch.stack([term.detach() for term in terms.values()])
        self._window += self._last

    def _share(self, values: int) -> Tensor:
        """By how much a batch of so many values counts in the mean over all processes."""
        own = torch.tensor(values * self._weight, device=self.device)
        return own / self.comm.mean(own)

    def _count(self) -> None:
        self.total += 1
        self.samples += self.batch_size * self.comm.world
        self._window_steps += 1
        with torch.no_grad():
            if self._reads_losses:
                self.learner.after_losses(dict(zip(self._terms, self.comm.mean(self._last), strict=True)))
            self.learner.after_step(self.total)

    def epoch_steps(self) -> Iterator[None]:
        """Takes the remaining steps of the epoch, one for each turn of the caller, who counts them in `step`."""
        draw = (self.epoch, self.config.seed, self.batch_size, self.steps, self.step)
        if self.graphed is None or not isinstance(self.table, TensorTable):
            for batch in self.table.batches(*draw):
                yield self.train_step(batch)
            return
        for rows in self.table.draws(*draw):
            self._set_rate()
            self.graphed(rows)
            yield self._count()

    def _flush(self) -> Record:
        """Moves the losses since the last flush to those of the epoch; their means, the same in every process."""
        record: Record = {"step": self.total, "epoch": self.epoch + self.step / self.steps}
        if self._window_steps:
            sums = [value / self.comm.world for value in self.comm.sum(self._window.tolist())]
            if not all(map(math.isfinite, sums)):
                raise shared(
                    PlpmError(
                        f"training diverged: {dict(zip(self._terms, sums, strict=True))} after {self.total} steps",
                        hint="lower training.lr, set training.grad_clip, or look for extreme feature values",
                    )
                )
            for name, value in zip(self._terms, sums, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value
                record[f"train/{name}"] = value / self._window_steps
            self._window.zero_()
            self._window_steps = 0
        return record

    def _evaluate(self, valid: Rows) -> dict[str, float]:
        metrics = evaluate(self.learner, valid, self.comm)
        if self.config.patience is not None:
            if self.config.monitor not in metrics:
                raise ConfigError(
                    f"monitor {self.config.monitor!r} is no metric of the learner",
                    hint=nearest(self.config.monitor, metrics),
                )
            if metrics[self.config.monitor] < self.best.value:
                weights = {k: v.detach().cpu().clone() for k, v in self.learner.state_dict().items()}
                self.best = _Best(metrics[self.config.monitor], 0, metrics, weights)
            else:
                self.best.waited += 1
        return metrics

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.best.waited >= self.config.patience

    def _final_metrics(self) -> dict[str, float]:
        if self.best.weights is not None:
            return self.best.metrics
        if self.valid is None:
            return {}
        last = self.history[-1] if self.history else {}
        if "valid/rows" in last:
            return {k[6:]: v for k, v in last.items() if k.startswith("valid/")}
        return evaluate(self.learner, self.valid, self.comm)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs; a collective call."""
        return {
            "learner": self.learner.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "position": {k: getattr(self, k) for k in _POSITION},
            "random": self.comm.gather(random_state(self.device)),
            "best": vars(self.best),
            "sums": self._sums,
            "terms": list(self._terms),
            "history": self.history,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state()` was called.

        In a group of another size the epoch goes on after the same share of its rows: some are missed or repeated.
        """
        self.learner.load_state_dict(state["learner"])
        self.optimiser.load_state_dict(state["optimiser"])
        position = state["position"]
        self.epoch, self.total, self.samples, self.stopped = (
            position[k] for k in ("epoch", "total", "samples", "stopped")
        )
        self.step = round(position["step"] * self.steps / position["steps"])
        scale = self.steps / position["steps"]
        self._sums = (
            {name: value * scale for name, value in state["sums"].items()}
            if scale != 1
            else dict(state["sums"])
        )
        self.best = _Best(**state["best"])
        self.history = list(state["history"])
        self._terms = tuple(state["terms"])
        self._window = torch.zeros(len(self._terms), dtype=torch.float64, device=self.device)
        if len(state["random"]) == self.comm.world:
            set_random_state(state["random"][self.comm.rank], self.device)
