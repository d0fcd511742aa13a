"""The check of the estimators at small size: truth against brute force, refusals, and the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plpm_ray.core.storage import read_json
from plpm_ray.simulation.choosers import LoggingPolicy, RandomPage
from plpm_ray.simulation.config import WorldConfig, load_world
from plpm_ray.simulation.coverage import CoverageConfig, format_coverage, run_coverage
from plpm_ray.simulation.coverage_targets import Target, TargetConfig
from plpm_ray.simulation.coverage_truth import Truth, truths
from plpm_ray.simulation.simulation import Sessions, Simulation, run_days
from plpm_ray.simulation.world import World

SMALL = {"users": 150, "warmup_days": 2, "train_days": 1, "days": 1, "truth_users": 600, "refits": 3}


def test_the_truth_is_what_happens_when_the_policy_is_followed() -> None:
    world, users, before = World(load_world("five_pages")), np.arange(1200), 3
    targets = [Target(TargetConfig(builtin="logging"), world), Target(TargetConfig(builtin="random"), world)]
    known = truths(world, targets, users, before, 1, 1.0)
    for truth, chooser in zip(known, (LoggingPolicy(), RandomPage()), strict=True):
        use, came = np.zeros(len(users)), np.zeros(len(users))

        def count(sessions: Sessions, use: np.ndarray = use, came: np.ndarray = came) -> None:
            use[sessions.entries.rows] += sessions.use_ms / 1000
            came[sessions.entries.rows] = 1

        simulation = Simulation(world, users)
        run_days(simulation, before, LoggingPolicy())
        run_days(simulation, 1, chooser, count)
        followed = use.sum() / came.sum()
        # the same users: what is left is the luck of their sessions
        spread = (use - followed * came).std() / came.mean() / np.sqrt(len(users))
        assert abs(followed - truth.day.value) < 4 * spread
    assert known[0].decision.value > known[1].decision.value


def test_parts_of_the_truth_add_up() -> None:
    world = World(load_world("kuaishou"))
    targets = [Target(TargetConfig(page="explore"), world)]
    whole = truths(world, targets, np.arange(80), 2, 1, 0.9)[0]
    halves = [truths(world, targets, part, 2, 1, 0.9)[0] for part in np.array_split(np.arange(80), 2)]
    joined = halves[0] + halves[1]
    assert joined.day.value == pytest.approx(whole.day.value)
    assert joined.decision.standard_error == pytest.approx(whole.decision.standard_error)
    assert (Truth() + whole).day.users == 80


def test_results_do_not_depend_on_workers(tmp_path: Path) -> None:
    small = {**SMALL, "targets": [{"builtin": "random"}], "repetitions": 3, "estimators": ["snips"]}
    rows = [
        run_coverage(
            CoverageConfig.model_validate(
                {**small, "run_root": str(tmp_path / str(workers)), "workers": workers}
            )
        )["rows"]
        for workers in (1, 3)
    ]
    assert rows[0] == rows[1]


def test_a_run_counts_covered_intervals(tmp_path: Path) -> None:
    targets = [{"builtin": "logging"}, {"label": "soft", "builtin": "random", "logged_share": 0.7}]
    config = CoverageConfig.model_validate(
        {**SMALL, "targets": targets, "repetitions": 3, "run_root": str(tmp_path)}
    )
    result = run_coverage(config)
    kept = read_json(Path(result["run"]) / "coverage.json")
    assert [(r["policy"], r["estimator"]) for r in kept["rows"]] == [
        (policy, name) for policy in ("logging", "soft") for name in ("snips", "dr", "fqe")
    ]
    for row in kept["rows"]:
        assert row["answered"] + row["refused"] == 3 and 0 <= row["covered"] <= row["answered"]
        if row["answered"]:
            assert row["rate_low"] <= row["covered"] / row["answered"] <= row["rate_high"]
            assert row["bias"] == pytest.approx(row["mean"] - row["truth"])
    text = format_coverage(result)
    assert "logging" in text and max(map(len, text.splitlines())) <= 200


def test_estimators_refuse_what_the_log_never_shows(tmp_path: Path) -> None:
    world = load_world("kuaishou")
    alone = {"explore": 0.0, "default_page": "featured", "default_share": 1.0}
    biased = WorldConfig.model_validate(
        {**world.model_dump(), "logging": {**world.logging.model_dump(), **alone}}
    )
    config = CoverageConfig.model_validate(
        {
            **SMALL,
            "world": biased.model_dump(mode="json"),
            "explore": None,
            "targets": [{"page": "following"}],
            "repetitions": 2,
            "run_root": str(tmp_path),
        }
    )
    result = run_coverage(config)
    for row in result["rows"]:
        assert row["refused"] == 2 and row["refusal"], row["estimator"]
    assert "refused 2 of 2" in format_coverage(result)
