"""The randomised trial of KLAN 5.1.1: users drawn into arms for some days, what they did, and what they would have done.

Arm 0 is the control, that is the logging policy; every other arm shows one page at every entry. As luck is a function of
user, day and entry, the potential outcomes under all arms come from the same state and the same luck.

Letters: U users, A arms (control included), B entries.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from plpm_ray.core.config import StrictConfig, nearest
from plpm_ray.core.errors import ConfigError
from plpm_ray.policies.base import Choice
from plpm_ray.simulation import luck
from plpm_ray.simulation.choosers import FixedPage
from plpm_ray.simulation.logged_by import chooser_name
from plpm_ray.simulation.simulation import Chooser, Entries, Sessions, Simulation, copied, run_days
from plpm_ray.simulation.world import World

CONTROL = "control"
# beyond the streams of a user's traits, which reach 127 with 32 pages: trial and world may have the same seed
_ARM_STREAM = 160
_OTHER_LUCK = 1_000_003  # keys of other lucks of the period, apart from those of `replicate`


class TrialConfig(StrictConfig):
    """A randomised trial within the logged days."""

    arms: tuple[str, ...] = Field(
        default=(), description="pages with an arm of their own; empty: all pages. The control comes on top"
    )
    shares: dict[str, float] = Field(
        default_factory=dict, description="arm (or control): weight in the draw; those not named weigh 1"
    )
    start_day: int = Field(
        default=0, ge=0, description="first day of the trial, counted from the first logged day"
    )
    days: int | None = Field(
        default=None, ge=1, description="length of the trial; null: to the end of the logs"
    )
    seed: int = Field(default=0, ge=0, description="seed of the draw of arms")

    @model_validator(mode="after")
    def _shares_of_arms(self) -> TrialConfig:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms {list(self.arms)} name a page twice")
        if self.arms and (unknown := set(self.shares) - {*self.arms, CONTROL}):
            raise ValueError(f"shares: {sorted(unknown)} is neither an arm nor {CONTROL!r}")
        if any(not 0 <= share < float("inf") for share in self.shares.values()):
            raise ValueError("shares are weights of 0 or more")
        return self

    def check(self, pages: Sequence[str], days: int) -> None:
        """Raises: ConfigError where the trial does not fit the world's pages or the logged days."""
        if CONTROL in (self.arms or pages):
            raise ConfigError(
                f"trial: an arm for the page {CONTROL!r} would have the name of the control",
                hint="name the page otherwise, or leave it out of `arms`",
            )
        for name in (*self.arms, *(set(self.shares) - {CONTROL})):
            if name not in pages:
                raise ConfigError(f"trial: {name!r} is not a page of the world", hint=nearest(name, pages))
        if self.start_day + (self.days or 1) > days:
            length = f"{self.days} days" if self.days else "a trial"
            raise ConfigError(
                f"trial: {length} from day {self.start_day} on would pass the end of {days} logged days",
                hint="raise `days`, or make the trial shorter",
            )


class Trial:
    """A trial in a world whose logs begin after `warmup_days`.

    Attributes:
        arms: (A,) labels, the control first.
        pages: (A,) int64 positions of the arms' pages, -1 for the control.
        shares: (A,) probabilities of the arms.
        start, days: first day of the period, counted from the world's first, and its length.
    """

    def __init__(self, config: TrialConfig, world: World, warmup_days: int, days: int) -> None:
        config.check(world.pages.names, days)
        names = config.arms or world.pages.names
        self.config, self.world = config, world
        self.arms = (CONTROL, *names)
        self.pages = np.array([-1, *(world.pages.index(name) for name in names)])
        weights = np.array([config.shares.get(arm, 1.0) for arm in self.arms])
        if weights.sum() <= 0:
            raise ConfigError(
                "trial: all shares are 0", hint="give the control and the arms positive weights"
            )
        self.shares = weights / weights.sum()
        self.start = warmup_days + config.start_day
        self.days = config.days or days - config.start_day

    def arm_of(self, user_id: np.ndarray) -> np.ndarray:
        """(U,) int64 arms of users: a function of user and seed alone."""
        u = luck.uniforms(luck.user_keys(self.config.seed, user_id), _ARM_STREAM)
        cumulative = self.shares.cumsum()
        return np.searchsorted(cumulative / cumulative[-1], u, side="right").astype(np.int64)

    def assignments(self, user_id: np.ndarray) -> pa.Table:
        """(U,) canonical assignments: user_id, arm (null is the control), start_day and end_day, both included."""
        first = dt.date(1970, 1, 1) + dt.timedelta(days=self.world.first_day + self.start)
        last = first + dt.timedelta(days=self.days - 1)
        same = pa.array(np.zeros(len(user_id), dtype=np.int64))
        return pa.table(
            {
                "user_id": pa.array(user_id, pa.int64()),
                "arm": self._arm_column(self.arm_of(user_id)),
                "start_day": pa.array([first], pa.date32()).take(same),
                "end_day": pa.array([last], pa.date32()).take(same),
            }
        )

    def _arm_column(self, arm: np.ndarray) -> pa.Array:
        return pa.array(self.arms, pa.string()).take(pa.array(arm, mask=arm == 0))

    def responses(self, user_id: np.ndarray, responses: Responses) -> pa.Table:
        """(U,) user_id, arm (null is the control), use_s_per_day and active_days of the period."""
        return pa.table(
            {
                "user_id": pa.array(user_id, pa.int64()),
                "arm": self._arm_column(self.arm_of(user_id)),
                "use_s_per_day": pa.array(responses.use_s_per_day),
                "active_days": pa.array(responses.active_days.astype(np.int16)),
            }
        )

    def potential_outcomes(
        self, simulation: Simulation, control: Chooser, replicates: int, first: int = 0
    ) -> pa.Table:
        """What each user would have done under every arm in the period that now begins; nothing is changed.

        Args:
            simulation: on the evening before the period.
            control: chooser of the control arm, with what it knows by then.
            replicates: R lucks of the period over which outcomes are averaged.
            first: number of the first of them. 0 is the luck that users have: their responses are then a part of the
                outcomes of their own arms, so that a ranking by such effects would see what it is judged by.

        Returns:
            (U,) user_id and, per arm, `y_control`, `y_<page>`: seconds of app use per day (float64).
        """
        outcomes = np.zeros((len(self.arms), len(simulation)))
        for replicate in range(first, first + replicates):
            for arm, page in enumerate(self.pages):
                alone, chooser = _copied(simulation, control)
                if replicate:
                    _give_luck(alone, replicate)
                responses = Responses(len(alone), self.days)
                run_days(
                    alone, self.days, chooser if page < 0 else FixedPage(self.world, int(page)), responses
                )
                outcomes[arm] += responses.use_s_per_day / replicates
        columns = {f"y_{name}": pa.array(y) for name, y in zip(self.arms, outcomes, strict=True)}
        return pa.table({"user_id": pa.array(simulation.users.user_id), **columns})


