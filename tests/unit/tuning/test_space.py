"""The search space: derived from declared ranges, strict about names, the same on both sides of Optuna."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from plpm_ray.core.config import StrictConfig, Tunable
from plpm_ray.core.errors import ConfigError
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.training.config import TrainingConfig
from plpm_ray.tuning.space import SearchRange, build_space, check_space


class Inner(StrictConfig):
    depth: Annotated[int, Tunable(1, 4, kind="int")] = Field(default=2, ge=1, description="layers")


class Outer(StrictConfig):
    alpha: Annotated[float, Tunable(0.01, 10.0, log=True)] = Field(default=1.0, ge=0, description="penalty")
    width: int = Field(default=8, ge=1, description="units")
    hidden: tuple[int, ...] = Field(default=(8,), description="layers")
    inner: Inner = Field(default_factory=Inner, description="nested")


MODELS = {"learner": Outer, "training": TrainingConfig, "policy": PolicyConfig}


def space_of(search):
    return build_space({n: r and SearchRange.model_validate(r) for n, r in search.items()}, MODELS)


def test_declared_ranges_are_taken_when_nothing_is_said():
    space = space_of({})
    assert space.names == ("alpha", "inner.depth")
    alpha, depth = space
    assert (alpha.low, alpha.high, alpha.log, alpha.integer) == (0.01, 10.0, True, False)
    assert (depth.low, depth.high, depth.integer, depth.path) == (1, 4, True, ("inner", "depth"))


def test_a_part_of_a_range_may_be_given_and_the_rest_is_declared():
    (alpha,) = space_of({"alpha": {"high": 2.0}})
    assert (alpha.low, alpha.high, alpha.log) == (0.01, 2.0, True)
    (linear,) = space_of({"alpha": {"low": 0.0, "log": False}})
    assert (linear.low, linear.log) == (0.0, False)


def test_sections_and_prefixes():
    space = space_of({"learner.alpha": None, "training.lr": None, "policy.temperature": {"low": 0.1}})
    assert space.names == ("alpha", "training.lr", "policy.temperature")
    params = {"alpha": 0.5, "training.lr": 0.003, "policy.temperature": 2.0}
    assert space.apply(params, "learner", {"width": 4}) == {"width": 4, "alpha": 0.5}
    assert space.apply(params, "training", {"epochs": 2}) == {"epochs": 2, "lr": 0.003}


def test_nested_settings_do_not_change_what_they_are_merged_into():
    space, base = space_of({"inner.depth": None}), {"inner": {"depth": 1}}
    assert space.apply({"inner.depth": 3}, "learner", base) == {"inner": {"depth": 3}}
    assert base == {"inner": {"depth": 1}}


@pytest.mark.parametrize(
    ("search", "message", "hint"),
    [
        ({"alhpa": None}, "unknown parameter 'alhpa'", "'alpha'"),
        ({"learner.alhpa": None}, "unknown parameter", "'learner.alpha'"),
        ({"training.learning_rte": None}, "unknown parameter", None),
        ({"trainin.lr": None}, "unknown parameter", "'training.lr'"),
        ({"width": None}, "there is no range", "low"),
        ({"alpha": {"low": 20.0}}, "must be below", None),
        ({"alpha": {"low": 0.0}}, "above 0", "log"),
        ({"width": {"low": 1.5, "high": 3}}, "integer", None),
        ({"alpha": None, "learner.alpha": None}, "named twice", None),
    ],
)
def test_what_does_not_fit_is_refused(search, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        space_of(search)
    if hint:
        assert hint in (caught.value.hint or "")


def test_a_range_is_one_thing_or_the_other():
    with pytest.raises(ValidationError, match="either"):
        SearchRange.model_validate({"low": 1, "choices": [1, 2]})
    with pytest.raises(ValidationError, match="below"):
        SearchRange.model_validate({"low": 2, "high": 1})


def test_bounds_of_the_config_are_checked_before_any_trial():
    space = space_of({"width": {"low": 0, "high": 4}})
    with pytest.raises(ConfigError, match=r"search.width: 0 is not valid"):
        check_space(space, MODELS, {"learner": {}})
    check_space(space_of({"width": {"low": 1, "high": 4}}), MODELS, {"learner": {}})


def test_lists_may_be_choices_and_points_survive_the_way_through_optuna():
    space = space_of({"hidden": {"choices": [[8], [16, 16]]}, "width": {"low": 1, "high": 9}, "alpha": None})
    point = {"hidden": [16, 16], "width": 3, "alpha": 0.5}
    raw = space.encode(point)
    assert raw == {"hidden": 1, "width": 3, "alpha": 0.5}
    assert space.apply(space.decode(raw), "learner", {})["hidden"] == [16, 16]
    assert space.encode({**point, "alpha": 99.0}) is None
    assert space.encode({"width": 3}) is None


def test_the_defaults_are_a_point():
    space = space_of({"alpha": None, "inner.depth": None, "hidden": {"choices": [[8], [4]]}})
    point = space.point({"learner": Outer()})
    assert point == {"alpha": 1.0, "inner.depth": 2, "hidden": [8]}
    assert space.encode(point) is not None
