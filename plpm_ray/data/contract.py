"""The canonical tables as Arrow schemas, and the warehouse folder that holds them.

Stored sessions keep `landing_page` and `pages` as int16 positions in the catalogue; what a user hands in may use page
names, aliases or positions of the catalogue (see `plpm_ray.data.validate`). One row is one session, from app entry to exit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from plpm_ray.core.errors import DataError, StorageError
from plpm_ray.core.features import ColumnKind, FeatureSchema
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.storage import read_json, write_json
from plpm_ray.data.day_table import DayTable, day_name

TIMESTAMP = pa.timestamp("ms", tz="UTC")
DAY_MS = 86_400_000
MINUTE_MS = 60_000
IdType = Literal["int64", "string"]

SESSION_COLUMNS = (
    "user_id",
    "session_id",
    "entry_time",
    "exit_time",
    "utc_offset_min",
    "landing_page",
    "pages",
    "dwell_s",
    "video_views",
    "watch_s",
    "policy",
    "propensity",
    "experiment_arm",
)
REQUIRED_COLUMNS = ("user_id", "session_id", "entry_time", "exit_time", "landing_page", "pages", "dwell_s")
ENTRY_COLUMNS = ("user_id", "entry_time", "utc_offset_min")


@dataclass(frozen=True)
class DatasetInfo:
    """What a warehouse holds: written once at the first ingest, read by everything after it.

    Attributes:
        name: dataset name, for reports.
        pages: the page catalogue.
        context: context column -> kind ("numeric" or "categorical"), known at entry.
        profile: profile column -> kind.
        user_id, session_id: "int64" or "string".
        n_buckets: users are hashed into this many buckets, once.
        propensity_known: whether the logs of the first ingest had a column of propensities. Later ones may differ in
            it: what counts is each row's own propensity.
        history: whether there are sessions; False where the data set is a table of a trial's users, whose pages are the
            arms beside the control, and whose features are the profile columns.
    """

    name: str
    pages: PageCatalogue
    context: Mapping[str, ColumnKind] = field(default_factory=dict)
    profile: Mapping[str, ColumnKind] = field(default_factory=dict)
    user_id: IdType = "int64"
    session_id: IdType = "int64"
    n_buckets: int = 8
    propensity_known: bool = field(default=False, compare=False)
    history: bool = True

    @property
    def features(self) -> FeatureSchema:
        return FeatureSchema(self.pages.names, dict(self.context), dict(self.profile), self.history)

    @property
    def sessions_schema(self) -> pa.Schema:
        """Arrow schema of stored sessions."""
        ids = {"int64": pa.int64(), "string": pa.string()}
        return pa.schema(
            [
                pa.field("user_id", ids[self.user_id], nullable=False),
                pa.field("session_id", ids[self.session_id], nullable=False),
                pa.field("entry_time", TIMESTAMP, nullable=False),
                pa.field("exit_time", TIMESTAMP, nullable=False),
                pa.field("utc_offset_min", pa.int16(), nullable=False),
                pa.field("landing_page", pa.int16(), nullable=False),
                pa.field("pages", pa.list_(pa.int16()), nullable=False),
                pa.field("dwell_s", pa.list_(pa.float32()), nullable=False),
                pa.field("video_views", pa.list_(pa.int32())),
                pa.field("watch_s", pa.list_(pa.float32())),
                pa.field("policy", pa.string()),
                pa.field("propensity", pa.float64()),
                pa.field("experiment_arm", pa.string()),
                *(pa.field(name, column_type(kind)) for name, kind in self.context.items()),
            ]
        )

    @property
    def users_schema(self) -> pa.Schema:
        """Arrow schema of stored user profiles."""
        user = pa.int64() if self.user_id == "int64" else pa.string()
        columns = [pa.field(name, column_type(kind)) for name, kind in self.profile.items()]
        return pa.schema([pa.field("user_id", user, nullable=False), *columns])

    @property
    def assignments_schema(self) -> pa.Schema:
        """Arrow schema of stored assignments to the arms of a trial; arm null is the control, both days are in it."""
        return pa.schema(
            [
                pa.field("user_id", pa.int64() if self.user_id == "int64" else pa.string(), nullable=False),
                pa.field("arm", pa.string()),
                pa.field("start_day", pa.date32(), nullable=False),
                pa.field("end_day", pa.date32(), nullable=False),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        extra = {} if self.history else {"history": False}
        return {
            "format": 1,
            "name": self.name,
            "pages": self.pages.model_dump(mode="json"),
            "context": dict(self.context),
            "profile": dict(self.profile),
            "user_id": self.user_id,
            "session_id": self.session_id,
            "n_buckets": self.n_buckets,
            "propensity_known": self.propensity_known,
            **extra,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetInfo:
        fields = {k: v for k, v in data.items() if k not in ("format", "pages")}
        return cls(pages=PageCatalogue.model_validate(data["pages"]), **fields)


def column_type(kind: ColumnKind) -> pa.DataType:
    """Stored Arrow type of a context or profile column."""
    return pa.float32() if kind == "numeric" else pa.string()


class BuiltTable(DayTable):
    """A table that `plpm_ray.data.tables` makes of the sessions. Rows that an older version made are not read."""

    def checked(self, days: Iterable[int] | None = None) -> BuiltTable:
        """The table itself, before the given days (all by default) are read.

        Raises:
            DataError: an older version built some of them.
        """
        root = self.root.parent
        sessions = DayTable(root / "transitions")
        entries = sessions.entries()
        wanted = sorted(entries.keys() if days is None else entries.keys() & set(days))
        for gen, day in {entries[day].gen: day for day in wanted if entries[day].rows}.items():
            try:
                lacking = _lacking(sessions.path(day, gen, min(entries[day].rows)))
            except (pa.ArrowException, OSError):
                continue  # who reads the file says what is wrong with it
            if lacking:
                raise outdated(root, f"its sessions of {day_name(day)} have no column {lacking!r}")
        if self.root != sessions.root and (unbuilt := sorted(set(wanted) - self.entries().keys())):
            raise outdated(root, f"it has no {self.root.name} of {day_name(unbuilt[0])}")
        return self

    def files(self, bucket: int, days: Iterable[int] | None = None) -> list[tuple[int, Path]]:
        """See `DayTable.files`.

        Raises:
            DataError: as in `checked`.
        """
        days = None if days is None else list(days)
        self.checked(days)
        return super().files(bucket, days)


def outdated(root: Path, why: str) -> DataError:
    """The error of readers that find the tables of another version."""
    return DataError(
        f"the tables of {root} are not of this version: {why}", hint="build them again: `plpm data`"
    )


_SINCE = ("page_dwell_s", "page_views", "page_visits")
"""Columns of the sessions' outcomes that the last version before this one did not write."""


