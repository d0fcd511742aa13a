"""An A/B run as its sections see it: arms in order, which of them are candidates, tables added up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from plpm_ray.evaluation.report.layout import Names
from plpm_ray.evaluation.report.markup import Markup, el
from plpm_ray.evaluation.report.reading import Columns, Run
from plpm_ray.evaluation.report.records import ABRun

PERIODS = ("aa", "ab")
_REFERENCES = ("random", "myopic_oracle", "far_sighted_oracle")


@dataclass(frozen=True)
class Experiment:
    """An A/B run.

    Attributes:
        run: its folder.
        names: short names of the arms.
    """

    run: Run
    names: Names

    @classmethod
    def of(cls, run: Run) -> Experiment:
        return cls(run, Names(run.record.arms))

    @property
    def record(self) -> ABRun:
        return self.run.record

    @property
    def control(self) -> str:
        return self.record.control

    @cached_property
    def references(self) -> frozenset[str]:
        """Arms that are no candidates but ends of the scale: the random policy and the oracles.

        By what the run's config says of them; without a config, the arms that are called so.
        """
        listed = self.run.config.get("arms")
        if isinstance(listed, list):
            found = {
                _title(arm)
                for arm in listed
                if isinstance(arm, Mapping) and arm.get("builtin") in _REFERENCES
            }
        else:
            found = {a for a in self.record.arms if "_".join(a.lower().split()) in (*_REFERENCES, "oracle")}
        return frozenset(a for a in self.record.arms if a in found and a != self.control)

    @property
    def treated(self) -> list[str]:
        """All arms but the control; candidates as the run gives them, then references."""
        return [*self.candidates, *(a for a in self.record.arms if a in self.references)]

    @property
    def candidates(self) -> list[str]:
        """Arms that are neither control nor reference."""
        return [a for a in self.record.arms if a != self.control and a not in self.references]

    @property
    def everyone(self) -> list[str]:
        """The control first, then the others."""
        return [self.control, *self.treated]

    def arm(self, arm: str) -> Markup:
        """Its name, with its role if it is not a candidate."""
        role = "control" if arm == self.control else "reference" if arm in self.references else None
        return el("span", self.names(arm), el("span", role, class_="tag") if role else None)

    def total(self, table: str, value: str, **where: Any) -> float:
        """Sum of a column over the rows of a table where other columns have these values.

        Args:
            table: "daily", "hourly", "moves" or "pages".
            value: the column.
            where: column -> what it must be.
        """
        names = tuple(sorted(where))
        sums = self._sums.get((table, value, names))
        if sums is None:
            columns: Columns = getattr(self, table)
            sums = defaultdict(float)
            for *key, amount in zip(*(columns[name].tolist() for name in (*names, value)), strict=True):
                sums[tuple(key)] += amount
            self._sums[table, value, names] = sums
        return float(sums.get(tuple(where[name] for name in names), 0.0))

    @cached_property
    def _sums(self) -> dict[Any, dict[tuple[Any, ...], float]]:
        return {}

    @cached_property
    def daily(self) -> Columns:
        return self.run.table("daily")

    @cached_property
    def hourly(self) -> Columns:
        return self.run.table("hourly")

    @cached_property
    def moves(self) -> Columns:
        return self.run.table("moves")

    @cached_property
    def pages(self) -> Columns:
        return self.run.table("pages")


def share(part: float, whole: float) -> float | None:
    """part / whole, or None of nothing."""
    return part / whole if whole > 0 else None


def _title(arm: Mapping[str, Any]) -> str:
    return str(arm.get("label") or arm.get("builtin"))
