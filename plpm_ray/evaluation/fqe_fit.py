"""The regressions of fitted Q evaluation (`evaluation.fqe`, equation 1), cross-fitted over user folds.

One `QFits` serves any number of policies on one log: what does not depend on the policy is computed once. The linear fit
reads the rows once per policy. With z = [1, standardised x], rows i of fold f and action a, and p_k the probability of
page k in the row after i (0 at the end of a day), it sums

    G_fa = sum z_i z_i',   b_fa = sum z_i r_i,   C_fak = sum z_i p_k z_next(i)',                           (a)

after which the moments of iteration j + 1, b_fa + gamma sum_k C_fak q_jk, need no rows at all. Where the C would be too
large to keep (many pages and features) the rows are read in every iteration instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.fitting import Standardiser, build_mlp, check_features, fit_adam, predict, user_folds
from plpm_ray.evaluation.fqe_config import FQEConfig, Stop
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.ridge import moment_solver

_CHUNK = 8192
_KEPT_NUMBERS = 30_000_000  # C of all folds: 240 MB
_WATCHED = 2000  # rows by which the linear fit sees whether Q has settled
_Moments = Callable[[np.ndarray], np.ndarray]
_Model = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class FoldQ:
    """Q of one policy, by the model of each of F folds, fitted on the users of the other folds.

    Attributes:
        fold: int64 [N], fold of each row's user.
        models: F functions from features [n, D] to Q float64 [n, K]; None for a fold without users.
        capped: a fit was cut short.
    """

    fold: np.ndarray
    models: Sequence[_Model | None]
    capped: bool

    def cross_fitted(self, x: np.ndarray, k: int) -> np.ndarray:
        """Q float64 [N, K] of every row, from users of other folds."""
        q = np.empty((len(x), k))
        for fold, model in enumerate(self.models):
            if model is not None:
                rows = np.flatnonzero(self.fold == fold)
                q[rows] = model(x[rows])
        return q


class QFits:
    """Fits Q of any policy on one log.

    Args:
        x: float [N, D], features known before each decision.
        data: the log, with episode and step.
        config: kind of model, folds, gamma, when to stop.
        counts: float [N], how often each row counts; None for once.

    Raises:
        DataError: wrong shapes, non-finite features, or no episodes.
    """

    def __init__(
        self, x: np.ndarray, data: LoggedData, config: FQEConfig, counts: np.ndarray | None = None
    ) -> None:
        self.x, self.data, self.config, self.counts = check_features(x, len(data)), data, config, counts
        self.following = data.grid.next_index()
        self.fold = user_folds(np.asarray(data.cluster), config.folds, config.seed)
        self.longest = int(data.grid.length.max())
        self._linear: _LinearFits | None = None
        self._logged: FoldQ | None = None

    def fit(self, pi: np.ndarray) -> FoldQ:
        """Q of the policy with probabilities pi [N, K] in every logged state."""
        if self.config.kind == "linear":
            if self._linear is None or self._linear.k != pi.shape[1]:
                self._linear = _LinearFits(self, pi.shape[1])
            return self._linear.fit(pi)
        return self._fit_mlps(pi)

    def fit_logged(self, k: int) -> FoldQ:
        """Q of the logging policy, which needs no probabilities: each day goes on with the actions that were taken."""
        if self._logged is None:
            self._logged = self.fit(np.eye(k)[self.data.action])
        return self._logged

    def train_folds(self) -> Iterator[tuple[int, np.ndarray]]:
        """(fold, bool [N] of the rows that its model is fitted on), of folds that have users.

        Raises:
            DataError: nothing to fit on.
        """
        used = np.ones(len(self.x), dtype=bool) if self.counts is None else self.counts > 0
        for fold in range(self.config.folds):
            if not (self.fold == fold).any():
                continue
            train = used & ((self.fold != fold) | (self.config.folds == 1))
            if not train.any():
                raise DataError("too few users for fitted Q evaluation", hint="use more days or fewer folds")
            yield fold, train

    def _fit_mlps(self, pi: np.ndarray) -> FoldQ:
        models: list[_Model | None] = [None] * self.config.folds
        capped = False
        for fold, train in self.train_folds():
            rows = np.flatnonzero(train)
            # an episode's rows share their user, so the next row is in the same fold
            position = np.full(len(self.x), -1, dtype=np.int64)
            position[rows] = np.arange(len(rows))
            local = np.where(self.following[rows] >= 0, position[self.following[rows]], -1)
            counts = None if self.counts is None else self.counts[rows]
            data = self.data
            models[fold], stop = _fit_mlp(
                self.x[rows],
                data.action[rows],
                data.reward[rows],
                pi[rows],
                local,
                counts,
                self.config,
                self.longest,
            )
            capped |= stop.capped
        return FoldQ(self.fold, models, capped)


class _LinearFits:
    """The sums of equation (a) over one log, and the iterations on them."""

    def __init__(self, fits: QFits, k: int) -> None:
        self.fits, self.k = fits, k
        self.design = Standardiser(fits.x).design
        self.d = fits.x.shape[1] + 1
        data, folds = fits.data, fits.config.folds
        self.keep = folds * (k * self.d) ** 2 <= _KEPT_NUMBERS
        # rows by fold and action, so that each sum is over a slice
        group = fits.fold * k + data.action
        self.order = np.argsort(group, kind="stable")
        self.bounds = np.searchsorted(group[self.order], np.arange(folds * k + 1))
        self.grams = np.zeros((folds, k, self.d, self.d))
        self.rewards = np.zeros((folds, k, self.d))
        for f, a, rows in self._groups():
            weighted, z = self._weighted(rows)
            self.grams[f, a] += weighted.T @ z
            self.rewards[f, a] += weighted.T @ data.reward[rows]

    def _groups(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(fold, action, some rows) until all rows were given."""
        for group in range(len(self.bounds) - 1):
            for start in range(self.bounds[group], self.bounds[group + 1], _CHUNK):
                stop = min(start + _CHUNK, self.bounds[group + 1])
                yield group // self.k, group % self.k, self.order[start:stop]

    def _weighted(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = self.design(self.fits.x[rows])
        return (z if self.fits.counts is None else z * self.fits.counts[rows, None]), z

    def _ahead(self, rows: np.ndarray, pi: np.ndarray) -> np.ndarray:
        """(n, K, D + 1): p_k z of the next rows, 0 at the end of a day."""
        following = self.fits.following[rows]
        at = np.maximum(following, 0)
        p = pi[at] * (following >= 0)[:, None]
        return p[:, :, None] * self.design(self.fits.x[at])[:, None, :]

    def _moments(self, pi: np.ndarray) -> Callable[[int | None], _Moments]:
        """A function: fold to leave out (None: none) -> coefficients [D + 1, K] -> sum of C_fak q_k, [K, D + 1]."""
        if not self.keep:
            return lambda without: lambda coefficients: self._moments_by_rows(pi, without, coefficients)
        ahead = np.zeros((self.fits.config.folds, self.k, self.d, self.k * self.d))
        for f, a, rows in self._groups():
            ahead[f, a] += self._weighted(rows)[0].T @ self._ahead(rows, pi).reshape(len(rows), -1)
        total = ahead.sum(axis=0)

        def of_others(without: int | None) -> _Moments:
            kept = total if without is None else total - ahead[without]
            return lambda coefficients: kept @ coefficients.T.ravel()

        return of_others

    def _moments_by_rows(self, pi: np.ndarray, without: int | None, coefficients: np.ndarray) -> np.ndarray:
        found = np.zeros((self.k, self.d))
        for f, a, rows in self._groups():
            if f != without:
                value = np.einsum("nkd,dk->n", self._ahead(rows, pi), coefficients)
                found[a] += self._weighted(rows)[0].T @ value
        return found

    def fit(self, pi: np.ndarray) -> FoldQ:
        fits, config = self.fits, self.fits.config
        moments = self._moments(pi)
        models: list[_Model | None] = [None] * config.folds
        capped = False
        for fold, train in fits.train_folds():
            without = fold if config.folds > 1 else None
            others = np.arange(config.folds) != fold if config.folds > 1 else np.ones(1, dtype=bool)
            solve = moment_solver(
                self.grams[others].sum(axis=0), config.shared_penalty, config.action_penalty
            )
            rewards = self.rewards[others].sum(axis=0)
            rows = np.flatnonzero(train)
            watched = self.design(fits.x[rows[:: -(-len(rows) // _WATCHED)]])
            scale = float(np.abs(fits.data.reward[rows]).mean()) or 1.0
            stop, ahead = Stop(fits.longest, config, scale, 1), moments(without)
            coefficients = solve(list(rewards))
            while not stop(watched @ coefficients):
                coefficients = solve(list(rewards + config.gamma * ahead(coefficients)))
            models[fold] = self._model(coefficients)
            capped |= stop.capped
        return FoldQ(fits.fold, models, capped)

    def _model(self, coefficients: np.ndarray) -> _Model:
        return lambda x: self.design(x) @ coefficients


def next_value(v: np.ndarray, following: np.ndarray) -> np.ndarray:
    """v of the following row, 0 at the end of an episode, [N]."""
    return np.where(following >= 0, v[following], 0.0)


def _fit_mlp(
    x, action, reward, pi, following, counts, config: FQEConfig, longest: int
) -> tuple[_Model, Stop]:
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
    v, stop = np.zeros(len(x)), Stop(longest, config, 1.0, 10)
    for iteration in range(stop.limit):
        target = torch.from_numpy(
            (reward / scale + config.gamma * next_value(v, following)).astype(np.float32)
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
