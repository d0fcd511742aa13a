"""KuaiRand-Pure, -1K and -27K in their official folder layout (https://kuairand.com, Gao et al., CIKM 2022).

The logs are video impressions; `tab` is the place in the app where one was shown (numbers without published names).
An impression becomes a page event: the tab is the page, `time_ms` (UTC; China is at +8 h all year) its start,
`play_time_ms` its duration. Events of a user are one visit until a pause of `gap_hours`; the tab of the first is the
landing page.

What to know about the logs:

- KuaiRand-Pure keeps about 1 impression in 200 (those of 7,583 videos), hence the long default gap. A missing day is
  not absence, and a dwell is the play time of the impressions that were kept. For -1K and -27K try 0.5 hours.
- About 2.5 % of the rows of Pure repeat an earlier row (same user, video and millisecond; 13 in 14 of them are equal
  in every column). They are quarantined as duplicate_event, the first one stays.
- `video_views` counts impressions that were played or clicked (`play_time_ms > 0 or is_click = 1`): where covers are
  shown, one that nobody opened is an impression, not a view. `watch_s` is the play time.
- The logging policy of the landing page is unknown: propensities are null. The random log randomises videos, not tabs.
"""

# pyarrow makes most functions of `compute` while it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from plpm_ray.core.config import StrictConfig
from plpm_ray.core.errors import DataError
from plpm_ray.core.features import ColumnKind
from plpm_ray.core.pages import Page, PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.data.contract import DatasetInfo
from plpm_ray.data.datasets.base import Adapter, Form, Raw, Slice
from plpm_ray.data.datasets.files import csv_slices, natural, read_csv_slice
from plpm_ray.data.normalise import Origin
from plpm_ray.data.validate import Reading

LOG_COLUMNS = {
    name: pa.int64() for name in ("user_id", "video_id", "time_ms", "tab", "play_time_ms", "is_click")
}
LOCAL_OFFSET_MIN = 8 * 60
LARGE_TABS = (1, 0, 4, 6, 2)

DEFAULT_PAGES = PageCatalogue(
    pages=(*(Page(name=f"tab_{tab}", values=(tab,)) for tab in LARGE_TABS), Page(name="other")), other="other"
)
DEFAULT_PROFILE: dict[str, ColumnKind] = {
    "user_active_degree": "categorical",
    "is_lowactive_period": "categorical",
    "is_live_streamer": "categorical",
    "is_video_author": "categorical",
    "follow_user_num": "numeric",
    "fans_user_num": "numeric",
    "friend_user_num": "numeric",
    "register_days": "numeric",
    **{f"onehot_feat{i}": "categorical" for i in range(18)},
}


class KuaiRandConfig(StrictConfig):
    """Settings of the KuaiRand adapter."""

    path: Path = Field(description="the folder of the download (`KuaiRand-Pure`) or its `data` folder")
    random: bool = Field(default=True, description="read log_random_*.csv too, where present")
    gap_hours: float = Field(default=6.0, ge=0, description="longest pause within a visit, in hours")
    pages: PageCatalogue = Field(
        default=DEFAULT_PAGES, description="tab numbers as pages; one of them may take all others"
    )
    profile: dict[str, ColumnKind] = Field(
        default=DEFAULT_PROFILE,
        description="columns of user_features_*.csv: numeric or categorical; {} for none",
    )
    block_mb: float = Field(
        default=64, gt=0, description="size of a work item: this much of a log file at a time, in MB"
    )


@register("dataset", "kuairand")
class KuaiRand(Adapter):
    """Impressions of the standard (and random) logs as page events, user features as profiles."""

    Config = KuaiRandConfig
    config: KuaiRandConfig

    @property
    def form(self) -> Form:
        return "events"

    @property
    def gap_ms(self) -> int:
        return round(self.config.gap_hours * 3_600_000)

    @property
    def event_key(self) -> tuple[str, ...]:
        return ("user_id", "video_id", "time_ms")

    def info(self, n_buckets: int) -> DatasetInfo:
        suffix = self._logs()[0].stem.split("_part")[0].rsplit("_", 1)[-1]
        return DatasetInfo(
            name=f"kuairand_{suffix}",
            pages=self.config.pages,
            profile=dict(self.config.profile),
            n_buckets=n_buckets,
        )

    def inputs(self) -> list[Slice]:
        size = int(self.config.block_mb * 1_000_000)
        return [item for path in self._logs() for item in csv_slices(path, size, list(LOG_COLUMNS))]

    def read(self, item: Slice) -> Raw:
        raw = read_csv_slice(item, LOG_COLUMNS)
        rows = raw.table
        played = pc.greater(rows["play_time_ms"], 0).fill_null(False)
        viewed = pc.or_(played, pc.equal(rows["is_click"], 1).fill_null(False))
        events = pa.table(
            {
                "user_id": rows["user_id"],
                "time": rows["time_ms"],
                "page": rows["tab"],
                "duration": rows["play_time_ms"],
                "video_views": viewed.cast(pa.int64()),
                "watch": rows["play_time_ms"],
                "video_id": rows["video_id"],
            }
        )
        original = rows if raw.original is None else raw.original
        return Raw(events, raw.rows, original, raw.rejected)

    def profile_inputs(self) -> list[Slice]:
        if not self.config.profile:
            return []
        files = sorted(self._folder().glob("user_features_*.csv"))
        if not files:
            raise DataError(
                f"{self._folder()} holds no user_features_*.csv",
                hint="copy it from the download, or set `profile: {}`",
            )
        size = int(self.config.block_mb * 1_000_000)
        return [item for path in files for item in csv_slices(path, size, ["user_id", *self.config.profile])]

    def read_profile(self, item: Slice) -> Raw:
        kinds = {
            name: pa.float64() if kind == "numeric" else pa.string()
            for name, kind in self.config.profile.items()
        }
        return read_csv_slice(item, {"user_id": pa.int64(), **kinds})

    def reading(self, info: DatasetInfo) -> Reading:
        return Reading(info, time_unit="ms", duration_unit="ms", utc_offset_min=LOCAL_OFFSET_MIN)

    def origin(self, item: Slice) -> Origin:
        return Origin(
            item.path, {"time": "time_ms", "page": "tab", "duration": "play_time_ms", "watch": "play_time_ms"}
        )

    def _folder(self) -> Path:
        given = self.config.path.expanduser().absolute()
        return given / "data" if (given / "data").is_dir() else given

    def _logs(self) -> list[Path]:
        """Log files, standard before random, each kind in the order of time and part."""
        folder = self._folder()
        kinds = ["standard", *(["random"] if self.config.random else [])]
        files = [path for kind in kinds for path in sorted(folder.glob(f"log_{kind}_*.csv"), key=natural)]
        if not files:
            raise DataError(
                f"{folder} holds no log_standard_*.csv",
                hint="`path` is the folder of the KuaiRand download, or its `data` folder",
            )
        return files
