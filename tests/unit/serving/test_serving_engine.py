"""Served decisions: equal to offline scores, the same in any batch, fallbacks said to be so, sessions counted once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from plpm_ray.core.errors import BundleError, ConfigError, DataError, StateError
from plpm_ray.core.features import RawFeatures
from plpm_ray.navigators.base import LearnerNavigator
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.engine import NavigationPolicy, load_policy
from plpm_ray.serving.records import state_layout
from plpm_ray.serving.store import StateStore
from tests.unit.serving.glan_world import glan_part
from tests.unit.serving.serving_world import (
    PAGES,
    SCHEMA,
    batch_of,
    bundle_of,
    entries_of,
    profiles_table,
    sessions_table,
)


def replay(policy: NavigationPolicy, sessions: pa.Table) -> pa.Table:
    """Event by event in time order: a decision at every entry, the session once it has ended."""
    entry = sessions["entry_time"].cast(pa.int64()).to_numpy()
    ended = sessions.take(
        pa.array(np.argsort(sessions["exit_time"].cast(pa.int64()).to_numpy(), kind="stable"))
    )
    exits = ended["exit_time"].cast(pa.int64()).to_numpy()
    made, seen = [], 0
    for row in range(len(sessions)):
        upto = int(np.searchsorted(exits, entry[row], side="left"))
        policy.observe(ended.slice(seen, upto - seen))
        seen = upto
        made.append(policy.decide(entries_of(sessions.slice(row, 1))))
    return pa.concat_tables(made)


@pytest.mark.parametrize("name", ["klan.iit", "reference.bc", "heuristic.longest_use"])
def test_served_scores_equal_offline_scores(name: str, store: StateStore) -> None:
    sessions, profiles = sessions_table(users=12), profiles_table()
    bundle = bundle_of(name)
    policy = load_policy(bundle, PolicyConfig(kind="softmax"), store=store, users=profiles)
    served = replay(policy, sessions)
    offline = bundle.navigator().scores(batch_of(sessions, profiles))
    first = np.array(pc.is_in(served["fallback"], pa.array(["unknown_user"])))
    assert first.sum() == 12  # the first entry of every user
    scores = np.array(served["scores"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(scores[~first], offline[~first], rtol=0, atol=1e-6)
    assert not np.allclose(scores[first], offline[first]) or name.startswith("heuristic")


def test_a_batch_decides_like_single_calls() -> None:
    sessions = sessions_table(users=1500, per_user=3)
    policy = load_policy(bundle_of(), PolicyConfig(kind="softmax", epsilon=0.1, seed=3))
    assert policy.observe(sessions) == 4500
    entries = entries_of(sessions.slice(0, 1400)).drop_columns("entry_time")
    entries = entries.append_column("entry_time", pa.array(["2030-01-01T10:00:00+08:00"] * 1400))
    together = policy.decide(entries)
    for row in (0, 7, 1399):
        alone = policy.decide(entries.slice(row, 1))
        assert alone["page"][0] == together["page"][row]
        assert alone["propensity"][0].as_py() == pytest.approx(together["propensity"][row].as_py(), abs=1e-6)


def test_decision_columns() -> None:
    policy = load_policy(bundle_of(), PolicyConfig(kind="epsilon", epsilon=0.2))
    policy.observe(sessions_table(users=3))
    made = policy.decide(pa.table({"user_id": [0, 99], "entry_time": [1_700_000_000_000] * 2}))
    assert made["fallback"].to_pylist() == [None, "unknown_user"]
    assert made["page"].to_pylist() == [PAGES.names[i] for i in made["page_index"].to_pylist()]
    for row in made.to_pylist():
        assert sum(row["probabilities"]) == pytest.approx(1)
        assert row["propensity"] == row["probabilities"][row["page_index"]]
        assert row["policy"] == policy.versions.labels[row["fallback"] is not None]
        assert row["navigator_version"] == policy.bundle.version
    assert made.schema.field("entry_time").type == pa.timestamp("ms", tz="UTC")
    assert policy.decide(made.slice(0, 0)).num_rows == 0


def test_repeated_and_late_sessions_change_nothing(store: StateStore) -> None:
    sessions = sessions_table(users=5, per_user=30)
    policy = load_policy(bundle_of(), store=store)
    assert policy.observe(sessions) == 150
    entries = pa.table({"user_id": list(range(5)), "entry_time": [1_700_000_000_000] * 5})
    before = policy.decide(entries)
    again = policy.observe_stored(pa.concat_tables([sessions, sessions]))
    assert again.accepted == 0 and again.duplicate + again.late == 300
    assert again.late > 0  # older than the last 12 of each user
    assert policy.decide(entries).equals(before)


def test_order_and_batching_of_sessions_do_not_matter() -> None:
    sessions = sessions_table(users=6, per_user=10)
    bundle, rng = bundle_of(), np.random.default_rng(0)
    one = load_policy(bundle)
    one.observe(sessions)
    other = load_policy(bundle)
    shuffled = sessions.take(pa.array(rng.permutation(60)))
    assert sum(other.observe(shuffled.slice(at, 7)) for at in range(0, 60, 7)) == 60
    entries = pa.table(
        {
            "user_id": list(range(6)),
            "entry_time": [(sessions_table()["exit_time"].cast(pa.int64()))[-1].as_py()] * 6,
        }
    )
    assert one.decide(entries).equals(other.decide(entries))


def test_sessions_with_page_names_in_external_form() -> None:
    stored = sessions_table(users=3)
    names = np.array(PAGES.names)
    outside = stored.set_column(
        stored.schema.get_field_index("pages"),
        "pages",
        pa.array([[names[p] for p in row] for row in stored["pages"].to_pylist()]),
    )
    outside = outside.set_column(
        outside.schema.get_field_index("landing_page"),
        "landing_page",
        pa.array(names[stored["landing_page"].to_numpy()]),
    )
    outside = outside.set_column(
        outside.schema.get_field_index("entry_time"),
        "entry_time",
        stored["entry_time"].cast(pa.timestamp("ns", tz="UTC")),
    ).drop_columns(["video_views"])
    a, b = load_policy(bundle_of()), load_policy(bundle_of())
    assert a.observe(stored.drop_columns(["video_views"])) == b.observe(outside) == 36
    entries = pa.table({"user_id": [0, 1, 2], "entry_time": pa.array([1_700_000_000] * 3, pa.timestamp("s"))})
    assert a.decide(entries).equals(b.decide(entries))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": None}, "user_id"),
        ({"entry_time": None}, "entry_time"),
        ({"entry_time": pa.array([1.5])}, "entry_time"),
        ({"entry_time": pa.array(["yesterday"])}, "entry_time"),
        ({"user_id": pa.array([None], pa.int64())}, "user_id"),
        ({"utc_offset_min": pa.array([900])}, "utc_offset_min"),
        ({"push": pa.array(["much"])}, "push"),
    ],
)
def test_bad_entries_name_the_column(change: dict, field: str) -> None:
    columns = {"user_id": pa.array([1]), "entry_time": pa.array([1_700_000_000_000])} | change
    policy = load_policy(bundle_of())
    with pytest.raises(DataError, match=field):
        policy.decide(pa.table({k: v for k, v in columns.items() if v is not None}))


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("pages", [["featured", "nowhere"]], "pages"),
        ("landing_page", ["live"], "landing_page"),
        ("dwell_s", [[1.0]], "dwell_s"),
        ("dwell_s", [[1.0, -2.0]], "dwell_s"),
        ("exit_time", [0], "exit_time"),
        ("propensity", [1.5], "propensity"),
        ("session_id", [None], "session_id"),
    ],
)
def test_bad_sessions_name_the_column(name: str, value: list, field: str) -> None:
    good = {
        "user_id": [1],
        "session_id": [5],
        "entry_time": [1_700_000_000_000],
        "exit_time": [1_700_000_060_000],
        "landing_page": ["featured"],
        "pages": [["featured", "live"]],
        "dwell_s": [[10.0, 50.0]],
    }
    policy = load_policy(bundle_of())
    with pytest.raises(DataError, match=field):
        policy.observe(pa.table(good | {name: value}))
    assert policy.observe(pa.table(good)) == 1


def test_scores_that_are_not_numbers_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(bundle_of())
    policy.observe(sessions_table(users=3))
    original = LearnerNavigator.scores

    def broken(self: LearnerNavigator, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        scores = original(self, features, state).copy()
        scores[1] = np.nan
        return scores

    monkeypatch.setattr(LearnerNavigator, "scores", broken)
    made = policy.decide(pa.table({"user_id": [0, 1, 2], "entry_time": [1_700_000_000_000] * 3}))
    assert made["fallback"].to_pylist() == [None, "not_finite", None]


def test_another_bundle_takes_over_the_state_and_other_pages_are_refused(store: StateStore) -> None:
    policy = load_policy(bundle_of(), store=store)
    policy.observe(sessions_table(users=4))
    other = policy.with_bundle(bundle_of(seed=1))
    entries = pa.table({"user_id": [0], "entry_time": [1_700_000_000_000]})
    assert other.decide(entries)["fallback"].to_pylist() == [None]
    assert other.decide(entries)["scores"] != policy.decide(entries)["scores"]
    layout = state_layout(SCHEMA, 0)
    with pytest.raises(StateError, match="layout"):
        store.bind(dataclasses.replace(layout, name="other"))


def test_warming_up_finds_a_policy_that_cannot_draw_from_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(bundle_of(), PolicyConfig(kind="proportional"))
    policy.warm_up()
    monkeypatch.setattr(policy.navigator, "scores", lambda raw, state=None: np.full((len(raw), 4), -1.0))
    with pytest.raises(DataError, match="negative"):
        policy.warm_up()


def test_unknown_fallback_is_named() -> None:
    with pytest.raises(ConfigError, match="heuristic.popularty"):
        load_policy(bundle_of(), fallback="heuristic.popularty")


def test_repeated_profiles_are_refused() -> None:
    twice = pa.concat_tables([profiles_table(3), profiles_table(3)])
    with pytest.raises(DataError, match="user_id"):
        load_policy(bundle_of(), users=twice)


@pytest.mark.parametrize("role", ["lrtg", "hrm"])
def test_a_model_that_says_numbers_is_no_policy(role: str) -> None:
    with pytest.raises(BundleError, match="chooses no pages") as refused:
        load_policy(glan_part(role))
    assert "plpm assess" in str(refused.value.hint)
    policy = load_policy(bundle_of())
    with pytest.raises(BundleError, match="chooses no pages"):
        policy.with_bundle(glan_part(role))
