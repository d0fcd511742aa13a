"""Ridge regression with a shared part and a part of each action's own; factorised once, solved for many
targets.

    q(x, a) = z . (beta + delta_a),   z = [1, standardised x]                                          (1)
    min  sum_i c_i (y_i - q(x_i, a_i))^2 + s |beta|^2 + t sum_a |delta_a|^2                            (2)

The intercept of beta is not penalised, so rarely taken actions fall back on the shared part. s and t count
in rows. Each delta_a is eliminated, so that the cost is K + 1 systems of size D + 1: with G_a = sum c z z'
and b_a = sum c z y over the rows of action a, and H_a = G_a + t I,

    delta_a = H_a^-1 (b_a - G_a beta)
    (s J + sum_a G_a - G_a H_a^-1 G_a) beta = sum_a b_a - G_a H_a^-1 b_a,   J = I without the intercept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from plpm_ray.evaluation.fitting import Standardiser


class ActionRidge:
    """Equation (2) for fixed x, actions and row weights; targets and penalties may change.

    Args:
        x: float [N, D]; action: int [N]; n_actions: K.
        weights: float [N], c; None for 1.

    Attributes:
        design: x [n, D] -> z of equation (1), float64 [n, D + 1].
    """

    def __init__(
        self, x: np.ndarray, action: np.ndarray, n_actions: int, weights: np.ndarray | None = None
    ) -> None:
        self.design = Standardiser(x).design
        z = self.design(x)
        self._rows = [np.flatnonzero(action == page) for page in range(n_actions)]
        self._weighted = [
            z[rows] if weights is None else z[rows] * weights[rows, None] for rows in self._rows
        ]
        self._grams = [w.T @ z[rows] for rows, w in zip(self._rows, self._weighted, strict=True)]

    def solver(self, shared_penalty: float, action_penalty: float) -> Callable[[np.ndarray], np.ndarray]:
        """Factorise for penalties s >= 0 and t > 0.

        Returns:
            A function from targets y [N] to beta + delta_a, float64 [D + 1, K]; multiply with `design(x)`.
        """
        solve = moment_solver(self._grams, shared_penalty, action_penalty)
        return lambda y: solve([w.T @ y[rows] for rows, w in zip(self._rows, self._weighted, strict=True)])


def moment_solver(
    grams: Sequence[np.ndarray], shared_penalty: float, action_penalty: float
) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Factorise equation (2) for given G_a, K matrices [D + 1, D + 1].

    Returns:
        A function from b_a, K vectors [D + 1], to beta + delta_a, float64 [D + 1, K].
    """
    identity = np.eye(len(grams[0]))
    left = shared_penalty * identity
    left[0, 0] = 0.0
    inverses = [np.linalg.inv(gram + action_penalty * identity) for gram in grams]
    shrinks = [inverse @ gram for inverse, gram in zip(inverses, grams, strict=True)]
    for gram, shrink in zip(grams, shrinks, strict=True):
        left += gram - gram @ shrink
    # columns that never vary are zero after standardisation: a tiny ridge keeps them solvable
    left += 1e-9 * max(1.0, float(np.trace(left)) / len(left)) * identity
    factor = np.linalg.inv(left)

    def solve(moments: Sequence[np.ndarray]) -> np.ndarray:
        # H_a^-1 and G_a commute, so G_a H_a^-1 b_a = (H_a^-1 G_a)' b_a
        right = np.sum([b - s.T @ b for b, s in zip(moments, shrinks, strict=True)], axis=0)
        beta = factor @ right
        own = [inv @ b - s @ beta for b, s, inv in zip(moments, shrinks, inverses, strict=True)]
        return beta[:, None] + np.stack(own, axis=1)

    return solve
