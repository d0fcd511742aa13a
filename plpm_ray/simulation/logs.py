"""Sessions of a simulation as canonical tables (`plpm_ray.data.contract`), page names written out, and their hash.

Letters: B sessions of one batch, n of the whole log, V page visits of the log, U users, K pages, P positions in a session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from plpm_ray.data.contract import TIMESTAMP
from plpm_ray.data.normalise import contiguous
from plpm_ray.simulation.online import context_columns
from plpm_ray.simulation.simulation import Sessions
from plpm_ray.simulation.world import World

Labels = Callable[[Sessions], tuple[np.ndarray, np.ndarray]]
_VISIT = {"page": np.int8, "dwell_s": np.float32, "views": np.int32, "watch_s": np.float32}


class SessionLog:
    """A sink that keeps what is logged of sessions, some 80 bytes each, and puts them in the order of users and times.

    Args:
        world: the world.
        users: U, users of the simulation.
        policies: names of what chose the pages.
        arms: names of the arms of a trial.
        labels: gives the positions in `policies` and in `arms` of B sessions, (B,) integers, -1 for no arm; by default
            the first policy and no arm.
    """

    def __init__(
        self,
        world: World,
        users: int,
        policies: Sequence[str],
        arms: Sequence[str] = (),
        labels: Labels | None = None,
    ) -> None:
        self.world, self.policies, self.arms, self._labels = world, tuple(policies), tuple(arms), labels
        self._count = np.zeros(users, dtype=np.int64)
        self._sessions: dict[str, list[np.ndarray]] = {}
        self._visits: dict[str, list[np.ndarray]] = {}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def __call__(self, sessions: Sessions) -> None:
        entries, rows, b = sessions.entries, sessions.entries.rows, len(sessions)
        policy, arm = np.zeros(b, dtype=np.int8), np.full(b, -1, dtype=np.int8)
        if self._labels is not None:
            policy, arm = self._labels(sessions)
        row = {
            "user": rows.astype(np.int32),
            # a user has one session in a batch, and batches come in the order of time
            "nth": self._count[rows].astype(np.int32),
            "user_id": entries.user_id,
            "session_id": sessions.session_id,
            "entry_ms": entries.entry_ms,
            "exit_ms": sessions.exit_ms,
            "utc_offset_min": entries.utc_offset_min.astype(np.int16),
            "landing": sessions.landing.astype(np.int8),
            "count": sessions.count.astype(np.int8),
            "propensity": sessions.propensity,
            "policy": policy.astype(np.int8),
            "arm": arm.astype(np.int8),
            "live": entries.live_followed.astype(np.int8),
            "push": entries.push.astype(np.int8),
        }
        _append(self._sessions, row)
        self._add_visits(sessions)
        self._count[rows] += 1
        self._n += b

    def _add_visits(self, sessions: Sessions) -> None:
        pages_PB, dwell_PB = sessions.walk.pages_PB, sessions.walk.dwell_ms_PB
        views_PB, watch_PB = sessions.video_views(self.world), sessions.watch_ms(self.world)
        for position in range(len(pages_PB)):
            on = np.flatnonzero(pages_PB[position] >= 0)
            if not len(on):
                return
            values = {
                "session": (on + self._n).astype(np.int32),
                "position": np.full(len(on), position, dtype=np.int8),
                "page": pages_PB[position, on],
                "dwell_s": dwell_PB[position, on] / 1000,
                "views": views_PB[position, on],
                "watch_s": watch_PB[position, on] / 1000,
            }
            _append(self._visits, {k: v.astype(_VISIT.get(k, v.dtype)) for k, v in values.items()})

    def table(self) -> pa.Table:
        """(n,) canonical sessions with the context columns, sorted by user and time; the log is empty afterwards."""
        starts = np.concatenate([[0], np.cumsum(self._count)])
        place = starts[self._take("user", np.int32)] + self._take("nth", np.int32)

        def ordered(name: str, kind: type) -> np.ndarray:
            return _scattered(self._take(name, kind), place)

        names = pa.array(self.world.pages.names)
        columns = {name: pa.array(ordered(name, np.int64)) for name in ("user_id", "session_id")}
        columns["entry_time"] = pa.array(ordered("entry_ms", np.int64)).view(TIMESTAMP)
        columns["exit_time"] = pa.array(ordered("exit_ms", np.int64)).view(TIMESTAMP)
        columns["utc_offset_min"] = pa.array(ordered("utc_offset_min", np.int16))
        columns["landing_page"] = names.take(pa.array(ordered("landing", np.int8)))
        columns |= self._lists(place, self._take("count", np.int8), names)
        columns["policy"] = pa.array(self.policies, pa.string()).take(pa.array(ordered("policy", np.int8)))
        columns["propensity"] = pa.array(ordered("propensity", np.float64), from_pandas=True)
        arm = ordered("arm", np.int8)
        columns["experiment_arm"] = pa.array(self.arms, pa.string()).take(pa.array(arm, mask=arm < 0))
        live = ordered("live", np.int8).astype(np.int64)
        columns |= context_columns(self.world, live, ordered("push", np.int8))
        self._count[:], self._n = 0, 0
        return pa.table(columns)

    def _lists(self, place: np.ndarray, count: np.ndarray, names: pa.Array) -> dict[str, pa.Array]:
        starts = np.zeros(len(place) + 1, dtype=np.int64)
        np.cumsum(_scattered(count, place), out=starts[1:])
        offsets = pa.array(starts.astype(np.int32))
        session = self._take("session", np.int32, visits=True)
        visit = starts[place[session]] + self._take("position", np.int8, visits=True)
        flat = {k: _scattered(self._take(k, kind, visits=True), visit) for k, kind in _VISIT.items()}
        pages = names.take(pa.array(flat["page"]))
        values = {
            "pages": pages,
            "dwell_s": flat["dwell_s"],
            "video_views": flat["views"],
            "watch_s": flat["watch_s"],
        }
        return {
            k: pa.ListArray.from_arrays(offsets, v if k == "pages" else pa.array(v))
            for k, v in values.items()
        }

    def _take(self, name: str, kind: type, visits: bool = False) -> np.ndarray:
        """One column of all batches, which the log then forgets."""
        parts = (self._visits if visits else self._sessions).pop(name, [])
        return np.concatenate(parts) if parts else np.empty(0, dtype=kind)


def _append(kept: dict, values: dict) -> None:
    for name, value in values.items():
        kept.setdefault(name, []).append(value)


def _scattered(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    out = np.empty_like(values)
    out[place] = values
    return out


def content_hash(table: pa.Table) -> str:
    """Hash of names, types and values of a table: the same whatever its chunks, buffers or file are like."""
    digest = hashlib.blake2b(digest_size=16)
    for name in table.column_names:
        array = contiguous(table[name])
        digest.update(f"{name}:{_kind(array.type)}:{len(array)};".encode())
        _hash(digest, array)
    return digest.hexdigest()


def _kind(kind: pa.DataType) -> str:
    # the name of a list's element is no content: Parquet writers and readers have their own
    return f"list<{_kind(kind.value_type)}>" if pa.types.is_list(kind) else str(kind)


def _hash(digest: hashlib.blake2b, array: pa.Array) -> None:
    kind = array.type
    if array.null_count:
        digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).data)
    if len(array) == 0:
        return
    if pa.types.is_list(kind):
        digest.update(array.value_lengths().fill_null(0).to_numpy().data)
        _hash(digest, contiguous(array.flatten()))
    elif pa.types.is_string(kind):
        array = array.fill_null("") if array.null_count else array
        offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[
            array.offset : array.offset + len(array) + 1
        ]
        digest.update(np.diff(offsets).data)
        text = array.buffers()[2]
        if text is not None:
            digest.update(memoryview(text)[offsets[0] : offsets[-1]])
    else:
        plain = array.view(pa.int64()) if pa.types.is_timestamp(kind) else array
        plain = plain.cast(pa.int32()) if pa.types.is_date(kind) else plain
        digest.update(np.ascontiguousarray(plain.fill_null(0).to_numpy(zero_copy_only=False)).data)
