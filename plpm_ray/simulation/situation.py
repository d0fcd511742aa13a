"""What users want at an app entry: the hidden truth from which their sessions are drawn, and which oracles may see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plpm_ray.simulation.world import World


@dataclass(frozen=True)
class Situation:
    """The hidden situation at B entries.

    Attributes:
        wanted_KB: (K, B) probability that each page is the one wanted.
        dwell_KB: (K, B) mean seconds of an engaged visit to each page.
        browse: (B,) probability of a further page after an engaged one.
    """

    wanted_KB: np.ndarray
    dwell_KB: np.ndarray
    browse: np.ndarray

    def take(self, rows: np.ndarray) -> Situation:
        return Situation(self.wanted_KB[:, rows], self.dwell_KB[:, rows], self.browse[rows])


def make_situation(
    world: World,
    logits_KB: np.ndarray,
    dwell_KB: np.ndarray,
    multi_today: np.ndarray,
    step: np.ndarray,
) -> Situation:
    """Softmax of the page logits, sharper on single-page days, and dwell that falls with the entries of the day.

    Args:
        logits_KB: (K, B); used up.
        dwell_KB: (K, B) mean seconds on a first entry.
        multi_today: (B,) bool.
        step: (B,) entry number of the day, from 0.
    """
    config = world.config
    sharp = config.population.single_sharpness if config.population.enabled else 1.0
    logits_KB *= np.where(multi_today, 1.0, sharp)
    logits_KB -= logits_KB.max(axis=0)
    wanted = np.exp(logits_KB, out=logits_KB)
    wanted /= wanted.sum(axis=0)
    # a floor keeps every page possible, so that no conditional draw divides by zero
    wanted *= 1 - 1e-6 * len(world)
    wanted += 1e-6
    fatigue = (np.arange(1, config.entries.most + 2) ** -config.entries.fatigue)[step]
    browsing = config.browsing
    browse = np.where(multi_today, browsing.multi, browsing.single) * browsing.enabled
    return Situation(wanted, dwell_KB * fatigue, browse)
