"""The one input of every off-policy estimator: logged decisions as plain arrays.

N rows (decisions), K actions (pages), E episodes (user-days), T steps of the longest episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from plpm_ray.core.errors import DataError

_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class LoggedData:
    """Decisions of a logging policy mu with what they earned.

    Attributes:
        action: int [N], the action taken, 0..K-1.
        reward: float [N], what followed, in `unit`.
        cluster: [N] any type, the independent unit (user) that intervals are clustered by.
        propensity: float [N], mu(action | x); taken from `behaviour` where that is given and this is not.
        behaviour: float [N, K] or None, mu(. | x) of all actions; needed to see which actions a policy would
            take where the log never went.
        episode: [N] or None, the user-day of the row; needed by sequential estimators and fitted Q
            evaluation.
        step: int [N] or None, position in the episode; rows may come in any order.
        modelled: the propensities were estimated, not logged.
        unit: unit of the reward, shown in every table.

    Raises:
        DataError: shapes that differ, non-finite rewards, propensities outside (0, 1], rows of `behaviour`
        that do
            not sum to one, or neither `propensity` nor `behaviour`.
    """

    action: np.ndarray
    reward: np.ndarray
    cluster: np.ndarray
    propensity: np.ndarray | None = None
    behaviour: np.ndarray | None = None
    episode: np.ndarray | None = None
    step: np.ndarray | None = None
    modelled: bool = False
    unit: str = "s"

    def __post_init__(self) -> None:
        action = np.asarray(self.action)
        if action.ndim != 1 or action.size == 0 or not np.issubdtype(action.dtype, np.integer):
            raise DataError("logged actions must be a non-empty one-dimensional integer array")
        object.__setattr__(self, "action", action.astype(np.int64))
        object.__setattr__(self, "reward", np.asarray(self.reward, dtype=np.float64))
        if self.behaviour is not None:
            object.__setattr__(
                self, "behaviour", check_distribution(self.behaviour, len(action), "behaviour")
            )
        object.__setattr__(self, "propensity", self._resolve_propensity())
        for name in ("reward", "cluster", "propensity", "episode", "step"):
            array = getattr(self, name)
            if array is not None and np.shape(array) != action.shape:
                raise DataError(
                    f"logged {name} has shape {np.shape(array)}, but there are {len(action)} actions"
                )
        self._check_values()

    def _resolve_propensity(self) -> np.ndarray:
        if self.propensity is not None:
            return np.asarray(self.propensity, dtype=np.float64)
        if self.behaviour is None:
            raise DataError(
                "logged data holds neither propensities nor behaviour probabilities",
                hint="model them with plpm_ray.evaluation.propensity.cross_fit_propensities",
            )
        if self.action.min() < 0 or self.action.max() >= self.behaviour.shape[1]:
            raise DataError(f"a logged action lies outside 0..{self.behaviour.shape[1] - 1}")
        return self.behaviour[np.arange(len(self.action)), self.action]

    def _check_values(self) -> None:
        if self.action.min() < 0:
            raise DataError("a logged action is negative")
        if not np.isfinite(self.reward).all():
            raise DataError(f"{int((~np.isfinite(self.reward)).sum())} logged rewards are not finite")
        mu = self.logged_propensity
        if not ((mu > 0) & (mu <= 1 + 1e-9)).all():
            raise DataError(
                "a propensity lies outside (0, 1]",
                hint="a logged action had some chance of being taken: look at how the propensities were made",
            )
        if (self.episode is None) != (self.step is None):
            raise DataError("episode and step are given together or not at all")

    @property
    def logged_propensity(self) -> np.ndarray:
        """mu(action | x), float64 [N]."""
        assert self.propensity is not None
        return self.propensity

    def __len__(self) -> int:
        return len(self.action)

    def check_policy(self, pi: np.ndarray) -> np.ndarray:
        """The evaluation policy's probabilities [N, K] as float64, checked against this log."""
        pi = check_distribution(pi, len(self), "evaluation policy")
        if self.action.max() >= pi.shape[1]:
            raise DataError(f"a logged action lies outside the policy's 0..{pi.shape[1] - 1}")
        if self.behaviour is not None and self.behaviour.shape != pi.shape:
            raise DataError(f"the policy has {pi.shape[1]} actions, the behaviour {self.behaviour.shape[1]}")
        return pi

    def weights(self, pi: np.ndarray) -> np.ndarray:
        """Importance weights w = pi(action | x) / mu(action | x), float64 [N]."""
        return pi[np.arange(len(self)), self.action] / self.logged_propensity

    @cached_property
    def grid(self) -> EpisodeGrid:
        """The rows of each episode in step order.

        Raises:
            DataError: the log has no episodes, or an episode spans two clusters.
        """
        if self.episode is None or self.step is None:
            raise DataError("this estimator works on episodes, but the log has no episode and step")
        grid = EpisodeGrid.of(self.episode, self.step)
        if (np.asarray(self.cluster)[grid.first][grid.episode_of_row] != np.asarray(self.cluster)).any():
            raise DataError("an episode holds rows of two clusters")
        return grid


