"""Who the users are: static, a function of seed and user id alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.special import logit

from plpm_ray.core.hashing import user_hash
from plpm_ray.simulation import luck
from plpm_ray.simulation.world import World

_MEDIAN_FOLLOWS = 20.0
_PAGES = 64  # first of the streams that are drawn per page


@dataclass(frozen=True)
class Users:
    """U users.

    Attributes:
        user_id: (U,) int64.
        hash: (U,) uint64, as policies and buckets use it.
        key: (U,) uint64, root of their luck.
        preference_KU: (K, U) static page logits.
        dwell_KU: (K, U) mean seconds of an engaged visit on their first entry of a day.
        multi: (U,) bool, multi-page user.
        active_logit: (U,) logit of being active on a day, without week and satisfaction.
        rate: (U,) rate of entries on an active day.
        live_rate: (U,) mean live broadcasts of followed creators at an entry, at the tide's mean.
        utc_offset_min: (U,) int64.
        interest: (U,) int64; follows, register_days: (U,) float64; what the profile shows.
    """

    user_id: np.ndarray
    hash: np.ndarray
    key: np.ndarray
    preference_KU: np.ndarray
    dwell_KU: np.ndarray
    multi: np.ndarray
    active_logit: np.ndarray
    rate: np.ndarray
    live_rate: np.ndarray
    utc_offset_min: np.ndarray
    interest: np.ndarray
    follows: np.ndarray
    register_days: np.ndarray

    def __len__(self) -> int:
        return len(self.user_id)

    def profile(self) -> pa.Table:
        """user_id and the profile columns, one row a user."""
        kinds = int(self.interest.max(initial=0)) + 1
        names = pa.array([f"interest_{i}" for i in range(kinds)])
        return pa.table(
            {
                "user_id": pa.array(self.user_id),
                "interest": names.take(pa.array(self.interest)),
                "follows": pa.array(self.follows.astype(np.float32)),
                "register_days": pa.array(self.register_days.astype(np.float32)),
            }
        )


def make_users(world: World, user_id: np.ndarray, replicate: int = 0) -> Users:
    """The users of the given ids, (U,) integers from 0 on; `replicate` changes their luck, not who they are."""
    config, entries = world.config.population, world.config.entries
    k, user_id = len(world), np.ascontiguousarray(user_id, dtype=np.int64)
    key = luck.user_keys(world.config.seed, user_id)
    kind, offset = luck.pair(key, 0)
    interest = np.minimum((kind * config.interests).astype(np.int64), config.interests - 1)
    offsets = np.asarray(world.config.tide.utc_offset_min, dtype=np.int64)
    own = luck.normals_by_page(key, _PAGES, k)
    share = config.profile_share
    taste_KU = np.sqrt(share) * world.interest_IK.T[:, interest] + np.sqrt(1 - share) * own
    taste_KU *= config.preference_sd * config.enabled
    follow = luck.normals(key, 1)
    multi = (luck.uniforms(key, 2) < config.multi_page) & config.enabled
    active_z, rate_z, dwell_z = (luck.normals(key, stream) for stream in (3, 4, 5))
    alike = entries.dwell_correlation * config.enabled
    rate_z = alike * dwell_z + np.sqrt(1 - alike**2) * rate_z
    sd, page_sd = config.dwell_sd * config.enabled, config.page_dwell_sd * config.enabled
    log_dwell_KU = sd * dwell_z + page_sd * luck.normals_by_page(key, _PAGES + k, k)
    register = luck.normals(key, 6)
    follows = np.rint(_MEDIAN_FOLLOWS * np.exp(follow))
    return Users(
        user_id=user_id,
        hash=user_hash(user_id),
        key=luck.user_keys(world.config.seed, user_id, 1 + replicate),
        preference_KU=world.popularity[:, None] + taste_KU,
        dwell_KU=world.dwell_s[:, None] * np.exp(log_dwell_KU - (sd**2 + page_sd**2) / 2),
        multi=multi,
        active_logit=logit(entries.active)
        + entries.active_sd * active_z
        + entries.multi_active * (multi - config.multi_page * config.enabled),
        rate=entries.per_day * np.exp(entries.user_sd * rate_z),
        live_rate=world.config.live.rate * world.config.live.enabled * np.sqrt(follows / _MEDIAN_FOLLOWS),
        utc_offset_min=offsets[np.minimum((offset * len(offsets)).astype(np.int64), len(offsets) - 1)],
        interest=interest,
        follows=follows,
        # who is active more has also been there longer
        register_days=np.rint(400 * np.exp(0.8 * (0.5 * active_z + np.sqrt(0.75) * register))),
    )
