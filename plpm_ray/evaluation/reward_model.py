"""q(x, a): what one decision earns, for the direct method and the doubly robust estimator.

Ridge regression with a shared part and a part of each action's own (`evaluation.ridge`), or a small MLP
with one output per action; cross-fitted over user folds. The fit is on logged actions only: for actions
that the logs never take it extrapolates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.fitting import Standardiser, build_mlp, check_features, fit_adam, predict, user_folds
from plpm_ray.evaluation.ridge import ActionRidge


@dataclass(frozen=True)
class RewardConfig:
    """Settings of the reward model.

    Attributes:
        kind: "ridge" or "mlp".
        folds: number of user folds.
        shared_penalty: ridge penalty of the shared part, in rows.
        action_penalties: candidates for the penalty of the actions' own parts, in rows; the one with least
            squared error on held-out users is taken (without such users the largest), then all rows are
            fitted.
        hidden, epochs, batch_size, learning_rate, weight_decay: of the MLP, AdamW on the squared error.
        validation_share: share of the training users on which penalty or the MLP's best epoch are chosen.
        seed: of folds, initial weights and batches.
    """

    kind: Literal["ridge", "mlp"] = "ridge"
    folds: int = 5
    shared_penalty: float = 1.0
    action_penalties: tuple[float, ...] = (10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
    hidden: tuple[int, ...] = (64, 64)
    epochs: int = 20
    batch_size: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    validation_share: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class RewardResult:
    """Cross-fitted predictions.

    Attributes:
        q: float64 [N, K], in the unit of the reward.
        mse: out-of-fold squared error on the logged actions.
        baseline_mse: the same of the mean reward of the action in the other folds.
    """

    q: np.ndarray
    mse: float
    baseline_mse: float

    def as_dict(self) -> dict:
        """The diagnostics without the predictions; r2 is against the actions' means."""
        r2 = 1 - self.mse / self.baseline_mse if self.baseline_mse > 0 else 0.0
        return {"mse": self.mse, "baseline_mse": self.baseline_mse, "r2": r2}


class RidgeRewardModel:
    """The ridge of `evaluation.ridge`, equation (2) there, fitted on given rows.

    Attributes:
        action_penalty: the candidate chosen.
        coefficients: float64 [D + 1, K].
    """

    def __init__(
        self,
        x: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        cluster: np.ndarray,
        n_actions: int,
        config: RewardConfig,
    ) -> None:
        held_out = _held_out(cluster, config)
        self.action_penalty = max(config.action_penalties)
        if len(config.action_penalties) > 1 and held_out.any():
            ridge = ActionRidge(x[~held_out], action[~held_out], n_actions)
            z, rows = ridge.design(x[held_out]), np.arange(int(held_out.sum()))

            def error(penalty: float) -> float:
                predicted = z @ ridge.solver(config.shared_penalty, penalty)(reward[~held_out])
                return float(np.mean((reward[held_out] - predicted[rows, action[held_out]]) ** 2))

            self.action_penalty = min(config.action_penalties, key=error)
        self._ridge = ActionRidge(x, action, n_actions)
        self.coefficients = self._ridge.solver(config.shared_penalty, self.action_penalty)(reward)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """q [N, K] of features [N, D]."""
        return self._ridge.design(x) @ self.coefficients


class MlpRewardModel:
    """One network with an output per action, fitted on the logged action's output."""

    def __init__(
        self,
        x: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        cluster: np.ndarray,
        n_actions: int,
        config: RewardConfig,
    ) -> None:
        held_out = _held_out(cluster, config)
        self.standardise = Standardiser(x[~held_out])
        self.mean = float(reward.mean())
        self.scale = float(reward.std()) or 1.0
        self.net = build_mlp(x.shape[1], config.hidden, n_actions, config.seed)
        scaled = torch.from_numpy(self.standardise(x))
        target = torch.from_numpy(((reward - self.mean) / self.scale).astype(np.float32))
        chosen = torch.from_numpy(action)[:, None]
        fit_rows = torch.from_numpy(np.flatnonzero(~held_out))
        held_rows = torch.from_numpy(np.flatnonzero(held_out))

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            predicted = self.net(scaled[rows]).gather(1, chosen[rows])[:, 0]
            return (predicted - target[rows]).square().mean()

        fit_adam(
            self.net,
            lambda batch: loss_of(fit_rows[batch]),
            len(fit_rows),
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=config.seed,
            validate=(lambda: loss_of(held_rows).item()) if len(held_rows) else None,
        )

    def predict(self, x: np.ndarray) -> np.ndarray:
        """q [N, K] of features [N, D]."""
        return predict(self.net, self.standardise(x)) * self.scale + self.mean


def fit_reward_model(
    x: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    cluster: np.ndarray,
    n_actions: int,
    config: RewardConfig | None = None,
) -> RidgeRewardModel | MlpRewardModel:
    """A reward model of given rows; see `cross_fit_rewards` for the arguments."""
    config = config or RewardConfig()
    if config.kind == "ridge":
        return RidgeRewardModel(x, action, reward, cluster, n_actions, config)
    return MlpRewardModel(x, action, reward, cluster, n_actions, config)


def _held_out(cluster: np.ndarray, config: RewardConfig) -> np.ndarray:
    """Rows of the users held out from a fit, bool [N]; none where that would leave nothing to fit."""
    held_out = user_folds(cluster, max(2, round(1 / config.validation_share)), config.seed + 1) == 0
    return np.zeros_like(held_out) if held_out.all() else held_out


def cross_fit_rewards(
    x: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    cluster: np.ndarray,
    n_actions: int,
    config: RewardConfig | None = None,
) -> RewardResult:
    """q(x_i, .) of every row, each from a model that has not seen the row's user.

    Args:
        x: float [N, D], features known before the decision.
        action: int [N]; reward: float [N]; cluster: [N], integer or string user ids.
        n_actions: K.

    Raises:
        DataError: wrong shapes, values that are not finite, or fewer users than folds need.
    """
    config = config or RewardConfig()
    x = check_features(x, len(action))
    action, reward = np.asarray(action, dtype=np.int64), np.asarray(reward, dtype=np.float64)
    cluster = np.asarray(cluster)
    if reward.shape != action.shape or not np.isfinite(reward).all():
        raise DataError(f"rewards must be finite with shape {action.shape}")
    if config.folds < 2:
        raise DataError("cross-fitting needs 2 or more folds")
    folds = user_folds(cluster, config.folds, config.seed)
    q, baseline = np.empty((len(x), n_actions)), np.empty(len(x))
    for fold in range(config.folds):
        test, train = folds == fold, folds != fold
        if not train.any():
            raise DataError("too few users to cross-fit a reward model", hint="use more days or fewer folds")
        if not test.any():
            continue
        model = fit_reward_model(x[train], action[train], reward[train], cluster[train], n_actions, config)
        q[test] = model.predict(x[test])
        count = np.bincount(action[train], minlength=n_actions)
        total = np.bincount(action[train], weights=reward[train], minlength=n_actions)
        means = np.where(count > 0, total / np.maximum(count, 1), reward[train].mean())
        baseline[test] = means[action[test]]
    chosen = q[np.arange(len(x)), action]
    return RewardResult(q, float(np.mean((reward - chosen) ** 2)), float(np.mean((reward - baseline) ** 2)))
