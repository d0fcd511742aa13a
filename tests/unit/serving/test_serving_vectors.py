"""Vectors in the state stores: rows come back exactly, a run of the job counts once it is published, and never half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import StateError
from plpm_ray.core.features import FeatureSchema
from plpm_ray.serving.memory_store import MemoryStore
from plpm_ray.serving.records import state_layout
from plpm_ray.serving.store import StateStore, Users
from plpm_ray.serving.valkey_store import ValkeyStore

LAYOUT = state_layout(FeatureSchema(("a", "b", "c")), 0)


@pytest.fixture
def store(store: StateStore) -> StateStore:
    store.bind(LAYOUT)
    return store


def info(tag: str | None, width: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "version": "isp-1",
        "day": 20_000,
        "width": width,
        "population": [1 / width] * width,
        "tag": tag,
    } | more


def rows(store: StateStore, ids: list, name: str = "delta") -> list | None:
    found = store.vectors(name, Users.of(pa.array(ids)))
    return None if found is None else [None if np.isnan(row).all() else row.tolist() for row in found]


@pytest.mark.parametrize("ids", [[7, -3, 1 << 62], ["a", "täglich", "x" * 100]])
def test_rows_come_back_exactly(store: StateStore, ids: list) -> None:
    assert rows(store, ids) is None and store.vector_info("delta") is None
    users, values = Users.of(pa.array(ids)), np.random.default_rng(0).random((3, 3), dtype=np.float32)
    store.save_vectors("delta", users.take(np.array([2, 0])), values[[2, 0]], tag="d1")
    store.set_vector_info("delta", info("d1"))
    assert rows(store, [ids[0], ids[1], ids[2], ids[0]]) == [
        values[0].tolist(),
        None,
        values[2].tolist(),
        values[0].tolist(),
    ]
    assert store.vector_info("delta") == info("d1")
    assert rows(store, ids, "other") is None
    assert not store.load(users)[1].any()  # a vector is not a history


def test_records_and_vectors_are_read_together(store: StateStore) -> None:
    users = Users.of([1, 2, 3])
    assert store.read(users, ("delta",)).vectors == {}
    store.update(users.take(np.array([1])), lambda records, at, positions: None)
    store.save_vectors("delta", users.take(np.array([0])), np.ones((1, 3), np.float32), tag="d1")
    store.set_vector_info("delta", info("d1"))
    loaded = store.read(users, ("delta", "absent"))
    assert loaded.known.tolist() == [False, True, False] and loaded.records.dtype == LAYOUT.dtype
    assert set(loaded.vectors) == {"delta"} and loaded.vectors["delta"].info == info("d1")
    assert np.isnan(loaded.vectors["delta"].values).all(axis=1).tolist() == [False, True, True]


def test_a_run_of_the_job_counts_whole_or_not_at_all(store: StateStore) -> None:
    users = Users.of([1, 2])
    store.save_vectors("delta", users, np.full((2, 3), 1.0), tag="d1")
    store.set_vector_info("delta", info("d1"))
    for tag, value in (("d2", 2.0), ("d3", 3.0)):  # the second job never ended
        store.save_vectors("delta", users.take(np.array([0])), np.full((1, 3), value), tag=tag)
        assert rows(store, [1, 2]) == [[1.0] * 3] * 2
    store.save_vectors("delta", users.take(np.array([0])), np.full((1, 3), 4.0), tag="d3")  # a task ran twice
    store.set_vector_info("delta", info("d3"))
    assert rows(store, [1, 2]) == [[4.0] * 3, None]
    store.save_vectors("delta", users, np.full((2, 5), 5.0), tag="d4")  # other pages
    assert rows(store, [1, 2]) == [[4.0] * 3, None]
    store.set_vector_info("delta", info("d4", width=5))
    assert rows(store, [1, 2]) == [[5.0] * 5] * 2


def test_without_a_tag_the_newest_vector_of_each_user_counts(store: StateStore) -> None:
    users = Users.of([1, 2])
    store.save_vectors("delta", users, np.full((2, 3), 1.0), tag="d1")
    assert rows(store, [1, 9]) == [[1.0] * 3, None]
    store.save_vectors("delta", users.take(np.array([1])), np.full((1, 3), 2.0), tag="d2")
    store.set_vector_info("delta", info(None))
    assert rows(store, [1, 2]) == [[1.0] * 3, [2.0] * 3]


def test_many_random_writes_equal_a_dictionary(store: StateStore) -> None:
    rng = np.random.default_rng(1)
    kept: dict[str, dict[int, list[float]]] = {}
    published = None
    for run in range(6):
        tag = f"run-{run}"
        for _ in range(int(rng.integers(1, 4))):
            ids = np.unique(rng.integers(0, 2000, 900))
            values = rng.random((len(ids), 3), dtype=np.float32)
            store.save_vectors("delta", Users.of(ids), values, tag=tag)
            kept.setdefault(tag, {}).update(zip(ids.tolist(), values.tolist(), strict=True))
        if rng.random() < 0.6:
            published = tag
            store.set_vector_info("delta", info(tag))
        if published is not None:
            asked = rng.integers(0, 2500, 700).tolist()
            assert rows(store, asked) == [kept[published].get(user) for user in asked]


@pytest.mark.parametrize(
    ("values", "made"),
    [
        (np.zeros((3, 2)), None),
        (np.zeros(2), None),
        (None, {"width": 0}),
        (None, {"width": 2, "population": [1]}),
    ],
)
def test_what_does_not_fit_is_refused(store: StateStore, values: Any, made: dict | None) -> None:
    with pytest.raises(StateError, match="delta"):
        if made is None:
            store.save_vectors("delta", Users.of([1, 2]), values, tag="d1")
        else:
            store.set_vector_info("delta", made)
    with pytest.raises(StateError, match="no name"):
        store.save_vectors("a:b", Users.of([1]), np.zeros((1, 2)), tag="d1")


def test_snapshot_brings_vectors_back(tmp_path: Path) -> None:
    path, users = tmp_path / "state.npz", Users.of(["u", "v", "w"])
    store = MemoryStore(path)
    store.bind(LAYOUT)
    store.save_vectors("delta", users, np.arange(9).reshape(3, 3), tag="d1")
    store.set_vector_info("delta", info("d1"))
    store.save_vectors("delta", users, np.ones((3, 3)), tag="d2")
    store.close()
    back = MemoryStore(path)
    back.bind(LAYOUT)
    assert rows(back, ["w", "x", "u"]) == [[6, 7, 8], None, [0, 1, 2]]
    back.set_vector_info("delta", info("d2"))
    assert rows(back, ["w", "x"]) == [[1, 1, 1], None]
    back.close()


def test_valkey_asks_once_for_everything(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ValkeyStore(server, prefix="once")
    writer.bind(LAYOUT)
    users = Users.of(np.arange(700))
    writer.save_vectors("delta", users, np.ones((700, 3)), tag="d1")
    writer.set_vector_info("delta", info("d1"))
    store = ValkeyStore(server, prefix="once")
    store.bind(LAYOUT)
    sent = []
    pipeline = store._client.pipeline
    monkeypatch.setattr(store._client, "pipeline", lambda **options: (sent.append(1), pipeline(**options))[1])
    for times in (1, 2):
        assert (store.read(users, ("delta",)).vectors["delta"].values == 1).all()
        assert len(sent) == times
    writer.save_vectors("delta", users, np.full((700, 3), 2), tag="d2")
    writer.set_vector_info("delta", info("d2"))
    assert (store.read(users, ("delta",)).vectors["delta"].values == 1).all()  # still the run it knows of
    store._infos.clear()
    assert (store.read(users, ("delta",)).vectors["delta"].values == 2).all()


def test_valkey_forgets_vectors_and_names_damage(server: str) -> None:
    store = ValkeyStore(server, prefix="ttl-v", ttl_days=0.05 / 86_400)
    store.save_vectors("delta", Users.of([1]), np.ones((1, 3)), tag="d1")
    assert rows(store, [1]) == [[1.0] * 3]
    key = b"ttl-v:v:delta:1"
    assert 0 < store._client.pttl(key) <= 50  # type: ignore[operator]
    store._client.set(key, b"123456789")
    with pytest.raises(StateError, match="damaged vector"):
        store.vectors("delta", Users.of([1]))
