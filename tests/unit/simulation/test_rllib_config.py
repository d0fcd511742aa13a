"""The config of RLlib runs: what is refused, and what a run is named after."""

from __future__ import annotations

from pathlib import Path

import pytest

from plpm_ray.core.config import ConfigSource, load_config, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.simulation.rllib_config import RLlibConfig

JOBS = Path(__file__).resolve().parents[3] / "jobs"
DQN = {"algorithm": {"name": "dqn"}, "world": "kuaishou"}


def read(**changes) -> RLlibConfig:
    return validate(RLlibConfig, ConfigSource({**DQN, **changes}, "config", {}, {}))


@pytest.mark.parametrize("name", ["rllib_dqn", "rllib_ppo", "rllib_bc", "rllib_marwil"])
def test_example_configs_are_valid(name):
    config = load_config(RLlibConfig, JOBS / f"{name}.yaml")
    assert config.algorithm.name == name.removeprefix("rllib_") and config.offline == (
        config.tables is not None
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"name": "dqn", "lr": -1}}, "algorithm.dqn.lr"),
        ({"algorithm": {"name": "dqn", "epochs": 3}}, "unknown key 'epochs'"),
        ({"algorithm": {"name": "sac"}}, "tag 'sac' found"),
        ({"algorithm": {"name": "bc"}}, "bc learns from logs"),
        ({"tables": "warehouse"}, "dqn learns in a world, not from `tables`"),
        ({"algorithm": {"name": "ppo", "batch_size": 10}}, "minibatch_size 1024 is larger"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)


def test_the_world_called_null():
    assert read(world=None).world == "null"
    assert read(world=None, algorithm={"name": "bc"}, tables="warehouse").world is None


def test_where_it_runs_does_not_decide_what_it_is():
    elsewhere = read(run_root="other", num_cpus_per_env_runner=0.5, name="again")
    assert read().identity() == elsewhere.identity()
    assert read().identity() != read(num_env_runners=2).identity()
