"""The randomised trial, and what users would have done under its other arms."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest

from plpm_ray.core.errors import ConfigError
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.dataset import UserLogs, WorldLogs, WorldLogsConfig
from plpm_ray.simulation.population import make_users
from plpm_ray.simulation.trial import Trial, TrialConfig
from plpm_ray.simulation.world import World

USERS = np.arange(400)
WORLD = load_world("kuaishou").model_dump(mode="json")
WORLD["entries"]["most"] = 8  # no long tail of small batches


def logs_of(trial: dict[str, Any] | None = None, **changes: Any) -> WorldLogs:
    settings = {"world": WORLD, "days": 6, "warmup_days": 2, "trial": trial, **changes}
    return WorldLogs(WorldLogsConfig.model_validate(settings))


def outcomes(done: UserLogs, logs: WorldLogs) -> np.ndarray:
    """(A, U) potential outcomes."""
    assert logs.trial is not None and done.potential_outcomes is not None
    return np.stack([done.potential_outcomes[f"y_{arm}"].to_numpy() for arm in logs.trial.arms])


def test_arms_are_drawn_by_share_and_for_each_user_alone():
    world = logs_of().world
    trial = Trial(
        TrialConfig(arms=("explore", "featured"), shares={"control": 2.0, "explore": 0.0}), world, 0, 10
    )
    users = np.arange(30_000)
    arm = trial.arm_of(users)
    np.testing.assert_allclose(np.bincount(arm, minlength=3) / len(users), [2 / 3, 0, 1 / 3], atol=0.01)
    assert np.array_equal(trial.arm_of(users[::-7]), arm[::-7])
    other = Trial(TrialConfig(arms=("explore", "featured"), seed=1), world, 0, 10).arm_of(users)
    assert 0.5 < np.mean(other != arm) < 0.9
    assert trial.arms == ("control", "explore", "featured") and trial.pages.tolist() == [-1, 1, 0]


def test_assignments_name_the_period_and_its_sessions_the_arm():
    logs = logs_of({"start_day": 2, "days": 3, "arms": ["following"]})
    assert logs.trial is not None
    table = logs.trial.assignments(USERS)
    first = load_world("kuaishou").first_day + dt.timedelta(days=2 + 2)
    assert set(table["start_day"].to_pylist()) == {first}
    assert set(table["end_day"].to_pylist()) == {first + dt.timedelta(days=2)}
    arm = dict(zip(USERS.tolist(), table["arm"].to_pylist(), strict=True))
    assert set(arm.values()) == {None, "following"}
    for row in logs.run(USERS).sessions.to_pylist():
        day = (row["entry_time"] + dt.timedelta(minutes=row["utc_offset_min"])).date()
        if first <= day <= first + dt.timedelta(days=2):
            assert row["experiment_arm"] == (arm[row["user_id"]] or "control")
        else:
            assert row["experiment_arm"] is None
        if row["experiment_arm"] == "following":
            assert (row["landing_page"], row["propensity"], row["policy"]) == (
                "following",
                1.0,
                "always following",
            )
        else:
            assert 0 < row["propensity"] < 1 and row["policy"] == "logging"


@pytest.mark.parametrize("policy", ["logging", {"navigator": "heuristic.last_exit_page", "explore": 0.2}])
def test_responses_are_the_potential_outcomes_of_the_own_arm(policy: Any):
    logs = logs_of({"start_day": 1, "days": 2}, policy=policy, days=4)
    done = logs.run(USERS, replicates=1)
    assert logs.trial is not None and done.responses is not None
    y, arm = outcomes(done, logs), logs.trial.arm_of(USERS)
    observed = done.responses["use_s_per_day"].to_numpy()
    assert np.array_equal(observed, y[arm, USERS])
    assert len(np.unique(arm)) == 4 and (y.std(axis=0) > 0).mean() > 0.8
    # the same from the sessions themselves
    rows = [r for r in done.sessions.to_pylist() if r["experiment_arm"] is not None]
    use, days = np.zeros(len(USERS)), [set() for _ in USERS]
    for row in rows:
        use[row["user_id"]] += (row["exit_time"] - row["entry_time"]).total_seconds() / 2
        days[row["user_id"]].add(row["session_id"] // 256)
    np.testing.assert_allclose(observed, use, rtol=1e-9)
    assert done.responses["active_days"].to_pylist() == [len(d) for d in days]
    # looking at what might have been changes nothing
    assert done.sessions.equals(logs.run(USERS).sessions)


def test_in_a_world_without_effect_all_potential_outcomes_are_equal():
    logs = logs_of({}, world=WORLD | {"landing": {"enabled": False}}, days=3)
    done = logs.run(USERS, replicates=2)
    y = outcomes(done, logs)
    assert (y == y[0]).all() and y.mean() > 100


def test_more_lucks_are_averaged_and_the_first_is_the_own():
    logs = logs_of({"start_day": 1, "days": 2, "arms": ["explore"]})
    one, three = (outcomes(logs.run(USERS[:100], replicates=r), logs) for r in (1, 3))
    rest = (3 * three - one) / 2
    assert (rest >= -1e-6).all() and np.mean(np.abs(rest - one) > 1.0) > 0.8
    # the effect of the arm on a user is known better by three lucks than by one
    assert (three[1] - three[0]).std() < 0.85 * (one[1] - one[0]).std()


def test_trials_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="'followin' is not a page") as error:
        logs_of({"arms": ["followin"]})
    assert error.value.hint == "did you mean 'following'?"
    with pytest.raises(ConfigError, match="3 days from day 5 on would pass the end of 6 logged days"):
        logs_of({"start_day": 5, "days": 3})
    with pytest.raises(ConfigError, match="all shares are 0"):
        logs_of({"arms": ["explore"], "shares": {"control": 0, "explore": 0}})
    with pytest.raises(ValueError, match="neither an arm nor 'control'"):
        TrialConfig(arms=("explore",), shares={"featured": 1})


def test_arms_tell_nothing_of_who_users_are_with_32_pages_and_equal_seeds():
    world = World(load_world({"name": "wide", "pages": [{"name": f"page {i}"} for i in range(32)]}))
    ids = np.arange(20_000)
    arm, users = Trial(TrialConfig(), world, 0, 7).arm_of(ids), make_users(world, ids)
    traits = np.concatenate([users.preference_KU, np.log(users.dwell_KU)])
    assert max(abs(np.corrcoef(arm, trait)[0, 1]) for trait in traits) < 5 / np.sqrt(len(ids))


def test_a_page_called_control_is_refused_as_an_arm():
    world = World(load_world({"name": "odd", "pages": [{"name": "control"}, {"name": "b"}]}))
    with pytest.raises(ConfigError, match="name of the control"):
        Trial(TrialConfig(), world, 0, 7)
    assert Trial(TrialConfig(arms=("b",)), world, 0, 7).arms == ("control", "b")
