"""What is in a user's record, and how finished sessions change it.

The record is the online state of `plpm_ray.data.features.state`, with a tag that says whose intra-day state it
holds: a navigator never reads the numbers that another one left.

The day of that state is the local day of the entry, but like that of the features it never goes back: who enters on an earlier
local day than the one that has begun (a traveller, a clock put back over midnight) is still in the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from plpm_ray.core.config import config_hash
from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.core.hashing import user_hash
from plpm_ray.data.features import layout
from plpm_ray.data.features.sessions import EntryArrays, SessionArrays
from plpm_ray.data.features.state import features, observe
from plpm_ray.data.stream import pack_rows
from plpm_ray.navigators.base import Navigator
from plpm_ray.serving.store import StateLayout


class Observed(NamedTuple):
    """How many sessions were new, seen before, or too old to be told from a repeat."""

    accepted: int
    duplicate: int
    late: int


_NEW, _REPEATED, _LATE = range(len(Observed._fields))
_TAIL = ["nav_day", "nav", "nav_tag"]


def state_layout(schema: FeatureSchema, state_size: int) -> StateLayout:
    """The record of a dataset's users for a navigator with `state_size` float32 numbers of intra-day state."""
    base = layout.state_dtype(schema, state_size)
    places = [(name, base[name]) for name in base.names or ()]
    # before the state, whose end is blank until a day is long: the bytes of a record end with what is not
    places.insert((base.names or ()).index("nav"), ("nav_tag", np.dtype(np.uint64)))
    dtype = np.dtype(places)
    shared = (base.names or ()).index("nav_day")
    fields = [[name, str(base[name])] for name in (base.names or ())[:shared]]
    name = config_hash([layout.LAYOUT_VERSION, list(schema.pages), fields])
    return StateLayout(dtype, shared, layout.empty_states(dtype, 1), name, dict(schema.profile))


def tag_of(version: str) -> np.uint64:
    """Tag of a navigator's intra-day state."""
    return user_hash(pa.array([version]))[0]


