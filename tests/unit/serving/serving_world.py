"""A small synthetic log, and bundles with untrained weights over it: serving is tested without training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from plpm_ray.core.feature_fitting import SpecFitter
from plpm_ray.core.features import FeatureSchema, FeatureSpec, RawFeatures
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.data.contract import DAY_MS, TIMESTAMP
from plpm_ray.data.features.batch import batch_features
from plpm_ray.data.features.sessions import EntryArrays, SessionArrays
from plpm_ray.navigators.bundle import Bundle

START_MS = 19_000 * DAY_MS
PAGES = PageCatalogue.model_validate(["featured", "following", "nearby", "live"])
SCHEMA = FeatureSchema(
    PAGES.names, {"push": "numeric", "device": "categorical"}, {"age": "numeric", "city": "categorical"}
)


def sessions_table(users: int = 40, per_user: int = 12, seed: int = 0, string_ids: bool = False) -> pa.Table:
    """Canonical stored sessions, several a day for each user, none before the last one ended; sorted by entry."""
    rng = np.random.default_rng(seed)
    n, k = users * per_user, len(PAGES)
    gap = rng.exponential(8 * 3_600_000, (users, per_user)).astype(np.int64) + 1
    length = rng.exponential(400_000, (users, per_user)).astype(np.int64)
    exit_ms = START_MS + np.cumsum(gap + length, axis=1)
    entry_ms = exit_ms - length
    counts = rng.integers(1, 4, n)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    pages = (
        np.repeat(rng.integers(0, k, n), counts) + np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    ) % k
    dwell = rng.exponential(90, starts[-1]).astype(np.float32)
    user = np.repeat(np.arange(users), per_user)
    table = pa.table(
        {
            "user_id": pa.array([f"user-{u}" for u in user]) if string_ids else pa.array(user),
            "session_id": pa.array(rng.permutation(n) + 1000),
            "entry_time": pa.array(entry_ms.reshape(-1)).cast(TIMESTAMP),
            "exit_time": pa.array(exit_ms.reshape(-1)).cast(TIMESTAMP),
            "utc_offset_min": pa.array(np.full(n, 480), pa.int16()),
            "landing_page": pa.array(pages[starts[:-1]].astype(np.int16)),
            "pages": pa.ListArray.from_arrays(pa.array(starts), pa.array(pages.astype(np.int16))),
            "dwell_s": pa.ListArray.from_arrays(pa.array(starts), pa.array(dwell)),
            "video_views": pa.ListArray.from_arrays(
                pa.array(starts), pa.array(rng.integers(0, 9, starts[-1]), pa.int32())
            ),
            "push": pa.array(rng.random(n), pa.float32()),
            "device": pa.array(rng.choice(["phone", "tablet"], n)),
        }
    )
    return table.sort_by("entry_time")


def travelling(sessions: pa.Table, seed: int = 0) -> pa.Table:
    """The same sessions, each at a UTC offset of its own: local days go back again and again."""
    offsets = np.random.default_rng(seed).choice([-720, 0, 480, 540, 840], len(sessions))
    at = sessions.schema.get_field_index("utc_offset_min")
    return sessions.set_column(at, "utc_offset_min", pa.array(offsets, pa.int16()))


def profiles_table(users: int = 40, seed: int = 1, string_ids: bool = False) -> pa.Table:
    rng = np.random.default_rng(seed)
    ids = [f"user-{u}" for u in range(users)] if string_ids else list(range(users))
    age = [None if u % 7 == 0 else float(a) for u, a in enumerate(rng.integers(15, 70, users))]
    city = [None if u % 5 == 0 else str(c) for u, c in enumerate(rng.choice(["north", "south"], users))]
    return pa.table({"user_id": ids, "age": pa.array(age, pa.float32()), "city": pa.array(city, pa.string())})


def entries_of(sessions: pa.Table) -> pa.Table:
    return sessions.select(["user_id", "entry_time", "utc_offset_min", "push", "device"])


def batch_of(sessions: pa.Table, profiles: pa.Table, schema: FeatureSchema = SCHEMA) -> RawFeatures:
    """The batch features of every session's entry, which serving must find again."""
    codes = sessions["user_id"].combine_chunks().dictionary_encode()
    users = codes.indices.to_numpy().astype(np.int64)
    at = {user: i for i, user in enumerate(profiles["user_id"].to_pylist())}
    rows = pa.array([at.get(user) for user in sessions["user_id"].to_pylist()])
    return batch_features(
        users,
        SessionArrays.from_table(sessions),
        users,
        EntryArrays.from_table(sessions),
        schema,
        context={name: sessions[name] for name in schema.context},
        profile={name: profiles[name].take(rows) for name in schema.profile},
    )


def stats_of(sessions: pa.Table) -> TableStats:
    arrays, entries = SessionArrays.from_table(sessions), EntryArrays.from_table(sessions)
    return TableStats.of(
        len(PAGES),
        landing=arrays.landing,
        use_s=arrays.use_ms / 1000,
        landing_dwell_s=arrays.landing_dwell_ms / 1000,
        hour=entries.hour,
        step=np.zeros(len(arrays), dtype=np.int64),
    )


def bundle_of(name: str = "klan.iit", seed: int = 0, **extra: Any) -> Bundle:
    """A bundle over the synthetic log; a learner's weights are random."""
    sessions = sessions_table()
    fitter = SpecFitter(SCHEMA)
    fitter.update(batch_of(sessions, profiles_table()))
    spec: FeatureSpec = fitter.finish()
    stats = stats_of(sessions)
    if name.startswith("heuristic."):
        return Bundle("navigator", name, {}, PAGES, spec, stats, **extra)
    torch.manual_seed(seed)
    cls = lookup("learner", name)
    config = {"hidden": (16, 16)} if "hidden" in cls.Config.model_fields else {}
    learner = cls(cls.Config.model_validate(config), spec, PAGES, stats)
    with torch.no_grad():
        # ISP begins without any preference
        for parameter in learner.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return Bundle.of_learner(learner, spec, PAGES, stats, **extra)


def composed_bundle(seed: int = 0, name: str = "klan", **config: Any) -> Bundle:
    """KLAN composed of its three learners with random weights."""
    parts = {role: bundle_of(f"klan.{role}", seed) for role in ("isp", "iit", "am")}
    first = parts["isp"]
    config = {"delta_temperature": 1.0, **config}
    return Bundle("navigator", name, config, PAGES, first.spec, first.stats, parts=parts)
