"""What answers when the trained navigator cannot: a user without history, scores that are not numbers, a part that failed.

A decision taken by the fallback says so, with the reason; it is never mistaken for one of the navigator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import BundleError, PartError
from plpm_ray.core.features import RawFeatures
from plpm_ray.navigators.base import Navigator

REASONS = ("", "unknown_user", "not_finite", "part_failed")
"""Reason by code; code 0 = the navigator itself answered."""
_UNKNOWN, _NOT_FINITE, _PART_FAILED = range(1, len(REASONS))


class Scored(NamedTuple):
    """`scores` (B, K) float32, `reason` (B,) int8 codes into REASONS, and the (B, K) float32 parts of the navigator's
    scores by name, NaN where the fallback answered."""

    scores: np.ndarray
    reason: np.ndarray
    details: Mapping[str, np.ndarray]


class FallbackChain:
    """Scores of a navigator, and those of a simpler one for the rows it cannot answer.

    Raises:
        BundleError: the two have other pages.
    """

    def __init__(self, navigator: Navigator, fallback: Navigator) -> None:
        if navigator.pages.names != fallback.pages.names:
            raise BundleError(
                f"{navigator.name} scores {list(navigator.pages.names)}, its fallback {list(fallback.pages.names)}",
                hint="use a fallback of the same page catalogue",
            )
        self.navigator = navigator
        self.fallback = fallback
        self.failure: PartError | None = None  # the last one
        self._details: tuple[str, ...] | None = None

    def scores(self, features: RawFeatures, known: np.ndarray, state: np.ndarray | None = None) -> Scored:
        """Scores of B rows.

        Args:
            features: B rows.
            known: (B,) bool; False = the user has no history, which the navigator is asked about only if it
                `answers_unknown`.
            state: (B, state_size) intra-day state of the navigator, or None.
        """
        asked = np.ones_like(known) if self.navigator.answers_unknown else known
        reason = np.where(asked, 0, _UNKNOWN).astype(np.int8)
        try:
            scores, details = self._explained(features, asked, state)
        except PartError as error:
            self.failure = error
            reason[asked] = _PART_FAILED
            shape = (len(features), len(self.navigator.pages))
            scores, details = np.zeros(shape, np.float32), self._blank(shape)
        reason[(reason == 0) & ~np.isfinite(scores).all(axis=1)] = _NOT_FINITE
        again = reason > 0
        if again.any():
            scores = np.array(scores)
            scores[again] = self.fallback.scores(features.take(again))
            details = {name: np.where(again[:, None], np.float32(np.nan), v) for name, v in details.items()}
        return Scored(scores, reason, details)

    def _explained(
        self, features: RawFeatures, asked: np.ndarray, state: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The navigator's scores and their parts, 0 in rows that it is not asked about."""
        if asked.all() and len(asked):
            scores, details = self.navigator.explained(features, state)
            self._details = tuple(details)
            return scores, details
        shape = (len(features), len(self.navigator.pages))
        rows = np.flatnonzero(asked)
        if not len(rows) and (self._details is not None or not len(features)):
            return np.zeros(shape, np.float32), self._blank(shape)
        # asked about nobody, it is asked once all the same: decisions have the same columns from the first one on
        some = rows if len(rows) else np.zeros(1, dtype=np.int64)
        answered, found = self.navigator.explained(
            features.take(some), None if state is None else state[some]
        )
        self._details = tuple(found)
        scores, details = np.zeros(shape, np.float32), self._blank(shape)
        if len(rows):
            scores[rows] = answered
            for name, values in found.items():
                details[name][rows] = values
        return scores, details

    def _blank(self, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        return {name: np.full(shape, np.nan, dtype=np.float32) for name in self._details or ()}


def reason_column(reason: np.ndarray) -> pa.Array:
    """(B,) reason codes -> Arrow strings, null where the navigator itself answered."""
    names = pa.array([None, *REASONS[1:]], type=pa.string())
    return names.take(pa.array(reason))
