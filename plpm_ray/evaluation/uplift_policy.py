"""Value of giving every user an arm of the model's choice, from a randomised trial.

For user i with arm a_i, response y_i, probability p_i of that arm in the trial, and a policy that gives arm k with
probability pi_ik, let r_i = pi_i,a_i / p_i. With weights w_i (1 where none are given) the value per user is

    IPS     sum_i w_i r_i y_i / sum_i w_i                                                             (1)
    SNIPS   sum_i w_i r_i y_i / sum_i w_i r_i                                                         (2)
    DR      sum_i w_i [ sum_k pi_ik q_ik + r_i (y_i - q_i,a_i) ] / sum_i w_i                          (3)

with q_ik a model's prediction of the response in arm k. (1) is Horvitz and Thompson (1952), (2) Hajek's ratio
(Swaminathan and Joachims 2015 in this use), (3) Dudik, Langford and Li (2011). For a policy that picks one arm, (2)
is the mean response of the users whose arm the trial happened to choose as the policy would (weighted by 1 / p).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.evaluation.uplift_checks import ONE_ROW_A_USER, check_finite
from plpm_ray.evaluation.uplift_trial import Trial

Method = Literal["ips", "snips", "dr"]


def best_arm(effects: np.ndarray, *, control_is_choice: bool = True) -> np.ndarray:
    """Arm of the largest predicted effect, int64 [U], 0 for control.

    Args:
        effects: [U, K], effect of each treatment arm against control.
        control_is_choice: keep control where no effect is above 0; otherwise one of the arms 1..K is taken.
            Of equal effects the first arm wins, control before all.
    """
    best = effects.argmax(axis=1)
    if not control_is_choice:
        return best + 1
    return np.where(effects[np.arange(len(effects)), best] > 0, best + 1, 0)


def policy_value(
    choice: Any,
    trial: Trial,
    *,
    method: Method = "snips",
    predicted: Any = None,
) -> float:
    """Expected response per user if everybody was given the policy's arm; equations (1) to (3).

    Args:
        choice: int [U], arm 0..K of each user, or float [U, K + 1], probabilities of control and the arms.
        trial: `Trial.of(arm, response, propensity=...)`; its shares of users are the propensities by default.
        predicted: float [U, K + 1], a model's response in control and each arm; needed by "dr".

    Returns:
        In the unit of the response; nan where no user of the trial was given what the policy would give.

    Raises:
        DataError: choices or predictions of another shape, out of range or not finite.
        ConfigError: an unknown method, or "dr" without predictions.
    """
    terms = PolicyTerms(choice, trial, predicted)
    if method not in terms.methods:
        hint = (
            "pass `predicted`, the response [U, K + 1] of a model" if method == "dr" else "ips, snips or dr"
        )
        raise ConfigError(f"no policy value by {method!r} here", hint=hint)
    weight = np.ones(len(trial)) if trial.weight is None else trial.weight
    return float(terms.of(weight[None])[0, terms.methods.index(method)])


class PolicyTerms:
    """A policy on a trial, ready to be valued under any weights of the users.

    Args:
        choice, trial, predicted: as `policy_value`.

    Attributes:
        methods: "snips" and "ips", and "dr" with predictions; the columns of `of`.
    """

    def __init__(self, choice: Any, trial: Trial, predicted: Any = None) -> None:
        n_arms = len(trial.labels)
        pi = as_probabilities(choice, len(trial), n_arms)
        rows = np.arange(len(trial))
        ratio = pi[rows, trial.arm] / trial.propensity
        self.methods: tuple[str, ...] = ("snips", "ips")
        columns = [ratio, ratio * trial.response, np.ones(len(trial))]
        if predicted is not None:
            self.methods += ("dr",)
            q = np.asarray(predicted, dtype=np.float64)
            check_table(q, len(trial), n_arms, "predicted responses")
            columns.append((pi * q).sum(axis=1) + ratio * (trial.response - q[rows, trial.arm]))
        self._columns = np.stack(columns, axis=1)

    def of(self, weight: np.ndarray) -> np.ndarray:
        """Value per user for each row of weights [R, U]; float [R, number of methods]."""
        ratio, value, users, *modelled = (weight @ self._columns).T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([value / ratio, value / users, *(q / users for q in modelled)], axis=1)


def as_probabilities(choice: Any, n: int, n_arms: int) -> np.ndarray:
    """Choices [U] or probabilities [U, K + 1] as probabilities.

    Raises:
        DataError: another shape, an arm out of range, or rows that do not sum to 1.
    """
    array = np.asarray(choice)
    if array.ndim == 1:
        if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
            raise DataError(
                f"choices have shape {array.shape} and type {array.dtype}, whole numbers [{n}] are needed",
                hint=ONE_ROW_A_USER,
            )
        if array.min() < 0 or array.max() >= n_arms:
            raise DataError(
                f"choices lie in {array.min()}..{array.max()}, but the trial has the arms 0..{n_arms - 1}",
                hint="0 is control; leave arms that the trial lacks out of the model's effects",
            )
        return (array[:, None] == np.arange(n_arms)).astype(np.float64)
    table = array.astype(np.float64)
    check_table(table, n, n_arms, "choice probabilities")
    if table.min() < 0 or np.abs(table.sum(axis=1) - 1).max() > 1e-3:
        row = int(np.argmax((table < 0).any(axis=1) | (np.abs(table.sum(axis=1) - 1) > 1e-3)))
        raise DataError(
            f"choice probabilities in row {row} are negative or do not sum to 1: {table[row].tolist()}",
            hint="give probabilities of control and all arms, or whole numbers [users] for one arm each",
        )
    return table


def check_table(table: np.ndarray, n: int, n_columns: int, name: str) -> None:
    """Raises: DataError where table is not [n, n_columns] and finite."""
    if table.shape != (n, n_columns):
        raise DataError(
            f"{name} have shape {table.shape}, [{n}, {n_columns}] is needed",
            hint=f"{ONE_ROW_A_USER}; one column for each of the {n_columns} arms",
        )
    check_finite(table, name)
