"""Held-out days lived again, entry by entry, for navigators that keep a state of the day or read the days before it.

The n-th entries of many days are asked at once, each with the state that the logged sessions before it have led to; then
`observe` is told what the log says came of them. So a policy is judged as what it is, a function of the day so far as it was
logged. Where sessions do not overlap, that is what `plpm decide` finds on the same log; a session that had not ended when the
next one began counts for that one here, and only later there.

Letters: N decisions, E user-days, B rows, K pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.feature_columns import unpack
from plpm_ray.core.features import DAYS_COLUMN, HISTORY_DAYS, RawFeatures
from plpm_ray.data.contract import Warehouse
from plpm_ray.evaluation.held_out import Decisions, held_out_tables
from plpm_ray.navigators.base import Navigator

_ROWS = 65_536
_STATE_BYTES = 64 << 20  # of the days that are lived side by side
_SCALARS = ("landing_page", "use_s", "landing_dwell_s", "switches")
_BY_PAGE = ("page_views", "page_visits")


@dataclass(frozen=True)
class LoggedDays:
    """What navigators with a state of the day want to know of held-out decisions, in the decisions' order.

    Attributes:
        outcome: (N, ...) what came of each session, as `Navigator.observe` is told of it.
        days: (E, HISTORY_DAYS, 2) the days before each user-day; see `RawFeatures.days`.
        day_of: (N,) position of each decision's user-day; those of a user-day are neighbours, and the first comes first.
    """

    outcome: Mapping[str, np.ndarray]
    days: np.ndarray
    day_of: np.ndarray


def replayed(navigator: Navigator) -> bool:
    """Whether a navigator wants `LoggedDays`."""
    return bool(navigator.state_size) or navigator.reads_days


def read_logged_days(
    warehouse: Warehouse, days: Sequence[int], held_out: Decisions, max_rows: int | None = None
) -> LoggedDays:
    """What came of held-out decisions, and the days before theirs.

    Args:
        days, held_out, max_rows: of `read_decisions`, and what it gave for them.

    Raises:
        DataError: the tables were built by another version, and lack something.
    """
    columns = ["user_id", *_SCALARS, *_BY_PAGE]
    try:
        sessions = _read(held_out_tables(warehouse, warehouse.transitions, days, max_rows, columns))
        firsts = _read(
            held_out_tables(warehouse, warehouse.user_days, days, max_rows, ["user_id", DAYS_COLUMN])
        )
    except (DataError, pa.ArrowInvalid) as error:
        raise _outdated(warehouse, str(error).splitlines()[0]) from None
    begins = np.ones(len(held_out), dtype=bool)
    begins[1:] = held_out.episode[1:] != held_out.episode[:-1]
    first_users = sessions["user_id"].filter(pa.array(begins)) if len(sessions) == len(held_out) else None
    if first_users is None or not first_users.equals(firsts["user_id"]):
        raise _outdated(warehouse, "its days are not those of its sessions")
    views = unpack(sessions["page_views"])
    outcome = {
        "action": held_out.action,
        "use_s": sessions["use_s"].to_numpy(),
        "landing_dwell_s": sessions["landing_dwell_s"].to_numpy(),
        "switches": sessions["switches"].to_numpy().astype(np.int64),
        "views": np.nansum(views, axis=1).astype(np.int64),
        "page_views": views,
        "page_visits": unpack(sessions["page_visits"]),
    }
    before = unpack(firsts[DAYS_COLUMN]).reshape(-1, HISTORY_DAYS, 2)
    return LoggedDays(outcome, before, np.cumsum(begins) - 1)


def moments(
    navigator: Navigator, decisions: Decisions, logged: LoggedDays | None = None
) -> Iterator[tuple[np.ndarray, RawFeatures, np.ndarray | None]]:
    """Every decision once, as the navigator is to be asked about it.

    Yields:
        (B,) rows, their features, and the (B, state_size) state; None where it keeps none.

    Raises:
        ConfigError: it keeps a state of the day or reads the days before, and `logged` is not given.
    """
    if replayed(navigator) and logged is None:
        raise ConfigError(
            f"{navigator.name} keeps a state of the day or reads the days before it, which these decisions do not hold",
            hint="judge it by `plpm evaluate`, which replays days, or in the world by `plpm simulate`",
        )
    if navigator.state_size:
        assert logged is not None
        yield from _lived(navigator, decisions, logged)
        return
    for start in range(0, len(decisions), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(decisions)))
        yield rows, _features(navigator, decisions, rows, logged), None


def _lived(
    navigator: Navigator, decisions: Decisions, logged: LoggedDays
) -> Iterator[tuple[np.ndarray, RawFeatures, np.ndarray]]:
    lengths = np.bincount(logged.day_of, minlength=len(logged.days))
    starts = np.cumsum(lengths) - lengths
    order = np.argsort(-lengths, kind="stable")  # days of about the same length together
    size = max(1, min(_ROWS, _STATE_BYTES // (4 * navigator.state_size)))
    for at in range(0, len(order), size):
        days = order[at : at + size]
        state = np.zeros((len(days), navigator.state_size), dtype=np.float32)
        left = len(days)
        for n in range(int(lengths[days[0]]) if left else 0):
            rows = starts[days[:left]] + n
            features = _features(navigator, decisions, rows, logged)
            yield rows, features, state[:left]
            # the longest days stand first
            left = int(np.count_nonzero(lengths[days[:left]] > n + 1))
            if not left:
                break
            some = np.arange(left)
            outcome = {name: values[rows[:left]] for name, values in logged.outcome.items()}
            state[:left] = navigator.observe(state[:left], features.take(some), outcome)


def _features(
    navigator: Navigator, decisions: Decisions, rows: np.ndarray, logged: LoggedDays | None
) -> RawFeatures:
    features = decisions.features.take(rows)
    if not navigator.reads_days or logged is None:
        return features
    return replace(features, days=logged.days[logged.day_of[rows]])


def _read(parts: Iterator[tuple[pa.Table, np.ndarray]]) -> pa.Table:
    return pa.concat_tables([part for part, _ in parts]).combine_chunks()


def _outdated(warehouse: Warehouse, why: str) -> DataError:
    return DataError(
        f"the tables of {warehouse.root} do not say what navigators with a state of the day read: {why}",
        hint="build them again: `plpm data`",
    )
