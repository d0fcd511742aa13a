"""The calibration: its targets, its totals, its intervals, and that `kuaishou` hits what it was calibrated to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.simulation.calibration import CalibrationConfig, calibrate, format_calibration, measure
from plpm_ray.simulation.calibration_rows import fit_use, p90_over_median
from plpm_ray.simulation.calibration_targets import read_aggregates, with_aggregates
from plpm_ray.simulation.calibration_totals import CalibrationSink, CalibrationTotals, jackknife
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.simulation import Sessions, Simulation, run_days
from plpm_ray.simulation.world import World

SMALL: dict[str, Any] = {"users": 150, "warmup_days": 2, "days": 7}
CLOSE = {  # how near the reached value must come, in the unit of its row
    "hours": 2.0,
    "sessions (30-minute gap) per user and day": 0.15,
    "sessions of a user, 90th percentile / median": 0.12,
    "active days with more than one entry": 2.0,
    "video views per user and day": 20.0,
    "views of a user, 90th percentile / median": 0.25,
    "active days on more than one page": 2.0,
    "pages": 2.0,
    "weekdays": 0.035,
    "steadiness": 3.0,
}


@pytest.fixture(scope="module")
def kuaishou() -> dict[str, Any]:
    return calibrate(CalibrationConfig(users=2000, warmup_days=7, days=28))


def reached(record: dict[str, Any], quantity: str) -> float:
    return next(row["reached"] for row in record["rows"] if row["quantity"] == quantity)


def test_kuaishou_hits_its_targets(kuaishou: dict[str, Any]) -> None:
    compared = 0
    for row in kuaishou["rows"]:
        if row["target"] is None or row["quantity"].startswith("gaps of"):
            continue
        near = CLOSE.get(row["quantity"], CLOSE.get(row["group"]))
        assert abs(row["reached"] - row["target"]) < near, row
        compared += 1
    assert compared == 18
    assert reached(kuaishou, "R2 of a ln(1 + entries) + b") > 0.97
    assert 15 < reached(kuaishou, "drop-offs of landings, all pages") < 30
    assert 40 < reached(kuaishou, "app use per user and day") < 90
    assert sum(kuaishou["hourly"]["reached"]) == pytest.approx(1) == sum(kuaishou["hourly"]["target"])


def test_the_record_is_json_and_the_table_fits_the_screen(kuaishou: dict[str, Any]) -> None:
    again = json.loads(json.dumps(kuaishou, allow_nan=False))
    assert again["kind"] == "calibration" and again["world"] == "kuaishou" and again["seed"] == 0
    for row in again["rows"]:
        assert set(row) == {"group", "quantity", "unit", "target", "reached", "low", "high", "source"}
        assert row["low"] <= row["reached"] <= row["high"], row
        assert (row["source"] == "not published") == (row["target"] is None)
    text = format_calibration(again)
    assert max(map(len, text.splitlines())) <= 110
    assert "active days on more than one page, %" in text and "KLAN fig. 2b" in text


def test_totals_are_the_same_however_users_are_cut() -> None:
    whole = calibrate(CalibrationConfig(**SMALL))
    for chunk in (150, 47):
        assert calibrate(CalibrationConfig(**SMALL, chunk_users=chunk, workers=2)) == whole
    assert calibrate(CalibrationConfig(**SMALL, seed=5))["rows"] != whole["rows"]


def test_totals_are_sums_over_the_sessions() -> None:
    world = World(load_world("five_pages"))
    simulation, policy = Simulation(world, np.arange(150)), LoggingPolicy()
    run_days(simulation, 1, policy)
    sink, seen = CalibrationSink(simulation, 7), list[Sessions]()
    for _ in range(7):
        run_days(simulation, 1, policy, sink, seen.append)
        sink.end_day()
    totals = sink.totals().without(None)
    views = sum(int(s.video_views(world).sum()) for s in seen)
    assert totals.hour_views.sum() == totals.day_views.sum() == totals.page_views.sum() == views
    assert totals.user_views.sum() == views and totals.users.sum() == 150
    assert totals.use_ms[0] == totals.use_ms_by_entries.sum() == sum(int(s.use_ms.sum()) for s in seen)
    assert totals.use_ms[0] == totals.day_use_ms.sum() == totals.page_use_ms.sum()
    assert totals.watch_ms[0] == sum(int(s.watch_ms(world).sum()) for s in seen)
    entries = sum(len(s) for s in seen)
    assert totals.entries[0] == entries == totals.landings.sum()
    assert entries == (totals.days_by_entries[0] * np.arange(totals.days_by_entries.shape[1])).sum()
    assert totals.drop_offs[0] == totals.page_drop_offs.sum() == sum(int(s.dropped.sum()) for s in seen)
    pages: dict[tuple[int, int], set[int]] = {}
    for s in seen:
        for p, at in np.argwhere(s.walk.dwell_ms_PB >= 10_000):
            key = (int(s.entries.user_id[at]), int(s.entries.day[at]))
            pages.setdefault(key, set()).add(int(s.walk.pages_PB[p, at]))
    assert totals.multi_days[0] == sum(len(found) > 1 for found in pages.values())
    # entries are at least half an hour apart in this world, so that all of them are sessions of their own
    assert totals.gap_sessions[0] == entries == totals.user_sessions.sum()


def test_views_belong_to_the_hours_in_which_they_happen() -> None:
    world = World(load_world("kuaishou"))
    sink = CalibrationSink(Simulation(world, np.arange(1)), 1)
    hour = 3_600_000
    # one visit of 150 minutes from 22:30 on, with 150 views: 30, 60 and 60 of them
    sink._spread(np.array([0]), np.array([22 * hour + hour // 2]), np.array([150 * 60_000]), np.array([150]))
    views = sink.totals().hour_views[0]
    assert (views[22], views[23], views[0], views.sum()) == (30, 60, 60, 150)


def test_intervals_cover_at_their_rate() -> None:
    """Ratio, fit and quantile of 150 small populations with known values."""
    rng, covered = np.random.default_rng(0), np.zeros(2)
    truth = np.array([0.25, 1.1706])  # the second from twenty million draws
    blank = measure(load_world("null"), CalibrationConfig(world="null", users=100, warmup_days=0, days=7))
    for _ in range(150):
        users, group = 1000, rng.integers(0, 50, 1000)
        often = rng.gamma(2.0, 1.5, users)  # what a user does is alike on all days
        entries, drops = rng.poisson(often * 4), rng.poisson(often)
        totals = CalibrationTotals(
            **{
                **vars(blank),
                "users": np.bincount(group, minlength=50),
                "entries": np.bincount(group, entries, 50).astype(np.int64),
                "drop_offs": np.bincount(group, drops, 50).astype(np.int64),
                "user_group": group,
                "user_sessions": rng.poisson(60, users),
                "user_views": entries,
            }
        )

        def statistics(t: CalibrationTotals) -> np.ndarray:
            return np.array([t.drop_offs[0] / t.entries[0], p90_over_median(t.user_sessions)])

        _, low, high = jackknife(totals, statistics)
        covered += (low < truth) & (high > truth)
    assert covered[0] / 150 == pytest.approx(0.95, abs=0.06)
    assert covered[1] / 150 == pytest.approx(0.95, abs=0.06)


def test_the_fit_of_use_finds_its_line() -> None:
    totals = measure(load_world("null"), CalibrationConfig(world="null", users=100, warmup_days=0, days=7))
    n = np.arange(totals.days_by_entries.shape[1])
    days = np.where((n > 0) & (n < 12), 1000 // np.maximum(n, 1), 0)[None, :]
    totals.days_by_entries = days
    totals.use_ms_by_entries = np.rint(days * (20 * np.log1p(n) + 5) * 60_000).astype(np.int64)
    assert fit_use(totals) == pytest.approx((20, 5, 1), abs=1e-5)


def test_a_world_without_targets_is_measured_all_the_same() -> None:
    record = calibrate(CalibrationConfig(**SMALL, world="five_pages"))
    assert [row["quantity"] for row in record["rows"] if row["target"] is not None] == []
    assert record["hourly"]["target"] is None and sum(record["hourly"]["reached"]) == pytest.approx(1)
    assert "total var." not in format_calibration(record)


def test_aggregates_are_read_and_agree_with_the_constants(data_folder: Callable[[str], Path]) -> None:
    folder = data_folder("kuairand_27k_aggregates")
    targets, disagreements = with_aggregates(load_world("kuaishou").targets, folder)
    assert disagreements == []
    assert targets.sessions_per_user_day == pytest.approx(150.162653 / 31)
    assert sum(targets.page_share.values()) == pytest.approx(1)
    assert targets.page_share["featured"] == pytest.approx(215_925_023 / 304_359_407)
    assert targets.hourly is not None and targets.hourly[21] == pytest.approx(22_117_433 / 322_278_385)
    assert targets.multi_page_days == 0.42, "not in the aggregates"
    moved = targets.model_copy(update={"views_per_user_day": 400.0})
    [sentence] = with_aggregates(moved, folder)[1]
    assert sentence == "targets.views_per_user_day is 400 in the world's YAML, 381 in the aggregates"


def test_folders_without_aggregates_or_with_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds none of the aggregate tables"):
        with_aggregates(load_world("kuaishou").targets, tmp_path)
    (tmp_path / "log_standard_hourly.csv").write_text("hour,views\n0,1\n", encoding="utf-8-sig")
    with pytest.raises(DataError, match="log_standard_hourly.csv is not as published"):
        read_aggregates(tmp_path, {})
    hours = "\n".join(f"{h},{1 + h},0,0" for h in range(24))
    (tmp_path / "log_standard_hourly.csv").write_text(f"hour,exposures,clicks,ctr\n{hours}\n", "utf-8-sig")
    found, sentences = with_aggregates(load_world("kuaishou").targets, tmp_path)
    assert found.hourly is not None and found.hourly[23] == pytest.approx(24 / 300)
    assert len(sentences) == 1 and sentences[0].startswith("targets.hourly[")


def test_tasks_on_ray_give_the_same_record(ray_session: None) -> None:
    options = {**SMALL, "users": 100, "warmup_days": 0}
    alone = calibrate(CalibrationConfig(**options))
    assert calibrate(CalibrationConfig(**options, chunk_users=50, backend="ray", workers=2)) == alone
