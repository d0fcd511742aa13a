"""Lagrange multipliers of inequality constraints, as state of the model that is trained under them (GLAN eq. 14, 18 to 20).

Letters: C constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# the multipliers hold an active constraint at its bound, now a little above it and now below, and batches are samples
HOLDS_WITHIN = 0.05


class DualVariables(nn.Module):
    """Constraints `loss <= bound` with their multipliers, found by projected gradient ascent while the model is trained.

    All is kept in buffers, so it is saved and restored with the weights. The moving average is divided by the sum of its
    weights: from the first batch on it is a mean of losses that were seen, whatever it began with.

    Args:
        names: (C,) names of the constraints.
        bounds: (C,) largest allowed losses, above 0.
        step: eta of eq. 19; 0 keeps all multipliers at 0, which is the problem without constraints.
        decay: rho of eq. 20.
        largest: multipliers never exceed it.
    """

    bound: Tensor
    value: Tensor
    average: Tensor
    weight: Tensor

    def __init__(
        self, names: Sequence[str], bounds: Sequence[float], *, step: float, decay: float, largest: float
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.step, self.decay, self.largest = step, decay, largest
        self.register_buffer("bound", torch.tensor(bounds, dtype=torch.float32))
        self.register_buffer("value", torch.zeros(len(bounds)))
        self.register_buffer("average", torch.zeros(len(bounds)))
        self.register_buffer("weight", torch.zeros(()))

    def penalty(self, losses_C: Tensor) -> Tensor:
        """Scalar sum of multiplier times (loss - bound), the constraints' part of eq. 18."""
        return (self.value * (losses_C - self.bound)).sum()

    @torch.no_grad()
    def update(self, losses_C: Tensor) -> None:
        """Moves the averages (eq. 20), then the multipliers (eq. 19), in place, so that a recorded graph sees it."""
        losses_C = losses_C.detach().to(self.average)
        self.average.mul_(self.decay).add_(losses_C, alpha=1 - self.decay)
        self.weight.mul_(self.decay).add_(1 - self.decay)
        ascent_C = self.step * (self.smoothed() - self.bound)
        self.value.add_(ascent_C).clamp_(0.0, self.largest)

    def smoothed(self) -> Tensor:
        """(C,) moving averages of the losses; 0 before the first one."""
        return self.average / self.weight.clamp(min=1e-12)

    def violation(self) -> float:
        """By how much the moving averages exceed what still holds, `HOLDS_WITHIN` above the bounds, in all."""
        return float((self.smoothed() - self.bound * (1 + HOLDS_WITHIN)).clamp(min=0).sum())

    def report(self) -> dict[str, dict[str, Any]]:
        """By constraint: "value" (moving average, None before the first loss), "bound", "lambda", and whether it "holds": the
        value is at most `HOLDS_WITHIN` above the bound (None before the first loss)."""
        seen = bool(self.weight > 0)
        rows = zip(
            self.names, self.smoothed().tolist(), self.bound.tolist(), self.value.tolist(), strict=True
        )
        return {
            name: {
                "value": value if seen else None,
                "bound": bound,
                "lambda": multiplier,
                "holds": value <= bound * (1 + HOLDS_WITHIN) if seen else None,
            }
            for name, value, bound, multiplier in rows
        }
