"""The sweep's config: what it refuses, and what makes two sweeps the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from plpm_ray.core.config import load_config, read_config, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.tuning.config import SweepConfig

REPO = Path(__file__).resolve().parents[3]


def config(**changes):
    raw = {"tables": "data/x", "learner": {"name": "klan.iit"}, "search": {"alpha": None}}
    return SweepConfig.model_validate(raw | changes)


def test_short_forms():
    made = config(objective="snips", scheduler="none")
    assert (made.objective.estimator, made.scheduler.name) == ("snips", "none")
    assert made.training.epochs == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"workers": 2}}, "workers"),
        ({"training": {"data": {"mode": "stream"}}}, "memory"),
        ({"training": {"patience": 2}}, "patience"),
        ({"trials": 0}, "trials"),
        ({"objective": "loss"}, "estimator"),
    ],
)
def test_what_a_sweep_cannot_do_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_misspelt_options_of_the_learner_and_the_search_are_named():
    with pytest.raises(ConfigError, match="unknown key 'hiden' in learner") as caught:
        config(learner={"name": "klan.iit", "hiden": [8]}).space()
    assert "'hidden'" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="unknown learner 'klan.itt'"):
        config(learner={"name": "klan.itt"}).space()
    with pytest.raises(ConfigError, match=r"training\.epochs"):
        config(search={"training.epochs": {"low": 1, "high": 5}}).space()
    with pytest.raises(ConfigError, match="not valid"):
        config(search={"alpha": {"low": -1.0, "high": 1.0, "log": False}}).space()


def test_an_unknown_key_is_named_with_its_line(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text("tables: x\nlearner: {name: klan.iit}\ntrails: 4\n")
    with pytest.raises(ConfigError, match=r"sweep.yaml:3: unknown key 'trails'") as caught:
        load_config(SweepConfig, path)
    assert "'trials'" in (caught.value.hint or "")


def test_a_misspelt_parameter_is_named_with_its_line(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text("tables: x\nlearner: {name: klan.iit}\nsearch:\n  alpha: null\n  bta: null\n")
    source = read_config(path)
    with pytest.raises(ConfigError, match=r"sweep.yaml:5: search.bta: unknown parameter") as caught:
        validate(SweepConfig, source).space(source)
    assert "'beta'" in (caught.value.hint or "")


def test_a_misspelt_learner_and_its_options_are_named_with_their_line(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text("tables: x\nlearner:\n  name: klan.iit\n  alhpa: 1\n")
    source = read_config(path)
    with pytest.raises(ConfigError, match=r"sweep.yaml:4: unknown key 'alhpa' in learner") as caught:
        validate(SweepConfig, source).space(source)
    assert "'alpha'" in (caught.value.hint or "")
    path.write_text("tables: x\nlearner: {name: klan.itt}\n")
    source = read_config(path)
    with pytest.raises(ConfigError, match=r"sweep.yaml:2: unknown learner 'klan.itt'"):
        validate(SweepConfig, source).space(source)


def test_parameters_of_other_sections_can_be_set_from_the_command_line(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text("tables: x\nlearner: {name: klan.iit}\n")
    overrides = ["search.training.lr={low: 0.001}", "search.policy.epsilon=null", "search.learner.alpha=null"]
    overrides.append("objective.policy.kind=epsilon")
    space = load_config(SweepConfig, path, overrides).space()
    assert space.names == ("training.lr", "policy.epsilon", "alpha")


def test_the_run_folder_follows_what_the_sweep_is_not_where_it_runs(tmp_path: Path):
    base = config().run_dir("data1")
    for same in ({"trials": 99}, {"backend": "local"}, {"concurrency": 1}, {"cpus_per_trial": 0.5}):
        assert config(**same).run_dir("data1") == base
    others = [
        {"search": {"alpha": {"low": 0.1}}},
        {"seed": 1},
        {"training": {"epochs": 7}},
        {"objective": "snips"},
        {"scheduler": "none"},
        {"learner": {"name": "klan.iit", "gamma": 0.5}},
        {"split": {"valid_days": 1}},
    ]
    assert len({config(**other).run_dir("data1") for other in others} | {base}) == len(others) + 1
    assert config().run_dir("data2") != base


def test_a_changed_plugin_is_another_sweep(tmp_path: Path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("x = 1\n")
    before = config(plugins=[str(plugin)]).run_dir("d")
    plugin.write_text("x = 2\n")
    assert config(plugins=[str(plugin)]).run_dir("d") != before


def test_the_yaml_that_comes_along_is_valid():
    made = load_config(SweepConfig, REPO / "tune" / "alpha_beta.yaml")
    assert made.space().names == ("alpha", "beta")
    assert made.trials == 24 and made.learner.name == "klan.iit"
