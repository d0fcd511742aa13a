"""Users and responses counted from the highest score down, and what curves follow from the counts.

The equations are those of `evaluation.uplift_curves`. Arrays may carry leading axes, so one trial and a thousand
bootstrap draws of it take the same path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plpm_ray.evaluation.uplift_ranking import descending_order, run_ends


@dataclass(frozen=True)
class CumulativeSums:
    """N_t, N_c, Y_t, Y_c at the P ends of runs of equal score; [..., P + 1], first 0.

    Attributes:
        treated, control: users (weight) so far, which is the last entry for the whole trial.
        treated_response, control_response: sums of the response so far.
    """

    treated: np.ndarray
    control: np.ndarray
    treated_response: np.ndarray
    control_response: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """x, the share of users (of weight) so far; [..., P + 1]."""
        users = self.treated + self.control
        users /= users[..., -1:].copy()
        return users

    def qini(self) -> tuple[np.ndarray, np.ndarray]:
        """x and Q(x) of equation (1)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = self.treated / self.control
            gain *= self.control_response
            np.subtract(self.treated_response, gain, out=gain)
            gain /= self.treated[..., -1:]
        return self._from_zero(gain, self.control <= 0)

    def uplift(self) -> tuple[np.ndarray, np.ndarray]:
        """x and G(x) of equation (2)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = self.treated_response / self.treated
            gain -= self.control_response / self.control
            gain *= self.share
        return self._from_zero(gain, (self.control <= 0) | (self.treated <= 0))

    def _from_zero(self, gain: np.ndarray, undefined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x, and gain with a straight line from (0, 0) to its first defined point; changes gain."""
        share = self.share
        first = np.minimum(undefined.sum(axis=-1, keepdims=True), gain.shape[-1] - 1)
        lead = int(first.max()) + 1
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = np.take_along_axis(gain, first, -1) / np.take_along_axis(share, first, -1)
        gain[..., :lead] = np.where(undefined[..., :lead], slope * share[..., :lead], gain[..., :lead])
        return share, gain

    def effect_at(self, share: float) -> np.ndarray:
        """Difference of the mean responses of both groups among the best-scored share; [...].

        A run of equal scores that the share cuts counts with the part that lies inside.
        """
        at = self.share
        right = np.clip((at < share).sum(axis=-1, keepdims=True), 1, at.shape[-1] - 1)
        low, high = (np.take_along_axis(at, i, -1) for i in (right - 1, right))
        part = np.clip((share - low) / (high - low), 0, 1)

        def cut(sums: np.ndarray) -> np.ndarray:
            left, end = (np.take_along_axis(sums, i, -1) for i in (right - 1, right))
            return (left + part * (end - left))[..., 0]

        with np.errstate(invalid="ignore", divide="ignore"):
            treated = cut(self.treated_response) / cut(self.treated)
            return treated - cut(self.control_response) / cut(self.control)


def trapezoid(share: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Area under gain [..., P] over share [..., P]."""
    return ((share[..., 1:] - share[..., :-1]) * (gain[..., 1:] + gain[..., :-1])).sum(axis=-1) / 2


def cumulative_sums(
    score: np.ndarray, treated: np.ndarray, response: np.ndarray, weight: np.ndarray | None = None
) -> CumulativeSums:
    """Sums in the order of the score; arguments as `qini_curve`, but not checked (weight as it counts)."""
    order = descending_order(score)
    ends = run_ends(score[order])
    is_treated, y = treated[order], response[order].astype(np.float64)
    sums = np.zeros((4, len(order) + 1))
    if weight is None:
        np.cumsum(is_treated, dtype=np.float64, out=sums[0, 1:])
        np.subtract(np.arange(len(order) + 1), sums[0], out=sums[1])
    else:
        w = weight[order]
        y *= w
        np.cumsum(w * is_treated, out=sums[0, 1:])
        np.cumsum(w * ~is_treated, out=sums[1, 1:])
    part = y * is_treated
    np.cumsum(part, out=sums[2, 1:])
    np.cumsum(np.subtract(y, part, out=part), out=sums[3, 1:])
    if len(ends) < len(order):
        sums = sums[:, np.concatenate([[0], ends + 1])]
    return CumulativeSums(*sums)


def stabilised(inverse: np.ndarray, arm: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """weight times inverse propensity [N], scaled so that every arm keeps its total weight."""
    product = weight * inverse
    scale = np.bincount(arm, weights=weight) / np.maximum(np.bincount(arm, weights=product), 1e-300)
    return product * scale[arm]
