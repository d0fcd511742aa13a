"""Made-up run folders of A/B experiments for tests of the report: the files of `plpm simulate ab`, with plausible numbers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from plpm_ray.core.storage import write_json, write_parquet
from plpm_ray.evaluation.experiment_metrics import metric_catalogue

PAGES = ("featured", "explore", "following")
ARMS = ("last exit page", "IIT", "DQN", "BC", "random", "oracle")
_STATES = ("absent", "single", "multi")
NASTY = (
    '<script>document.title="taken"</script>"><img src=x onerror=alert(1)> & \u202eabc ' + "long-name-" * 12
)
_LEVELS = {
    "dau": 52.3,
    "lt": 4.87,
    "use_s": 1510.0,
    "watch_s": 1180.0,
    "video_views": 34.2,
    "sessions": 2.61,
    "pdr": 18.4,
}
_HOURS = [33, 20.1, 12.8, 9, 8.1, 11.5, 21.3, 30.9, 35.8, 40.2, 44.8, 47.9]
_HOURS += [52.8, 53.2, 48, 48.9, 51.5, 54.4, 58.5, 61.7, 66.1, 68.6, 67.8, 53.1]
TIDE = [h / sum(_HOURS) for h in _HOURS]


def ab_run(
    folder: Path,
    arms: Sequence[str] = ARMS,
    pages: Sequence[str] = PAGES,
    users: int = 120_000,
    aa_days: int = 7,
    ab_days: int = 21,
    sample_ratio_ok: bool = True,
    design: str = "split",
    seed: int = 0,
) -> Path:
    """An A/B run; the first arm is the control, arms called random and oracle are built in."""
    rng = np.random.default_rng(seed)
    effect = {arm: float(rng.normal(0.006, 0.006)) for arm in arms}
    effect |= {arms[0]: 0.0, "random": -0.055, "oracle": 0.064}
    each = users // len(arms)
    rows = [
        row for metric in metric_catalogue(pages) for row in _metric_rows(metric, arms, effect, each, rng)
    ]
    counts = {arm: each + int(rng.integers(-150, 150)) for arm in arms}
    if not sample_ratio_ok:
        counts[arms[1]] -= each // 10
    builtin = {"random": "random", "oracle": "far_sighted_oracle"}
    write_json(
        folder / "ab.json",
        {
            "kind": "ab",
            "world": "kuaishou",
            "pages": list(pages),
            "control": arms[0],
            "arms": list(arms),
            "versions": {arm: f"klan.iit-{abs(hash(i)) % 0xFFFFFF:06x}" for i, arm in enumerate(arms)},
            "design": design,
            "users": users,
            "warmup_days": 14,
            "aa_days": aa_days,
            "ab_days": ab_days,
            "seed": seed,
            "adjustment": "holm",
            "metrics": rows,
            "sample_ratio": {
                "p_value": 0.41 if sample_ratio_ok else 3e-9,
                "counts": counts,
                "expected": {arm: users / len(arms) for arm in arms},
                "ok": sample_ratio_ok,
                "message": "",
            },
            "latency": {arm: float(rng.uniform(2, 40)) for arm in arms[1:4]},
        },
    )
    listed = [{"label": arm, "builtin": builtin.get(arm), "navigator": None} for arm in arms]
    write_json(folder / "config.json", {"name": "ab", "arms": listed, "versions": ["x"] * len(arms)})
    _ab_tables(folder, arms, pages, effect, each, (aa_days, ab_days), rng)
    return folder


def _metric_rows(
    metric: Any, arms: Sequence[str], effect: dict[str, float], each: int, rng: Any
) -> list[dict[str, Any]]:
    base = _LEVELS.get(metric.key, 0.41 if metric.key.startswith("epef") else 33.0)
    strength = {"dau": 0.4, "lt": 0.5, "pdr": -4.0}.get(
        metric.key, 1.0 if metric.better != "neutral" else 6.0
    )
    error = 0.45 / np.sqrt(each)
    rows = []
    for arm in arms:
        relative = 0.0 if arm == arms[0] else effect[arm] * strength + float(rng.normal(0, error))
        p = None if arm == arms[0] else float(2 * stats.norm.sf(abs(relative) / error))
        share = (effect[arm] + 0.055) / 0.119
        ends = arm in ("random", "oracle") or metric.better == "neutral" or "oracle" not in arms
        gap = None if metric.better == "neutral" or "oracle" not in arms else share
        rows.append(
            {
                "metric": metric.key,
                "title": metric.title,
                "unit": metric.unit,
                "better": metric.better,
                "page": metric.page,
                "arm": arm,
                "value": base * (1 + relative),
                "control": base,
                "unadjusted": base * (1 + relative * 0.9),
                "difference": base * relative,
                "relative": relative,
                "low": None if p is None else relative - 1.96 * error,
                "high": None if p is None else relative + 1.96 * error,
                "p_value": p,
                "p_adjusted": None if p is None or not metric.main else min(1.0, p * 6 * (len(arms) - 1)),
                "variance_reduction": None if p is None else float(rng.uniform(0.3, 0.7)),
                "gap_share": gap,
                "gap_low": None if ends else share - 0.06,
                "gap_high": None if ends else share + 0.06,
            }
        )
    return rows


def _ab_tables(
    folder: Path,
    arms: Sequence[str],
    pages: Sequence[str],
    effect: dict[str, float],
    each: int,
    days: tuple[int, int],
    rng: Any,
) -> None:
    daily, moves, hourly, landed = [], [], [], []
    for arm in arms:
        lived, moved = _days(arm, effect[arm], each, days, rng)
        daily += lived
        moves += moved
        for period, length in zip(("aa", "ab"), days, strict=True):
            entries = each * length * 1.4
            tide = np.array(TIDE) * np.exp(rng.normal(0, 0.02, 24))
            sessions = entries * tide / tide.sum()
            hourly += [(arm, period, h, float(sessions[h]), float(sessions[h] * 500)) for h in range(24)]
            tilt = effect[arm] * 12 if period == "ab" else 0.0
            share = np.exp(np.linspace(0.4 + tilt, -0.4 - tilt, len(pages)))
            assigned = entries * share / share.sum()
            for page, n in zip(pages, assigned.tolist(), strict=True):
                landed.append(
                    (arm, period, page, n, 0.56 * n + 0.08 * entries, 0.1 * entries, 200.0 * entries)
                )
    _write(folder / "daily.parquet", "arm day period date users active_users lt use_s sessions", daily)
    _write(folder / "hourly.parquet", "arm period hour sessions use_s", hourly)
    _write(folder / "moves.parquet", "arm period day from to users", moves)
    _write(folder / "pages.parquet", "arm period page assigned entries_effective drop_offs dwell_s", landed)


def _days(arm: str, effect: float, each: int, days: tuple[int, int], rng: Any) -> tuple[list[Any], list[Any]]:
    """Rows of daily and of moves; the effect sets in over the first AB days."""
    daily, moves, level = [], [], 1.0
    for day in range(sum(days)):
        period = "ab" if day >= days[0] else "aa"
        level += 0.2 * (effect * 0.8 - (level - 1)) if period == "ab" else 0.0
        active = int(rng.binomial(each, min(1.0, 0.52 * level * (1 + 0.04 * np.sin(day * 2 * np.pi / 7)))))
        lt = 4.9 * min(day + 1, 7) / 7 * level * (1 + float(rng.normal(0, 0.0008)))
        date = dt.date(2024, 3, 18) + dt.timedelta(days=day)
        daily.append((arm, day, period, date, each, active, lt, active * 1500.0, active * 2.6))
        shift = 4.0 * effect if period == "ab" else 0.0
        stay = np.array([[70, 18, 12], [31, 42 - shift, 27 + shift], [20, 24 - shift, 56 + shift]]) / 100
        for i, before in enumerate(_STATES):
            # what users did before the first day is not known
            to = rng.multinomial(each // 3, stay[i]) if day else np.zeros(3)
            moves += [(arm, period, day, before, after, int(n)) for after, n in zip(_STATES, to, strict=True)]
    return daily, moves


def _write(path: Path, names: str, rows: Sequence[tuple[Any, ...]]) -> None:
    columns = list(zip(*rows, strict=True))
    write_parquet(
        path, pa.table({name: list(column) for name, column in zip(names.split(), columns, strict=True)})
    )
