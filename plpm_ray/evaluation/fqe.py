"""Fitted Q evaluation: value of a policy per user-day from logged transitions (Le, Voloshin and Yue 2019).

    Q_0 = 0,   Q_{k+1} = argmin_f sum_i ( r_i + gamma sum_a pi(a|x'_i) Q_k(x'_i, a) - f(x_i, a_i) )^2,     (1)

the bootstrap term being 0 at the end of a day. The value is the mean of sum_a pi(a|x_0) Q(x_0, a) over the
days' first decisions. A policy's later states are reached in the model only: no importance weights, so
little variance, and a bias as large as the model's. Without `refits` the interval
clusters the first states by user and **covers their sampling only, not the error of Q**: in the tests' small
decision process such a 95 % interval holds the truth in a third of the draws. `refits` adds the sampling error
of the fit; nothing adds misspecification. `SequentialDR` with this Q corrects it where the support allows.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.estimators import Estimate, Estimator
from plpm_ray.evaluation.fitting import Standardiser, build_mlp, check_features, fit_adam, predict, user_folds
from plpm_ray.evaluation.inference import Terms, cluster_codes, t_quantile
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.ridge import ActionRidge
from plpm_ray.evaluation.support import SupportThresholds


@dataclass(frozen=True)
class FQEConfig:
    """Settings of fitted Q evaluation.

    Attributes:
        kind: "linear", least squares on action-interacted features, exact in each iteration; or "mlp".
        gamma: discount per step; 1 gives the plain total of a day.
        folds: user folds, Q of a row comes from other users; 1 fits and predicts on the same rows.
        iterations: k of equation (1), exactly; None to stop at the longest day (all that linear regression
            needs; the MLP takes at least ten), or before, where Q has settled, or at `max_iterations`.
        tolerance: Q has settled when no action value of a training row changes by more than this part of the
            mean absolute reward; checked where `iterations` is None.
        max_iterations: bound where `iterations` is None: a day of a thousand entries, which no person makes,
            would need as many. The note of the estimate says where it cut the fit short: rewards further
            than this many entries ahead are then left out of Q.
        shared_penalty, action_penalty: ridge penalties of the linear model's two parts, in rows
            (`evaluation.ridge`).
        hidden, epochs_per_iteration, batch_size, learning_rate, weight_decay: of the MLP, AdamW on the
            squared error.
        bootstrap: cluster bootstrap draws of the interval over first states.
        refits: bootstrap draws of users on which the whole fit is repeated, in place of `bootstrap`; 0 for none;
            None for 20 with the linear model, 0 with the MLP or where `bootstrap` is 0.
        level: nominal coverage of the interval.
        seed: of folds, initial weights, batches, draws.
    """

    kind: Literal["linear", "mlp"] = "linear"
    gamma: float = 1.0
    folds: int = 2
    iterations: int | None = None
    tolerance: float = 1e-4
    max_iterations: int = 100
    shared_penalty: float = 1.0
    action_penalty: float = 100.0
    hidden: tuple[int, ...] = (64, 64)
    epochs_per_iteration: int = 4
    batch_size: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    bootstrap: int = 200
    refits: int | None = None
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class FQEResult:
    """What fitted Q evaluation found.

    Attributes:
        q: float64 [N, K], action values of the evaluation policy, in the unit of the reward.
        v: float64 [N], sum_a pi(a|x) q(x, a).
        first_rows: int64 [E], row of each episode's first decision.
        estimate: value per episode.
        bellman_rmse: root mean square of r + gamma v(x') - q(x, a).
        capped: Q was still changing when `max_iterations` ended the fit; the estimate's note says so too.
    """

    q: np.ndarray
    v: np.ndarray
    first_rows: np.ndarray
    estimate: Estimate
    bellman_rmse: float
    capped: bool = False


class FittedQ(Estimator):
    """Carries name and note of fitted Q evaluation; the value is made by `fitted_q`."""

    name = "fqe"
    per = "user-day"
    needs_q = True
    uses_weights = False
    note = "the interval covers the sampling of first states, not the error of the fitted Q"

    def sample_clusters(self, data: LoggedData) -> np.ndarray:
        return np.asarray(data.cluster)[data.grid.first]

    def terms(self, data: LoggedData, pi: np.ndarray, q_hat: np.ndarray | None) -> Terms:
        assert q_hat is not None
        first = data.grid.first
        return Terms((pi[first] * q_hat[first]).sum(axis=1))


class RefittedQ(FittedQ):
    """As FittedQ, its interval from repeated fits on resampled users."""

    note = "the interval covers the sampling of users in states and fit, not misspecification of the fitted Q"


def fitted_q(
    x: np.ndarray,
    data: LoggedData,
    pi: np.ndarray,
    config: FQEConfig | None = None,
    thresholds: SupportThresholds | None = None,
) -> FQEResult:
    """Evaluate pi on logged episodes.

    Args:
        x: float [N, D], features known before each decision.
        data: the log, with episode and step; propensities serve only the refusal (`data.behaviour`, where
            known).
        pi: float [N, K], the policy's probabilities in every logged state.

    Returns:
        Q and the value per episode; refused where too much of pi falls on actions that the log does not take.

    Raises:
        DataError: wrong shapes, non-finite features, or no episodes.
    """
    config = config or FQEConfig()
    if config.refits is None:
        config = replace(config, refits=20 if config.kind == "linear" and config.bootstrap else 0)
    x, pi = check_features(x, len(data)), data.check_policy(pi)
    following = data.grid.next_index()
    q, capped = _cross_fitted(x, data, pi, following, config)
    v = (pi * q).sum(axis=1)
    error = data.reward + config.gamma * _next_value(v, following) - q[np.arange(len(data)), data.action]
    first = data.grid.first
    estimator = (RefittedQ if config.refits else FittedQ)(
        thresholds, level=config.level, bootstrap=config.bootstrap, seed=config.seed
    )
    estimate = estimator.estimate(data, pi, q)
    if capped:
        estimate = with_cap_note(estimate, config)
    if config.refits and estimate.value is not None:
        estimate = _with_refits(estimate, x, data, pi, following, config, config.refits)
    return FQEResult(q, v, first, estimate, float(np.sqrt(np.mean(error**2))), capped)


def with_cap_note(estimate: Estimate, config: FQEConfig) -> Estimate:
    """The estimate, its note telling of a fit that `max_iterations` cut short."""
    cut = f"the fit was cut after {config.max_iterations} iterations, fewer than the longest day has entries"
    return replace(estimate, note="; ".join(filter(None, [estimate.note, cut])))


def _next_value(v: np.ndarray, following: np.ndarray) -> np.ndarray:
    """v of the following row, 0 at the end of an episode, [N]."""
    return np.where(following >= 0, v[following], 0.0)


def _cross_fitted(
    x: np.ndarray,
    data: LoggedData,
    pi: np.ndarray,
    following: np.ndarray,
    config: FQEConfig,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, bool]:
    """Q [N, K] of every row, fitted on the users of the other folds, and whether a fit was cut short.

    weights [N] count the rows.
    """
    fit = _fit_linear if config.kind == "linear" else _fit_mlp
    folds = user_folds(np.asarray(data.cluster), config.folds, config.seed)
    q, capped = np.empty_like(pi), False
    for fold in range(config.folds):
        test = folds == fold
        train = ~test if config.folds > 1 else test
        if weights is not None:
            train = train & (weights > 0)
        if not train.any():
            raise DataError("too few users for fitted Q evaluation", hint="use more days or fewer folds")
        rows = np.flatnonzero(train)
        # an episode's rows share their user, so the next row is in the same fold
        position = np.full(len(x), -1, dtype=np.int64)
        position[rows] = np.arange(len(rows))
        local = np.where(following[rows] >= 0, position[following[rows]], -1)
        counts = None if weights is None else weights[rows]
        values, stop = fit(x[rows], data.action[rows], data.reward[rows], pi[rows], local, counts, config)
        q[test] = values(x[test])
        capped |= stop.capped
    return q, capped


class _Stop:
    """Says when equation (1) has been iterated enough.

    Args:
        following: int64 [n], next row of the episode, -1 at its end.
        scale: what `tolerance` is a part of, in the unit of Q.
        least: iterations that are done in any case.
    """

    def __init__(self, following: np.ndarray, config: FQEConfig, scale: float, least: int) -> None:
        self.fixed = config.iterations is not None
        self.tolerance, self.least = config.tolerance * scale, least
        self.limit, self.cut = config.iterations or 1, False
        if not self.fixed:
            longest = _longest(following, config.max_iterations + 1)
            self.cut = longest > config.max_iterations
            self.limit = max(min(longest, config.max_iterations), least)
        self.settled, self._done, self._last = False, 0, None

    def __call__(self, q: np.ndarray) -> bool:
        """Whether Q [n, K] of the latest iteration is the last."""
        self._done += 1
        last, self._last = self._last, q
        if not self.fixed and last is not None and self._done >= self.least:
            self.settled = float(np.abs(q - last).max(initial=0.0)) <= self.tolerance
        return self.settled or self._done >= self.limit

    @property
    def capped(self) -> bool:
        return self.cut and not self.settled


def _longest(following: np.ndarray, bound: int) -> int:
    """Length of the longest episode; not counted further than `bound`."""
    at, longest = following[following >= 0], 1
    while len(at) and longest < bound:
        longest += 1
        at = following[at]
        at = at[at >= 0]
    return longest


def _fit_linear(x, action, reward, pi, following, counts, config: FQEConfig):
    """Equation (1) by least squares on action-interacted features.

    Returns:
        The function x -> Q [N, K], and how it was stopped.
    """
    ridge = ActionRidge(x, action, pi.shape[1], counts)
    z, solve = ridge.design(x), ridge.solver(config.shared_penalty, config.action_penalty)
    stop = _Stop(following, config, float(np.abs(reward).mean()) or 1.0, 1)
    coefficients = solve(reward)
    while not stop(q := z @ coefficients):
        coefficients = solve(reward + config.gamma * _next_value((pi * q).sum(axis=1), following))
    return (lambda features: ridge.design(features) @ coefficients), stop


def _fit_mlp(x, action, reward, pi, following, counts, config: FQEConfig):
    """Equation (1) with a network: each iteration goes on from the last, against the last's frozen values.

    Returns:
        The function x -> Q [N, K], and how it was stopped.
    """
    standardise = Standardiser(x)
    scale = float(np.abs(reward).mean()) or 1.0
    net = build_mlp(x.shape[1], config.hidden, pi.shape[1], config.seed)
    scaled = standardise(x)
    inputs, chosen = torch.from_numpy(scaled), torch.from_numpy(action)[:, None]
    row_weight = torch.ones(len(x)) if counts is None else torch.from_numpy(counts.astype(np.float32))
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    v, stop = np.zeros(len(x)), _Stop(following, config, 1.0, 10)
    for iteration in range(stop.limit):
        target = torch.from_numpy(
            (reward / scale + config.gamma * _next_value(v, following)).astype(np.float32)
        )

        def loss(rows: torch.Tensor, target: torch.Tensor = target) -> torch.Tensor:
            error = net(inputs[rows]).gather(1, chosen[rows])[:, 0] - target[rows]
            return (row_weight[rows] * error.square()).mean()

        fit_adam(
            net,
            loss,
            len(x),
            epochs=config.epochs_per_iteration,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=config.seed + iteration,
            optimiser=optimiser,
        )
        q = predict(net, scaled)
        if stop(q):
            break
        v = (pi * q).sum(axis=1)
    frozen = deepcopy(net)
    return (lambda features: predict(frozen, standardise(features)) * scale), stop


def _with_refits(
    estimate: Estimate,
    x: np.ndarray,
    data: LoggedData,
    pi: np.ndarray,
    following: np.ndarray,
    config: FQEConfig,
    refits: int,
) -> Estimate:
    """Replace the interval by value +- t s, s the deviation of the value over fits on resampled users."""
    codes, n_clusters = cluster_codes(np.asarray(data.cluster))
    first = data.grid.first
    rng = np.random.default_rng(config.seed)
    values = []
    for _ in range(refits):
        counts = np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters)[codes].astype(
            float
        )
        q, _ = _cross_fitted(x, data, pi, following, config, counts)
        values.append(np.average((pi[first] * q[first]).sum(axis=1), weights=counts[first]))
    error = float(np.std(values, ddof=1))
    half = t_quantile(estimate.level, refits - 1) * error
    assert estimate.value is not None
    return replace(estimate, standard_error=error, low=estimate.value - half, high=estimate.value + half)
