"""The per-user table of an experiment, checked and grouped by arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.evaluation.experiment_metrics import ANY_ACTIVE, Metric

Design = Literal["split", "twins"]


@dataclass(frozen=True)
class Columns:
    """The totals behind one metric, rows as in `UserTable.order`, float64 [N]; None is a column of ones.

    Attributes:
        numerator, denominator: of the AB period, in the metric's unit: their means' ratio is its value.
        aa_numerator, aa_denominator: of the AA period.
        has_aa: whether there is an AA period at all.
    """

    numerator: np.ndarray
    denominator: np.ndarray | None
    aa_numerator: np.ndarray | None
    aa_denominator: np.ndarray | None

    @property
    def has_aa(self) -> bool:
        return self.aa_numerator is not None


@dataclass(frozen=True)
class UserTable:
    """Users grouped by arm.

    Attributes:
        table: one row a user (design "split"), or a user and arm ("twins").
        arms: labels; the control is one of them.
        order: int64 [N], rows of the table sorted by arm; in "twins" by user inside the arm, so that each
            arm holds the same users in the same order.
        bounds: int64 [A + 1], arm a owns order[bounds[a]:bounds[a + 1]].
        aa_days, ab_days: lengths of the periods; 0 AA days is an experiment without one.
    """

    table: pa.Table
    arms: tuple[str, ...]
    order: np.ndarray
    bounds: np.ndarray
    aa_days: int
    ab_days: int

    @property
    def counts(self) -> dict[str, int]:
        """Users of each arm."""
        return dict(zip(self.arms, np.diff(self.bounds).tolist(), strict=True))

    def columns(self, metric: Metric) -> Columns:
        """The totals of `metric`.

        Raises:
            DataError: a column is missing, not numeric, or holds nulls or values that are not finite.
        """
        ab = self._period(metric, "ab", self.ab_days)
        aa = self._period(metric, "aa", self.aa_days) if self.aa_days else (None, None)
        return Columns(*ab, *aa)

    def _period(self, metric: Metric, period: str, days: int) -> tuple[np.ndarray, np.ndarray | None]:
        numerator = self._column(f"{period}_{metric.numerator}") * metric.factor(days)
        if metric.denominator is None:
            return numerator, None
        if metric.denominator == ANY_ACTIVE:
            return numerator, (self._column(f"{period}_active_days") > 0).astype(np.float64)
        return numerator, self._column(f"{period}_{metric.denominator}")

    def _column(self, name: str) -> np.ndarray:
        if name not in self.table.column_names:
            raise DataError(
                f"the user table has no column {name!r}",
                hint=f"it has {self.table.column_names}; every total needs aa_<name> and ab_<name>",
            )
        column = self.table.column(name)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(f"column {name!r} of the user table is {column.type}, not a number")
        values = column.to_numpy().astype(np.float64, copy=False)
        if column.null_count or not np.isfinite(values).all():
            raise DataError(
                f"column {name!r} of the user table has nulls or values that are not finite",
                hint="users who were not active in a period count with zeros",
            )
        return values[self.order]


def user_table(
    users: pa.Table,
    *,
    control: str,
    arms: Sequence[str] | None,
    aa_days: int,
    ab_days: int,
    design: Design,
) -> UserTable:
    """Checks users and arms, and sorts.

    Args:
        users: `user_id`, `arm` and totals.
        arms: the arms to analyse, in the order of the results; all, as they first appear, where not given.

    Raises:
        ConfigError: unknown control or design, fewer than two arms, days that are not positive.
        DataError: an arm has fewer than two users, a user is in several arms ("split") or not in all
            ("twins"), an arm or user is null.
    """
    if design not in ("split", "twins"):
        raise ConfigError(f"unknown design {design!r}", hint='designs are "split" and "twins"')
    if ab_days < 1 or aa_days < 0:
        raise ConfigError(f"an experiment of {aa_days} AA days and {ab_days} AB days", hint="AB days from 1")
    for name in ("user_id", "arm"):
        if name not in users.column_names:
            raise DataError(f"the user table has no column {name!r}", hint=f"it has {users.column_names}")
        if users.column(name).null_count:
            raise DataError(f"column {name!r} of the user table has nulls")
    dictionary, arm_codes = _codes(users.column("arm"))
    labels = dictionary.to_pylist()
    wanted = tuple(labels if arms is None else arms)
    if control not in wanted or len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise ConfigError(
            f"arms {list(wanted)} with control {control!r}",
            hint="an experiment has the control and at least one other arm, each once",
        )
    position = {label: i for i, label in enumerate(wanted)}
    rank = np.array([position.get(label, len(wanted)) for label in labels], dtype=np.int64)[arm_codes]
    counts = np.bincount(rank, minlength=len(wanted) + 1)[: len(wanted)]
    if (counts < 2).any():
        few = [arm for arm, n in zip(wanted, counts, strict=True) if n < 2]
        raise DataError(f"arms {few} have fewer than two users", hint=f"the table's arms are {labels}")
    bounds = np.concatenate([[0], np.cumsum(counts)])
    _, user_codes = _codes(users.column("user_id"))
    order = np.lexsort((user_codes, rank))[: bounds[-1]]
    _check_users(user_codes[order], bounds, design)
    return UserTable(users, wanted, order, bounds, aa_days, ab_days)


def _codes(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Distinct values in order of first appearance, and the position of each row's value among them."""
    values: Any = column.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()  # a dictionary may hold values of no row
    encoded = values.dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)


def _check_users(users: np.ndarray, bounds: np.ndarray, design: Design) -> None:
    """users int [N]: codes by arm, sorted inside each arm."""
    groups = [users[low:high] for low, high in pairwise(bounds)]
    if design == "twins":
        if any(not np.array_equal(group, groups[0]) for group in groups) or (np.diff(groups[0]) == 0).any():
            raise DataError(
                "twins need every user once in every arm", hint='use the design "split" for users in one arm'
            )
    elif len(users) and np.bincount(users).max() > 1:
        raise DataError(
            f"{int((np.bincount(users) > 1).sum())} users have several rows",
            hint='in the design "split" a user is in one arm; for the same users under each arm use "twins"',
        )
