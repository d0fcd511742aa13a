"""The policy: turns page scores into a distribution, a page, and the propensity of that page.

The simulator, off-policy evaluation and live serving all call this code, so their propensities are equal by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from plpm_ray.core.config import StrictConfig, Tunable
from plpm_ray.core.errors import DataError
from plpm_ray.core.hashing import splitmix64


class PolicyConfig(StrictConfig):
    """How pages are drawn from scores."""

    kind: Literal["greedy", "epsilon", "softmax", "proportional"] = Field(
        default="greedy",
        description="greedy: the best page; epsilon: the best page, or with probability epsilon any; "
        "softmax: by exp(score / temperature); proportional: scores are probabilities, raised to 1 / temperature",
    )
    epsilon: Annotated[float, Tunable(0.0, 0.3)] = Field(
        default=0.0, ge=0, le=1, description="probability of a uniformly drawn page, in all kinds but greedy"
    )
    temperature: Annotated[float, Tunable(0.05, 5.0, log=True)] = Field(
        default=1.0,
        gt=0,
        description="of softmax (in units of the scores) and proportional; small values approach greedy",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="seed of the draws; a draw depends on it, the user and the entry time alone",
    )

    @model_validator(mode="after")
    def _greedy_does_not_explore(self) -> PolicyConfig:
        if self.kind == "greedy" and self.epsilon > 0:
            raise ValueError(f"epsilon {self.epsilon:g} does nothing with kind greedy; write kind: epsilon")
        return self


@dataclass
class Choice:
    """Drawn pages.

    Attributes:
        page: (B,) int16 position.
        propensity: (B,) float64 probability with which that page was drawn.
        probabilities: (B, K) float64.
    """

    page: np.ndarray
    propensity: np.ndarray
    probabilities: np.ndarray


class Policy:
    """Draws pages from scores as its config says."""

    def __init__(self, config: PolicyConfig | None = None) -> None:
        self.config = config or PolicyConfig()

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """(B, K) scores -> (B, K) float64 probabilities; ties of greedy go to the first page.

        Raises:
            DataError: a score is not finite, or with `proportional` negative.
        """
        if not np.isfinite(scores).all():
            row = int(np.argmax(~np.isfinite(scores).all(axis=1)))
            raise DataError(
                f"scores of row {row} are not finite: {scores[row]}",
                hint="the model diverged; train it again",
            )
        b, k = scores.shape
        if self.config.kind == "softmax":
            logits = scores.astype(np.float64) / self.config.temperature
            logits -= logits.max(axis=1, keepdims=True)
            probs = np.exp(logits)
            probs /= probs.sum(axis=1, keepdims=True)
        elif self.config.kind == "proportional":
            probs = self._proportional(scores)
        else:
            probs = np.zeros((b, k))
            probs[np.arange(b), scores.argmax(axis=1)] = 1.0
        epsilon = self.config.epsilon
        return probs * (1 - epsilon) + epsilon / k if epsilon else probs

    def _proportional(self, scores: np.ndarray) -> np.ndarray:
        if (scores < 0).any():
            row = int(np.argmax((scores < 0).any(axis=1)))
            raise DataError(
                f"scores of row {row} are negative: {scores[row]}",
                hint="use policy kind softmax for such a navigator",
            )
        top = scores.max(axis=1, keepdims=True).astype(np.float64)
        # a row of zeros says nothing, so all its pages are alike
        probs = np.where(
            top > 0, (scores / np.where(top > 0, top, 1.0)) ** (1 / self.config.temperature), 1.0
        )
        return probs / probs.sum(axis=1, keepdims=True)

    def draw(self, scores: np.ndarray, user_hash: np.ndarray, entry_ms: np.ndarray) -> Choice:
        """Draws one page a row.

        Args:
            scores: (B, K).
            user_hash: (B,) uint64 hash of the user id.
            entry_ms: (B,) int64 entry time.
        """
        probs = self.probabilities(scores)
        u = uniforms(self.config.seed, user_hash, entry_ms)
        cumulative = probs.cumsum(axis=1)
        page = (u[:, None] * cumulative[:, -1:] >= cumulative).sum(axis=1)
        # rounding may leave u at the very end of the scale, on a page of probability zero
        page = np.minimum(page, probs.shape[1] - 1 - (probs[:, ::-1] > 0).argmax(axis=1))
        return Choice(page.astype(np.int16), probs[np.arange(len(page)), page], probs)


def uniforms(seed: int, user_hash: np.ndarray, entry_ms: np.ndarray) -> np.ndarray:
    """(B,) numbers in [0, 1) that depend on seed, user and entry time alone: the same in any order and on any machine."""
    mixed = splitmix64(user_hash.astype(np.uint64) ^ splitmix64(np.uint64(seed) + entry_ms.astype(np.uint64)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
