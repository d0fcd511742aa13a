"""Composed navigators: stored vectors in decisions, their parts in tables, answers and logs, and parts that fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.errors import PartError
from plpm_ray.core.hashing import user_hash
from plpm_ray.core.registry import register
from plpm_ray.navigators.klan.klan import KLAN
from plpm_ray.policies.base import Policy, PolicyConfig
from plpm_ray.serving.api import Service
from plpm_ray.serving.config import DecisionLogConfig
from plpm_ray.serving.decide import replay
from plpm_ray.serving.decision_log import DecisionLog
from plpm_ray.serving.engine import NavigationPolicy, load_policy
from plpm_ray.serving.store import StateStore, Users
from plpm_ray.serving.tables import read_entries
from tests.unit.serving.serving_world import (
    PAGES,
    SCHEMA,
    batch_of,
    composed_bundle,
    entries_of,
    profiles_table,
    sessions_table,
)
from tests.unit.serving.test_serving_api import call
from tests.unit.serving.test_serving_engine import replay as served_in_turn

DETAILS = ["delta", "p", "gamma", "sigma"]
POPULATION = [0.4, 0.3, 0.2, 0.1]
INFO = {"version": "klan.isp-1", "day": 19_010, "width": 4, "population": POPULATION, "tag": "a"}
ENTRY = {"user_id": 0, "entry_time": 1_700_010_000_000}


@register("navigator", "test.klan")
class Shy(KLAN):
    """Leaves users without history to the fallback."""

    answers_unknown = False


def filled(policy: NavigationPolicy) -> np.ndarray:
    """Stores a delta for users 0 to 4; returns the deltas of users 0 to 9, the population's for the others."""
    deltas = np.random.default_rng(0).dirichlet(np.ones(4), 5).astype(np.float32)
    policy.store.save_vectors("delta", Users.of(np.arange(5)), deltas, tag="a")
    policy.store.set_vector_info("delta", INFO)
    return np.concatenate([deltas, np.tile(np.float32(POPULATION), (5, 1))])


def lists(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float32)


