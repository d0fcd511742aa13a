"""What a training loop tells those who watch it, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plpm_ray.training.loop import Loop

Record = dict[str, Any]


class Callback:
    """Hooks of the loop; every process of a group calls its own."""

    def on_log(self, record: Record) -> None:
        """Every `log_every` steps: "step", "epoch", and mean losses since the last one as "train/<term>"."""

    def on_epoch(self, record: Record) -> bool | None:
        """After each epoch: the same with the epoch's means, and "valid/<metric>" if evaluated. True stops the run."""

    def on_checkpoint(self, loop: Loop, record: Record) -> None:
        """When a checkpoint is due: `loop.state()` holds all of it; every process must call that."""


@dataclass
class FitResult:
    """What came of a fit.

    Attributes:
        metrics: validation metrics of the weights the learner now has; empty without validation rows.
        history: the epochs' records.
        epochs, steps, samples: done in all; samples count every process.
        seconds: of this process since the start or the resumption.
        stopped: whether it ended before its last epoch.
    """

    metrics: dict[str, float]
    history: list[Record]
    epochs: int
    steps: int
    samples: int
    seconds: float
    stopped: bool
