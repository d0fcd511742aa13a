"""Totals of a set of sessions, found in the data pass and kept with the model (reward scale, tidal curve, shares)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

MAX_STEP = 64


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

    def __add__(self, other: TableStats) -> TableStats:
        return TableStats(*(_added(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    @property
    def mean_use_s(self) -> float:
        """Mean seconds a session; the reward scale. 1.0 where nothing was used, so that dividing stays defined."""
        return self.use_s / self.sessions if self.sessions and self.use_s > 0 else 1.0

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
        arrays = {
            k: np.asarray(v, dtype=np.float64) for k, v in data.items() if k not in ("sessions", "use_s")
        }
        return cls(sessions=int(data["sessions"]), use_s=float(data["use_s"]), **arrays)


def _added(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b
