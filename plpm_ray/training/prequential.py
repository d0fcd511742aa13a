"""Prequential judgement: every chance is judged by what then came, before it is learned from. Sums of fixed size.

Letters: B batch, K pages, H bins of the chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

BINS = 2048
_LEAST = 1e-7  # a chance of 0 or 1 in single precision is judged as this close to it


class Prequential:
    """AUC, log loss and Brier score of binary outcomes, over all and by page.

    The AUC is that of chances rounded to 1 / 2048, ties counting half: a stream of any length needs no more than the
    counts, and adding them in parts gives the same numbers.

    Args:
        pages: K page names.
    """

    def __init__(self, pages: Sequence[str]) -> None:
        self.pages = tuple(pages)
        self.counts = np.zeros((len(pages), 2, BINS), dtype=np.int64)
        self.sums = np.zeros((len(pages), 2), dtype=np.float64)

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    def add(self, chance_B: np.ndarray, label_B: np.ndarray, action_B: np.ndarray) -> None:
        """(B,) chances in [0, 1] of the label 1, (B,) labels 0 or 1, (B,) page positions."""
        chance, label = chance_B.astype(np.float64), (label_B > 0.5).astype(np.int64)
        bins = np.minimum((chance * BINS).astype(np.int64), BINS - 1)
        cells = (action_B * 2 + label) * BINS + bins
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)
        kept = np.clip(chance, _LEAST, 1 - _LEAST)
        losses = -np.log(np.where(label == 1, kept, 1 - kept)), (chance - label) ** 2
        for i, values in enumerate(losses):
            self.sums[:, i] += np.bincount(action_B, weights=values, minlength=len(self.pages))

    def record(self) -> dict[str, float | int | None]:
        """Of all sessions "auc", "log_loss", "brier", "label_share", and for each page `page/<name>/<...>` and its
        sessions; None where it is not defined (no session, or for the AUC only one of the labels)."""
        found: dict[str, float | int | None] = _judged(self.counts.sum(axis=0), self.sums.sum(axis=0))
        for k, page in enumerate(self.pages):
            judged = _judged(self.counts[k], self.sums[k])
            found[f"page/{page}/sessions"] = int(self.counts[k].sum())
            found |= {f"page/{page}/{name}": value for name, value in judged.items()}
        return found

    def state(self) -> dict[str, Tensor]:
        """What `load_state` takes; the tensors share no memory with this."""
        return {"counts": torch.from_numpy(self.counts.copy()), "sums": torch.from_numpy(self.sums.copy())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.counts, self.sums = state["counts"].numpy().copy(), state["sums"].numpy().copy()


def _judged(counts: np.ndarray, sums: np.ndarray) -> dict[str, float | int | None]:
    zeros, ones = counts
    n, positive = int(counts.sum()), int(ones.sum())
    if not n:
        return dict.fromkeys(("auc", "log_loss", "brier", "label_share"))
    return {
        "auc": binned_auc(zeros, ones),
        "log_loss": float(sums[0] / n),
        "brier": float(sums[1] / n),
        "label_share": positive / n,
    }


def binned_auc(zeros: np.ndarray, ones: np.ndarray) -> float | None:
    """Chance that a one has a higher bin than a zero, a tie counting half; (H,) counts. None where one kind is absent."""
    n_zeros, n_ones = int(zeros.sum()), int(ones.sum())
    if not n_zeros or not n_ones:
        return None
    below = np.cumsum(zeros) - zeros
    return float((ones * (2 * below + zeros)).sum() / (2 * n_zeros * n_ones))
