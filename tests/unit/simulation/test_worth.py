"""What logged decisions were truly worth."""

from __future__ import annotations

import numpy as np
import pytest

from plpm_ray.core.errors import ConfigError
from plpm_ray.simulation.dataset import WorldLogs, WorldLogsConfig
from plpm_ray.simulation.worth import decision_worths
from tests.world_logs import world_logs


def config(**changes) -> WorldLogsConfig:
    section = world_logs(40, 3, **changes)
    return WorldLogsConfig.model_validate({k: v for k, v in section.items() if k != "name"})


def test_every_logged_session_has_a_worth() -> None:
    logs = config()
    worths = decision_worths(logs, np.arange(40))
    sessions = WorldLogs(logs).run(np.arange(40)).sessions
    ids = sessions["session_id"].to_numpy()
    np.testing.assert_array_equal(np.sort(ids), worths.session_id)
    found = worths.of(ids)
    assert (found.under_best_s <= 0).all() and (found.over_mean_s >= found.under_best_s).all()
    with pytest.raises(KeyError):
        worths.of(ids + 1)


def test_the_oracle_takes_the_best_page_and_luck_the_mean() -> None:
    oracle = decision_worths(config(policy="myopic_oracle"), np.arange(40))
    assert (oracle.under_best_s == 0).all() and (oracle.over_mean_s > 0).all()
    even = decision_worths(config(policy="random"), np.arange(40)).over_mean_s
    assert abs(even.mean()) < 4 * even.std() / np.sqrt(len(even))


def test_where_the_landing_page_changes_nothing_all_are_worth_the_same() -> None:
    worths = decision_worths(config(world="null"), np.arange(40))
    assert np.abs(worths.over_mean_s).max() < 1e-9


def test_a_trial_is_refused() -> None:
    with pytest.raises(ConfigError, match="trial"):
        decision_worths(config(trial={"start_day": 1, "days": 1}), np.arange(10))
