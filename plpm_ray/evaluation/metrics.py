"""What a policy does on logged decisions, and whether its Q is believable.

All times are seconds of app use, all shares are between 0 and 1. Intervals are 95 %, clustered by user.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.inference import Terms, clustered_interval
from plpm_ray.evaluation.logged import EpisodeGrid


@dataclass(frozen=True)
class Mean:
    """A mean with its interval clustered by user; `n` values."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict:
        return asdict(self)


def clustered_mean(values: np.ndarray, cluster: np.ndarray) -> Mean:
    """Mean of values [N] with its 95 % interval by cluster [N].

    Raises:
        DataError: no values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise DataError("a mean of no values was asked for")
    _, low, high = clustered_interval(Terms(values), cluster)
    return Mean(float(values.mean()), low, high, len(values))


@dataclass(frozen=True)
class Agreement:
    """How often the policy does what the log did.

    Attributes:
        argmax_share: share of rows whose most probable page is the logged one (ties go to the first page).
        mean_probability: mean of pi(logged page | x).
    """

    argmax_share: Mean
    mean_probability: Mean


def agreement(pi: np.ndarray, action: np.ndarray, cluster: np.ndarray) -> Agreement:
    """Agreement of pi [N, K] with the logged actions [N]."""
    return Agreement(
        argmax_share=clustered_mean(pi.argmax(axis=1) == action, cluster),
        mean_probability=clustered_mean(pi[np.arange(len(action)), action], cluster),
    )


@dataclass(frozen=True)
class AssignmentRatio:
    """Share of decisions given to each page.

    Attributes:
        argmax: float [K], by the most probable page.
        probability: float [K], mean probability; what the policy would assign when it draws.
    """

    argmax: np.ndarray
    probability: np.ndarray


def assignment_ratio(pi: np.ndarray) -> AssignmentRatio:
    """Page assignment ratio of pi [N, K]."""
    chosen = np.bincount(pi.argmax(axis=1), minlength=pi.shape[1])
    return AssignmentRatio(argmax=chosen / len(pi), probability=pi.mean(axis=0))


def realised_return(reward: np.ndarray, episode: np.ndarray, step: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted return from each row to the end of its episode, G_t = r_t + gamma G_t+1, float64 [N].

    Args:
        reward: [N], seconds.
        episode, step: [N], user-day and position in it; rows in any order.
        gamma: the discount of the Q it is compared with.
    """
    grid = EpisodeGrid.of(episode, step)
    returns = np.array(reward, dtype=np.float64)
    by_length = np.argsort(-grid.length, kind="stable")
    start, length = grid.start[by_length], grid.length[by_length]
    for t in range(int(length[0]) - 2, -1, -1):
        # the episodes that go on after step t are the first so many
        at = start[: np.searchsorted(-length, -(t + 1))] + t
        returns[grid.order[at]] += gamma * returns[grid.order[at + 1]]
    return returns


@dataclass(frozen=True)
class OverestimationGap:
    """Predicted against realised returns, seconds.

    Attributes:
        realised: mean discounted return of the logged decisions.
        logged_action: mean of Q(x, logged page) - realised return. For the Q of the logging policy 0 is
            right; a better policy's Q may exceed it by what the policy gains later.
        best_action: mean of max_a Q(x, a) - realised return: the over-optimism of a greedy policy's own
            forecast, together with what greedy choices truly gain.
        logged_ratio, best_ratio: mean Q over mean realised return; None where that is 0.
    """

    realised: Mean
    logged_action: Mean
    best_action: Mean
    logged_ratio: float | None
    best_ratio: float | None


def overestimation_gap(
    q: np.ndarray, action: np.ndarray, returns: np.ndarray, cluster: np.ndarray
) -> OverestimationGap:
    """Gap of Q [N, K] (seconds, same gamma) to returns [N] from `realised_return` on held-out days."""
    chosen = q[np.arange(len(action)), action]
    best = q.max(axis=1)
    realised = clustered_mean(returns, cluster)
    ratio = (lambda mean: float(mean / realised.value)) if realised.value else (lambda mean: None)
    return OverestimationGap(
        realised=realised,
        logged_action=clustered_mean(chosen - returns, cluster),
        best_action=clustered_mean(best - returns, cluster),
        logged_ratio=ratio(chosen.mean()),
        best_ratio=ratio(best.mean()),
    )


def page_drop_off_ratio(
    landing_page: np.ndarray, landing_dwell_s: np.ndarray, n_pages: int, threshold_s: float
) -> tuple[float, np.ndarray]:
    """Share of sessions that leave their landing page within `threshold_s` seconds (KLAN 1: PDR).

    Returns:
        The ratio over all sessions, and per landing page float64 [n_pages] (nan where it has none).
    """
    left = np.asarray(landing_dwell_s) < threshold_s
    count = np.bincount(landing_page, minlength=n_pages)
    dropped = np.bincount(landing_page, weights=left, minlength=n_pages)
    by_page = np.divide(dropped, count, out=np.full(n_pages, np.nan), where=count > 0)
    return float(left.mean()) if left.size else float("nan"), by_page
