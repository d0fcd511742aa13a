"""The randomised trial published with LBCF (Ai et al., WWW 2022): eight groups of a video platform's users, in two CSV files.

`label` is a user's engagement in a campaign, in seconds; groups 1 to 7 were offered bonuses of rising size, group 0 is what
the authors compare with. The 14 features have been encrypted, and the 4,000 rows are a part of the trial: they are good for
trying code, not for conclusions. The files have no ids: a user is the number of his row, from 0, the training file first.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from plpm_ray.core.config import StrictConfig
from plpm_ray.core.errors import DataError
from plpm_ray.core.features import ColumnKind
from plpm_ray.core.pages import Page, PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.storage import storage_errors
from plpm_ray.data.contract import DatasetInfo
from plpm_ray.data.datasets.base import Raw, Slice
from plpm_ray.data.datasets.files import csv_slices, read_csv_slice
from plpm_ray.data.datasets.trial import BLOCK_BYTES, TrialAdapter, csv_types, numbered
from plpm_ray.data.normalise import Origin
from plpm_ray.data.split import TEST, TRAIN

FILES = ("rct_training.csv", "rct_test.csv")
GROUPS = 8
FEATURES: dict[str, ColumnKind] = {f"c{i}": "numeric" for i in range(14)}


class LbcfConfig(StrictConfig):
    """Settings of the LBCF adapter. The files' own split is kept beside the rows: see `users.official` of `plpm train`."""

    path: Path = Field(description="the folder with rct_training.csv and rct_test.csv")
    control: int = Field(
        default=0, ge=0, lt=GROUPS, description="the group the others are compared with; the authors take 0"
    )


@register("dataset", "lbcf")
class Lbcf(TrialAdapter):
    """The groups beside the control as pages, engagement as the response."""

    Config = LbcfConfig
    config: LbcfConfig

    @property
    def control(self) -> str:
        return str(self.config.control)

    def info(self, n_buckets: int) -> DatasetInfo:
        groups = [group for group in range(GROUPS) if group != self.config.control]
        pages = PageCatalogue(pages=tuple(Page(name=f"group_{g}", values=(g,)) for g in groups))
        return DatasetInfo("lbcf", pages, profile=dict(FEATURES), n_buckets=n_buckets, history=False)

    def inputs(self) -> list[Slice]:
        columns = ["label", "exp_group", *FEATURES]
        return [item for path in self._paths for item in csv_slices(path, BLOCK_BYTES, columns)]

    def read(self, item: Slice) -> Raw:
        raw = read_csv_slice(item, {"label": pa.float64(), "exp_group": pa.int64(), **csv_types(FEATURES)})
        own, is_test = raw.table, item.path == str(self._paths[1])
        columns = {
            "user_id": numbered(raw, item, self._training_rows if is_test else 0),
            "arm": own["exp_group"],
            "response": own["label"],
            "part": pa.array(np.full(own.num_rows, TEST if is_test else TRAIN, dtype=np.int8)),
        }
        table = pa.table(columns | {name: own[name] for name in FEATURES})
        return Raw(table, raw.rows, own if raw.original is None else raw.original, raw.rejected)

    def origin(self, item: Slice) -> Origin:
        return Origin(item.path, {"arm": "exp_group", "response": "label"})

    @cached_property
    def _paths(self) -> tuple[Path, Path]:
        folder = self.config.path.expanduser().absolute()
        train, test = (folder / name for name in FILES)
        for path in (train, test):
            if not path.is_file():
                raise DataError(
                    f"{path} is not there", hint=f"`path` is the folder with {' and '.join(FILES)}"
                )
        return train, test

    @cached_property
    def _training_rows(self) -> int:
        with storage_errors(f"reading {self._paths[0]}"), open(self._paths[0], "rb") as file:
            return sum(1 for _ in file) - 1
