"""A hash table from 64-bit user hashes to row numbers that works on whole arrays: no Python loop per user."""

from __future__ import annotations

import numpy as np


class UserIndex:
    """Open addressing with linear probing; at most half of the slots are taken. Rows are numbered in order of arrival.

    Integer ids are told apart exactly (their hash is a bijection); of two string ids with one 64-bit hash, which happens
    once in 10^6 stores of 10^7 users, the second would share the first one's row.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.keys = np.zeros(max(capacity, 16), dtype=np.uint64)
        self.size = 0
        self._slots = self._new_slots(len(self.keys))

    def __len__(self) -> int:
        return self.size

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """(B,) uint64 hashes -> (B,) int64 rows, -1 where there is none."""
        mask = len(self._slots) - 1
        at = (hashes & np.uint64(mask)).astype(np.int64)
        rows = self._slots[at]
        pending = np.flatnonzero((rows >= 0) & (self.keys[rows] != hashes))
        while len(pending):
            at[pending] = (at[pending] + 1) & mask
            found = self._slots[at[pending]]
            rows[pending] = found
            pending = pending[(found >= 0) & (self.keys[found] != hashes[pending])]
        return rows

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Like `find`, and gives every unknown hash a new row; repeated hashes get one row."""
        rows = self.find(hashes)
        missing = rows < 0
        if missing.any():
            new = np.unique(hashes[missing])
            self._insert(new)
            rows[missing] = self.find(hashes[missing])
        return rows

    def _insert(self, new: np.ndarray) -> None:
        start, self.size = self.size, self.size + len(new)
        if self.size > len(self.keys):
            capacity = max(self.size, len(self.keys) * 3 // 2)
            self.keys = np.concatenate([self.keys[:start], np.zeros(capacity - start, dtype=np.uint64)])
        self.keys[start : self.size] = new
        if self.size * 2 > len(self._slots):
            self._slots = self._new_slots(self.size * 2)
            start = 0
        self._place(np.arange(start, self.size))

    def _place(self, rows: np.ndarray) -> None:
        mask = len(self._slots) - 1
        at = (self.keys[rows] & np.uint64(mask)).astype(np.int64)
        while len(rows):
            free = self._slots[at] < 0
            self._slots[at[free]] = rows[
                free
            ]  # of several rows for one slot the last is kept, the others move on
            moving = self._slots[at] != rows
            rows, at = rows[moving], (at[moving] + 1) & mask

    @staticmethod
    def _new_slots(users: int) -> np.ndarray:
        return np.full(1 << int(2 * users - 1).bit_length(), -1, dtype=np.int64)