class Observation:
    """M finished sessions on their way into the records of U distinct users.

    Args:
        navigator: whose intra-day state is kept up to date.
        schema: feature schema.
        tag: see `tag_of`.
        sessions: M sessions.
        of: (M,) position of each session's user among the U users.
        n_users: U.
        keep_rows: make a row of a stream of each new session.

    Attributes:
        status: (M,) int8 what became of each session, a position in the fields of Observed; valid after `apply`.
    """

    def __init__(
        self,
        navigator: Navigator,
        schema: FeatureSchema,
        tag: np.uint64,
        sessions: SessionArrays,
        of: np.ndarray,
        n_users: int,
        keep_rows: bool = False,
    ) -> None:
        self.navigator = navigator
        self.schema = schema
        self.tag = tag
        self.sessions = sessions
        self.of = of
        self.n_users = n_users
        self.status = np.full(len(of), _NEW, dtype=np.int8)
        self._again = _repeats(of, sessions.key)
        self._inputs: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None
        self._rows: dict[int, bytes] | None = {} if keep_rows else None  # session -> row; oldest first

    def remember_inputs(self, context: Mapping[str, Any], profiles: Mapping[str, Any]) -> None:
        """Context and profile columns of the M sessions: needed for rows, and for a navigator with intra-day state."""
        self._inputs = (context, profiles)

    def apply(self, records: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> None:
        """Adds the sessions of the users at `positions`, whose records are `records[rows]`, in place: a store's Updater."""
        row_of = np.full(self.n_users, -1, dtype=np.int64)
        row_of[positions] = rows
        at = row_of[self.of]
        mine = np.flatnonzero(at >= 0)
        status = _classify(
            records, at[mine], self.sessions if len(mine) == len(at) else self.sessions.take(mine)
        )
        status[self._again[mine]] = _REPEATED
        self.status[mine] = status
        if self._rows is not None:
            self._rows = {}
        new = mine[status == _NEW]
        if not len(new):
            return
        sessions = self.sessions if len(new) == len(at) else self.sessions.take(new)
        if self._inputs is None:
            observe(records, at[new], sessions)
        else:
            self._apply_in_turn(records, at[new], new, sessions)

    def rows(self, positions: np.ndarray) -> list[list[bytes]]:
        """Rows of the new sessions of the users at `positions`, oldest first: those of the last call of `apply`, which was
        for the same users."""
        made: dict[int, list[bytes]] = {position: [] for position in positions.tolist()}
        for session, row in (self._rows or {}).items():
            made[int(self.of[session])].append(row)
        return list(made.values())

    def _apply_in_turn(
        self, records: np.ndarray, at: np.ndarray, index: np.ndarray, sessions: SessionArrays
    ) -> None:
        """The n-th new session of every user at once, in the order in which they ended: the navigator sees the state as it was
        when the session began.

        Where only its state is wanted, that begins with the first session of each user's last local day, where the state
        begins anew; what ended before it only goes into the history.
        """
        order = np.lexsort((sessions.key, sessions.entry_ms, sessions.exit_ms, at))
        at, index, sessions = at[order], index[order], sessions.take(order)
        if self._rows is None:
            held = np.where(records["nav_tag"][at] == self.tag, records["nav_day"][at], layout.NO_DAY)
            asked = _asked(at, EntryArrays(sessions.entry_ms, sessions.utc_offset_min).local_day, held)
            before, after = np.flatnonzero(~asked), np.flatnonzero(asked)
            observe(records, at[before], sessions.take(before))
            at, index, sessions = at[after], index[after], sessions.take(after)
        turn = np.arange(len(at)) - np.searchsorted(at, at)
        for n in range(int(turn.max()) + 1):
            now = np.flatnonzero(turn == n)
            self._session_begins(records, at[now], index[now], sessions.take(now))
            observe(records, at[now], sessions.take(now))

    def _session_begins(
        self, records: np.ndarray, at: np.ndarray, index: np.ndarray, sessions: SessionArrays
    ) -> None:
        assert self._inputs is not None
        context, profiles = ({name: _at(v, index) for name, v in columns.items()} for columns in self._inputs)
        entries = EntryArrays(sessions.entry_ms, sessions.utc_offset_min)
        asked = self.navigator.reads_days
        raw = features(records[at], entries, self.schema, context, profiles, days=asked)
        outcome = _outcome(sessions)
        if self._rows is not None:
            self._rows.update(zip(index.tolist(), pack_rows(raw, outcome), strict=True))
        if self.navigator.state_size:
            outcome |= sessions.page_outcomes(len(self.schema.pages))
            self._day_goes_on(records, at, state_day(records, entries, self.tag, at), raw, outcome)

    def _day_goes_on(
        self,
        records: np.ndarray,
        at: np.ndarray,
        day: np.ndarray,
        raw: RawFeatures,
        outcome: Mapping[str, np.ndarray],
    ) -> None:
        """The navigator's intra-day state after sessions; one of an earlier day than the state's changes nothing."""
        held, mine = records["nav_day"][at], records["nav_tag"][at] == self.tag
        now = np.flatnonzero(~mine | (held <= day))
        if not len(now):
            return
        if len(now) < len(at):
            raw, outcome = raw.take(now), {name: values[now] for name, values in outcome.items()}
        # a record is gathered without its history, of which the features were made already
        before = day_state(records[_TAIL][at[now]], day[now], self.navigator.state_size, self.tag)
        layout.set_nav_state(records, at[now], day[now], self.navigator.observe(before, raw, outcome))
        records["nav_tag"][at[now]] = self.tag


def state_day(
    records: np.ndarray, entries: EntryArrays, tag: np.uint64, at: np.ndarray | None = None
) -> np.ndarray:
    """(B,) int64 day to which entries belong for the navigator with this tag: the local day, or that of the state held where
    this is later and was reached by sessions that had ended. (So it is not where a session comes late, or the clock of
    another was ahead.)

    Args:
        records: (B,) records of the entries' users; or any together with `at`, (B,) positions among them.
    """
    at = np.arange(len(records)) if at is None else at
    day = entries.local_day
    held = records["nav_day"][at].astype(np.int64)
    back = np.flatnonzero((held > day) & (records["nav_tag"][at] == tag))
    if len(back):
        recent = records["recent"][at[back]]
        ended = recent[:, :, layout.EXIT] < entries.entry_ms[back, None]
        reached = np.where(ended, recent[:, :, layout.DAY], layout.NO_DAY).max(axis=1)
        day[back] = np.maximum(day[back], np.minimum(reached, held[back]))
    return day


def day_state(records: np.ndarray, day: np.ndarray, size: int, tag: np.uint64) -> np.ndarray:
    """(B, size) float32 intra-day state of the navigator with this tag, not to be changed: zeros where the last is of another
    day (see `state_day`) or another's."""
    return layout.nav_state(records, day, size, records["nav_tag"] == tag)


def _asked(at: np.ndarray, day: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(m,) bool: sessions that may be of the day that the state is of in the end: from the first one of the user's last local
    day on, or all of them where the state held is of that day or a later one.

    Args:
        at: (m,) users, ascending; each one's sessions stand in the order in which they ended.
        day, held: (m,) local day of the session, and day of the user's state.
    """
    first = np.searchsorted(at, at)
    begins = np.unique(first)
    last = np.maximum.reduceat(day, begins)
    user = np.searchsorted(begins, first)
    opens = np.where((day == last[user]) | (held >= last[user]), np.arange(len(at)), len(at))
    return np.arange(len(at)) >= np.minimum.reduceat(opens, begins)[user]


def _classify(records: np.ndarray, at: np.ndarray, sessions: SessionArrays) -> np.ndarray:
    """(m,) what each session is to the record of its user."""
    kept = records["recent"]
    filled = kept[:, :, layout.TOTALS][at] == 1
    repeated = ((kept[:, :, layout.KEY][at] == sessions.key[:, None]) & filled).any(axis=1)
    exit_ms, entry_ms, key = (kept[:, -1, column][at] for column in (layout.EXIT, layout.ENTRY, layout.KEY))
    same_exit, same_entry = sessions.exit_ms == exit_ms, sessions.entry_ms == entry_ms
    older = sessions.exit_ms < exit_ms
    older |= same_exit & (sessions.entry_ms < entry_ms)
    older |= same_exit & same_entry & (sessions.key < key)
    status = np.where(filled[:, -1] & older, _LATE, _NEW).astype(np.int8)
    status[repeated] = _REPEATED
    return status


def _repeats(of: np.ndarray, key: np.ndarray) -> np.ndarray:
    """(M,) bool: the same user and key stand further up."""
    order = np.lexsort((key, of))
    again = np.zeros(len(of), dtype=bool)
    again[order[1:]] = (of[order[1:]] == of[order[:-1]]) & (key[order[1:]] == key[order[:-1]])
    return again


def _outcome(sessions: SessionArrays) -> dict[str, np.ndarray]:
    return {
        "action": sessions.landing.astype(np.int64),
        "use_s": (sessions.use_ms / 1000).astype(np.float32),
        "landing_dwell_s": (sessions.landing_dwell_ms / 1000).astype(np.float32),
        "switches": sessions.switches,
        "views": sessions.views,
        "entry_ms": sessions.entry_ms,
        "key": sessions.key.view(np.uint64),
    }


def _at(column: Any, rows: np.ndarray) -> Any:
    return column[rows] if isinstance(column, np.ndarray) else column.take(pa.array(rows))
