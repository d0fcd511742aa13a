"""Decisions as they are answered over HTTP and written to the log.

Letters: B entries, K pages.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from plpm_ray.core.hashing import splitmix64
from plpm_ray.policies.fallback import REASONS
from plpm_ray.serving.decisions import Decisions
from plpm_ray.serving.requests import EntryRow
from plpm_ray.serving.tables import Entries

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def answers(
    rows: Sequence[EntryRow],
    entries: Entries,
    decisions: Decisions,
    names: Sequence[str],
    labels: tuple[str, str],
    versions: Mapping[str, str],
) -> list[dict[str, Any]]:
    """An answer for each of B rows, with `details` besides: name -> K numbers, or None where the fallback answered.

    Args:
        rows, entries: the requests, and the same as arrays.
        decisions: of these entries.
        names: page names in catalogue order.
        labels: see `Versions.labels`.
        versions: of everything that took part.
    """
    ids = splitmix64(entries.users.hash ^ splitmix64(entries.entry_ms)).tolist()
    columns = (decisions.page, decisions.propensity, decisions.scores, decisions.reason)
    details = {name: values.tolist() for name, values in decisions.details.items()}
    return [
        {
            "user_id": row.user,
            "entry_time": _iso(row.entry_ms),
            "page": names[page],
            "scores": dict(zip(names, scores, strict=True)),
            "propensity": propensity,
            "fallback": REASONS[reason] or None,
            "policy": labels[reason > 0],
            "versions": versions,
            "decision_id": f"{number:016x}",
            "details": None if reason else {name: values[i] for name, values in details.items()},
        }
        for i, (row, number, page, propensity, scores, reason) in enumerate(
            zip(rows, ids, *(column.tolist() for column in columns), strict=True)
        )
    ]


def shown(row: EntryRow, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer as the client gets it: with an explanation by page if it asked for one."""
    details = answer.pop("details")
    if row.explain:
        answer["explanation"] = details and {
            page: {name: values[i] for name, values in details.items()}
            for i, page in enumerate(answer["scores"])
        }
    return answer


def log_row(row: EntryRow, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer as `DecisionLog.decided` takes it."""
    return {
        **answer,
        "entry_ms": row.entry_ms,
        "utc_offset_min": row.offset_min,
        "landing_page": answer["page"],
        "context": row.context,
        "scores": list(answer["scores"].values()),
    }


def _iso(ms: int) -> str:
    return (_EPOCH + dt.timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
