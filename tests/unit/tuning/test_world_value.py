"""What a chooser is worth in the world, and when it is refused."""

from __future__ import annotations

import pytest

from plpm_ray.simulation.choosers import FarSightedOracle, FixedPage, LoggingPolicy
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.twins import Twins
from plpm_ray.simulation.world import World
from plpm_ray.tuning.world import Constraints
from plpm_ray.tuning.world_value import WorldValue


@pytest.fixture(scope="module")
def twins() -> list[Twins]:
    import numpy as np

    world = World(load_world("kuaishou"))
    return [Twins(world, 10**9 + start + np.arange(100), 2, 1, 3) for start in (0, 100)]


def value_of(twins: list[Twins], rank_by="lower", **constraints) -> WorldValue:
    return WorldValue(twins, 1, 3, Constraints.model_validate(constraints), rank_by)


def lived(value: WorldValue, chooser) -> list:
    return [value.live(group, lambda online: chooser) for group in range(len(value))]


def test_the_logging_policys_own_decisions_gain_exactly_nothing(twins):
    value = value_of(twins)
    report = value.report(lived(value, LoggingPolicy()), None)
    assert (report.gain, report.goal, report.refused) == (0.0, 0.0, None)
    assert report.value == value.baseline["use_s"] == report.metrics["use_s"]
    assert all(report.metrics[key] == 0 for key in report.metrics if key.endswith("_change"))


def test_the_lower_end_of_the_paired_gain_decides_or_the_value(twins):
    lower, plain = value_of(twins, epef=None), value_of(twins, "value", epef=None)
    report = lower.report(lived(lower, FarSightedOracle()), 80.0)
    assert report.gain_low < report.gain < report.gain_high
    assert report.goal == report.gain_low and report.metrics["latency_us"] == 80.0
    assert report.value == pytest.approx(lower.baseline["use_s"] * (1 + report.gain / 100))
    assert report.low < report.value < report.high
    assert sum(report.metrics[f"to_{page}"] for page in lower.pages) == pytest.approx(100)
    assert plain.report(lived(plain, FarSightedOracle()), None).goal == report.value


def test_a_group_after_the_other(twins):
    value = value_of(twins, epef=None)
    groups = lived(value, FixedPage(twins[0].world, 0))
    first, both = value.report(groups[:1], None), value.report(groups, None)
    assert (first.epoch, both.epoch) == (1, 2) and first.gain != both.gain
    alone = value_of(twins[:1], epef=None)
    assert alone.report(groups[:1], None) == first


def test_a_page_that_loses_entries_is_named_with_its_numbers(twins):
    strict, loose = value_of(twins), value_of(twins, epef={"tolerance": 1.0})
    groups = lived(strict, FixedPage(twins[0].world, 0))
    report = strict.report(groups, None)
    assert report.value is None and report.score is None and report.gain is not None
    assert "EPEF of following is" in str(report.refused)
    assert "% below the logging policy's (" in str(report.refused) and "0 % are allowed" in str(
        report.refused
    )
    assert loose.report(groups, None).refused is None
    change = report.metrics["epef_following_change"]
    assert value_of(twins, epef={"tolerance": 0.999}).report(groups, None).refused is None
    least = min(report.metrics[f"epef_{page}_change"] for page in strict.pages)
    just = value_of(twins, epef={"tolerance": -least / 100 - 1e-6}).report(groups, None)
    assert change < 0 and just.refused is not None


def test_a_decision_has_a_budget(twins):
    value = value_of(twins, latency_us=50.0)
    groups = lived(value, LoggingPolicy())
    assert value.report(groups, 49.0).refused is None
    assert value.report(groups, 51.4).refused == "a decision takes 51 us of CPU, 50 are allowed"
    assert value.report(groups, None).refused is None
