"""Checks of what the uplift metrics are given, with errors that name the column and the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plpm_ray.core.errors import DataError

ONE_ROW_A_USER = "give one row per user, in the same order everywhere"


def check_column(values: Any, name: str, n: int | None = None) -> np.ndarray:
    """values as a float array [n] (float32 stays), finite and not empty.

    Raises:
        DataError: another shape or length, not numbers, no rows, or NaN or infinity, naming the first row.
    """
    try:
        array = np.asarray(values)
        array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} does not hold numbers: {error}", hint="encode it as numbers first") from None
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name} has shape {array.shape}, a column [users] is needed", hint=ONE_ROW_A_USER)
    if n is not None and len(array) != n:
        raise DataError(f"{name} has {len(array)} rows, but there are {n} users", hint=ONE_ROW_A_USER)
    check_finite(array, name)
    return array


def check_finite(array: np.ndarray, name: str) -> None:
    """Raises: DataError where an entry is NaN or infinite, with their number and the first place."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):  # one pass without a temporary array: NaN and infinity survive a sum
            return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad) == 0:
        return
    row, *rest = (int(i) for i in bad[0])
    column = f", column {rest[0]}" if rest else ""
    raise DataError(
        f"{name}: {len(bad)} of {array.size} values are NaN or infinite, the first in row {row}{column}",
        hint="drop these users from every array, or give the model a fallback for users it cannot score",
    )


def check_treated(values: Any, n: int) -> np.ndarray:
    """Treatment flags as bool [n].

    Raises:
        DataError: another length, values other than 0 and 1, or an empty group.
    """
    array = np.asarray(values)
    if array.dtype != np.bool_:
        column = check_column(array, "treated", n)
        if not np.isin(column, (0, 1)).all():
            raise DataError(
                f"treated holds {column[~np.isin(column, (0, 1))][0]:g}, but must be 0 (control) or 1",
                hint="of a trial with several arms keep one arm and control, or use uplift_report",
            )
        array = column.astype(bool)
    if array.shape != (n,):
        raise DataError(f"treated has shape {array.shape}, but there are {n} users", hint=ONE_ROW_A_USER)
    count = int(np.count_nonzero(array))
    if count in (0, n):
        raise DataError(
            f"all {n} users are {'treated' if count else 'in control'}; an effect needs both groups",
            hint="check the arm column and the filter before it; control is False or 0",
        )
    return array


def check_propensity(values: Any, n: int) -> np.ndarray:
    """Probability of being treated, float [n], from one number or [n].

    Raises:
        DataError: another length, or a value outside (0, 1).
    """
    array = check_column(np.broadcast_to(values, n) if np.ndim(values) == 0 else values, "propensity", n)
    outside = np.flatnonzero((array <= 0) | (array >= 1))
    if outside.size:
        raise DataError(
            f"propensity {array[outside[0]]:g} in row {outside[0]} lies outside (0, 1)",
            hint="users who could not have been in the other group belong to no comparison; drop them",
        )
    return array


def check_weight(values: Any, arm: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Weights as float64 [N], none negative, none of the arms without any.

    Raises:
        DataError: otherwise.
    """
    weight = check_column(values, "weight", len(arm)).astype(np.float64)
    if (weight < 0).any():
        row = int(np.flatnonzero(weight < 0)[0])
        raise DataError(
            f"weight {weight[row]:g} in row {row} is negative", hint="a weight counts users; 0 or more"
        )
    for name, total in zip(names, np.bincount(arm, weights=weight, minlength=len(names)), strict=True):
        if total <= 0:
            raise DataError(
                f"all weights of {name} are 0", hint="leave the arm out, or give its users weight"
            )
    return weight
