"""A small stand-in for logs, so that the first steps need no download: `synthetic_demo`. Not a model of any real app.

Users have an interest that their profile shows only roughly, come up to six times a day along a daily curve, and stay
longer where the page suits them (their taste, the hour, live broadcasts of people they follow). A wrong landing page is
often left in seconds. The logging policy guesses the page from the profile and explores with a known probability, so
propensities are true. The same seed gives the same logs, whatever the number of workers.

Shapes: U users of a chunk, D days, S sessions, K pages, P = 3 pages per session at most.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from plpm_ray.core.config import StrictConfig
from plpm_ray.core.features import ColumnKind
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.storage import write_parquet
from plpm_ray.data.contract import DAY_MS, MINUTE_MS, TIMESTAMP, DatasetInfo
from plpm_ray.data.datasets.base import Adapter, Raw, Slice
from plpm_ray.data.day_table import day_number

USERS_PER_SLICE = 1000
PAGES_PER_SESSION = 3
SLOT_MIN = 20
CONTEXT: dict[str, ColumnKind] = {"live_followed": "numeric"}
PROFILE: dict[str, ColumnKind] = {"interest": "categorical", "follows": "numeric"}
_MAX_ENTRIES = 6
_DAILY_CURVE = np.array(
    [3, 1, 1, 1, 1, 1, 2, 4, 5, 4, 4, 5, 7, 6, 5, 5, 5, 6, 8, 10, 12, 12, 9, 5], dtype=float
)


class SyntheticConfig(StrictConfig):
    """Size and seed of the stand-in logs."""

    users: int = Field(default=3000, ge=1, description="number of users")
    days: int = Field(default=10, ge=1, le=365, description="number of local days")
    first_day: dt.date = Field(default=dt.date(2024, 3, 4), description="first local day")
    pages: PageCatalogue = Field(
        default=PageCatalogue.model_validate(["featured", "explore", "following"]),
        description="the landing pages",
    )
    explore: float = Field(
        default=0.4, gt=0, le=1, description="share of entries in which the logging policy draws evenly"
    )
    utc_offset_min: int = Field(default=480, ge=-840, le=840, description="local time of all users")
    seed: int = Field(default=0, ge=0, description="same seed, same logs")


@register("dataset", "synthetic_demo")
class SyntheticDemo(Adapter):
    """The stand-in logs as a dataset."""

    Config = SyntheticConfig
    config: SyntheticConfig
    unique_sessions = True

    def info(self, n_buckets: int) -> DatasetInfo:
        return DatasetInfo(
            "synthetic_demo", self.config.pages, CONTEXT, PROFILE, n_buckets=n_buckets, propensity_known=True
        )

    def inputs(self) -> list[Slice]:
        starts = range(0, self.config.users, USERS_PER_SLICE)
        stops = [min(start + USERS_PER_SLICE, self.config.users) for start in starts]
        return [
            Slice(f"synthetic_demo users {a} to {b - 1}", a, b) for a, b in zip(starts, stops, strict=True)
        ]

    def read(self, item: Slice) -> Raw:
        return Raw(demo_tables(self.config, item.start, item.stop)[0])

    def profile_inputs(self) -> list[Slice]:
        return self.inputs()

    def read_profile(self, item: Slice) -> Raw:
        return Raw(demo_tables(self.config, item.start, item.stop)[1])


def write_demo(folder: str | Path, config: SyntheticConfig | None = None) -> Path:
    """Writes the logs as a user would bring them: `sessions/part-*.parquet` and `users.parquet`, canonical form.

    Returns:
        The folder.
    """
    folder, config = Path(folder), config or SyntheticConfig()
    profiles = []
    for part, item in enumerate(SyntheticDemo(config).inputs()):
        sessions, profile = demo_tables(config, item.start, item.stop)
        write_parquet(folder / "sessions" / f"part-{part:03d}.parquet", sessions)
        profiles.append(profile)
    write_parquet(folder / "users.parquet", pa.concat_tables(profiles))
    return folder


def demo_tables(config: SyntheticConfig, start: int, stop: int) -> tuple[pa.Table, pa.Table]:
    """Sessions and profiles of the users start .. stop - 1, as canonical tables with page names."""
    rng = np.random.default_rng([config.seed, start])
    k, u = len(config.pages), stop - start
    interest = rng.integers(0, k, u)
    taste_UK = rng.normal(0, 0.8, (u, k)) + 1.0 * np.eye(k)[interest]
    follows = rng.poisson(np.exp(rng.normal(2.0, 1.0, u)))
    user, day, slot = _entries(rng, u, config.days)
    s = len(user)
    minute = slot * SLOT_MIN + rng.integers(0, 3, s)
    live = np.minimum(rng.poisson(0.1 * np.sqrt(follows[user])), 5)

    value_SK = taste_UK[user].copy()
    value_SK[:, -1] += 0.8 * live  # the last page shows whom one follows
    value_SK[:, 1] += 0.7 * np.sin((minute / 60 - 14) / 24 * 2 * np.pi)  # the second page is for the evening
    affinity_SK = np.exp(value_SK) / np.exp(value_SK).sum(1, keepdims=True)
    explored = rng.random(s) < config.explore
    landing = np.where(explored, rng.integers(0, k, s), interest[user])
    propensity = config.explore / k + (1 - config.explore) * (landing == interest[user])

    pages_SP, dwell_SP = _walk(rng, landing, affinity_SK)
    entry_ms = (
        (day_number(config.first_day) + day) * DAY_MS + minute * MINUTE_MS + rng.integers(0, MINUTE_MS, s)
    )
    entry_ms -= config.utc_offset_min * MINUTE_MS
    table = _as_table(config, start + user, entry_ms, pages_SP, dwell_SP)
    n = pa.array(np.full(s, config.utc_offset_min, dtype=np.int16))
    extra = {
        "utc_offset_min": n,
        "policy": pa.array(["profile_guess"]).take(pa.array(np.zeros(s, dtype=np.int64))),
        "propensity": pa.array(propensity),
        "live_followed": pa.array(live),
    }
    for name, column in extra.items():
        table = table.append_column(name, column)
    names = pa.array([f"interest_{i}" for i in range(k)])
    profile = {
        "user_id": pa.array(np.arange(start, stop)),
        "interest": names.take(pa.array(interest)),
        "follows": pa.array(follows),
    }
    return table, pa.table(profile)


def _entries(rng: np.random.Generator, users: int, days: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(S,) user, day and slot of the day of every session, in the order of user and time; no slot holds two."""
    slots = 24 * 60 // SLOT_MIN
    rate = rng.gamma(3.0, 0.7, users)
    count_UD = np.minimum(rng.poisson(rate[:, None], (users, days)), _MAX_ENTRIES)
    gumbel = rng.gumbel(size=(users, days, slots)) + np.log(np.repeat(_DAILY_CURVE, 60 // SLOT_MIN))
    rank = np.argsort(np.argsort(-gumbel, axis=-1), axis=-1)
    user, day, slot = np.nonzero(rank < count_UD[..., None])
    return user, day, slot


def _walk(
    rng: np.random.Generator, landing: np.ndarray, affinity_SK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(S, P) pages seen, -1 after the last one, and (S, P) seconds on each; below SLOT_MIN minutes in total."""
    s, k = affinity_SK.shape
    pages_SP = np.full((s, PAGES_PER_SESSION), -1)
    dwell_SP = np.zeros((s, PAGES_PER_SESSION))
    page, going = landing, np.ones(s, dtype=bool)
    for step in range(PAGES_PER_SESSION):
        match = affinity_SK[np.arange(s), page]
        left_at_once = rng.random(s) < 0.7 * (1 - match) ** 2
        seconds = np.where(left_at_once, rng.exponential(4.0, s), rng.exponential(40 + 300 * match, s))
        pages_SP[:, step] = np.where(going, page, -1)
        dwell_SP[:, step] = np.where(going, 0.5 + np.minimum(seconds, 339), 0)
        going &= rng.random(s) < np.where(left_at_once, 0.55, 0.3)
        other_SK = np.where(np.arange(k) == page[:, None], 0.0, affinity_SK)
        page = (other_SK.cumsum(1) > (rng.random(s) * other_SK.sum(1))[:, None]).argmax(1)
    return pages_SP, np.round(dwell_SP, 3)


def _as_table(
    config: SyntheticConfig,
    users: np.ndarray,
    entry_ms: np.ndarray,
    pages_SP: np.ndarray,
    dwell_SP: np.ndarray,
) -> pa.Table:
    seen = pages_SP >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(seen.sum(1))]).astype(np.int32))
    names = pa.array(config.pages.names)
    dwell = dwell_SP[seen]
    exit_ms = entry_ms + np.rint(dwell_SP.sum(1) * 1000).astype(np.int64)
    day_minute = entry_ms // MINUTE_MS - day_number(config.first_day) * (DAY_MS // MINUTE_MS) + 840
    return pa.table(
        {
            "user_id": pa.array(users),
            "session_id": pa.array(users * 1_000_000 + day_minute),
            "entry_time": pa.array(entry_ms).view(TIMESTAMP),
            "exit_time": pa.array(exit_ms).view(TIMESTAMP),
            "landing_page": names.take(pa.array(pages_SP[:, 0])),
            "pages": pa.ListArray.from_arrays(offsets, names.take(pa.array(pages_SP[seen]))),
            "dwell_s": pa.ListArray.from_arrays(offsets, pa.array(dwell)),
            "video_views": pa.ListArray.from_arrays(offsets, pa.array((dwell // 25).astype(np.int32))),
            "watch_s": pa.ListArray.from_arrays(offsets, pa.array(np.round(dwell * 0.85, 3))),
        }
    )
