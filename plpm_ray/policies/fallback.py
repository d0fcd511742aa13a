"""What answers when the trained navigator cannot: a user without history, or scores that are not numbers.

A decision taken by the fallback says so, with the reason; it is never mistaken for one of the navigator.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import BundleError
from plpm_ray.core.features import RawFeatures
from plpm_ray.navigators.base import Navigator

REASONS = ("", "unknown_user", "not_finite")
"""Reason by code; code 0 = the navigator itself answered."""


class Scored(NamedTuple):
    """`scores` (B, K) float32 and `reason` (B,) int8 codes into REASONS."""

    scores: np.ndarray
    reason: np.ndarray


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

    def scores(self, features: RawFeatures, known: np.ndarray, state: np.ndarray | None = None) -> Scored:
        """Scores of B rows.

        Args:
            features: B rows.
            known: (B,) bool; False = the user has no history, which the navigator is asked about only if it
                `answers_unknown`.
            state: (B, state_size) intra-day state of the navigator, or None.
        """
        asked = np.ones_like(known) if self.navigator.answers_unknown else known
        reason = np.where(asked, 0, 1).astype(np.int8)
        known = asked
        if known.all():
            scores = self.navigator.scores(features, state)
        else:
            scores = np.zeros((len(features), len(self.navigator.pages)), dtype=np.float32)
            if known.any():
                scores[known] = self.navigator.scores(
                    features.take(known), None if state is None else state[known]
                )
        broken = ~np.isfinite(scores).all(axis=1)
        reason[broken] = 2
        again = reason > 0
        if again.any():
            scores = np.array(scores)
            scores[again] = self.fallback.scores(features.take(again))
        return Scored(scores, reason)


def reason_column(reason: np.ndarray) -> pa.Array:
    """(B,) reason codes -> Arrow strings, null where the navigator itself answered."""
    names = pa.array([None, *REASONS[1:]], type=pa.string())
    return names.take(pa.array(reason))