@dataclass(frozen=True)
class EpisodeGrid:
    """Row numbers of the steps of each episode, one episode after the other; as a padded table where asked for.

    Attributes:
        order: int64 [N], row numbers by episode and step.
        start, length: int64 [E], where each episode lies in `order`.
        episode_of_row: int64 [N].
    """

    order: np.ndarray
    start: np.ndarray
    length: np.ndarray
    episode_of_row: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """Row number of each episode's first step, int64 [E]."""
        return self.order[self.start]

    @cached_property
    def position(self) -> np.ndarray:
        """int64 [N], number of each row's step in its episode, from 0."""
        position = np.empty(len(self.order), dtype=np.int64)
        position[self.order] = np.arange(len(self.order)) - np.repeat(self.start, self.length)
        return position

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 [E, T], row number of each step; where the episode has ended, its first row (masked out)."""
        rows = np.repeat(self.first[:, None], self.length.max(), axis=1)
        rows[self.mask] = self.order
        return rows

    @cached_property
    def mask(self) -> np.ndarray:
        """bool [E, T], the step exists."""
        return np.arange(self.length.max())[None, :] < self.length[:, None]

    @classmethod
    def of(cls, episode: np.ndarray, step: np.ndarray) -> EpisodeGrid:
        """Sort rows into episodes; only the order of `step` matters, gaps close.

        Raises:
            DataError: two rows of an episode have the same step.
        """
        _, code = np.unique(np.asarray(episode), return_inverse=True)
        order = np.lexsort((np.asarray(step), code))
        sorted_code, sorted_step = code[order], np.asarray(step)[order]
        if ((np.diff(sorted_code) == 0) & (np.diff(sorted_step) == 0)).any():
            raise DataError("an episode holds the same step twice")
        length = np.bincount(code)
        start = np.cumsum(length) - length
        return cls(order, start, length, code)

    def gather(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """values [N] laid out as [E, T], `fill` where the episode has ended."""
        return np.where(self.mask, values[self.rows], fill)

    def next_index(self) -> np.ndarray:
        """Row number of the next step of the same episode, int64 [N]; -1 at its end."""
        following = np.full(len(self.episode_of_row), -1, dtype=np.int64)
        goes_on = np.diff(self.episode_of_row[self.order]) == 0
        following[self.order[:-1][goes_on]] = self.order[1:][goes_on]
        return following


def check_distribution(probs: np.ndarray, n: int, what: str) -> np.ndarray:
    """Probabilities [n, K] as float64, rows summing to one.

    Raises:
        DataError: another shape, a negative entry, or a row whose sum differs from one by more than 0.001.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 2 or probs.shape[0] != n:
        raise DataError(f"{what} probabilities have shape {probs.shape}, expected [{n}, K]")
    wrong = ~(np.abs(probs.sum(axis=1) - 1) < _SUM_TOLERANCE) | (probs < -1e-9).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{what} probabilities of row {row} are no distribution: {probs[row].tolist()}")
    return probs
