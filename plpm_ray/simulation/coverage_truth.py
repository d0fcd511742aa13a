"""The true values that off-policy estimates are held against, from a large population of other users.

For user u with the decisions i of the judged days, all made by the logging policy, let f_ui be sum_a pi(a|x_i) E[use | i, a],
in closed form (`walk.expected`). Then, with G_ud the discounted use of day d when pi is followed on that day alone,

    value per decision  = E[sum_i f_ui] / E[number of decisions]                                             (1)
    value per user-day  = E[sum_d G_ud] / E[number of active days]                                           (2)

G is simulated from copies of the users as they stand at the beginning of day d, each entry's use again replaced by its
expectation under pi. Both are ratios of sums over independent users, so their standard errors are those of ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from plpm_ray.policies.base import uniforms
from plpm_ray.simulation.coverage_logs import Life, Moment
from plpm_ray.simulation.coverage_targets import Target
from plpm_ray.simulation.world import World

_SEED = 11


@dataclass(frozen=True)
class Ratio:
    """Mergeable sums over users of a numerator x and a denominator n."""

    users: int = 0
    x: float = 0.0
    n: float = 0.0
    xx: float = 0.0
    xn: float = 0.0
    nn: float = 0.0

    @classmethod
    def of(cls, x: np.ndarray, n: np.ndarray) -> Ratio:
        """From (U,) sums of each user."""
        return cls(len(x), *(float(v) for v in (x.sum(), n.sum(), x @ x, x @ n, n @ n)))

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(*(a + b for a, b in zip(self.__dict__.values(), other.__dict__.values(), strict=True)))

    @property
    def value(self) -> float:
        return self.x / self.n

    @property
    def standard_error(self) -> float:
        """By linearisation: the residuals x - value n have mean 0."""
        square = self.xx - 2 * self.value * self.xn + self.value**2 * self.nn
        return float(np.sqrt(max(square, 0.0))) / self.n


@dataclass(frozen=True)
class Truth:
    """One target's values.

    Attributes:
        decision: value per decision, equation (1); day: per user-day, equation (2). Both in seconds.
    """

    decision: Ratio = Ratio()
    day: Ratio = Ratio()

    def __add__(self, other: Truth) -> Truth:
        return Truth(self.decision + other.decision, self.day + other.day)


def truths(
    world: World, targets: Sequence[Target], user_id: np.ndarray, before: int, days: int, gamma: float
) -> list[Truth]:
    """What some users say about the value of every target.

    Args:
        user_id: (U,) users.
        before: days under the logging policy before the judged ones.
        days: number of judged days.
        gamma: discount of a day's return per entry.
    """
    life = Life(world, user_id)
    life.log_days(before)
    u = len(user_id)
    use_TU, entries_U = np.zeros((len(targets), u)), np.zeros(u)
    return_TU, active_U = np.zeros((len(targets), u)), np.zeros(u)
    for _ in range(days):
        for target, total_U in zip(targets, return_TU, strict=True):
            if target.config.builtin != "logging":
                total_U += _day(deepcopy(life), target, gamma)
        active_U += _logged_day(life, targets, use_TU, entries_U, return_TU, gamma)
    return [
        Truth(Ratio.of(use, entries_U), Ratio.of(total, active_U))
        for use, total in zip(use_TU, return_TU, strict=True)
    ]


def _day(life: Life, target: Target, gamma: float) -> np.ndarray:
    """(U,) discounted return of the next day when the target chooses all its pages; the life is used up."""
    total = np.zeros(len(life.simulation))
    life.simulation.begin_day()
    while (entries := life.simulation.entries()) is not None:
        moment = life.moment(entries)
        probs = target.probabilities(moment)
        total[entries.rows] += gamma**entries.step * (probs * moment.use_s).sum(axis=1)
        u = uniforms(_SEED, entries.user_hash, entries.entry_ms)
        life.land((u[:, None] >= probs.cumsum(axis=1)[:, :-1]).sum(axis=1))
    return total


def _logged_day(
    life: Life,
    targets: Sequence[Target],
    use_TU: np.ndarray,
    entries_U: np.ndarray,
    return_TU: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """The next day under the logging policy; adds up what every target expects of its entries.

    Returns:
        (U,) 1.0 for users who came on that day.
    """
    active = np.zeros(len(entries_U))

    def count(moment: Moment, sessions) -> None:
        entries = sessions.entries
        entries_U[entries.rows] += 1
        active[entries.rows] = 1.0
        for target, use_U, total_U in zip(targets, use_TU, return_TU, strict=True):
            expected = (target.probabilities(moment) * moment.use_s).sum(axis=1)
            use_U[entries.rows] += expected
            if target.config.builtin == "logging":
                total_U[entries.rows] += gamma**entries.step * expected

    life.log_days(1, count)
    return active
