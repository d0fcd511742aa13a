"""Held-out days lived again, entry by entry, for navigators that keep a state of the day or read the days before it.

The n-th entries of many days are asked at once, each with the state that the logged sessions before it have led to; then
`observe` is told what the log says came of them. So a policy is judged as what it is, a function of the day so far as it was
logged. Where sessions do not overlap, that is what `plpm decide` finds on the same log; a session that had not ended when the
next one began counts for that one here, and only later there.

A day of the state does not go back: the entries of a user whose local day does (a traveller, a clock put back over midnight)
belong to the later day that had begun, here as in serving. In the tables, and so for what is learned from trajectories and for
estimates per user-day, a session is of its own local day. And only the days that are judged are lived: where a user's days go
back over the first or the last of them, what lies on the other side is not known here.

Letters: N decisions, E user-days, B rows, K pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import ConfigError
from plpm_ray.core.feature_columns import unpack
from plpm_ray.core.features import DAYS_COLUMN, HISTORY_DAYS, RawFeatures
from plpm_ray.data.contract import Warehouse, outdated
from plpm_ray.data.features.sessions import time_ms
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
        day_of: (N,) position of the user-day on which each decision is lived; no decision may be left for a user-day.
        order: (N,) the decisions by user-day, those of each in the order of their entries.
    """

    outcome: Mapping[str, np.ndarray]
    days: np.ndarray
    day_of: np.ndarray
    order: np.ndarray


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
        DataError: the tables were built by another version.
    """
    columns = ["user_id", "entry_time", *_SCALARS, *_BY_PAGE]
    sessions = _read(held_out_tables(warehouse, warehouse.transitions, days, max_rows, columns))
    firsts = _read(held_out_tables(warehouse, warehouse.user_days, days, max_rows, ["user_id", DAYS_COLUMN]))
    begins = np.ones(len(held_out), dtype=bool)
    begins[1:] = held_out.episode[1:] != held_out.episode[:-1]
    first_users = sessions["user_id"].filter(pa.array(begins)) if len(sessions) == len(held_out) else None
    if first_users is None or not first_users.equals(firsts["user_id"]):
        raise outdated(warehouse.root, "its user-days are not those of its sessions")
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
    day_of, order = _lived_on(held_out.user, time_ms(sessions["entry_time"]), np.cumsum(begins) - 1)
    return LoggedDays(outcome, before, day_of, order)


def _lived_on(user: np.ndarray, entry_ms: np.ndarray, day_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`LoggedDays.day_of` and `order` of sessions in table order, whose user-days ascend with the days of each user."""
    by_entry = np.lexsort((entry_ms, user))
    theirs, of = user[by_entry], day_of[by_entry]
    rank = np.cumsum(np.append(False, theirs[1:] != theirs[:-1])) * (int(day_of.max(initial=0)) + 1)
    lived = np.empty_like(day_of)
    lived[by_entry] = np.maximum.accumulate(of + rank) - rank
    return lived, np.lexsort((entry_ms, lived))


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
        left = int(np.count_nonzero(lengths[days]))
        for n in range(int(lengths[days[0]])):
            rows = logged.order[starts[days[:left]] + n]
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
