"""Everything that is measured of one model's predicted effects, for the trial and for draws of it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from plpm_ray.evaluation.uplift_bootstrap import PairDraws
from plpm_ray.evaluation.uplift_curves import UpliftCurve
from plpm_ray.evaluation.uplift_policy import PolicyTerms, best_arm
from plpm_ray.evaluation.uplift_ranking import SpearmanDraws, spearman
from plpm_ray.evaluation.uplift_sums import CumulativeSums, cumulative_sums, trapezoid
from plpm_ray.evaluation.uplift_trial import Trial
from plpm_ray.evaluation.uplift_truth import choice_outcome

Kind = Literal["response", "share", "plain"]


class Measure(NamedTuple):
    """What one number is.

    Attributes:
        metric: its key.
        arm: position of the arm, 0 for control; None for numbers of all arms together.
        kind: whether it is in the unit of the response, a share of users, or without a unit.
    """

    metric: str
    arm: int | None
    kind: Kind = "response"


def uplift_key(share: float) -> str:
    """Key of the uplift at a share: "uplift_at_10" for 0.1."""
    return f"uplift_at_{100 * share:g}"


class ArmPart:
    """Qini, AUUC and uplift at k of one arm."""

    def __init__(self, effect: np.ndarray, trial: Trial, k: int, shares: tuple[float, ...], grid: np.ndarray):
        self._shares, self._grid = shares, grid
        pair = (trial.arm == k) | (trial.arm == 0)
        weight = None if trial.inverse is None else trial.inverse[pair]
        self._exact = cumulative_sums(effect[pair], trial.arm[pair] == k, trial.response[pair], weight)
        self._draws = PairDraws(effect, trial, k)
        self.measures = [Measure(name, k) for name in ("qini", "auuc", *map(uplift_key, shares))]
        self.curve = UpliftCurve("qini", *self._exact.qini())

    def value(self) -> np.ndarray:
        return self._values(self._exact, *self._exact.qini())

    def draw(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metrics [R, measures] and the Qini curve on the grid [R, points]."""
        sums = self._draws.sums(counts)
        share, gain = sums.qini()
        curve = np.stack([np.interp(self._grid, x, y) for x, y in zip(share, gain, strict=True)])
        return self._values(sums, share, gain), curve

    def _values(self, sums: CumulativeSums, share: np.ndarray, gain: np.ndarray) -> np.ndarray:
        columns = [trapezoid(share, gain) - gain[..., -1] / 2, trapezoid(*sums.uplift())]
        return np.stack(columns + [sums.effect_at(x) for x in self._shares], axis=-1)


class PolicyPart:
    """Value of the arms a model chooses, what it gains over one arm for all, and the shares of the arms."""

    def __init__(
        self, choice: np.ndarray, trial: Trial, predicted: np.ndarray | None, best_single: int
    ) -> None:
        self._policy = PolicyTerms(choice, trial, predicted)
        self._best_single = best_single
        self._chosen = (choice[:, None] == np.arange(len(trial.labels))).astype(np.float64)
        names = {"snips": "policy_value", "ips": "policy_value_ips", "dr": "policy_value_dr"}
        self.measures = [Measure(names[method], None) for method in self._policy.methods]
        self.measures += [Measure("policy_gain", None), Measure("policy_gain_best_arm", None)]
        self.measures += [Measure("assigned", k, "share") for k in range(len(trial.labels))]

    def draw(self, weight: np.ndarray, arm_means: np.ndarray) -> np.ndarray:
        """Metrics for each row of weights [R, U], where arms alone are worth [R, K + 1]; [R, measures]."""
        values = self._policy.of(weight)
        gains = values[:, :1] - arm_means[:, [0, self._best_single]]
        assigned = weight @ self._chosen / weight.sum(axis=1, keepdims=True)
        return np.concatenate([values, gains, assigned], axis=1)


