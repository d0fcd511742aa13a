"""Totals of a set of sessions, found in the data pass and kept with the model (reward scale, tidal curve, shares)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from plpm_ray.core.errors import DataError

MAX_STEP = 64
LEAST_REWARD = 1e-3
"""Reward of a second of use, on average, below which a reward model says nothing."""


@dataclass
class TableStats:
    """Mergeable totals over sessions.

    Attributes:
        sessions: number of sessions.
        use_s: total app use, seconds.
        hour_use_s: (24,) app use by local hour of entry, seconds; KLAN eq. 26 reads it.
        step_sessions: (MAX_STEP,) sessions by 0-based entry number of the local day, the last cell holds all later ones.
        landings: (K,) sessions by landing page.
        landing_use_s: (K,) app use by landing page, seconds.
        landing_dwell_s: (K,) dwell on the landing page, seconds.
        arm_users: (K + 1,) users of a randomised trial by arm, the control first; None where there was no trial.
        arm_response: (K + 1,) sums of their responses, in the response's unit.
        day_totals: (8,) over users' active local days, with s sessions and y seconds of use a day and x = ln(1 + s): number of
            days, then the sums of s, s^2, y, y^2, x, x^2 and x y; None where they were not counted.
        reward_s: total of the rewards of these sessions, seconds; None where no reward model has judged them.
    """

    sessions: int
    use_s: float
    hour_use_s: np.ndarray
    step_sessions: np.ndarray
    landings: np.ndarray
    landing_use_s: np.ndarray
    landing_dwell_s: np.ndarray
    arm_users: np.ndarray | None = None
    arm_response: np.ndarray | None = None
    day_totals: np.ndarray | None = None
    reward_s: float | None = None

    @classmethod
    def of(
        cls,
        n_pages: int,
        *,
        landing: np.ndarray,
        use_s: np.ndarray,
        landing_dwell_s: np.ndarray,
        hour: np.ndarray,
        step: np.ndarray,
    ) -> TableStats:
        """Totals of B sessions given as columns: page positions, seconds, local hour 0 to 23, 0-based entry number."""
        return cls(
            len(landing),
            float(use_s.sum(dtype=np.float64)),
            np.bincount(hour, weights=use_s, minlength=24),
            np.bincount(np.minimum(step, MAX_STEP - 1), minlength=MAX_STEP).astype(np.float64),
            np.bincount(landing, minlength=n_pages).astype(np.float64),
            np.bincount(landing, weights=use_s, minlength=n_pages),
            np.bincount(landing, weights=landing_dwell_s, minlength=n_pages),
        )

    @staticmethod
    def days(sessions: np.ndarray, use_s: np.ndarray) -> np.ndarray:
        """`day_totals` of B user-days: (B,) sessions and (B,) seconds."""
        s, y = sessions.astype(np.float64), use_s.astype(np.float64)
        x = np.log1p(s)
        sums = [values.sum() for values in (s, s * s, y, y * y, x, x * x, x * y)]
        return np.array([len(s), *sums])

    def __add__(self, other: TableStats) -> TableStats:
        return TableStats(*(_added(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    def judged(self, reward_s: float) -> TableStats:
        """The same with the total of the rewards that a reward model gives these sessions, seconds.

        Raises:
            DataError: they are next to nothing against the seconds of use, so that no day differs from another.
        """
        if reward_s < LEAST_REWARD * self.use_s:
            raise DataError(
                f"{self.sessions:,} sessions of {self.use_s:,.0f} s are worth {reward_s:,.3g} s to the reward model: it takes "
                "all of them for drop-offs",
                hint="lower its tau_s, or train it longer; `plpm assess` says how it does",
            )
        return replace(self, reward_s=reward_s)

    @property
    def mean_use_s(self) -> float:
        """Mean seconds a session; the reward scale. 1.0 where nothing was used, so that dividing stays defined."""
        return self.use_s / self.sessions if self.sessions and self.use_s > 0 else 1.0

    @property
    def mean_day_sessions(self) -> float:
        """Mean sessions of an active user-day; 1.0 where none were counted."""
        return self._day_mean(1)

    @property
    def mean_day_use_s(self) -> float:
        """Mean seconds of use of an active user-day, the scale of day models; 1.0 where none were counted or nothing used."""
        return self._day_mean(3)

    @property
    def day_sessions_variance(self) -> float:
        """Variance of the sessions of an active user-day."""
        return self._day_variance(1)

    @property
    def day_use_variance(self) -> float:
        """Variance of the seconds of use of an active user-day, s^2."""
        return self._day_variance(3)

    @property
    def day_law(self) -> tuple[float, float]:
        """a and b of GLAN eq. 17 in seconds: least squares of a day's use on ln(1 + sessions).

        (0, mean use) where all days have the same number of sessions, so that the law is always defined.
        """
        if self.day_totals is None or not self.day_totals[0]:
            return 0.0, self.mean_day_use_s
        n, _, _, y, _, x, xx, xy = self.day_totals.tolist()
        spread = xx / n - (x / n) ** 2
        if spread <= 1e-12:
            return 0.0, y / n
        a = (xy / n - x / n * y / n) / spread
        return a, y / n - a * x / n

    @property
    def reward_ratio(self) -> float:
        """Reward per second of use over all sessions; 1.0 where no reward model has judged them."""
        return self.reward_s / self.use_s if self.reward_s is not None and self.use_s > 0 else 1.0

    def _day_mean(self, place: int) -> float:
        if self.day_totals is None or not self.day_totals[0]:
            return 1.0
        mean = float(self.day_totals[place] / self.day_totals[0])
        return mean if mean > 0 else 1.0

    def _day_variance(self, place: int) -> float:
        if self.day_totals is None or not self.day_totals[0]:
            return 0.0
        n = self.day_totals[0]
        return max(float(self.day_totals[place + 1] / n - (self.day_totals[place] / n) ** 2), 0.0)

    @property
    def hour_activity(self) -> np.ndarray:
        """(24,) V of KLAN eq. 26: 24 x use in the hour / use of the whole day; all ones where nothing was used."""
        total = self.hour_use_s.sum()
        return 24.0 * self.hour_use_s / total if total > 0 else np.ones(24)

    @property
    def control_mean(self) -> float:
        """Mean response of a trial's control group, the scale of uplift models. 1.0 where there is none, or where it is 0."""
        if self.arm_users is None or self.arm_response is None or not self.arm_users[0]:
            return 1.0
        mean = float(self.arm_response[0] / self.arm_users[0])
        return mean if mean > 0 else 1.0

    def step_activity(self, n_steps: int) -> np.ndarray:
        """(n_steps,) relative frequency of the day's entry number; the last cell holds all later ones.

        With p_n the share of sessions that are a user's n-th of the day it is p_n / sum_m p_m^2: how common the entry
        number is against what a session meets on average. Its mean over sessions is 1, whatever n_steps is; a mean over
        entry numbers would instead grow with the number of cells, most of which hold next to nothing.
        """
        n_steps = min(n_steps, MAX_STEP)
        counts = self.step_sessions[:n_steps].copy()
        counts[-1] += self.step_sessions[n_steps:].sum()
        total = counts.sum()
        share = counts / total if total > 0 else np.full(n_steps, 1 / n_steps)
        return share / (share**2).sum()

    def to_dict(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: np.asarray(value).tolist() for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TableStats:
        plain = ("sessions", "use_s", "reward_s")
        arrays = {k: np.asarray(v, dtype=np.float64) for k, v in data.items() if k not in plain}
        reward_s = data.get("reward_s")
        return cls(
            sessions=int(data["sessions"]),
            use_s=float(data["use_s"]),
            reward_s=None if reward_s is None else float(reward_s),
            **arrays,
        )


def _added(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b
