"""Your own logs: Parquet in the canonical form, or with a mapping of columns; see docs/your_logs.md.

Two forms. `sessions`: one row per app session with lists of pages and dwell times. `events`: one row per stay on a page
(user, time, page, duration), made into sessions by a gap. Any column named under `context:` becomes a feature known at
entry, any under `profile:` a feature of the user.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from plpm_ray.core.config import StrictConfig, nearest
from plpm_ray.core.errors import DataError
from plpm_ray.core.features import ColumnKind
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.data.contract import REQUIRED_COLUMNS, DatasetInfo, IdType
from plpm_ray.data.datasets.base import Adapter, Form, Raw, Slice
from plpm_ray.data.datasets.files import parquet_files, parquet_slices, read_parquet_slice
from plpm_ray.data.normalise import DurationUnit, Origin, TimeUnit, id_type
from plpm_ray.data.validate import (
    EVENT_INPUT,
    EVENT_OPTIONAL,
    SESSION_OPTIONAL,
    SHARED_OPTIONAL,
    Reading,
    check_events,
    check_profiles,
    check_sessions,
)

_INPUT: dict[Form, tuple[str, ...]] = {"sessions": REQUIRED_COLUMNS, "events": EVENT_INPUT}
_OPTIONAL: dict[Form, tuple[str, ...]] = {
    "sessions": SESSION_OPTIONAL,
    "events": EVENT_OPTIONAL + SHARED_OPTIONAL,
}
_STAGED = {"time": "time_ms", "duration": "duration_ms"}


class ProfileConfig(StrictConfig):
    """Where the users' profiles lie."""

    path: str = Field(description="Parquet file, folder or pattern, one row per user")
    user_id: str = Field(default="user_id", description="the column with the user's id")
    columns: dict[str, ColumnKind] = Field(
        min_length=1, description="profile columns: numeric or categorical"
    )


class AssignmentsConfig(StrictConfig):
    """Where the assignments of users to the arms of a trial lie."""

    path: str = Field(description="Parquet file, folder or pattern, one row per user and period")
    columns: dict[Literal["user_id", "arm", "start_day", "end_day"], str] = Field(
        default={}, description="user_id, arm, start_day or end_day: your column's name, where they differ"
    )


class CanonicalConfig(StrictConfig):
    """Settings for your own logs."""

    path: str = Field(
        description="Parquet file, folder (searched in depth) or pattern such as logs/day=*/*.parquet"
    )
    pages: PageCatalogue = Field(
        description="the candidate landing pages, 2 to 32, with the values that mean them in the logs"
    )
    form: Form = Field(default="sessions", description="one row per session, or one row per page event")
    title: str = Field(default="own_logs", min_length=1, description="name of the dataset in reports")
    columns: dict[str, str] = Field(
        default={}, description="canonical name: your column's name, where they differ"
    )
    context: dict[str, ColumnKind] = Field(
        default={}, description="further columns known at entry: numeric or categorical"
    )
    profile: ProfileConfig | None = Field(default=None, description="the users' profiles, if there are any")
    assignments: AssignmentsConfig | None = Field(
        default=None, description="arms of a randomised trial by user and period, if there was one"
    )
    time_unit: TimeUnit = Field(default="ms", description="unit of times given as integers since 1970 (UTC)")
    duration_unit: DurationUnit = Field(default="s", description="unit of dwell, watch times and durations")
    utc_offset_min: int = Field(
        default=0, ge=-840, le=840, description="local time where there is no column utc_offset_min"
    )
    gap_minutes: float = Field(
        default=30.0, ge=0, description="events: longest pause within a session, in minutes"
    )
    unique_events: tuple[str, ...] = Field(
        default=EVENT_INPUT,
        description="events: columns in which no two rows may agree (a repeated delivery); [] allows it",
    )

    @model_validator(mode="after")
    def _known(self) -> CanonicalConfig:
        names = {*_INPUT[self.form], *_OPTIONAL[self.form]}
        for name in self.context:
            if name in names:
                raise ValueError(
                    f"context column {name!r} has the name of a canonical column; give it another by `columns:`"
                )
        for name in self.columns:
            if name not in names | set(self.context):
                near = nearest(name, names | set(self.context))
                raise ValueError(
                    f"columns: {name!r} is no canonical column of {self.form} and not under `context:`; {near}"
                )
        return self


