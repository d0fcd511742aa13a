"""Navigators with a state of the day judged on logs: held-out days lived again are what `plpm decide` makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import BundleError, ConfigError, DataError
from plpm_ray.core.hashing import bucket_of, user_hash
from plpm_ray.core.storage import write_parquet
from plpm_ray.data.contract import DatasetInfo, Warehouse
from plpm_ray.data.features.sessions import EntryArrays
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.tables import build_transitions
from plpm_ray.evaluation import replay as replaying
from plpm_ray.evaluation.config import JudgeConfig
from plpm_ray.evaluation.held_out import Decisions, read_decisions
from plpm_ray.evaluation.replay import LoggedDays, moments, read_logged_days, replayed
from plpm_ray.evaluation.run import Judged, evaluate, probabilities
from plpm_ray.policies.base import Policy, PolicyConfig
from plpm_ray.serving.decide import replay
from plpm_ray.serving.engine import load_policy
from plpm_ray.serving.tables import read_entries
from tests.unit.serving.glan_world import CONTEXT, glan_bundle, glan_part
from tests.unit.serving.serving_world import (
    PAGES,
    SCHEMA,
    bundle_of,
    entries_of,
    profiles_table,
    sessions_table,
    travelling,
)

BUCKETS = 2
POLICY = PolicyConfig(kind="proportional", epsilon=0.1)
SESSIONS = sessions_table(users=30, per_user=30, seed=11)


def put(warehouse: Warehouse, sessions: pa.Table, profiles: pa.Table) -> None:
    """Commits sessions and profiles as an ingest would."""
    schema = warehouse.info.sessions_schema
    for name in set(schema.names) - set(sessions.column_names):
        sessions = sessions.append_column(name, pa.nulls(len(sessions), schema.field(name).type))
    order = [(name, "ascending") for name in ("user_id", "entry_time", "session_id")]
    sessions = sessions.select(schema.names).cast(schema).sort_by(order)
    days = EntryArrays.from_table(sessions).local_day
    buckets = bucket_of(user_hash(sessions["user_id"]), BUCKETS)
    gen, rows = warehouse.sessions.new_generation(), {}
    for day in np.unique(days).tolist():
        parts = {b: sessions.filter(pa.array((days == day) & (buckets == b))) for b in range(BUCKETS)}
        rows[day] = {b: warehouse.sessions.write(day, gen, b, part) for b, part in parts.items() if len(part)}
    warehouse.sessions.commit(gen, rows)
    of = bucket_of(user_hash(profiles["user_id"]), BUCKETS)
    for bucket in range(BUCKETS):
        part = profiles.filter(pa.array(of == bucket)).select(warehouse.info.users_schema.names)
        write_parquet(warehouse.users_file(bucket), part.cast(warehouse.info.users_schema))


def built(folder: Path, sessions: pa.Table) -> Warehouse:
    info = DatasetInfo("made", PAGES, SCHEMA.context, SCHEMA.profile, n_buckets=BUCKETS)
    made = Warehouse.create(folder, info)
    put(made, sessions, profiles_table(users=30))
    build_transitions(made)
    return made


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    return built(tmp_path_factory.mktemp("tables"), SESSIONS)


@pytest.fixture(scope="module")
def held_out(warehouse: Warehouse) -> tuple[Decisions, LoggedDays]:
    days = warehouse.sessions.days()
    decisions = read_decisions(warehouse, days)
    return decisions, read_logged_days(warehouse, days, decisions)


def offline(warehouse: Warehouse, sessions: pa.Table = SESSIONS, **config: object) -> np.ndarray:
    """(N, K) probabilities as `plpm decide` finds them, in the order of `read_decisions`."""
    policy = load_policy(glan_bundle(**config), POLICY, users=profiles_table(users=30))
    made = replay(policy, read_entries(entries_of(sessions), SCHEMA.context), sessions)
    assert not made.reason.any()
    at = {key: row for row, key in enumerate(sessions["session_id"].to_pylist())}
    parts = [warehouse.transitions.read(b, columns=["session_id"]) for b in range(BUCKETS)]
    keys = [key for part in parts if part is not None for key in part["session_id"].to_pylist()]
    return made.probabilities[[at[key] for key in keys]]


@pytest.mark.parametrize("config", [{}, {"rtg": "mean7"}, {"dt": {"reward": "duration"}}])
def test_replayed_days_are_those_of_plpm_decide(
    warehouse: Warehouse, held_out: tuple[Decisions, LoggedDays], config: dict
) -> None:
    decisions, logged = held_out
    assert np.bincount(logged.day_of).max() > CONTEXT
    judged = Judged("glan", glan_bundle(**config).navigator(), Policy(POLICY))
    pi, values = probabilities(judged, decisions, logged)
    assert values is None
    expected = offline(warehouse, **config)
    # half-precision numbers of the cache may round to a neighbour in a batch of another size
    np.testing.assert_allclose(pi, expected, rtol=0, atol=5e-4)
    assert np.abs(pi - expected).mean() < 1e-5
    as_firsts = judged.policy.probabilities(judged.navigator.scores(_with_days(decisions, logged)))
    later = decisions.step > 0
    assert np.abs(pi - as_firsts)[later].mean() > 0.01
    np.testing.assert_allclose(pi[~later], as_firsts[~later], rtol=0, atol=5e-4)


def test_days_that_go_back_are_those_of_plpm_decide(tmp_path: Path) -> None:
    """A traveller's local day goes back; the state's does not, though the tables keep the sessions by local day."""
    sessions = travelling(SESSIONS)
    warehouse = built(tmp_path / "tables", sessions)
    days = warehouse.sessions.days()
    decisions = read_decisions(warehouse, days)
    logged = read_logged_days(warehouse, days, decisions)
    lengths = np.bincount(logged.day_of, minlength=len(logged.days))
    assert (lengths == 0).any() and lengths.sum() == len(decisions)
    judged = Judged("glan", glan_bundle().navigator(), Policy(POLICY))
    pi, _ = probabilities(judged, decisions, logged)
    expected = offline(warehouse, sessions)
    np.testing.assert_allclose(pi, expected, rtol=0, atol=5e-4)
    assert np.abs(pi - expected).mean() < 1e-5


def _with_days(decisions: Decisions, logged: LoggedDays):
    return replace(decisions.features, days=logged.days[logged.day_of])


def test_memory_is_bounded_and_changes_nothing(
    held_out: tuple[Decisions, LoggedDays], monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions, logged = held_out
    judged = Judged("glan", glan_bundle().navigator(), Policy(POLICY))
    whole, _ = probabilities(judged, decisions, logged)
    monkeypatch.setattr(replaying, "_STATE_BYTES", 4 * judged.navigator.state_size * 7)
    seen = np.zeros(len(decisions), dtype=int)
    for rows, features, state in moments(judged.navigator, decisions, logged):
        assert len(rows) == len(features) == len(state) <= 7
        seen[rows] += 1
    assert (seen == 1).all()
    np.testing.assert_allclose(probabilities(judged, decisions, logged)[0], whole, rtol=0, atol=5e-4)


def test_some_users_alone_are_the_same_users(warehouse: Warehouse) -> None:
    days = warehouse.sessions.days()[2:6]
    some = read_decisions(warehouse, days, max_rows=60)
    logged = read_logged_days(warehouse, days, some, max_rows=60)
    assert 0 < len(some) < len(read_decisions(warehouse, days))
    assert len(logged.days) == len(np.unique(some.episode)) and len(logged.outcome["switches"]) == len(some)
    assert np.array_equal(logged.outcome["use_s"], some.use_s.astype(np.float32))
    with pytest.raises(DataError, match="plpm data"):
        read_logged_days(warehouse, days, some)


def test_a_navigator_without_a_state_is_asked_as_before(held_out: tuple[Decisions, LoggedDays]) -> None:
    decisions, _ = held_out
    judged = Judged("iit", bundle_of("klan.iit").navigator(), Policy(PolicyConfig(kind="softmax")))
    assert not replayed(judged.navigator)
    pi, values = probabilities(judged, decisions)
    scores = judged.navigator.scores(decisions.features)
    np.testing.assert_allclose(pi, judged.policy.probabilities(scores), rtol=0, atol=1e-6)
    assert values is not None and values.shape == pi.shape
    with pytest.raises(ConfigError, match="replays days"):
        probabilities(Judged("glan", glan_bundle().navigator(), Policy(POLICY)), decisions)


def test_glan_stands_in_the_table_beside_others(warehouse: Warehouse) -> None:
    days = warehouse.sessions.days()
    spec, _ = fit_spec(warehouse, days[:-3])
    policies = [
        Judged("glan", glan_bundle().navigator(), Policy(POLICY)),
        Judged("iit", bundle_of("klan.iit").navigator(), Policy(PolicyConfig(kind="softmax"))),
    ]
    config = JudgeConfig(estimators=("snips", "dm"))
    found = evaluate(warehouse, days[:-3], days[-3:], spec, policies, config)
    assert [result.policy for result in found.results] == ["(the log itself)", "glan", "iit"]
    for record in found.records()[1:]:
        assert set(record["estimates"]) == {"snips", "dm"}
        assert sum(record["metrics"]["pages"]["probability"]) == pytest.approx(1.0)


def test_tables_of_an_older_build_are_refused(warehouse: Warehouse, tmp_path: Path) -> None:
    days = warehouse.sessions.days()
    decisions = read_decisions(warehouse, days)
    bare = Warehouse(tmp_path, warehouse.info)
    for name in ("sessions", "transitions"):
        (tmp_path / name).symlink_to(warehouse.root / name)
    with pytest.raises(DataError, match="plpm data"):
        read_logged_days(bare, days, decisions)


@pytest.mark.parametrize("role", ["lrtg", "hrm"])
def test_a_model_that_says_numbers_is_not_judged_as_a_policy(role: str) -> None:
    with pytest.raises(BundleError, match="chooses no pages"):
        Judged(role, glan_part(role).navigator(), Policy(POLICY))
