"""Random logs and a slow, plain implementation of every feature, for the tests of the fast ones."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.data.contract import DAY_MS, TIMESTAMP

START = 19_000  # 2022-01-08, a Saturday
NAN = float("nan")


def schema_of(k: int) -> FeatureSchema:
    return FeatureSchema(
        tuple(f"p{i}" for i in range(k)),
        context={"live": "numeric", "device": "categorical"},
        profile={"age": "numeric", "city": "categorical"},
    )


def random_log(
    rng: np.random.Generator,
    n: int,
    k: int,
    *,
    users: int = 5,
    days: float = 40,
    offsets: tuple[int, ...] = (480,),
    grid_ms: int = 1,
    string_ids: bool = False,
) -> pa.Table:
    """n canonical sessions; a coarse `grid_ms` makes equal times, several `offsets` let users travel."""
    entry = START * DAY_MS + (rng.integers(0, int(days * DAY_MS), n) // grid_ms) * grid_ms
    length = rng.choice([0, 1, 60_000, 3_600_000, 30 * 3_600_000], n) * rng.integers(0, 3, n)
    exit_ = entry + (length // grid_ms) * grid_ms
    counts = rng.integers(1, 5, n)
    total = int(counts.sum())
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    pages = rng.integers(0, k, total).astype(np.int16)
    dwell = np.where(rng.random(total) < 0.2, 0, rng.exponential(100, total)).astype(np.float32)
    views = [None if rng.random() < 0.3 else rng.integers(0, 9, c).tolist() for c in counts]
    ids = rng.permutation(n) + 100
    user = rng.integers(0, users, n)
    return pa.table(
        {
            "user_id": pa.array([f"u{u}" for u in user]) if string_ids else pa.array(user),
            "session_id": pa.array([f"s{i}" for i in ids]) if string_ids else pa.array(ids),
            "entry_time": pa.array(entry).cast(TIMESTAMP),
            "exit_time": pa.array(exit_).cast(TIMESTAMP),
            "utc_offset_min": pa.array(rng.choice(offsets, n), pa.int16()),
            "landing_page": pa.array(pages[starts[:-1]]),
            "pages": pa.ListArray.from_arrays(pa.array(starts), pa.array(pages)),
            "dwell_s": pa.ListArray.from_arrays(pa.array(starts), pa.array(dwell)),
            "video_views": pa.array(views, pa.list_(pa.int32())),
            "live": pa.array(rng.random(n), pa.float32()),
            "device": pa.array(rng.choice(["a", "b"], n)),
        }
    )


def plain_features(
    log: pa.Table, schema: FeatureSchema, key_of: dict | None = None
) -> list[dict[str, object]]:
    """The features of every session's entry as dictionaries, computed as one would explain them."""
    rows = [r | {"entry": _ms(r["entry_time"]), "exit": _ms(r["exit_time"])} for r in log.to_pylist()]
    for row in rows:
        row["key"] = key_of[row["session_id"]] if key_of else row["session_id"]
        row["dwell_ms"] = [int(np.rint(np.float64(np.float32(d)) * 1000)) for d in row["dwell_s"]]
    return [_features_at(row, rows, schema) for row in rows]


def _ms(time) -> int:
    return int(np.datetime64(time.replace(tzinfo=None), "ms").astype(np.int64))


