"""Models that say numbers instead of choosing pages, judged on held-out days: what is read, and which kind of model it is.

Which kind a model is follows from its learner: from the rows it learns from (`Learner.grain`) and from what it `says`. A new
learner that says the same of the same rows is judged without a change here.

R held-out rows of all users, K pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.hashing import user_hash
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.data.contract import Warehouse
from plpm_ray.navigators.base import Batch, Grain, Learner
from plpm_ray.navigators.bundle import Bundle
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.evaluate import EVAL_ROWS


@runtime_checkable
class SaysPages(Protocol):
    """A model of sessions that can also tell their seconds page by page."""

    def page_seconds(self, batch: Batch) -> Tensor:
        """(B, K) expected seconds on each page."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of model that says numbers.

    Attributes:
        name: of the kind.
        grain: rows it learns from.
        says: what it must say at least.
        inputs, columns: what judging reads beside what the model reads.
    """

    name: str
    grain: Grain
    says: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def fits(self, learner: type[Learner]) -> bool:
        return learner.grain == self.grain and set(self.says) <= set(learner.says or ())


DAY = Kind("day", "day", ("use_s",), ("days",), ("use_s", "sessions"))
SESSION = Kind("session", "session", ("reward", "drop_off"), (), ("use_s", "page_dwell_s", "landing_dwell_s"))
KINDS = (DAY, SESSION)


def kind_of(learner: type[Learner]) -> Kind | None:
    """The kind of a learner; None where there is nothing here to judge it by."""
    return next((kind for kind in KINDS if kind.fits(learner)), None)


def judged_in(bundle: Bundle) -> dict[str, Bundle]:
    """Role -> the models of some kind in a bundle: itself under "", or the parts of a navigator."""
    load_plugins(bundle.plugins)
    places = {"": bundle} | bundle.parts
    return {
        role: part
        for role, part in places.items()
        if part.kind == "learner" and kind_of(lookup("learner", part.name)) is not None
    }


@dataclass(frozen=True)
class HeldOut:
    """What a model said of R held-out rows, and what came.

    Attributes:
        said: (R, n) float64, as the learner `says`.
        names: of its columns.
        columns: name -> (R, ...) what came, and the days before.
        metrics: name -> (R,) float64, what the learner measures of itself.
        page_s: (R, K) foretold seconds of the pages; None where the model does not tell them.
        user: (R,) int64; day: (R,) int64 days since 1970-01-01.
    """

    said: np.ndarray
    names: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    metrics: Mapping[str, np.ndarray]
    page_s: np.ndarray | None
    user: np.ndarray
    day: np.ndarray

    def __len__(self) -> int:
        return len(self.said)

    def of(self, name: str) -> np.ndarray:
        """(R,) what the model said under that name."""
        return self.said[:, self.names.index(name)]

    @property
    def users(self) -> int:
        return len(np.unique(self.user))

    @property
    def weekday(self) -> np.ndarray:
        """(R,) 0 on Mondays."""
        return (self.day + 3) % 7


def held_out(
    learner: Learner, kind: Kind, warehouse: Warehouse, spec: FeatureSpec, days: Sequence[int]
) -> HeldOut:
    """Asks a model about all rows of some days, a bucket at a time.

    Raises:
        DataError: there are no rows on those days.
    """
    needs = Needs.of(type(learner), learner.config)
    needs = replace(
        needs, inputs=_union(needs.inputs, kind.inputs), columns=_union(needs.columns, kind.columns)
    )
    source = TableSource(warehouse.root, tuple(days), spec, needs)
    kept: dict[str, list[np.ndarray]] = {}
    for part in source.parts():
        user, day = _who_and_when(source, part.bucket)
        found: dict[str, list[np.ndarray]] = {}
        for batch in source.load([part]).ordered(EVAL_ROWS):
            _collect(found, learner, kind, batch)
        for name, values in (*found.items(), ("user", [user]), ("day", [day])):
            kept.setdefault(name, []).extend(values)
    joined = {name: np.concatenate(values) for name, values in kept.items()}
    return HeldOut(
        said=joined["said"],
        names=tuple(type(learner).says or ()),
        columns={n.removeprefix("column."): v for n, v in joined.items() if n.startswith("column.")},
        metrics={n.removeprefix("metric."): v for n, v in joined.items() if n.startswith("metric.")},
        page_s=joined.get("page_s"),
        user=joined["user"],
        day=joined["day"],
    )


def _union(own: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*own, *more)))


@torch.inference_mode()
def _collect(found: dict[str, list[np.ndarray]], learner: Learner, kind: Kind, batch: Batch) -> None:
    values: dict[str, Tensor] = {"said": learner.scores(batch).double()}
    values |= {f"column.{name}": batch[name] for name in (*kind.inputs, *kind.columns)}
    values |= {f"metric.{name}": metric.double() for name, metric in learner.metrics(batch).items()}
    if isinstance(learner, SaysPages):
        values["page_s"] = learner.page_seconds(batch).double()
    for name, tensor in values.items():
        found.setdefault(name, []).append(tensor.numpy())


def _who_and_when(source: TableSource, bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """(R,) users and (R,) days of a bucket, in the order in which its rows are read."""
    entries, table = source.table.entries(), source.table.read(bucket, source.days, ["user_id"])
    assert table is not None
    days = [d for d in sorted(set(source.days)) if d in entries]
    day = np.repeat(days, [entries[d].rows.get(bucket, 0) for d in days])
    return user_hash(table["user_id"]).view(np.int64), day
