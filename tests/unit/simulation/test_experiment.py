"""The A/B experiment: what each arm gets, that results do not depend on how the work was cut, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import ConfigError, PlpmError
from plpm_ray.core.storage import read_json, read_parquet
from plpm_ray.simulation.experiment import ExperimentConfig, run_experiment, split_users

SMALL = {"users": 240, "warmup_days": 2, "aa_days": 2, "ab_days": 2, "world": "kuaishou"}
LOGGING = {"builtin": "logging", "label": "baseline"}
LONGEST = {"navigator": "heuristic.longest_use", "label": "longest use"}


def _config(tmp_path: Path, arms: list[dict[str, Any]], **extra: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({**SMALL, "run_root": str(tmp_path), "arms": arms, **extra})


def _rows(result: dict[str, Any], metric: str) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in result["metrics"] if row["metric"] == metric}


def test_a_run_folder_holds_what_the_report_reads(tmp_path: Path) -> None:
    arms = [LOGGING, LONGEST, {"builtin": "random"}, {"builtin": "far_sighted_oracle"}, {"page": "explore"}]
    result = run_experiment(_config(tmp_path, arms))
    run = Path(result["run"])
    assert read_json(run / "ab.json")["arms"] == [
        "baseline",
        "longest use",
        "random",
        "far_sighted_oracle",
        "always explore",
    ]
    assert {p.name for p in run.iterdir()} == {
        *(
            ".lock",
            "config.json",
            "ab.json",
            "users.parquet",
            "daily.parquet",
            "hourly.parquet",
            "moves.parquet",
            "pages.parquet",
        )
    }
    users, daily = read_parquet(run / "users.parquet"), read_parquet(run / "daily.parquet")
    assert users.num_rows == 240 and len(set(users["user_id"].to_pylist())) == 240
    for arm in result["arms"]:
        mine = users.filter(pa.compute.equal(users["arm"], arm))
        days = daily.filter(pa.compute.equal(daily["arm"], arm))
        total = sum(mine["aa_use_s"].to_pylist()) + sum(mine["ab_use_s"].to_pylist())
        assert sum(days["use_s"].to_pylist()) == pytest.approx(total)
        assert set(days["users"].to_pylist()) == {mine.num_rows}
    pages = read_parquet(run / "pages.parquet").to_pylist()
    always = {
        row["page"]: row["assigned"]
        for row in pages
        if row["arm"] == "always explore" and row["period"] == "ab"
    }
    assert always["explore"] > 0 and always["featured"] == always["following"] == 0
    assert set(result["latency"]) == {"longest use"}


def test_twins_differ_only_through_the_policy(tmp_path: Path) -> None:
    arms = [LOGGING, {**LOGGING, "label": "again"}, LONGEST]
    result = run_experiment(_config(tmp_path, arms, design="twins", users=120))
    users = read_parquet(Path(result["run"]) / "users.parquet")
    by_arm = {
        arm: users.filter(pa.compute.equal(users["arm"], arm)).sort_by("user_id").drop_columns(["arm"])
        for arm in result["arms"]
    }
    assert by_arm["again"].equals(by_arm["baseline"])
    before = [name for name in users.column_names if name.startswith("aa_")]
    assert by_arm["longest use"].select(before).equals(by_arm["baseline"].select(before))
    assert not by_arm["longest use"]["ab_use_s"].equals(by_arm["baseline"]["ab_use_s"])
    assert _rows(result, "use_s")["again"]["difference"] == 0


def test_results_do_not_depend_on_parts_and_workers(tmp_path: Path) -> None:
    arms = [LOGGING, LONGEST, {"builtin": "random"}]
    one = run_experiment(_config(tmp_path / "one", arms))
    many = run_experiment(_config(tmp_path / "many", arms, users_per_task=17, workers=4))
    a, b = (read_parquet(Path(r["run"]) / "users.parquet").sort_by("user_id") for r in (one, many))
    assert a.equals(b)
    assert one["metrics"] == many["metrics"]


def test_users_are_split_by_share_whatever_their_number(tmp_path: Path) -> None:
    config = _config(tmp_path, [LOGGING, {**LONGEST, "share": 3.0}], users=40_000)
    few, many = split_users(config)
    assert not set(few) & set(many) and len(few) + len(many) == 40_000
    assert abs(len(few) / 40_000 - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 40_000)
    fewer = split_users(config.model_copy(update={"users": 1000}))
    assert set(fewer[0]) <= set(few) and set(fewer[1]) <= set(many)
    assert set(split_users(config.model_copy(update={"seed": 1}))[0]) != set(few)


def test_nobody_wins_where_the_landing_page_changes_nothing(tmp_path: Path) -> None:
    arms = [LOGGING, {"builtin": "random"}, {"builtin": "myopic_oracle"}, {"page": "following"}]
    result = run_experiment(_config(tmp_path, arms, world="null", design="twins", users=200, ab_days=4))
    for metric in ("use_s", "dau", "lt", "pdr", "sessions"):
        assert [row["difference"] for row in _rows(result, metric).values()] == [0, 0, 0, 0], metric


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arms": [LOGGING, LOGGING]}, "two arms are called 'baseline'"),
        ({"arms": [LOGGING, {"builtin": "random", "page": "explore"}]}, "exactly one of"),
        ({"control": "nobody"}, "control 'nobody' is none of the arms"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _config(tmp_path, **{"arms": [LOGGING, LONGEST], **change})


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"page": "explor"}, "unknown page 'explor'"),
        ({"navigator": "heuristic.longest"}, "heuristic.longest"),
        ({"bundle": "runs/nowhere"}, "no bundle at runs/nowhere"),
        ({"navigator": {"name": "heuristic.longest_use", "depth": 3}}, "depth"),
    ],
)
def test_arms_are_checked_before_anything_is_simulated(
    tmp_path: Path, arm: dict[str, Any], says: str
) -> None:
    with pytest.raises(PlpmError, match=says):
        run_experiment(_config(tmp_path, [LOGGING, arm]))
    assert not list(tmp_path.iterdir())


def test_a_navigator_of_other_pages_is_refused(tmp_path: Path) -> None:
    from plpm_ray.core.pages import PageCatalogue
    from plpm_ray.navigators.heuristics import Popularity
    from plpm_ray.simulation.arms import world_stats
    from plpm_ray.simulation.config import load_world
    from plpm_ray.simulation.navigated import NavigatorChooser
    from plpm_ray.simulation.world import World

    config = load_world("kuaishou")
    other = Popularity(
        Popularity.Config(), PageCatalogue.model_validate(["home", "shop"]), world_stats(config)
    )
    with pytest.raises(ConfigError, match="was made for the pages"):
        NavigatorChooser(World(config), other)
