"""The parameters of a world as arrays, switched-off mechanisms as zeros: what the kernels read.

Letters: U users, B batch of entries, K pages, P pages of one session at most, D days. Arrays are page-major (K, B), as
sums over a few pages are then sums of long rows.
"""

from __future__ import annotations

import numpy as np

from plpm_ray.core.features import ColumnKind
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.data.contract import DAY_MS
from plpm_ray.data.day_table import day_number
from plpm_ray.simulation.config import WorldConfig
from plpm_ray.simulation.luck import normals_by_page

CONTEXT: dict[str, ColumnKind] = {"live_followed": "numeric", "push": "categorical"}
PROFILE: dict[str, ColumnKind] = {"interest": "categorical", "follows": "numeric", "register_days": "numeric"}


class World:
    """A world ready to run.

    Attributes:
        config: what it was made from.
        pages: the catalogue.
        popularity, dwell_s, view_s, watch_share, hour_logit, weekend_logit, returning, live: (K,) of the pages.
        hour_phase_HK: (24, K) logits by local hour.
        interest_IK: (I, K) centres of the interests, unit variance over the interests.
        tide: (25,) share of the day's entries before each full hour, local time.
        week: (7,) factor of the rate of entries and of the odds to be active, Monday first.
        first_day: days since 1970-01-01 of the first local day.
    """

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.pages: PageCatalogue = config.catalogue
        pages = config.pages
        self.popularity = _column(pages, "popularity")
        self.dwell_s = _column(pages, "dwell_s")
        self.view_s = _column(pages, "view_s")
        self.watch_share = _column(pages, "watch_share")
        self.weekend_logit = _column(pages, "weekend_logit") * config.week.enabled
        self.returning = _column(pages, "returning") * config.returning.enabled
        self.live = _column(pages, "live") * config.live.enabled * config.live.logit
        hours = np.arange(24)[:, None] + 0.5 - _column(pages, "peak_hour")
        self.hour_phase_HK = (
            _column(pages, "hour_logit") * np.cos(hours / 24 * 2 * np.pi) * config.tide.enabled
        )
        self.interest_IK = self._interests()
        weights = np.asarray(config.tide.hours if config.tide.enabled else (1.0,) * 24, dtype=np.float64)
        self.tide = np.concatenate([[0.0], np.cumsum(weights)]) / weights.sum()
        self.tide[-1] = 1.0
        self.hour_rate = weights / weights.mean()
        week = np.asarray(config.week.activity if config.week.enabled else (1.0,) * 7, dtype=np.float64)
        self.week = week / week.mean()
        self.first_day = day_number(config.first_day)
        share = np.exp(self.popularity - self.popularity.max())
        self.push_cdf = np.cumsum(share / share.sum())
        default = config.logging.default_page
        self.default_page = int(np.argmax(self.popularity)) if default is None else self.pages.index(default)

    def __len__(self) -> int:
        return len(self.pages)

    def _interests(self) -> np.ndarray:
        i, k = self.config.population.interests, len(self.pages)
        keys = np.arange(1, i + 1, dtype=np.uint64) + np.uint64(self.config.seed * 1_000_003 % 2**64)
        centres = normals_by_page(keys, 0, k).T
        if i == 1:
            return np.zeros((1, k))
        return (centres - centres.mean(axis=0)) / centres.std(axis=0)

    def tide_before(self, hour: np.ndarray) -> np.ndarray:
        """(n,) share of the tide before a local hour (0 to 24, fractions count)."""
        return np.interp(hour, np.arange(25.0), self.tide)

    def tide_hour(self, share: np.ndarray) -> np.ndarray:
        """(n,) local hour at which a share of the tide has passed, 24 from 1 on; inverse of `tide_before`."""
        return np.interp(share, self.tide, np.arange(25.0))

    def day_start_ms(self, day: np.ndarray | int, utc_offset_min: np.ndarray) -> np.ndarray:
        """(n,) UTC time in ms of the midnight that begins a local day; `day` counts from the world's first."""
        return (self.first_day + day) * DAY_MS - utc_offset_min * 60_000


def _column(pages: object, name: str) -> np.ndarray:
    return np.array([getattr(page, name) for page in pages], dtype=np.float64)  # type: ignore[attr-defined]