def _features_at(entry: dict, rows: list[dict], schema: FeatureSchema) -> dict[str, object]:
    ended = [r for r in rows if r["user_id"] == entry["user_id"] and r["exit"] < entry["entry"]]
    ended.sort(key=lambda r: (r["exit"], r["entry"], r["key"]))
    running = None
    for r in ended:
        own = (r["exit"] + 60_000 * r["utc_offset_min"]) // DAY_MS
        running = own if running is None else max(own, running)
        r["day"] = running
    local = entry["entry"] + 60_000 * entry["utc_offset_min"]
    day = local // DAY_MS if running is None else max(local // DAY_MS, running)
    known = [r for r in ended if r["day"] >= day - 30]
    today = [r for r in known if r["day"] == day]
    found: dict[str, object] = {
        "today_entries": len(today),
        "today_use_s": _use(today),
        "today_switches": sum(len(r["pages"]) - 1 for r in today),
        "today_views": _views(today),
        "since_exit_s": (entry["entry"] - known[-1]["exit"]) / 1000 if known else NAN,
        "last_use_s": _use(known[-1:]) if known else NAN,
        "last_landing_dwell_s": known[-1]["dwell_ms"][0] / 1000 if known else NAN,
        "hour": local % DAY_MS // 3_600_000,
        "weekday": (local // DAY_MS + 3) % 7,
        "last_exit_page": known[-1]["pages"][-1] if known else -1,
        "last_landing_page": known[-1]["landing_page"] if known else -1,
    }
    for width in (7, 30):
        some = [r for r in known if day - width <= r["day"] < day]
        found |= {
            f"entries_{width}d": len(some),
            f"active_days_{width}d": len({r["day"] for r in some}),
            f"use_s_{width}d": _use(some),
            f"views_{width}d": _views(some),
        }
    for k, page in enumerate(schema.pages):
        found[f"today_landings.{page}"] = sum(r["landing_page"] == k for r in today)
        windows = {f"page_{{}}_{w}d": [r for r in known if day - w <= r["day"] < day] for w in (7, 14)}
        for name, some in {"today_page_{}": today, **windows}.items():
            visits = [d for r in some for p, d in zip(r["pages"], r["dwell_ms"], strict=True) if p == k]
            found[f"{name.format('dwell_s')}.{page}"] = sum(visits) / 1000
            found[f"{name.format('entries')}.{page}"] = len(visits)
    last = known[::-1][:8]
    pad = [NAN] * (8 - len(last))
    found["recent_landing"] = [float(r["landing_page"]) for r in last] + pad
    found["recent_use_s"] = [_use([r]) for r in last] + pad
    before = [[r for r in known if r["day"] == day - back] for back in range(1, 31)]
    found["days"] = [[_use(some), len(some)] for some in before]
    return found


def _use(rows: list[dict]) -> float:
    return sum(sum(r["dwell_ms"]) for r in rows) / 1000


def _views(rows: list[dict]) -> int:
    return sum(sum(r["video_views"] or []) for r in rows)


def assert_plain(raw: RawFeatures, expected: list[dict[str, object]]) -> None:
    """Raw features equal the plain ones (as float32), by name."""
    for name in raw.schema.numeric:
        if not name.startswith(("context.", "profile.")):
            values = np.array([e[name] for e in expected], dtype=np.float32)
            np.testing.assert_array_equal(raw.column(name), values, err_msg=name)
    for name in ("hour", "weekday", "last_exit_page", "last_landing_page"):
        np.testing.assert_array_equal(raw.categorical[name], [e[name] for e in expected], err_msg=name)
    for name in raw.schema.sequences:
        values = np.array([e[name] for e in expected], dtype=np.float32)
        np.testing.assert_array_equal(raw.sequences[name], values, err_msg=name)


def assert_same(one: RawFeatures, other: RawFeatures) -> None:
    """Bitwise equal, NaN included."""
    assert one.numeric.tobytes() == other.numeric.tobytes(), _difference(one, other)
    assert one.categorical.keys() == other.categorical.keys()
    for name, values in one.categorical.items():
        assert pa.array(values).equals(pa.array(other.categorical[name])), name
    for name, values in one.sequences.items():
        assert values.tobytes() == other.sequences[name].tobytes(), name
    assert (one.days is None) == (other.days is None)
    assert one.days is None or other.days is None or one.days.tobytes() == other.days.tobytes()


def _difference(one: RawFeatures, other: RawFeatures) -> str:
    rows, columns = np.nonzero(one.numeric.view(np.uint32) != other.numeric.view(np.uint32))
    return f"first difference in row {rows[0]}, {one.schema.numeric[columns[0]]}" if len(rows) else ""
