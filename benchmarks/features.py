"""Speed of the features: the batch kernel, the online state, and the transition table on disk; one thread.

    python benchmarks/features.py                        # a million sessions
    python benchmarks/features.py --sessions 200000 --pages 3 32

Sessions of random users over 60 days, three page visits on average. Rates are per CPU second of this process.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from plpm_ray.core.features import FeatureSchema
from plpm_ray.core.hashing import bucket_of, user_hash
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.data.contract import DAY_MS, TIMESTAMP, DatasetInfo, Warehouse
from plpm_ray.data.features import state
from plpm_ray.data.features.batch import batch_features
from plpm_ray.data.features.sessions import EntryArrays, SessionArrays
from plpm_ray.data.tables import build_transitions

DAYS = 60
FIRST_DAY = 19_000
AT_ONCE = 20_000


def make_sessions(n: int, k: int, seed: int = 0) -> pa.Table:
    """n canonical sessions of n / 25 users, sorted by (local day, user, entry)."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, max(1, n // 25), n)
    entry = FIRST_DAY * DAY_MS + rng.integers(0, DAYS * DAY_MS, n)
    order = np.lexsort((entry, user, entry // DAY_MS))
    user, entry = user[order], entry[order]
    start = np.concatenate([[0], np.cumsum(rng.integers(1, 6, n))]).astype(np.int32)
    pages = rng.integers(0, k, start[-1]).astype(np.int16)
    lists = {
        "pages": pages,
        "dwell_s": rng.exponential(100, start[-1]).astype(np.float32),
        "video_views": rng.poisson(3, start[-1]).astype(np.int32),
    }
    return pa.table(
        {
            "user_id": user,
            "session_id": np.arange(n),
            "entry_time": pa.array(entry).cast(TIMESTAMP),
            "exit_time": pa.array(entry + rng.integers(0, 3_600_000, n)).cast(TIMESTAMP),
            "utc_offset_min": np.zeros(n, dtype=np.int16),
            "landing_page": pages[start[:-1]],
            **{name: pa.ListArray.from_arrays(pa.array(start), pa.array(v)) for name, v in lists.items()},
        }
    )


def rate(what: str, rows: int, call: Callable[[], object]) -> None:
    """Prints rows per CPU second of the call."""
    before = time.process_time()
    call()
    seconds = time.process_time() - before
    print(f"  {what:<44}{rows / seconds:>12,.0f} /s{seconds:>9.2f} s")


def measure_kernels(table: pa.Table, k: int) -> None:
    schema = FeatureSchema(tuple(f"page{i}" for i in range(k)))
    users = table["user_id"].to_numpy()
    sessions, entries = SessionArrays.from_table(table), EntryArrays.from_table(table)
    rate("batch kernel", len(users), lambda: batch_features(users, sessions, users, entries, schema))

    states = state.empty_states(state.state_dtype(schema), int(users.max()) + 1)
    ended = np.argsort(sessions.exit_ms)
    many = ended[: min(10 * AT_ONCE, len(ended) // 2)]
    rate(
        "observe, 200,000 sessions in one call",
        len(many),
        lambda: state.observe(states, users[many], sessions.take(many)),
    )
    _, first = np.unique(users[ended[len(many) :]], return_index=True)
    one_each = ended[len(many) :][first[:AT_ONCE]]
    rows, part = users[one_each], sessions.take(one_each)
    rate("observe, one session a user", len(rows), lambda: state.observe(states, rows, part))
    now = EntryArrays(part.exit_ms + 60_000, part.utc_offset_min)
    rate("online features", len(rows), lambda: state.features(states, now, schema, rows=rows))
    one = EntryArrays(now.entry_ms[:1], now.utc_offset_min[:1])
    rate(
        "online features, one at a time",
        1000,
        lambda: [state.features(states[:1], one, schema) for _ in range(1000)],
    )
    print(f"  {'bytes a user':<44}{states.itemsize:>12,}")


def measure_tables(table: pa.Table, k: int, folder: Path, buckets: int = 4) -> None:
    pages = PageCatalogue.model_validate({"pages": [f"page{i}" for i in range(k)]})
    warehouse = Warehouse.create(folder, DatasetInfo("made", pages, n_buckets=buckets))
    missing = {
        f.name: pa.nulls(len(table), f.type)
        for f in warehouse.info.sessions_schema
        if f.name not in table.column_names
    }
    full = pa.table({**{name: table[name] for name in table.column_names}, **missing})
    full = full.select(warehouse.info.sessions_schema.names).cast(warehouse.info.sessions_schema)
    days, bucket = EntryArrays.from_table(full).local_day, bucket_of(user_hash(full["user_id"]), buckets)
    gen = warehouse.sessions.new_generation()
    rows: dict[int, dict[int, int]] = {}
    for b in range(buckets):
        mine = np.flatnonzero(bucket == b)
        for day in np.unique(days):
            part = full.take(pa.array(mine[days[mine] == day]))
            rows.setdefault(int(day), {})[b] = warehouse.sessions.write(int(day), gen, b, part)
    warehouse.sessions.commit(gen, rows)
    rate("transition table, from sessions on disk", len(full), lambda: build_transitions(warehouse))
    rate("the same again, nothing changed", len(full), lambda: build_transitions(warehouse))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, nargs="+", default=[3])
    options = parser.parse_args()
    for k in options.pages:
        print(f"{options.sessions:,} sessions, {k} pages")
        table = make_sessions(options.sessions, k)
        measure_kernels(table, k)
        with tempfile.TemporaryDirectory() as folder:
            measure_tables(table, k, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:,.0f} MB")


if __name__ == "__main__":
    main()
