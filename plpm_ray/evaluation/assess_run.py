"""One model that says numbers, from its bundle to the record of `plpm assess`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plpm_ray.core.errors import BundleError
from plpm_ray.core.stats import TableStats
from plpm_ray.data.contract import Warehouse
from plpm_ray.evaluation.assess import DAY, SESSION, HeldOut, Kind, held_out, kind_of
from plpm_ray.evaluation.assess_days import judge_days
from plpm_ray.evaluation.assess_sessions import judge_sessions
from plpm_ray.navigators.base import Learner
from plpm_ray.navigators.bundle import Bundle

_Judge = Callable[[Learner, HeldOut, Warehouse, TableStats], dict[str, Any]]
_JUDGES: dict[Kind, _Judge] = {
    DAY: lambda learner, rows, warehouse, stats: judge_days(learner, rows, stats.mean_day_use_s),
    SESSION: lambda learner, rows, warehouse, stats: judge_sessions(
        learner, rows, warehouse.info.pages.names
    ),
}


def assess_model(
    label: str, bundle: Bundle, warehouse: Warehouse, days: Sequence[int], stats: TableStats
) -> dict[str, Any]:
    """What is to be said of a model on held-out days, JSON-like.

    Args:
        label: its name in tables.
        bundle: of a learner of some `Kind`.
        days: since 1970-01-01.
        stats: totals of the training window, the same for all models that are compared.

    Returns:
        "label", "kind", "learner", "version", and what `judge_days` or `judge_sessions` found.

    Raises:
        BundleError: the model says nothing that is judged here.
        DataError: there are no rows on those days.
    """
    learner = bundle.learner()
    kind = kind_of(type(learner))
    if kind is None:
        raise BundleError(
            f"{bundle.name!r} says no numbers that are judged here", hint="judge it with `plpm evaluate`"
        )
    rows = held_out(learner, kind, warehouse, bundle.spec, days)
    about = {"label": label, "kind": kind.name, "learner": bundle.name, "version": bundle.version}
    return {**about, **_JUDGES[kind](learner, rows, warehouse, stats)}
