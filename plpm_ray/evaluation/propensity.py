"""A behaviour model: with which probability did the logs take each page, where nobody recorded it.

Multinomial logistic regression (or a small MLP) on features known before the decision, cross-fitted over
user folds, so that no row's propensity has seen its own user; scaled by one temperature (Guo et al. 2017)
fitted on users held out from the fit; clipped from below. Modelled propensities carry the assumption that
the features hold everything the logging policy used; no diagnostic here can check that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.fitting import (
    Standardiser,
    build_mlp,
    check_features,
    fit_adam,
    fit_lbfgs,
    predict,
    user_folds,
)


@dataclass(frozen=True)
class PropensityConfig:
    """Settings of the behaviour model.

    Attributes:
        hidden: widths of the hidden layers; empty for multinomial logistic regression.
        folds: number of user folds.
        clip_floor: least probability of any page; below the propensity floor of the support thresholds.
        penalty: L2 penalty on the mean loss (logistic regression) or weight decay (MLP).
        validation_share: share of the training users held out for the temperature (and the MLP's best epoch).
        iterations: L-BFGS iterations of the logistic regression.
        epochs, batch_size, learning_rate: AdamW, for the MLP.
        seed: of folds, initial weights and batches.
    """

    hidden: tuple[int, ...] = ()
    folds: int = 5
    clip_floor: float = 0.001
    penalty: float = 1e-5
    validation_share: float = 0.1
    iterations: int = 60
    epochs: int = 20
    batch_size: int = 4096
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class PropensityResult:
    """Cross-fitted behaviour probabilities and how good they are.

    Attributes:
        probs: float64 [N, K], clipped; feed to `LoggedData(behaviour=..., modelled=True)`.
        log_loss: mean -log probs(a|x), nats, out of fold.
        marginal_log_loss: the same of the page shares of the other folds: the model should beat it.
        calibration_error: mean over pages of |mean probability - share|, weighted within ten bins of
            probability.
        temperature: float [folds], logits are divided by it; 1 is well calibrated.
        clip_floor: least probability of a page.
        clipped_share: share of the N x K probabilities raised to the floor.
        modelled: always True, so that reports say so.
    """

    probs: np.ndarray
    log_loss: float
    marginal_log_loss: float
    calibration_error: float
    temperature: np.ndarray
    clip_floor: float
    clipped_share: float
    modelled: bool = True

    def as_dict(self) -> dict:
        """The diagnostics without the probabilities, ready for JSON."""
        return {
            "modelled": self.modelled,
            "log_loss": self.log_loss,
            "marginal_log_loss": self.marginal_log_loss,
            "calibration_error": self.calibration_error,
            "temperature": self.temperature.tolist(),
            "clip_floor": self.clip_floor,
            "clipped_share": self.clipped_share,
        }


class PropensityModel:
    """mu(a|x) = softmax(f(x) / temperature), fitted on given rows.

    Args:
        x: float32 [N, D]; action: int [N]; cluster: [N] users.
        n_actions: K.
    """

    def __init__(
        self, x: np.ndarray, action: np.ndarray, cluster: np.ndarray, n_actions: int, config: PropensityConfig
    ) -> None:
        buckets = max(2, round(1 / config.validation_share))
        held_out = user_folds(cluster, buckets, config.seed + 1) == 0
        if held_out.all() or not held_out.any():
            held_out = np.zeros(len(x), dtype=bool)
        self.standardise = Standardiser(x[~held_out])
        scaled = self.standardise(x)
        self.net = build_mlp(x.shape[1], config.hidden, n_actions, config.seed)
        self._fit(scaled, action, held_out, config)
        judged = held_out if held_out.any() else ~held_out
        self.temperature = fit_temperature(predict(self.net, scaled[judged]), action[judged])

    def _fit(self, x: np.ndarray, action: np.ndarray, held_out: np.ndarray, config: PropensityConfig) -> None:
        x_fit, a_fit = torch.from_numpy(x[~held_out]), torch.from_numpy(action[~held_out])
        if not config.hidden:
            weight = self.net[0].weight
            assert isinstance(weight, torch.Tensor)
            torch.nn.init.zeros_(weight)

            def convex_loss() -> torch.Tensor:
                penalty = config.penalty * weight.square().sum()
                return functional.cross_entropy(self.net(x_fit), a_fit) + penalty

            fit_lbfgs(self.net, convex_loss, iterations=config.iterations)
            return
        x_held, a_held = torch.from_numpy(x[held_out]), torch.from_numpy(action[held_out])
        fit_adam(
            self.net,
            lambda rows: functional.cross_entropy(self.net(x_fit[rows]), a_fit[rows]),
            len(x_fit),
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.penalty,
            seed=config.seed,
            validate=(lambda: functional.cross_entropy(self.net(x_held), a_held).item())
            if len(x_held)
            else None,
        )

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, not clipped, float64 [N, K]."""
        return softmax(predict(self.net, self.standardise(x)) / self.temperature)


def cross_fit_propensities(
    x: np.ndarray,
    action: np.ndarray,
    cluster: np.ndarray,
    n_actions: int,
    config: PropensityConfig | None = None,
) -> PropensityResult:
    """Behaviour probabilities of every row, each from a model that has not seen the row's user.

    Args:
        x: float [N, D], features known before the decision.
        action: int [N], logged page.
        cluster: [N], integer or string user ids.
        n_actions: K.

    Raises:
        DataError: wrong shapes, non-finite features, an action outside 0..K-1, or fewer users than folds
        need.
    """
    config = config or PropensityConfig()
    x, action = check_features(x, len(action)), np.asarray(action, dtype=np.int64)
    if action.min() < 0 or action.max() >= n_actions:
        raise DataError(f"a logged action lies outside 0..{n_actions - 1}")
    if config.folds < 2 or config.clip_floor * n_actions >= 1:
        raise DataError("cross-fitting needs 2 or more folds and a clip floor below 1 / K")
    folds = user_folds(cluster, config.folds, config.seed)
    probs = np.empty((len(x), n_actions))
    marginal = np.empty(len(x))
    temperature = np.ones(config.folds)
    for fold in range(config.folds):
        test, train = folds == fold, folds != fold
        if not train.any():
            raise DataError("too few users to cross-fit propensities", hint="use more days or fewer folds")
        if not test.any():
            continue
        model = PropensityModel(x[train], action[train], np.asarray(cluster)[train], n_actions, config)
        probs[test] = model.predict(x[test])
        temperature[fold] = model.temperature
        share = (np.bincount(action[train], minlength=n_actions) + 1) / (train.sum() + n_actions)
        marginal[test] = share[action[test]]
    clipped, clipped_share = clip_from_below(probs, config.clip_floor)
    return PropensityResult(
        probs=clipped,
        log_loss=float(-np.log(clipped[np.arange(len(x)), action]).mean()),
        marginal_log_loss=float(-np.log(marginal).mean()),
        calibration_error=calibration_error(clipped, action),
        temperature=temperature,
        clip_floor=config.clip_floor,
        clipped_share=clipped_share,
    )


def clip_from_below(probs: np.ndarray, floor: float) -> tuple[np.ndarray, float]:
    """Raise probabilities [N, K] to the floor, shrink the others rows sum to one; and the share raised."""
    below = probs < floor
    raised = below.sum(axis=1, keepdims=True) * floor
    rest = np.where(below, 0.0, probs).sum(axis=1, keepdims=True)
    return np.where(below, floor, probs * (1 - raised) / rest), float(below.mean())


def calibration_error(probs: np.ndarray, action: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean over pages of sum_b n_b/N |mean p - share of a|, equal bins b."""
    errors = []
    for page in range(probs.shape[1]):
        bin_of = np.minimum((probs[:, page] * bins).astype(np.int64), bins - 1)
        gap = np.bincount(bin_of, weights=probs[:, page] - (action == page), minlength=bins)
        errors.append(np.abs(gap).sum() / len(action))
    return float(np.mean(errors))


def fit_temperature(logits: np.ndarray, action: np.ndarray) -> float:
    """Temperature in [.2, 5] with the least log loss, by golden section over its logarithm."""
    low, high = np.log(0.2), np.log(5.0)
    golden = (np.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        probs = softmax(logits / np.exp(log_temperature))
        return float(-np.log(np.maximum(probs[np.arange(len(action)), action], 1e-30)).mean())

    left, right = high - golden * (high - low), low + golden * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    for _ in range(25):
        if loss_left < loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - golden * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + golden * (high - low)
            loss_right = loss(right)
    return float(np.exp((low + high) / 2))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise softmax of [N, K]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