@lru_cache(maxsize=4096)  # a file of a generation never changes
def _lacking(path: Path) -> str | None:
    """A column that sessions of this version have and those of the file do not."""
    names = pq.read_schema(path).names
    return next((name for name in _SINCE if name not in names), None)


@dataclass(frozen=True)
class Warehouse:
    """A folder of canonical tables: `manifest.json`, `sessions/`, `transitions/`, `user_days/`, `users/`, `quarantine/`,
    `rewards/<reward model>/` where one has judged the sessions, and `assignments.parquet` and `trial/` where a trial was
    given."""

    root: Path
    info: DatasetInfo

    @classmethod
    def create(cls, root: str | Path, info: DatasetInfo) -> Warehouse:
        """Opens or makes a warehouse.

        Raises:
            StorageError: the folder holds another dataset (other pages, columns or buckets).
        """
        root = Path(root)
        if (root / "manifest.json").exists():
            warehouse = cls.open(root)
            if warehouse.info != info:
                mine, theirs = info.to_dict(), warehouse.info.to_dict()
                differing = [k for k in {**theirs, **mine} if mine.get(k) != theirs.get(k)]
                raise StorageError(
                    f"{root} already holds another dataset (differs in {', '.join(differing)})",
                    hint="give another folder, or remove this one to build it anew",
                )
            return warehouse
        write_json(root / "manifest.json", info.to_dict())
        return cls(root, info)

    @classmethod
    def open(cls, root: str | Path) -> Warehouse:
        """Opens an existing warehouse.

        Raises:
            StorageError: there is none.
        """
        root = Path(root)
        if not (root / "manifest.json").exists():
            raise StorageError(
                f"{root} holds no tables (no manifest.json)",
                hint="run `plpm data` first, or give the right folder",
            )
        return cls(root, DatasetInfo.from_dict(read_json(root / "manifest.json")))

    @property
    def sessions(self) -> DayTable:
        return DayTable(self.root / "sessions")

    @property
    def transitions(self) -> BuiltTable:
        return BuiltTable(self.root / "transitions")

    @property
    def user_days(self) -> BuiltTable:
        """Active local days of users, one row each: user_id, use_s float32 and sessions int16 of the whole day, and the columns
        of `RawFeatures` as of its first entry, the days before (`x_days`) among them."""
        return BuiltTable(self.root / "user_days")

    def rewards(self, name: str) -> DayTable:
        """Rewards of the sessions by one reward model, row for row those of `transitions`: session_id, reward float32."""
        return DayTable(self.root / "rewards" / name)

    @property
    def assignments_file(self) -> Path:
        """Assignments of users to the arms of a trial; absent where none were given."""
        return self.root / "assignments.parquet"

    @property
    def trial(self) -> DayTable:
        """Users of randomised trials, one row each, by the first day of the trial (`plpm_ray.data.trials`): user_id, arm
        int16 (0 control, k the page at position k - 1), response float32, days int16 it was measured on, active_days int16
        (where there are sessions), part int8 (where the data came split), and the columns of `RawFeatures`."""
        return DayTable(self.root / "trial")

    def users_file(self, bucket: int) -> Path:
        """Profile file of a bucket; absent where the dataset has no profiles."""
        return self.root / "users" / f"bucket={bucket:03d}.parquet"
