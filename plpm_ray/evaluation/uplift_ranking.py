"""Order, ties and rank correlation of scores; what the uplift metrics sort by.

A metric sorts once. Everything that is drawn again for an interval (`evaluation.uplift_bootstrap`) uses the
order, or the groups of equal score, that were found here.
"""

from __future__ import annotations

import numpy as np

_RADIX_FROM = 50_000
_SIGN = np.uint32(1 << 31)
_LOW = np.uint32(0xFFFF)
_HALF = np.uint32(16)


def descending_order(score: np.ndarray) -> np.ndarray:
    """Row numbers from the highest to the lowest score, equal scores in row order; int64 [N].

    Many rows are sorted by two passes of NumPy's radix sort over the 16-bit halves of the score as float32;
    rows that only float64 can tell apart are then sorted among themselves. The order is exact.

    Args:
        score: [N], finite.
    """
    score = np.asarray(score)
    if len(score) < _RADIX_FROM:
        return np.argsort(-score, kind="stable")
    with np.errstate(over="ignore"):  # beyond float32 is infinity there, and told apart below
        single = score.astype(np.float32) + np.float32(0)  # -0 and 0 are one score
    bits = single.view(np.uint32)
    key = np.where(bits & _SIGN, bits, ~(bits | _SIGN))  # grows as the score falls
    order = np.argsort((key & _LOW).astype(np.uint16), kind="stable")
    order = order[np.argsort((key >> _HALF).astype(np.uint16)[order], kind="stable")]
    if score.dtype.itemsize > 4:
        _sort_within_equal(order, score, single)
    return order


def _sort_within_equal(order: np.ndarray, score: np.ndarray, single: np.ndarray) -> None:
    """Sort, in place, those rows of `order` whose float32 scores are equal and whose scores are not."""
    value = score[order]
    if not (value[1:] > value[:-1]).any():
        return
    coarse = single[order]
    starts = np.concatenate([[True], coarse[1:] != coarse[:-1]])
    shared = np.flatnonzero(~(starts & np.append(starts[1:], True)))
    run = np.cumsum(starts)[shared]
    order[shared] = order[shared][np.lexsort((-value[shared], run))]


def run_ends(ordered: np.ndarray) -> np.ndarray:
    """Position of the last row of every run of equal values in ordered [N]; int64 [number of runs]."""
    return np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)


def group_ends(ordered: np.ndarray, most: int) -> np.ndarray:
    """As `run_ends`, but at most `most` of them, spread evenly over the rows; no run is ever split."""
    ends = run_ends(ordered)
    if len(ends) <= most:
        return ends
    wanted = np.arange(1, most + 1) * len(ordered) // most - 1
    return np.unique(ends[np.searchsorted(ends, wanted)])


def group_codes(score: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Group of every row, 0 the highest score, equal scores together; int64 [N], and the number of groups."""
    order = descending_order(score)
    ends = group_ends(score[order], most)
    codes = np.empty(len(score), dtype=np.int64)
    codes[order] = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
    return codes, len(ends)


def spearman(first: np.ndarray, second: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Spearman's rank correlation of two [N] arrays, ties with their mean rank; nan where one is constant.

    Args:
        weight: float [N], how many times a row counts.
    """
    w = np.ones(len(first)) if weight is None else weight
    a, b = (_weighted_ranks(np.asarray(values), w) for values in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float((w @ (a * b)) / np.sqrt((w @ a**2) * (w @ b**2)))


def _weighted_ranks(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weight before each row plus half that of its equals, less the mean of this; float [N]."""
    codes, n_groups = group_codes(values, len(values))
    size = np.bincount(codes, weights=weight, minlength=n_groups)
    return (np.cumsum(size) - size / 2 - size.sum() / 2)[codes]


class SpearmanDraws:
    """Spearman's correlation of rows that count w times, without sorting again.

    Both arrays are cut into at most 256 groups of equal size, so that a draw is one table of users by group;
    this moves the correlation by less than a thousandth of itself, far less than a draw does.

    Args:
        first, second: float [N].
    """

    _MOST = 256

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        a, n_a = group_codes(first, self._MOST)
        b, n_b = group_codes(second, self._MOST)
        self._cell, self._shape = a * n_b + b, (n_a, n_b)

    def of(self, weight: np.ndarray) -> np.ndarray:
        """Correlation for each row of weights [R, N]; float [R]."""
        return np.array([self._one(row) for row in weight])

    def _one(self, weight: np.ndarray) -> float:
        n_a, n_b = self._shape
        table = np.bincount(self._cell, weights=weight, minlength=n_a * n_b).reshape(n_a, n_b)
        sizes = (table.sum(axis=1), table.sum(axis=0))
        a, b = (np.cumsum(size) - size / 2 - size.sum() / 2 for size in sizes)
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(a @ table @ b / np.sqrt((sizes[0] @ a**2) * (sizes[1] @ b**2)))
