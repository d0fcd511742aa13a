"""Configs: strictness, lines, overrides, tunables."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from plpm_ray.core.config import (
    Named,
    StrictConfig,
    Tunable,
    config_hash,
    load_config,
    read_config,
    tunables,
    validate,
)
from plpm_ray.core.errors import ConfigError


class Inner(StrictConfig):
    alpha: Annotated[float, Tunable(0.1, 10, log=True)] = Field(1.0, ge=0)
    epochs: int = 3


class Scheduler(StrictConfig):
    kind: Literal["asha", "none"] = "asha"
    grace: int = 2

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, data):
        return {"kind": data} if isinstance(data, str) else data


class Part(StrictConfig):
    learner: Named | None = None


class Outer(StrictConfig):
    name: str = "run"
    inner: Inner = Inner()
    steps: tuple[Inner, ...] = ()
    learner: Named | None = None
    scheduler: Scheduler = Scheduler()
    parts: dict[str, Part] = Field(default_factory=dict)
    arms: tuple[Part, ...] = ()
    world: str | dict[str, Any] = "small"


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_unknown_key_names_file_line_and_nearest(tmp_path):
    path = write(tmp_path, "name: a\ninner:\n  epochs: 2\n  alhpa: 3\n")
    with pytest.raises(ConfigError) as error:
        load_config(Outer, path)
    assert f"{path}:4" in str(error.value)
    assert "unknown key 'alhpa' in inner" in str(error.value)
    assert "did you mean 'alpha'?" in str(error.value)


def test_unknown_key_in_a_list_of_sections(tmp_path):
    path = write(tmp_path, "steps:\n  - epochs: 1\n  - epoch: 2\n")
    with pytest.raises(ConfigError, match=r"run.yaml:3.*'epoch'") as error:
        load_config(Outer, path)
    assert "did you mean 'epochs'?" in str(error.value)


def test_every_problem_is_reported_at_once(tmp_path):
    path = write(tmp_path, "nmae: a\ninner: {epochs: many}\n")
    with pytest.raises(ConfigError) as error:
        load_config(Outer, path)
    assert (
        "'nmae'" in error.value.message
        and "inner.epochs" in error.value.message
        and "'many'" in error.value.message
    )


def test_overrides_win_and_are_named_in_errors(tmp_path):
    path = write(tmp_path, "inner: {epochs: 2}\nsteps: [{epochs: 1}]\n")
    config = load_config(Outer, path, ["inner.epochs=5", "inner.alpha=0.5", "steps.0.epochs=9"])
    assert (config.inner.epochs, config.inner.alpha, config.steps[0].epochs) == (5, 0.5, 9)
    with pytest.raises(ConfigError, match="--set inner.alpha=-1"):
        load_config(Outer, path, ["inner.alpha=-1"])
    with pytest.raises(ConfigError, match="--set innr.epochs=5: unknown key 'innr'"):
        load_config(Outer, path, ["innr.epochs=5"])
    with pytest.raises(ConfigError, match="not key=value"):
        load_config(Outer, path, ["inner.alpha"])
    with pytest.raises(ConfigError, match="is a list of 1"):
        load_config(Outer, path, ["steps.3.epochs=1"])


def test_an_override_within_a_section_that_is_a_name_alone_adds_to_it(tmp_path):
    text = "learner: toy\nscheduler: none\nparts: {hrm: {learner: toy}}\narms: [{learner: toy}, {learner: toy}]\n"
    sets = ["learner.alpha=2", "scheduler.grace=3", "parts.hrm.learner.tau=1", "arms.1.learner.alpha=4"]
    config = load_config(Outer, write(tmp_path, text), sets)
    assert config.learner == Named(name="toy", alpha=2)
    assert (config.scheduler.kind, config.scheduler.grace) == ("none", 3)
    assert config.parts["hrm"].learner == Named(name="toy", tau=1)
    assert [arm.learner for arm in config.arms] == [Named(name="toy"), Named(name="toy", alpha=4)]


def test_the_last_override_of_a_name_wins(tmp_path):
    path = write(tmp_path, "learner: toy\n")
    sets = ["learner.alpha=2", "learner.name=other"]
    assert load_config(Outer, path, sets).learner == Named(name="other", alpha=2)
    assert load_config(Outer, path, ["learner.alpha=2", "learner=other"]).learner == Named(name="other")
    assert load_config(Outer, path, ["learner=other", "learner.beta=1"]).learner == Named(
        name="other", beta=1
    )
    with pytest.raises(ConfigError, match="'learner.name' is missing"):
        load_config(Outer, path, ["learner=null", "learner.alpha=2"])


def test_an_override_within_any_other_value_replaces_it(tmp_path):
    path = write(tmp_path, "name: a\nscheduler: nope\nworld: small\nlearner: {name: toy, world: small}\n")
    with pytest.raises(ConfigError, match=r"--set name.x=1: name: Input should be a valid string"):
        load_config(Outer, path, ["scheduler=none", "name.x=1"])
    with pytest.raises(ConfigError, match=r"--set scheduler.grace=1: scheduler.kind: .*got 'nope'"):
        load_config(Outer, path, ["scheduler.grace=1"])
    config = load_config(Outer, path, ["scheduler=none", "world.seed=1", "learner.world.seed=1"])
    assert (config.world, config.learner.options) == ({"seed": 1}, {"world": {"seed": 1}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "holds a list"),
        ("a: [1\n", "not valid YAML"),
        ("name: a\nname: b\n", "stands twice"),
        ("on: a\n", "run.yaml:1: key 'on' is not a string"),
    ],
)
def test_malformed_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, write(tmp_path, text))


def test_missing_file():
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(Outer, "nowhere.yaml")


def test_named_section_is_checked_against_its_class_with_its_line(tmp_path):
    path = write(tmp_path, "learner:\n  name: toy\n  alpa: 2\n")
    source = read_config(path)
    outer = validate(Outer, source)
    with pytest.raises(ConfigError, match=r"run.yaml:3: unknown key 'alpa' in learner") as error:
        validate(Inner, source, ("learner",), outer.learner.options)
    assert error.value.hint == "did you mean 'alpha'?"


def test_configs_are_frozen_and_hashed_by_value():
    assert config_hash(Inner(alpha=2)) == config_hash({"epochs": 3, "alpha": 2.0})
    assert config_hash(Inner(alpha=2)) != config_hash(Inner(alpha=3))
    with pytest.raises(ValueError, match="frozen"):
        Inner().alpha = 2  # type: ignore[misc]


def test_tunables_are_found_in_nested_configs():
    assert tunables(Outer) == {"inner.alpha": Tunable(0.1, 10, log=True)}