class Responses:
    """A sink that measures the responses of U users over a period of `days` days."""

    def __init__(self, users: int, days: int) -> None:
        self.days = days
        self._use_ms = np.zeros(users, dtype=np.int64)
        self.active_days = np.zeros(users, dtype=np.int64)

    def __call__(self, sessions: Sessions) -> None:
        rows = sessions.entries.rows
        self._use_ms[rows] += sessions.use_ms
        self.active_days[rows] += sessions.entries.step == 0

    @property
    def use_s_per_day(self) -> np.ndarray:
        """(U,) float64 mean seconds of app use per day, days without a session included."""
        return self._use_ms / (1000 * self.days)


class TrialChooser:
    """The arms' pages in the period of a trial, the control's choices everywhere else.

    Args:
        trial: the trial.
        control: chooser of the control.
        user_id: (U,) users of the simulation, in its order.
    """

    def __init__(self, trial: Trial, control: Chooser, user_id: np.ndarray) -> None:
        self.trial, self.control = trial, control
        self.arm = trial.arm_of(user_id)
        fixed = [f"always {name}" for name in trial.arms[1:]]
        self.policies = (chooser_name(control), *fixed)

    def _arms(self, entries: Entries) -> np.ndarray:
        """(B,) arms of entries in the period, -1 outside."""
        day = entries.day - self.trial.start
        return np.where((day >= 0) & (day < self.trial.days), self.arm[entries.rows], -1)

    def labels(self, sessions: Sessions) -> tuple[np.ndarray, np.ndarray]:
        """(B,) positions in `policies`, and (B,) in `trial.arms` with -1 outside the period."""
        arm = self._arms(sessions.entries)
        return np.maximum(arm, 0), arm

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        k, b, arm = len(self.trial.world), len(entries), self._arms(entries)
        shown = self.trial.pages[np.maximum(arm, 0)]
        free, fixed = np.flatnonzero(shown < 0), np.flatnonzero(shown >= 0)
        if not len(fixed):
            return self.control.choose(simulation, entries)
        page, propensity, probs = shown.astype(np.int16), np.ones(b), np.zeros((b, k))
        probs[fixed, shown[fixed]] = 1.0
        if len(free):
            chosen = self.control.choose(simulation, entries.take(free))
            page[free], propensity[free], probs[free] = chosen.page, chosen.propensity, chosen.probabilities
        return Choice(page, propensity, probs)

    def observe(self, simulation: Simulation, sessions: Sessions) -> None:
        self.control.observe(simulation, sessions)


def _copied(simulation: Simulation, chooser: Chooser) -> tuple[Simulation, Chooser]:
    navigator = getattr(getattr(chooser, "inner", chooser), "navigator", None)
    alone, other = copied(simulation, chooser, shared=() if navigator is None else (navigator,))
    return alone, other


def _give_luck(simulation: Simulation, replicate: int) -> None:
    """Another luck from now on."""
    users = simulation.users
    number = np.array([replicate * _OTHER_LUCK])
    simulation.users = replace(users, key=luck.child_keys(users.key, number))
