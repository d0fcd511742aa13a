"""MineThatData e-mail challenge (Kevin Hillstrom, 2008): 64,000 customers, two mails against none, in the official CSV.

A third of the customers got a mail for men's merchandise, a third one for women's, a third none; visits, orders and
spending were tracked for two weeks. The file has no ids: a customer is the number of his row, from 0.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from plpm_ray.core.config import StrictConfig
from plpm_ray.core.errors import DataError
from plpm_ray.core.features import ColumnKind
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.data.contract import DatasetInfo
from plpm_ray.data.datasets.base import Raw, Slice
from plpm_ray.data.datasets.files import csv_slices, read_csv_slice
from plpm_ray.data.datasets.trial import BLOCK_BYTES, Features, TrialAdapter, csv_types, numbered
from plpm_ray.data.normalise import Origin

CONTROL = "No E-Mail"
PAGES = PageCatalogue.model_validate(["Mens E-Mail", "Womens E-Mail"])
DEFAULT_PROFILE: dict[str, ColumnKind] = {
    "recency": "numeric",
    "history": "numeric",
    "history_segment": "categorical",
    "mens": "categorical",
    "womens": "categorical",
    "zip_code": "categorical",
    "newbie": "categorical",
    "channel": "categorical",
}


class HillstromConfig(StrictConfig):
    """Settings of the Hillstrom adapter."""

    path: Path = Field(description="the CSV file of the challenge, or a folder with it and no other CSV file")
    response: Literal["visit", "conversion", "spend"] = Field(
        default="visit",
        description="what the mails are to raise: visits (0 or 1), orders (0 or 1), or dollars",
    )
    profile: Features = Field(
        default=DEFAULT_PROFILE, description="feature columns: numeric or categorical, one numeric at least"
    )


@register("dataset", "hillstrom")
class Hillstrom(TrialAdapter):
    """The challenge's customers; the mails are the pages."""

    Config = HillstromConfig
    config: HillstromConfig

    @property
    def control(self) -> str:
        return CONTROL

    @property
    def start_day(self) -> dt.date:
        return dt.date(2008, 3, 20)  # when the data were published: the day of the mails is not

    @property
    def days(self) -> int:
        return 14

    def info(self, n_buckets: int) -> DatasetInfo:
        profile = dict(self.config.profile)
        return DatasetInfo("hillstrom", PAGES, profile=profile, n_buckets=n_buckets, history=False)

    def inputs(self) -> list[Slice]:
        return csv_slices(self._path(), BLOCK_BYTES, ["segment", self.config.response, *self.config.profile])

    def read(self, item: Slice) -> Raw:
        kinds = dict(self.config.profile)
        raw = read_csv_slice(
            item, {"segment": pa.string(), self.config.response: pa.float64(), **csv_types(kinds)}
        )
        own = raw.table
        columns = {
            "user_id": numbered(raw, item),
            "arm": own["segment"],
            "response": own[self.config.response],
        }
        table = pa.table(columns | {name: own[name] for name in kinds})
        return Raw(table, raw.rows, own if raw.original is None else raw.original, raw.rejected)

    def origin(self, item: Slice) -> Origin:
        return Origin(item.path, {"arm": "segment", "response": self.config.response})

    def _path(self) -> Path:
        given = self.config.path.expanduser().absolute()
        found = sorted(given.glob("*.csv")) if given.is_dir() else [given]
        if len(found) != 1 or not found[0].is_file():
            raise DataError(
                f"{given} is not there, or holds {len(found)} CSV files", hint="give the path of the file"
            )
        return found[0]
