"""Navigators without training: the rules of the online baseline in KLAN 5.2.1, and a constant.

Each scores from the user's own history. Users without one (never seen, or silent for longer than the window) get the
pages in order of popularity, that is of their share of landings in the training window; popularity also breaks ties.
"""

from __future__ import annotations

import numpy as np

from plpm_ray.core.features import RawFeatures
from plpm_ray.core.registry import register
from plpm_ray.navigators.base import Heuristic

# A tie-break smaller than every real difference: counts differ by 1 or more, dwell times by 1 ms or more.
_COUNT_TIE, _SECOND_TIE = 0.5, 5e-4


class _PopularityFallback(Heuristic):
    """Adds the popularity order below a rule's own scores."""

    def popularity(self) -> np.ndarray:
        """(K,) float32 share of landings by page in the training window; equal shares where nothing was seen."""
        landings = np.asarray(self.stats.landings, dtype=np.float64)
        total = landings.sum()
        share = landings / total if total > 0 else np.full(len(landings), 1.0 / len(landings))
        return share.astype(np.float32)

    def with_fallback(self, rule_BK: np.ndarray, tie: float) -> np.ndarray:
        """(B, K) rule scores (0 = no history) plus `tie` times the popularity."""
        return np.nan_to_num(rule_BK).astype(np.float32) + np.float32(tie) * self.popularity()


@register("navigator", "heuristic.last_exit_page")
class LastExitPage(_PopularityFallback):
    """The page on which the user left the app last; by popularity where it is unknown."""

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        last_B = np.asarray(features.categorical["last_exit_page"])
        return self.with_fallback(last_B[:, None] == np.arange(len(self.pages)), _COUNT_TIE)


@register("navigator", "heuristic.most_frequent")
class MostFrequent(_PopularityFallback):
    """The page the user opened most often today and in the 14 days before; by popularity where there was none."""

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        return self.with_fallback(_recent(features, "entries"), _COUNT_TIE)


@register("navigator", "heuristic.longest_use")
class LongestUse(_PopularityFallback):
    """The page the user spent most seconds on today and in the 14 days before; by popularity where there were none."""

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        return self.with_fallback(_recent(features, "dwell_s"), _SECOND_TIE)


@register("navigator", "heuristic.popularity")
class Popularity(_PopularityFallback):
    """The same order for everybody: the share of landings in the training window."""

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        return np.tile(self.popularity(), (len(features), 1))


def _recent(features: RawFeatures, what: str) -> np.ndarray:
    """(B, K) a page count or dwell of today and the 14 days before; missing is 0."""
    today = features.per_page(f"today_page_{what}")
    return np.nan_to_num(today) + np.nan_to_num(features.per_page(f"page_{what}_14d"))
