"""Settings of fitted Q evaluation, and when its iterations end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class FQEConfig:
    """Settings of fitted Q evaluation.

    Attributes:
        kind: "linear", least squares on action-interacted features, exact in each iteration; or "mlp".
        gamma: discount per step; 1 gives the plain total of a day.
        folds: user folds, Q of a row comes from other users; 1 fits and predicts on the same rows.
        correction: correct the plug-in by what the log says to first order, equation (2) of `evaluation.fqe`.
        iterations: k of equation (1), exactly; None to stop at the longest day (the MLP takes at least ten), or before,
            where Q has settled, or at `max_iterations`.
        tolerance: Q has settled when no action value of a training row (linear: of 2,000 of them) changes by more than
            this part of the mean absolute reward; checked where `iterations` is None.
        max_iterations: bound where `iterations` is None: a day of a thousand entries, which no person makes,
            would need as many. The note of the estimate says where it cut the fit short: rewards further
            than this many entries ahead are then left out of Q.
        shared_penalty, action_penalty: ridge penalties of the linear model's two parts, in rows
            (`evaluation.ridge`).
        hidden, epochs_per_iteration, batch_size, learning_rate, weight_decay: of the MLP, AdamW on the
            squared error.
        bootstrap: cluster bootstrap draws of the interval; 0 for the linearised one. Without `correction` only.
        refits: bootstrap draws of users on which the whole fit is repeated, in place of `bootstrap`; 0 for none;
            None for 20 with the linear model, 0 with the MLP or where `bootstrap` is 0. Without `correction` only.
        level: nominal coverage of the interval.
        seed: of folds, initial weights, batches, draws.
    """

    kind: Literal["linear", "mlp"] = "linear"
    gamma: float = 1.0
    folds: int = 5
    correction: bool = True
    iterations: int | None = None
    tolerance: float = 1e-4
    max_iterations: int = 100
    shared_penalty: float = 1.0
    action_penalty: float = 100.0
    hidden: tuple[int, ...] = (64, 64)
    epochs_per_iteration: int = 4
    batch_size: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    bootstrap: int = 200
    refits: int | None = None
    level: float = 0.95
    seed: int = 0


class Stop:
    """Says when equation (1) has been iterated enough.

    Args:
        longest: entries of the longest day.
        scale: what `tolerance` is a part of, in the unit of Q.
        least: iterations that are done in any case.
    """

    def __init__(self, longest: int, config: FQEConfig, scale: float, least: int) -> None:
        self.fixed = config.iterations is not None
        self.tolerance, self.least = config.tolerance * scale, least
        self.limit, self.cut = config.iterations or 1, False
        if not self.fixed:
            self.cut = longest > config.max_iterations
            self.limit = max(min(longest, config.max_iterations), least)
        self.settled, self._done, self._last = False, 0, None

    def __call__(self, q: np.ndarray) -> bool:
        """Whether Q [n, K] of the latest iteration is the last."""
        self._done += 1
        last, self._last = self._last, q
        if not self.fixed and last is not None and self._done >= self.least:
            self.settled = float(np.abs(q - last).max(initial=0.0)) <= self.tolerance
        return self.settled or self._done >= self.limit

    @property
    def capped(self) -> bool:
        return self.cut and not self.settled
