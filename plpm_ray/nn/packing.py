"""Sequences of unequal lengths that lie one after the other, in groups for attention, so that no other layer sees a pad.

Letters: S steps of all sequences together, n sequences of a group, L steps of each.

Sequences are put in order of length. Those of one length lie together, and a view of the flat tensors is their batch. Where
lengths are many and sequences few, neighbours share a group, padded at the end: what comes later is never seen, so a pad
reaches nobody. A sequence longer than the window is cut into blocks of that length; a block also reads the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# sequences of one length that hold so many steps make a group, fewer share it with others up to so many times as long
ENOUGH, STRETCH = 48, 1.5


@dataclass(frozen=True)
class Group:
    """Sequences, or blocks of them, that are computed together.

    Attributes:
        count, length: n and L.
        first: step at which they begin, if they lie one after the other without a gap; else -1.
        asks: (n L,) steps that ask, where they have gaps; of a pad, some real step.
        reads: (n L,) or (n 2L,) steps that are read; with `before`, those of the block before come first.
        kept, pads: positions of real steps and of pads in `asks`; None where there is no pad.
        before: the block before is read, too.
    """

    count: int
    length: int
    first: int = -1
    asks: Tensor | None = None
    reads: Tensor | None = None
    kept: Tensor | None = None
    pads: Tensor | None = None
    before: bool = False

    @property
    def steps(self) -> int:
        """n L, pads included."""
        return self.count * self.length


@dataclass(frozen=True)
class Packing:
    """How the sequences of a batch are grouped; made once a batch, read by every layer.

    Attributes:
        order: (S,) the steps in the order of the groups; None where they came in it.
        groups: which steps attend together.
        window: most steps seen, the present one included.
    """

    order: Tensor | None
    groups: tuple[Group, ...]
    window: int

    @classmethod
    def of(cls, starts_S: Tensor, window: int) -> Packing:
        """The packing of sequences by the (S,) bool of where one begins; a GPU waits for it.

        Args:
            starts_S: True for the first step of a sequence; the very first one always is.
            window: most steps a step may see, itself included.
        """
        starts = starts_S.cpu().numpy().copy()
        starts[:1] = True
        first = np.flatnonzero(starts)
        length = np.diff(np.append(first, len(starts)))
        order = None
        if (length[1:] < length[:-1]).any():
            by_length = length.argsort(kind="stable")
            first, length = first[by_length], length[by_length]
            order = _to(np.repeat(first - _starts(length), length) + np.arange(len(starts)), starts_S.device)
        return cls(order, tuple(_groups(length, window, starts_S.device)), window)

    def arrange(self, x: Tensor) -> Tensor:
        """(S, ...) as they came -> in the order of the groups."""
        return x if self.order is None else x.index_select(0, self.order)

    def restore(self, x: Tensor) -> Tensor:
        """(S, ...) in the order of the groups -> as they came."""
        return x if self.order is None else torch.empty_like(x).index_copy(0, self.order, x)


def begins(step_S: Tensor) -> Tensor:
    """(S,) bool, where a sequence begins: at step 0, and where a number does not follow its predecessor."""
    starts = step_S == 0
    starts[1:] |= step_S[1:] != step_S[:-1] + 1
    starts[:1] = True
    return starts


def _starts(length: np.ndarray) -> np.ndarray:
    return length.cumsum() - length


def _groups(length: np.ndarray, window: int, device: torch.device) -> list[Group]:
    """Groups of sequences of the given lengths, which rise."""
    found: list[Group] = []
    start = _starts(length)
    whole = int(np.searchsorted(length, window, side="right"))
    at = 0
    while at < whole:
        shortest = int(length[at])
        end = int(np.searchsorted(length, shortest, side="right"))
        if (end - at) * shortest < ENOUGH:
            end = int(np.searchsorted(length, min(int(shortest * STRETCH), window), side="right"))
        longest = int(length[end - 1])
        if longest == shortest:
            found.append(Group(end - at, shortest, first=int(start[at])))
        else:
            found.append(_gathered(start[at:end], length[at:end], longest, device))
        at = end
    return found + (_blocks(start[whole:], length[whole:], window, device) if whole < len(length) else [])


def _gathered(
    start: np.ndarray, length: np.ndarray, longest: int, device: torch.device, before: bool = False
) -> Group:
    """One group of the steps `start` to `start + length` - 1; with `before`, the `longest` steps before are read, too."""
    step = np.arange(longest)
    real = (step < length[:, None]).reshape(-1)
    asks = start[:, None] + np.minimum(step, length[:, None] - 1)
    reads = np.concatenate([start[:, None] - longest + step, asks], axis=1) if before else asks
    kept, pads = (None, None) if real.all() else (_to(np.flatnonzero(x), device) for x in (real, ~real))
    asks, reads = (_to(rows.reshape(-1), device) for rows in (asks, reads))
    return Group(len(start), longest, -1, asks, reads, kept, pads, before)


def _blocks(start: np.ndarray, length: np.ndarray, window: int, device: torch.device) -> list[Group]:
    """Sequences longer than the window: their first blocks, and all later ones."""
    later = -(-length // window) - 1
    number = np.arange(later.sum()) - np.repeat(_starts(later), later) + 1
    begin = np.repeat(start, later) + number * window
    rest = np.minimum(np.repeat(length, later) - number * window, window)
    return [
        _gathered(start, np.full_like(length, window), window, device),
        _gathered(begin, rest, window, device, before=True),
    ]


def _to(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)
