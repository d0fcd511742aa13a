"""What was decided, as arrays and as a table.

Letters: B entries, K pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from plpm_ray.policies.fallback import reason_column
from plpm_ray.serving.tables import Entries

_COLUMNS = ("page", "propensity", "scores", "probabilities", "reason")


class Versions(NamedTuple):
    """What took a decision: bundle version, name and hash of the policy's config, name of the fallback."""

    navigator: str
    policy: str
    fallback: str

    @property
    def labels(self) -> tuple[str, str]:
        """The `policy` column of a log row: of a decision of the navigator, and of one of the fallback."""
        return f"{self.navigator}/{self.policy}", f"{self.fallback}/{self.policy}"


@dataclass(frozen=True)
class Decisions:
    """B decisions.

    Attributes:
        page: (B,) int16 position in the catalogue.
        propensity: (B,) float64 probability with which the page was drawn.
        scores: (B, K) float32, of the navigator or of the fallback.
        probabilities: (B, K) float64.
        reason: (B,) int8 code into `policies.fallback.REASONS`; 0 = the navigator answered.
        details: name -> (B, K) float32 parts that the navigator's scores were made of (KLAN: delta, p, gamma, sigma), NaN
            where the fallback answered.
        stored: `<name>_version` -> model version and day of the stored vectors that were read.
    """

    page: np.ndarray
    propensity: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    reason: np.ndarray
    details: Mapping[str, np.ndarray] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.page)

    @classmethod
    def none(cls, k: int) -> Decisions:
        """B = 0."""
        empty, wide = np.zeros(0), np.zeros((0, k))
        return cls(empty.astype(np.int16), empty, wide.astype(np.float32), wide, empty.astype(np.int8))

    @classmethod
    def joined(cls, parts: Sequence[Decisions], order: np.ndarray | None = None) -> Decisions:
        """At least one part after the other, or their rows in the given order."""
        rows = slice(None) if order is None else order
        columns = (np.concatenate([getattr(part, name) for part in parts])[rows] for name in _COLUMNS)
        details, stored = {}, {}
        for part in parts:
            stored |= part.stored
        for name in dict.fromkeys(name for part in parts for name in part.details):
            blank = (np.full(part.scores.shape, np.nan, np.float32) for part in parts)
            details[name] = np.concatenate(
                [part.details.get(name, empty) for part, empty in zip(parts, blank, strict=True)]
            )[rows]
        return cls(*columns, details=details, stored=stored)

    def table(self, entries: Entries, pages: Sequence[str], versions: Versions) -> pa.Table:
        """A row per entry, as `NavigationPolicy.decide` says."""
        b = len(self)
        answered = self.reason == 0
        made: dict[str, Any] = {
            "user_id": entries.users.ids,
            "entry_time": pa.array(entries.entry_ms).cast(pa.timestamp("ms", tz="UTC")),
            "page": pa.array(pages).take(pa.array(self.page)),
            "page_index": pa.array(self.page),
            "propensity": pa.array(self.propensity),
            "scores": _lists(self.scores),
            "probabilities": _lists(self.probabilities),
            "fallback": reason_column(self.reason),
            "policy": pa.array(versions.labels).take(pa.array((~answered).astype(np.int8))),
            "navigator_version": pa.repeat(versions.navigator, b),
        }
        made |= {name: _lists(values, answered) for name, values in self.details.items()}
        made |= {name: pa.repeat(version, b) for name, version in self.stored.items()}
        return pa.table(made)


def _lists(values: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    """(B, K) -> B lists of K, null where (B,) `valid` is False."""
    b, k = values.shape
    offsets = pa.array(np.arange(b + 1, dtype=np.int32) * k)
    mask = None if valid is None else pa.array(~valid)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)), mask=mask)
