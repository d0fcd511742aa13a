"""What the features of a bucket are made from besides the entries themselves: its past sessions and its profiles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.storage import read_parquet
from plpm_ray.data.contract import DAY_MS, MINUTE_MS, Warehouse
from plpm_ray.data.day_inputs import DayInputs
from plpm_ray.data.day_table import DayEntry
from plpm_ray.data.features.batch import batch_features
from plpm_ray.data.features.sessions import SESSION_INPUTS, EntryArrays, SessionArrays, user_codes


@dataclass(frozen=True)
class History:
    """Sessions of one day and bucket: user ids and arrays, in stored order (user, entry, session)."""

    users: pa.Array
    sessions: SessionArrays

    @classmethod
    def of(cls, table: pa.Table) -> History:
        """Stored sessions; needs the columns user_id and SESSION_INPUTS."""
        return cls(table["user_id"].combine_chunks(), SessionArrays.from_table(table))

    @classmethod
    def read(cls, path: Path, oldest_exit_day: int) -> History:
        """The sessions of a file that ended on this local day or later.

        Raises:
            DataError: the file is missing or damaged.
        """
        found = cls.of(read_parquet(path, ["user_id", *SESSION_INPUTS]))
        matters = found.sessions.exit_day >= oldest_exit_day
        if matters.all():
            return found
        return cls(found.users.filter(pa.array(matters)), found.sessions.take(matters))


@dataclass(frozen=True)
class Midnight:
    """The local midnight that begins a day, and what is known at it: sessions that entered on earlier days.

    Attributes:
        day: days since 1970-01-01.
        sources: session days that can matter, with the generation that counts.
        oldest_exit_day: sessions that ended on an earlier local day are forgotten.
    """

    day: int
    sources: Mapping[int, DayEntry]
    oldest_exit_day: int

    @classmethod
    def of(cls, day: int, inputs: DayInputs, sessions: Mapping[int, DayEntry]) -> Midnight:
        """The midnight of a day; `sessions` are the committed days of the warehouse."""
        sources = {source: sessions[source] for source in inputs.of(day) if source < day}
        return cls(day, sources, inputs.oldest_exit_day(day))

    @property
    def generations(self) -> list[list[int | str]]:
        """What the features depend on, for fingerprints."""
        return [[day, entry.gen] for day, entry in self.sources.items()]

    def features(
        self,
        warehouse: Warehouse,
        bucket: int,
        users: pa.Array,
        profiles: pa.Table | None,
        known: dict[int, History] | None = None,
    ) -> RawFeatures:
        """Features of B distinct users of a bucket at this midnight of their local time; the context is missing.

        Local time is that of a user's last session before. Where there is none no feature depends on it.

        Args:
            warehouse: its sessions.
            bucket: of the users.
            users: (B,) ids.
            profiles: of the bucket, as `read_profiles` gives them.
            known: histories read for an earlier midnight; replaced by those of this one.
        """
        histories = self._histories(warehouse, bucket, {} if known is None else known)
        *codes, wanted = user_codes(*(h.users for h in histories.values()), users)
        offset = np.zeros(int(max((c.max(initial=-1) for c in (*codes, wanted)), default=-1)) + 1, np.int64)
        for mine, history in zip(codes, histories.values(), strict=True):
            offset[mine] = history.sessions.utc_offset_min  # days and entries ascend: the last one stays
        own = offset[wanted]
        sessions = [h.sessions for h in histories.values()]
        return batch_features(
            np.concatenate(codes) if codes else np.zeros(0, dtype=np.int64),
            SessionArrays.concat(sessions) if sessions else no_sessions(),
            wanted,
            EntryArrays(self.day * DAY_MS - own * MINUTE_MS, own),
            warehouse.info.features,
            profile=None if profiles is None else joined_profiles(profiles, users),
        )

    def _histories(self, warehouse: Warehouse, bucket: int, known: dict[int, History]) -> dict[int, History]:
        for day in known.keys() - self.sources.keys():
            del known[day]
        for day, entry in self.sources.items():
            if day not in known and entry.rows.get(bucket):
                path = warehouse.sessions.path(day, entry.gen, bucket)
                known[day] = History.read(path, self.oldest_exit_day)
        return {day: known[day] for day in sorted(known)}


def no_sessions() -> SessionArrays:
    """Arrays of no session at all."""
    nothing, small = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int16)
    return SessionArrays(
        key=nothing,
        entry_ms=nothing,
        exit_ms=nothing,
        utc_offset_min=nothing,
        landing=small,
        exit_page=small,
        use_ms=nothing,
        landing_dwell_ms=nothing,
        switches=nothing,
        views=nothing,
        page_start=np.zeros(1, dtype=np.int64),
        pages=small,
        dwell_ms=nothing,
        visit_views=nothing.astype(np.int32),
    )


def read_profiles(warehouse: Warehouse, bucket: int) -> pa.Table | None:
    """Profiles of a bucket; None where the dataset has none.

    Raises:
        DataError: the file is damaged or holds null user ids.
    """
    path = warehouse.users_file(bucket)
    if not warehouse.info.profile or not path.exists():
        return None
    profiles = read_parquet(path, ["user_id", *warehouse.info.profile])
    if profiles["user_id"].null_count:
        raise DataError(f"{path} holds null user ids", hint="ingest the profiles again")
    return profiles


def joined_profiles(profiles: pa.Table, users: pa.Array | pa.ChunkedArray) -> dict[str, pa.Array]:
    """Profile columns of each of the given users, null for those without a profile."""
    known, codes = user_codes(profiles["user_id"], users)
    row = np.full(max(known.max(initial=-1), codes.max(initial=-1)) + 1, -1, dtype=np.int64)
    row[known] = np.arange(len(known))
    found = row[codes]
    at = pa.array(found, mask=found < 0)
    return {
        name: profiles[name].combine_chunks().take(at) for name in profiles.column_names if name != "user_id"
    }


def profile_fingerprint(warehouse: Warehouse) -> str:
    """Hash of the profile files' content, so that writing the same profiles again changes nothing."""
    if not warehouse.info.profile:
        return ""
    digest = hashlib.sha256()
    for bucket in range(warehouse.info.n_buckets):
        path = warehouse.users_file(bucket)
        if path.exists():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        digest.update(b"|")
    return digest.hexdigest()
