"""What a navigator is worth in the world: app use of the same users with the same luck against the logging policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from plpm_ray.evaluation.experiment import analyse
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.simulation.simulation import Chooser
from plpm_ray.simulation.twins import CONTROL, Twins
from plpm_ray.tuning.ledger import EpochReport
from plpm_ray.tuning.world import Constraints

ARM = "trial"
# metrics of the report that are changes in per cent of the logging policy's
_CHANGES = ("dau", "lt", "sessions", "pdr")


class WorldValue:
    """Judges choosers on the same users.

    Args:
        twins: the users, in groups that are lived through one after the other.
        aa_days, ab_days: lengths of the periods.
        constraints: what a trial must keep to.
        rank_by: "lower" or "value".

    Attributes:
        baseline: metric -> the logging policy's value on all users.
    """

    def __init__(
        self,
        twins: Sequence[Twins],
        aa_days: int,
        ab_days: int,
        constraints: Constraints,
        rank_by: Literal["lower", "value"],
    ) -> None:
        self.twins, self.days = tuple(twins), (aa_days, ab_days)
        self.constraints, self.rank_by = constraints, rank_by
        self.pages = twins[0].world.pages.names
        control = pa.concat_tables([group.control for group in twins])
        rows = self._rows([control, _renamed(control)])
        self.baseline = {key: row["control"] for key, row in rows.items() if row["control"] is not None}

    def __len__(self) -> int:
        return len(self.twins)

    def live(self, group: int, chooser: Callable[[OnlineFeatures], Chooser]) -> pa.Table:
        """Totals of a group's users under a chooser."""
        return self.twins[group].run(chooser, ARM)

    def report(
        self, lived: Sequence[pa.Table], latency_us: float | None, seconds: float = 0.0
    ) -> EpochReport:
        """The value on the groups lived through so far; refused where a constraint is violated.

        Args:
            lived: totals of the first groups (`live`), in order.
            latency_us: CPU microseconds of a decision, None where nobody decided.
            seconds: of this step.
        """
        rows = self._rows([*(group.control for group in self.twins[: len(lived)]), *lived])
        use = rows["use_s"]
        gain, low, high = (_percent(use[name]) for name in ("relative", "low", "high"))
        reasons = [*self._lost_pages(rows), *self._too_slow(latency_us)]
        # without an interval no user was touched: nothing is uncertain about that
        goal = use["value"] if self.rank_by == "value" else gain if low is None else low
        ends = [None if end is None else use["control"] * (1 + end / 100) for end in (low, high)]
        return EpochReport(
            epoch=len(lived),
            value=None if reasons else use["value"],
            low=ends[0],
            high=ends[1],
            refused="; ".join(reasons) or None,
            goal=goal,
            gain=gain,
            gain_low=low,
            gain_high=high,
            metrics=self._metrics(rows, latency_us),
            seconds=round(seconds, 4),
        )

    def _rows(self, tables: Sequence[pa.Table]) -> dict[str, dict[str, Any]]:
        """Metric -> its row of the analysis, of the trial's arm."""
        found = analyse(
            pa.concat_tables(tables),
            self.pages,
            control=CONTROL,
            arms=[CONTROL, ARM],
            aa_days=self.days[0],
            ab_days=self.days[1],
            design="twins",
        )
        return {row["metric"]: row for row in found["metrics"] if row["arm"] == ARM}

    def _lost_pages(self, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        if self.constraints.epef is None:
            return []
        tolerance, said = self.constraints.epef.tolerance, []
        for page in self.pages:
            row = rows[f"epef_{page}"]
            if row["relative"] is not None and row["relative"] < -tolerance:
                said.append(
                    f"EPEF of {page} is {-100 * row['relative']:.2f} % below the logging policy's "
                    f"({row['value']:.4g} against {row['control']:.4g} per user and day), "
                    f"{100 * tolerance:g} % are allowed"
                )
        return said

    def _too_slow(self, latency_us: float | None) -> list[str]:
        budget = self.constraints.latency_us
        if budget is None or latency_us is None or latency_us <= budget:
            return []
        return [f"a decision takes {latency_us:.0f} us of CPU, {budget:g} are allowed"]

    def _metrics(self, rows: Mapping[str, Mapping[str, Any]], latency_us: float | None) -> dict[str, float]:
        found: dict[str, float | None] = {"use_s": rows["use_s"]["value"]}
        for key in (*_CHANGES, *(f"epef_{page}" for page in self.pages)):
            found[f"{key}_change"] = _percent(rows[key]["relative"])
        found |= {f"to_{page}": rows[f"assigned_{page}"]["value"] for page in self.pages}
        found["latency_us"] = latency_us
        return {key: float(v) for key, v in found.items() if v is not None and np.isfinite(v)}


def _renamed(control: pa.Table) -> pa.Table:
    column = control.schema.get_field_index("arm")
    return control.set_column(column, "arm", pa.array([ARM] * len(control)))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
