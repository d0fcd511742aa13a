"""Datasets that are a table of a randomised trial's users: one row a user, with arm, response and features.

Here stand what their adapters share, and the adapter for your own trial, in Parquet or CSV.
"""

from __future__ import annotations

import datetime as dt
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from plpm_ray.core.config import StrictConfig
from plpm_ray.core.features import ColumnKind
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.data.contract import DatasetInfo, IdType
from plpm_ray.data.datasets.base import Adapter, Raw, Slice
from plpm_ray.data.datasets.files import (
    csv_header,
    csv_slices,
    parquet_files,
    parquet_slices,
    read_csv_slice,
    read_parquet_slice,
)
from plpm_ray.data.normalise import Origin, id_type

BLOCK_BYTES = 64_000_000
NO_DAY = dt.date(1970, 1, 1)
_TAKEN = ("user_id", "arm", "response", "part")


class TrialAdapter(Adapter):
    """Base of adapters of trial tables. `read` gives user_id, arm, response and the profile columns, and `part` (0 train,
    2 test) where the data came split; `info` has the arms beside the control as pages, and `history` False."""

    @property
    @abstractmethod
    def control(self) -> str | None:
        """The arm's value that means the control; None: no value at all."""

    @property
    def start_day(self) -> dt.date:
        """First day of the trial; 1970-01-01 where it is not known."""
        return NO_DAY

    @property
    def days(self) -> int:
        """Days on which the response was measured; 1 where it is not known."""
        return 1


def numbered(raw: Raw, item: Slice, first: int = 0) -> pa.Array:
    """(n,) int64 user ids of rows that have none: their number in the file, from `first` on."""
    rows = np.arange(raw.table.num_rows) if raw.rows is None else raw.rows
    return pa.array(first + item.first_row + rows, pa.int64())


def one_numeric(kinds: dict[str, ColumnKind]) -> dict[str, ColumnKind]:
    """Validator of feature columns: tables of features need a numeric one."""
    if "numeric" not in kinds.values():
        raise ValueError("at least one feature must be numeric")
    return kinds


Features = Annotated[dict[str, ColumnKind], AfterValidator(one_numeric)]


def csv_types(kinds: dict[str, ColumnKind]) -> dict[str, pa.DataType]:
    """How feature columns of a CSV file are read."""
    return {name: pa.float64() if kind == "numeric" else pa.string() for name, kind in kinds.items()}


class TrialTableConfig(StrictConfig):
    """Settings for a table of your own trial."""

    path: str = Field(description="CSV file, or Parquet file, folder (searched in depth) or pattern")
    pages: PageCatalogue = Field(
        description="the arms beside the control, 2 to 32, with the values that mean them in the column"
    )
    features: Features = Field(
        description="columns known before the trial: numeric or categorical, one numeric at least"
    )
    user_id: str | None = Field(default="user_id", description="column with the id; null numbers the rows")
    arm: str = Field(default="arm", description="column that says what a user was shown")
    response: str = Field(
        default="response", description="column with what is to be raised, in its natural unit"
    )
    control: str | int | None = Field(
        default="control", description="value of the arm that means the control; null: no value"
    )
    title: str = Field(default="trial", min_length=1, description="name of the dataset in reports")
    csv_user_id: IdType = Field(default="int64", description="type of the ids in a CSV file")
    start_day: dt.date = Field(default=NO_DAY, description="first day of the trial, where it is known")
    days: int = Field(default=1, ge=1, le=3660, description="days on which the response was measured")

    @model_validator(mode="after")
    def _names(self) -> TrialTableConfig:
        own = [self.arm, self.response, *([self.user_id] if self.user_id else [])]
        if len({*own, *self.features}) < len(own) + len(self.features):
            raise ValueError(f"features: {own} are no features, and no column has two roles")
        for name in self.features:
            if name in _TAKEN:
                raise ValueError(
                    f"features: {name!r} is the name of a column of the trial table; rename the column"
                )
        if self.control is not None and str(self.control) in {
            str(raw) for page in self.pages.pages for raw in (page.name, *page.values)
        }:
            raise ValueError(f"control: {self.control!r} is one of the pages too")
        return self


@register("dataset", "trial")
class TrialTable(TrialAdapter):
    """A trial of your own, one row a user, in Parquet or CSV."""

    Config = TrialTableConfig
    config: TrialTableConfig

    @property
    def control(self) -> str | None:
        return None if self.config.control is None else str(self.config.control)

    @property
    def start_day(self) -> dt.date:
        return self.config.start_day

    @property
    def days(self) -> int:
        return self.config.days

    def info(self, n_buckets: int) -> DatasetInfo:
        return DatasetInfo(
            name=self.config.title,
            pages=self.config.pages,
            profile=dict(self.config.features),
            user_id=self._id_type(),
            n_buckets=n_buckets,
            history=False,
        )

    def inputs(self) -> list[Slice]:
        if self._csv is not None:
            return csv_slices(self._csv, BLOCK_BYTES, list(self._own.values()))
        slices, schemas = self._parquet
        for path, schema in schemas.items():
            for name, own in self._own.items():
                if own not in schema.names:
                    raise Origin(path, self._own).missing(name, schema.names)
        return slices

    def read(self, item: Slice) -> Raw:
        if self._csv is not None:
            ids = pa.int64() if self.config.csv_user_id == "int64" else pa.string()
            types = {self.config.arm: pa.string(), self.config.response: pa.float64()}
            types |= csv_types(dict(self.config.features))
            raw = read_csv_slice(item, types | ({self.config.user_id: ids} if self.config.user_id else {}))
        else:
            raw = Raw(read_parquet_slice(item, list(self._own.values())))
        table = pa.table({name: raw.table[own] for name, own in self._own.items()})
        if self.config.user_id is None:
            table = table.append_column("user_id", numbered(raw, item, self._first_number(item.path)))
        return Raw(table, raw.rows, raw.table if raw.original is None else raw.original, raw.rejected)

    def origin(self, item: Slice) -> Origin:
        return Origin(item.path, self._own)

    @property
    def _own(self) -> dict[str, str]:
        names = {"arm": self.config.arm, "response": self.config.response}
        if self.config.user_id is not None:
            names["user_id"] = self.config.user_id
        return names | {name: name for name in self.config.features}

    @property
    def _csv(self) -> Path | None:
        path = Path(self.config.path).expanduser().absolute()
        return path if path.suffix == ".csv" and csv_header(path) else None

    @cached_property
    def _parquet(self) -> tuple[list[Slice], dict[str, pa.Schema]]:
        return parquet_slices(parquet_files(self.config.path))

    def _first_number(self, path: str) -> int:
        """Rows of the files before this one."""
        if self._csv is not None:
            return 0
        files = list(self._parquet[1])
        before = files[: files.index(path)]
        return sum(read_parquet_slice(s, []).num_rows for s in self._parquet[0] if s.path in before)

    def _id_type(self) -> IdType:
        if self.config.user_id is None:
            return "int64"
        if self._csv is not None:
            return self.config.csv_user_id
        path, schema = next(iter(self._parquet[1].items()))
        origin = Origin(path, self._own)
        if self.config.user_id not in schema.names:
            raise origin.missing("user_id", schema.names)
        kind = schema.field(self.config.user_id).type
        found = id_type(kind)
        if found is None:
            raise origin.wrong_type("user_id", kind, "integers or strings")
        return found