@register("dataset", "canonical")
class Canonical(Adapter):
    """Parquet files of canonical sessions or page events."""

    Config = CanonicalConfig
    config: CanonicalConfig

    @property
    def form(self) -> Form:
        return self.config.form

    @property
    def gap_ms(self) -> int:
        return round(self.config.gap_minutes * 60_000)

    @property
    def event_key(self) -> tuple[str, ...]:
        return tuple(_STAGED.get(name, name) for name in self.config.unique_events)

    def info(self, n_buckets: int) -> DatasetInfo:
        _, schemas = self._files
        profile = dict(self.config.profile.columns) if self.config.profile else {}
        return DatasetInfo(
            name=self.config.title,
            pages=self.config.pages,
            context=dict(self.config.context),
            profile=profile,
            user_id=self._id_type("user_id", schemas),
            session_id=self._id_type("session_id", schemas) if self.form == "sessions" else "int64",
            n_buckets=n_buckets,
            propensity_known=all(self._own("propensity") in schema.names for schema in schemas.values()),
        )

    def inputs(self) -> list[Slice]:
        slices, schemas = self._files
        info = self.info(1)
        for path, schema in schemas.items():
            self._check(path, schema, info)
        if self.form == "events":
            self._check_summed(schemas)
        return slices

    def read(self, item: Slice) -> Raw:
        _, schema = parquet_slices([Path(item.path)])
        own = read_parquet_slice(item, list(dict.fromkeys(self._wanted(schema[item.path]).values())))
        return Raw(self._renamed(own), original=own)

    def profile_inputs(self) -> list[Slice]:
        if self.config.profile is None:
            return []
        slices, schemas = parquet_slices(parquet_files(self.config.profile.path))
        reading = Reading(self.info(1))
        for path, schema in schemas.items():
            table = self._renamed_profile(schema.empty_table())
            check_profiles(table, reading, Origin(path, {"user_id": self.config.profile.user_id}))
        return slices

    def read_profile(self, item: Slice) -> Raw:
        assert self.config.profile is not None
        own = read_parquet_slice(
            item, list(dict.fromkeys([self.config.profile.user_id, *self.config.profile.columns]))
        )
        return Raw(self._renamed_profile(own), original=own)

    def assignment_inputs(self) -> list[Slice]:
        if self.config.assignments is None:
            return []
        slices, schemas = parquet_slices(parquet_files(self.config.assignments.path))
        for path, schema in schemas.items():
            own, origin = self._assignment_columns, self.assignment_origin(Slice(path))
            for name, column in own.items():
                if column not in schema.names:
                    raise origin.missing(name, schema.names)
        return slices

    def read_assignments(self, item: Slice) -> Raw:
        own = read_parquet_slice(item, list(dict.fromkeys(self._assignment_columns.values())))
        names = self._assignment_columns.items()
        return Raw(pa.table({name: own[column] for name, column in names}), original=own)

    def assignment_origin(self, item: Slice) -> Origin:
        return Origin(item.path, self._assignment_columns)

    @property
    def _assignment_columns(self) -> dict[str, str]:
        assert self.config.assignments is not None
        given: dict[str, str] = {**self.config.assignments.columns}
        return {n: given.get(n, n) for n in ("user_id", "arm", "start_day", "end_day")}

    def reading(self, info: DatasetInfo) -> Reading:
        return Reading(info, self.config.time_unit, self.config.duration_unit, self.config.utc_offset_min)

    def origin(self, item: Slice) -> Origin:
        return Origin(item.path, self.config.columns)

    @cached_property
    def _files(self) -> tuple[list[Slice], dict[str, pa.Schema]]:
        """Slices and schemas of the logs; files of profiles and assignments are left out where they lie in the same folder."""
        files = parquet_files(self.config.path)
        for other in (self.config.profile, self.config.assignments):
            if other is not None:
                taken = set(parquet_files(other.path))
                files = [file for file in files if file not in taken]
        slices, schemas = parquet_slices(files)
        if not slices:
            raise DataError(f"the Parquet files at {self.config.path!r} hold no rows", hint="check the path")
        return slices, schemas

    def _own(self, name: str) -> str:
        return self.config.columns.get(name, name)

    def _wanted(self, schema: pa.Schema) -> dict[str, str]:
        """Canonical -> own name of every column to read; what is mapped or required may be absent (an error later)."""
        optional = [
            n for n in _OPTIONAL[self.form] if self._own(n) in schema.names or n in self.config.columns
        ]
        keys = self.config.unique_events if self.form == "events" else ()
        return {n: self._own(n) for n in (*_INPUT[self.form], *optional, *self.config.context, *keys)}

    def _check(self, path: str, schema: pa.Schema, info: DatasetInfo) -> None:
        """Refuses missing columns and unreadable types before any row is read.

        Raises:
            DataError: names file and column.
        """
        origin = Origin(path, self.config.columns)
        for name, own in self._wanted(schema).items():
            if own not in schema.names:
                raise origin.missing(name, schema.names)
        empty = self._renamed(schema.empty_table())
        if self.form == "events":
            check_events(empty, self.reading(info), origin, self.event_key)
        else:
            check_sessions(empty, self.reading(info), origin)

    def _check_summed(self, schemas: dict[str, pa.Schema]) -> None:
        """Refuses events of which only some files have views or watch time: sums over a session would be too small."""
        for name in EVENT_OPTIONAL:
            have = [path for path, schema in schemas.items() if self._own(name) in schema.names]
            lack = [path for path in schemas if path not in have]
            if have and lack:
                raise DataError(
                    f"{lack[0]} has no {Origin(lack[0], self.config.columns).column(name)}, which {have[0]} has",
                    hint="write it in all files or in none; it is added up over a session",
                )

    def _renamed(self, own: pa.Table) -> pa.Table:
        return pa.table({name: own[column] for name, column in self._wanted(own.schema).items()})

    def _renamed_profile(self, own: pa.Table) -> pa.Table:
        assert self.config.profile is not None
        names = {
            "user_id": self.config.profile.user_id,
            **{name: name for name in self.config.profile.columns},
        }
        return pa.table({name: own[column] for name, column in names.items() if column in own.column_names})

    def _id_type(self, name: str, schemas: dict[str, pa.Schema]) -> IdType:
        path, schema = next(iter(schemas.items()))
        origin = Origin(path, self.config.columns)
        if self._own(name) not in schema.names:
            raise origin.missing(name, schema.names)
        kind: Any = schema.field(self._own(name)).type
        found = id_type(kind)
        if found is None:
            hint = "pandas turns integers with gaps into floats; use its Int64 type, or strings"
            raise origin.wrong_type(
                name, kind, "integers or strings", hint if pa.types.is_floating(kind) else None
            )
        return found
