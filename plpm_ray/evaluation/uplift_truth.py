"""Error of predicted effects where both potential outcomes are known, that is in a simulated world.

tau_ik is the true effect of arm k on user i, t_ik the predicted one; arm 0, control, has the effect 0.

    PEHE_k = sqrt( mean_i (t_ik - tau_ik)^2 )          (Hill 2011, precision in estimating heterogeneous effects)
    bias_k = mean_i (t_ik - tau_ik)
    regret = mean_i ( max_k tau_ik - tau_i,c_i ),      c_i the arm chosen by the predictions

`spearman` of `evaluation.uplift_ranking` compares the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.uplift_checks import ONE_ROW_A_USER, check_finite
from plpm_ray.evaluation.uplift_policy import best_arm
from plpm_ray.evaluation.uplift_ranking import spearman


@dataclass(frozen=True)
class EffectError:
    """Errors of predicted effects.

    Attributes:
        pehe, bias: float [K], in the unit of the response.
        spearman: float [K], rank correlation of predicted and true effects; nan where one is constant.
        best_arm_share: share of users whose chosen arm is as good as any.
        regret: what the choice loses against the best arm, response per user.
    """

    pehe: np.ndarray
    bias: np.ndarray
    spearman: np.ndarray
    best_arm_share: float
    regret: float


def effect_error(predicted: np.ndarray, true: np.ndarray, *, control_is_choice: bool = True) -> EffectError:
    """Compares effects [U, K] with the true ones.

    Args:
        control_is_choice: whether control may be the chosen and the best arm, as in `best_arm`.

    Raises:
        DataError: shapes that differ, or values that are not finite.
    """
    predicted, true = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if predicted.shape != true.shape or true.ndim != 2 or true.size == 0:
        raise DataError(
            f"predicted effects have shape {predicted.shape}, true ones {true.shape}; both must be [users, arms]",
            hint=f"{ONE_ROW_A_USER}; one column per treatment arm, none for control",
        )
    check_finite(predicted, "predicted effects")
    check_finite(true, "true effects")
    error = predicted - true
    found, loss = choice_outcome(
        best_arm(predicted, control_is_choice=control_is_choice), true, control_is_choice
    )
    return EffectError(
        pehe=np.sqrt((error**2).mean(axis=0)),
        bias=error.mean(axis=0),
        spearman=np.array([spearman(predicted[:, k], true[:, k]) for k in range(true.shape[1])]),
        best_arm_share=float(found.mean()),
        regret=float(loss.mean()),
    )


def choice_outcome(
    choice: np.ndarray, true: np.ndarray, control_is_choice: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each user's arm is a best one, bool [U], and what it loses against the best, float [U]."""
    outcome = np.concatenate([np.zeros((len(true), 1)), true], axis=1)
    best = (outcome if control_is_choice else true).max(axis=1)
    loss = best - outcome[np.arange(len(true)), choice]
    return loss <= 0, loss