def test_decisions_equal_offline_ones_with_the_same_policy(store: StateStore) -> None:
    sessions, profiles = sessions_table(users=8, per_user=8), profiles_table()
    bundle, config = composed_bundle(), PolicyConfig(kind="softmax", temperature=0.1, epsilon=0.1, seed=5)
    policy = load_policy(bundle, config, store=store, users=profiles)
    deltas = filled(policy)
    served = served_in_turn(policy, sessions)
    raw, users = batch_of(sessions, profiles), sessions["user_id"].to_numpy()
    raw.vectors = {"delta": deltas[users]}
    scores, details = bundle.navigator().explained(raw)
    np.testing.assert_allclose(lists(served, "scores"), scores, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(lists(served, "delta"), deltas[users])
    for name in DETAILS:
        np.testing.assert_allclose(lists(served, name), details[name], rtol=0, atol=1e-6)
    offline = Policy(config).draw(
        scores, user_hash(sessions["user_id"]), sessions["entry_time"].cast(pa.int64()).to_numpy()
    )
    assert served["page_index"].to_numpy().tolist() == offline.page.tolist()
    np.testing.assert_allclose(served["propensity"].to_numpy(), offline.propensity, atol=1e-5)
    assert set(served["delta_version"].to_pylist()) == {"klan.isp-1@19010"}
    assert served["fallback"].null_count == len(served)  # KLAN answers users without history too


def test_without_stored_vectors_the_navigator_finds_delta_itself(store: StateStore) -> None:
    policy = load_policy(composed_bundle(), store=store, users=profiles_table())
    sessions = sessions_table(users=3)
    policy.observe(sessions)
    entries = pa.table({"user_id": [0, 1, 2, 9], "entry_time": [ENTRY["entry_time"]] * 4})
    before = policy.decide(entries)
    assert "delta_version" not in before.column_names
    assert len({tuple(row) for row in before["delta"].to_pylist()}) == 4
    deltas = filled(policy)
    store.__dict__.get("_infos", {}).clear()  # what a server published is asked for anew after some seconds
    after = policy.decide(entries)
    np.testing.assert_array_equal(lists(after, "delta"), deltas[[0, 1, 2, 9]])
    # past entries are not decided with what was stored later
    read = read_entries(entries, SCHEMA.context)
    offline = policy.decision_table(read, replay(policy, read, sessions))
    np.testing.assert_array_equal(lists(offline, "delta"), lists(before, "delta"))


def test_large_batches_are_read_from_one_run_of_the_job() -> None:
    policy = load_policy(composed_bundle(name="test.klan"))
    policy.observe(sessions_table(users=4))
    deltas = filled(policy)
    users = np.tile(np.arange(8), 300)
    made = policy.decide(pa.table({"user_id": users, "entry_time": [ENTRY["entry_time"]] * 2400}))
    known = users < 4
    assert (made["fallback"].is_null().to_numpy() == known).all()
    assert (made["delta"].is_null().to_numpy() == ~known).all()
    np.testing.assert_array_equal(lists(made.filter(pa.array(known)), "delta"), deltas[users[known]])


def test_fallback_rows_have_no_parts_and_the_columns_are_there_all_the_same() -> None:
    policy = load_policy(composed_bundle(name="test.klan"))
    made = policy.decide(pa.table({"user_id": [5, 6], "entry_time": [ENTRY["entry_time"]] * 2}))
    assert made["fallback"].to_pylist() == ["unknown_user"] * 2
    assert [made[name].null_count for name in DETAILS] == [2] * 4
    policy.observe(sessions_table(users=1))
    made = policy.decide(pa.table({"user_id": [0, 6], "entry_time": [ENTRY["entry_time"]] * 2}))
    assert [made[name].is_null().to_pylist() for name in DETAILS] == [[False, True]] * 4
    assert made["sigma"][0] == made["scores"][0]


def test_a_part_that_fails_leaves_the_decision_to_the_fallback() -> None:
    policy = load_policy(composed_bundle(), PolicyConfig(kind="epsilon", epsilon=0.2))
    service = Service(policy)
    good = call(service, "POST", "/v1/navigate", ENTRY)[1]

    def broken(*_: object) -> dict:
        raise PartError("the part is gone")

    policy.navigator.part_scores = broken  # type: ignore[attr-defined]
    status, answer = call(service, "POST", "/v1/navigate", ENTRY | {"explain": True})
    assert (status, answer["fallback"], answer["explanation"]) == (200, "part_failed", None)
    assert answer["policy"].startswith("heuristic.popularity/") and good["policy"].startswith("klan-")
    assert service.metrics.value("plpm_fallbacks_total", reason="part_failed") == 1
    assert call(service, "GET", "/v1/info")[1]["part_error"] == "the part is gone"
    with pytest.raises(PartError):
        policy.warm_up()


def test_answers_explain_themselves_when_asked(tmp_path: Path) -> None:
    policy = load_policy(composed_bundle(), PolicyConfig(kind="softmax"))
    deltas = filled(policy)
    log = DecisionLog(DecisionLogConfig(folder=str(tmp_path), interval_s=30), "r0", PAGES.names)
    service = Service(policy, log=log)
    plain = call(service, "POST", "/v1/navigate", ENTRY)[1]
    assert "explanation" not in plain and "details" not in plain
    assert set(plain["versions"]) == {
        *policy.versions._fields, "navigator_isp", "navigator_iit", "navigator_am", "delta_version"
    }  # fmt: skip
    assert plain["versions"] == call(service, "GET", "/v1/info")[1]["versions"]
    assert plain["versions"]["navigator_am"] == policy.bundle.parts["am"].version
    both = call(service, "POST", "/v1/navigate", [ENTRY, ENTRY | {"explain": True}])[1]
    assert ["explanation" in answer for answer in both] == [False, True]
    explained = call(service, "POST", "/v1/navigate", ENTRY | {"explain": True})[1]
    explanation = explained.pop("explanation")
    assert explained == plain
    assert list(explanation) == list(PAGES.names)
    for k, page in enumerate(PAGES.names):
        assert list(explanation[page]) == DETAILS
        assert explanation[page]["sigma"] == plain["scores"][page]
        assert explanation[page]["delta"] == pytest.approx(deltas[0, k])
    assert "explanation" in call(service, "POST", "/v1/navigate?explain=1", ENTRY)[1]
    assert call(service, "POST", "/v1/navigate?explain=yes", ENTRY)[1]["field"] == "?explain"
    assert call(service, "POST", "/v1/navigate", ENTRY | {"explain": 1})[1]["field"] == "explain"
    service.close()
    rows = pq.read_table(next(tmp_path.glob("decisions-*.parquet"))).to_pylist()
    assert len(rows) == 5
    for row in (rows[0], *rows[3:]):
        assert row["sigma"] == row["scores"] == list(plain["scores"].values())
        assert row["delta"] == deltas[0].tolist()
        assert json.loads(row["versions"]) == plain["versions"]


def test_entries_of_the_table_can_be_replayed() -> None:
    policy = load_policy(composed_bundle(name="test.klan"), PolicyConfig(kind="softmax"))
    sessions = sessions_table(users=5)
    entries = read_entries(entries_of(sessions), SCHEMA.context)
    table = policy.decision_table(entries, replay(policy, entries, sessions))
    first = table["fallback"].is_valid().to_numpy()
    assert first.sum() == 5
    assert [(table[name].is_null().to_numpy() == first).all() for name in DETAILS] == [True] * 4
