"""Made-up page events for benchmarks/data_plane.py, and the checksum by which its variants are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from plpm_ray.core.hashing import splitmix64

N_FILES = 16
N_DAYS = 16
EVENTS_PER_SESSION = 3.5
FIRST_MS = 1_700_000_000_000
DAY_MS, HOUR_MS = 86_400_000, 3_600_000
LIFE_MS = 1 << 36  # more than any user's first start to last end


def make_events(folder: Path, n_events: int, n_users: int, seed: int = 0) -> None:
    """Writes `N_FILES` time-ordered zstd Parquet files of about `n_events` events.

    Log-normal activity of users, an hourly rhythm, sessions of geometric length whose pages stick, dwell from 0.3 s to
    20 min, ids scattered over 32 bits. A user's events never overlap and no two start in the same millisecond.
    """
    rng = np.random.default_rng(seed)
    user, begin = _sessions(rng, int(n_events / EVENTS_PER_SESSION), n_users)
    length = rng.geometric(1 / EVENTS_PER_SESSION, len(user))
    event_user = np.repeat(user, length)
    n = len(event_user)
    first = np.zeros(n, dtype=bool)
    first[np.cumsum(length) - length] = True
    duration = np.clip(rng.lognormal(10.0, 1.1, n), 300, 1_200_000).astype(np.int64)
    step = duration + rng.integers(200, 30_000, n)
    before = np.cumsum(step) - step
    # a session starts at its time, or where the user's session before it ended, whichever is later
    line = user * LIFE_MS + begin - before[first]
    began = np.maximum.accumulate(line) - user * LIFE_MS
    at = np.repeat(began, length) + before
    page = rng.choice(4, n, p=[0.55, 0.2, 0.15, 0.1]).astype(np.int16)
    stays = ~first & (rng.random(n) < 0.4)
    page = page[np.maximum.accumulate(np.where(stays, 0, np.arange(n)))]
    ids = (event_user.astype(np.uint64) * np.uint64(2_654_435_761) % np.uint64(1 << 32)).astype(np.int64)

    kinds = [pa.int64(), pa.timestamp("ms", "UTC"), pa.int16(), pa.int32()]
    schema = pa.schema(list(zip(("user_id", "time_ms", "page", "duration_ms"), kinds, strict=True)))
    folder.mkdir(parents=True)
    for k, rows in enumerate(np.array_split(np.argsort(at, kind="stable"), N_FILES)):
        columns = [ids[rows], at[rows] + FIRST_MS, page[rows], duration[rows]]
        table = pa.table([pa.array(c) for c in columns], names=schema.names).cast(schema)
        pq.write_table(table, folder / f"events-{k:02d}.parquet", compression="zstd")


def _sessions(rng: np.random.Generator, n: int, n_users: int) -> tuple[np.ndarray, np.ndarray]:
    """User and wanted start (ms since the first day) of each session, sorted by both."""
    activity = np.cumsum(rng.lognormal(0.0, 1.2, n_users))
    user = np.searchsorted(activity, rng.random(n) * activity[-1])
    weight = 1.2 + np.sin((np.arange(24) - 14) / 24 * 2 * np.pi)
    begin = rng.integers(0, N_DAYS, n) * DAY_MS + rng.choice(24, n, p=weight / weight.sum()) * HOUR_MS
    begin += rng.integers(0, HOUR_MS, n)
    order = np.lexsort((begin, user))
    return user[order], begin[order]


def checksum(folder: Path) -> tuple[int, int]:
    """(sessions, sum of row hashes modulo 2^64) of all Parquet files of a folder, whatever their order."""
    rows, total = 0, 0
    for file in sorted(folder.glob("*.parquet")):
        table = pq.read_table(file, use_threads=False).combine_chunks()
        if not table.num_rows:
            continue
        pages, dwell = table["pages"].chunk(0), table["dwell_s"].chunk(0)
        counts = pc.list_value_length(pages).to_numpy().astype(np.int64)
        begins = np.cumsum(counts) - counts
        place = np.arange(counts.sum()) - np.repeat(begins, counts)
        dwell_ms = np.rint(dwell.flatten().to_numpy().astype(np.float64) * 1000).astype(np.int64)
        mixed = np.add.reduceat(
            splitmix64((dwell_ms << 20) + (place << 5) + pages.flatten().to_numpy()), begins
        )
        for name in ("user_id", "entry_time", "exit_time", "landing_page"):
            mixed = splitmix64(mixed ^ table[name].cast(pa.int64()).to_numpy().view(np.uint64))
        rows += table.num_rows
        total += int(np.add.reduce(mixed))
    return rows, total % (1 << 64)
