"""A randomised trial of page arms as arrays.

U users (one row each), K treatment arms; arm 0 is control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plpm_ray.core.errors import DataError
from plpm_ray.evaluation.uplift_checks import check_column, check_finite, check_weight
from plpm_ray.evaluation.uplift_sums import stabilised


@dataclass(frozen=True)
class Trial:
    """A checked trial; made by `Trial.of`.

    Attributes:
        names: of the K treatment arms.
        control: name of arm 0.
        arm: int64 [U], 0 for control, k for the treatment arm names[k - 1].
        response: float64 [U].
        propensity: float64 [U], probability of the arm that the user was given.
        inverse: float64 [U] or None; 1 / propensity (times weight), scaled within arms, where these say more
            than the number of users does.
        weight: float64 [U] or None, how many users a row stands for.
        known_propensity: the propensities were given, and are not the shares of the users.
    """

    names: tuple[str, ...]
    control: str
    arm: np.ndarray
    response: np.ndarray
    propensity: np.ndarray
    inverse: np.ndarray | None = None
    weight: np.ndarray | None = None
    known_propensity: bool = False

    @classmethod
    def of(
        cls,
        arm: Any,
        response: Any,
        *,
        names: Sequence[str] | None = None,
        n_arms: int | None = None,
        control: str = "control",
        propensity: Any = None,
        weight: Any = None,
    ) -> Trial:
        """A trial from what a caller has.

        Args:
            arm: int [U], 0 = control, 1..K.
            response: float [U].
            names: of the K arms; "arm 1", "arm 2", ... where not given.
            n_arms: K, where names are not given; the largest arm by default.
            propensity: [K + 1] probabilities of control and the arms, or [U, K + 1] where they differed between
                users; the shares of the users in the trial by default.
            weight: float [U] >= 0.

        Raises:
            DataError: lengths that differ, an arm out of range, no user in control or in an arm, a response that
                is not finite, probabilities that are not.
        """
        response = check_column(response, "response").astype(np.float64)
        arm = _check_arm(arm, len(response))
        names = _arm_names(arm, names, n_arms)
        _check_all_arms(arm, (control, *names))
        if weight is not None:
            weight = check_weight(weight, arm, (control, *names))
        own = _own_propensity(propensity, arm, len(names) + 1, weight)
        inverse = None
        if propensity is not None or weight is not None:
            inverse = stabilised(1 / own, arm, np.ones(len(arm)) if weight is None else weight)
        return cls(names, control, arm, response, own, inverse, weight, propensity is not None)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all K + 1 arms, control first."""
        return (self.control, *self.names)

    def __len__(self) -> int:
        return len(self.arm)


def _check_arm(values: Any, n: int) -> np.ndarray:
    column = check_column(values, "arm", n)
    if not np.array_equal(column, np.floor(column)) or column.min() < 0:
        row = int(np.flatnonzero((column < 0) | (column != np.floor(column)))[0])
        raise DataError(
            f"arm {column[row]:g} in row {row} is not a whole number from 0",
            hint="number the arms: 0 for control, 1 to K for the pages",
        )
    return column.astype(np.int64)


def _arm_names(arm: np.ndarray, names: Sequence[str] | None, n_arms: int | None) -> tuple[str, ...]:
    most = int(arm.max())
    if names is None:
        names = [f"arm {k}" for k in range(1, (most if n_arms is None else n_arms) + 1)]
    if most > len(names):
        raise DataError(
            f"a user is in arm {most}, but there are {len(names)} treatment arms: {', '.join(names)}",
            hint="arm 0 is control and not among the names",
        )
    return tuple(names)


def _check_all_arms(arm: np.ndarray, labels: Sequence[str]) -> None:
    counts = np.bincount(arm, minlength=len(labels))
    if counts[0] == 0:
        raise DataError(
            f"no user is in control (arm 0, {labels[0]}) among {len(arm)}",
            hint="an effect is against control; give the control users arm 0",
        )
    missing = [f"{k} ({labels[k]})" for k in np.flatnonzero(counts == 0).tolist()]
    if missing or len(labels) < 2:
        raise DataError(
            f"no user is in arm {', '.join(missing) or '1, or any other treatment'}",
            hint="leave the arm and its predictions out, or check the arm column and the filter before it",
        )


def _own_propensity(given: Any, arm: np.ndarray, n_arms: int, weight: np.ndarray | None) -> np.ndarray:
    """Probability of the arm each user was given, float64 [U]."""
    if given is None:
        totals = np.bincount(arm, weights=weight, minlength=n_arms).astype(np.float64)
        return (totals / totals.sum())[arm]
    table = np.asarray(given, dtype=np.float64)
    if table.shape not in ((n_arms,), (len(arm), n_arms)):
        raise DataError(
            f"propensity has shape {table.shape}; [{n_arms}] or [{len(arm)}, {n_arms}] is needed",
            hint="one probability for control and each arm, control first",
        )
    check_finite(table, "propensity")
    if (table < 0).any() or np.abs(table.sum(axis=-1) - 1).max() > 1e-3:
        raise DataError(
            "propensities must not be negative and must sum to 1 over control and all arms",
            hint="give probabilities, not numbers of users",
        )
    own = table[arm] if table.ndim == 1 else table[np.arange(len(arm)), arm]
    if (own <= 0).any():
        row = int(np.flatnonzero(own <= 0)[0])
        raise DataError(
            f"the user in row {row} is in arm {arm[row]}, whose propensity is 0 there",
            hint="the propensities belong to another assignment; check their order of arms and users",
        )
    return own