class TruthPart:
    """Errors against the potential outcomes [U, K + 1]."""

    def __init__(
        self, effects: np.ndarray, choice: np.ndarray, outcomes: np.ndarray, control_is_choice: bool
    ) -> None:
        true = outcomes[:, 1:] - outcomes[:, :1]
        error = effects - true
        found, loss = choice_outcome(choice, true, control_is_choice)
        own = outcomes[np.arange(len(choice)), choice]
        self._columns = np.column_stack([error**2, error, found, loss, own])
        self._pairs = list(zip(effects.T, true.T, strict=True))
        self._ranks = [SpearmanDraws(*pair) for pair in self._pairs]
        arms = range(1, effects.shape[1] + 1)
        self.measures = [Measure(name, k) for name in ("pehe", "bias") for k in arms]
        self.measures += [Measure("best_arm_share", None, "share"), Measure("regret", None)]
        self.measures += [Measure("policy_value_true", None)]
        self.measures += [Measure("spearman", k, "plain") for k in arms]

    def value(self, weight: np.ndarray) -> np.ndarray:
        """Metrics for weights [U], [measures]."""
        return np.append(self._means(weight[None])[0], [spearman(*pair, weight) for pair in self._pairs])

    def draw(self, weight: np.ndarray) -> np.ndarray:
        """Metrics for each row of weights [R, U]; [R, measures]."""
        ranks = np.stack([rank.of(weight) for rank in self._ranks], axis=1)
        return np.concatenate([self._means(weight), ranks], axis=1)

    def _means(self, weight: np.ndarray) -> np.ndarray:
        means = weight @ self._columns / weight.sum(axis=1, keepdims=True)
        n_arms = len(self._ranks)
        means[:, :n_arms] = np.sqrt(means[:, :n_arms])
        return means


class ModelPart:
    """One model on one trial: `measures` with their values, and draws of them.

    Args:
        effects: float [U, K].
        trial: the trial.
        predicted: float [U, K + 1] responses for the doubly robust value, or None.
        outcomes: float [U, K + 1] potential outcomes, or None.
        shares: shares of users for the uplift at k.
        grid: float [points], shares at which the Qini curve is drawn.
        best_single: the arm that would be best for everybody, 0..K.
        control_is_choice: whether users may be left in control.
    """

    def __init__(
        self,
        effects: np.ndarray,
        trial: Trial,
        *,
        predicted: np.ndarray | None,
        outcomes: np.ndarray | None,
        shares: tuple[float, ...],
        grid: np.ndarray,
        best_single: int,
        control_is_choice: bool,
    ) -> None:
        choice = best_arm(effects, control_is_choice=control_is_choice)
        self.arms = [
            ArmPart(effects[:, k - 1], trial, k, shares, grid) for k in range(1, effects.shape[1] + 1)
        ]
        self._policy = PolicyPart(choice, trial, predicted, best_single)
        self._truth = None if outcomes is None else TruthPart(effects, choice, outcomes, control_is_choice)
        parts = [*self.arms, self._policy, *([self._truth] if self._truth else [])]
        self.measures = [measure for part in parts for measure in part.measures]

    def value(self, weight: np.ndarray, arm_means: np.ndarray) -> np.ndarray:
        """All measures on the trial itself: users weigh weight [U], arms alone are worth [K + 1]."""
        values = [part.value() for part in self.arms] + [self._policy.draw(weight[None], arm_means[None])[0]]
        return np.concatenate(values + ([self._truth.value(weight)] if self._truth else []))

    def draw(
        self, counts: np.ndarray, weight: np.ndarray, arm_means: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """All measures [R, measures] and Qini curves [R, K, points] of draws.

        Args:
            counts, weight: float [R, U], copies of every user, and these times the users' weights.
            arm_means: float [R, K + 1], what each arm alone is worth in the draw.
        """
        values, curves = zip(*(part.draw(counts) for part in self.arms), strict=True)
        others = [self._policy.draw(weight, arm_means)] + ([self._truth.draw(weight)] if self._truth else [])
        return np.concatenate([*values, *others], axis=1), np.stack(curves, axis=1)
