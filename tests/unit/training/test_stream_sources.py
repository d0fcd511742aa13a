"""Sources of a stream: order, positions that can be gone back to, and gaps that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plpm_ray.core.errors import ConfigError, DataError, StateError
from plpm_ray.core.features import FeatureSchema
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.serving.local_valkey import LocalValkey
from plpm_ray.training.stream_sources import StreamRows, StreamSource, TableReplay
from plpm_ray.training.stream_valkey import ValkeyStream, connect
from tests.stream_runs import fill, open_source
from tests.training_tables import FIRST_DAY, make_warehouse


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sources") / "warehouse"
    make_warehouse(root, users=60, n_buckets=3)
    return root


@pytest.fixture(scope="module")
def server() -> Any:
    with LocalValkey() as url:
        yield url


@pytest.fixture
def stream(tables, server, request) -> tuple[str, list[str]]:
    """A stream of its own for each test, and the ids of its entries."""
    name = request.node.name
    return name, fill(tables, server, name)


def all_rows(source: StreamSource, n: int = 7, after: str | None = None) -> list[StreamRows]:
    found = []
    while (rows := source.read(after, n)) is not None:
        found.append(rows)
        after = rows.position
    return found


def keys(parts: list[StreamRows]) -> list[int]:
    return np.concatenate([part.outcome["key"] for part in parts]).tolist()


def test_a_table_is_replayed_in_the_order_of_entries(tables):
    parts = all_rows(TableReplay(Warehouse.open(tables)), n=1)
    assert len(parts) == sum(e.total for e in Warehouse.open(tables).transitions.entries().values())
    entry = np.concatenate([p.outcome["entry_ms"] for p in parts])
    key = np.concatenate([p.outcome["key"] for p in parts])
    assert np.array_equal(np.lexsort((key, entry)), np.arange(len(parts)))
    assert len(set(key.tolist())) == len(parts)
    first = parts[0]
    assert first.outcome["action"].dtype == np.int64 and first.outcome["use_s"].dtype == np.float32


def test_any_position_can_be_gone_back_to(tables, server, stream):
    for url in (None, server):
        whole = all_rows(open_source(tables, url, stream[0], "a"))
        source = open_source(tables, url, stream[0], "b")
        for i in (0, len(whole) - 2, 3):
            again = all_rows(source, after=whole[i].position)
            assert keys(again) == keys(whole[i + 1 :])
            assert again[0].features.numeric.tobytes() == whole[i + 1].features.numeric.tobytes()


def test_both_sources_hold_the_same(tables, server, stream):
    table, valkey = (all_rows(open_source(tables, url, stream[0])) for url in (None, server))
    assert keys(table) == keys(valkey)
    for a, b in zip(table, valkey, strict=True):
        assert a.features.numeric.tobytes() == b.features.numeric.tobytes()
        assert all(np.array_equal(a.outcome[name], b.outcome[name]) for name in a.outcome)


def test_days_can_be_bounded(tables):
    warehouse = Warehouse.open(tables)
    rows = all_rows(TableReplay(warehouse, FIRST_DAY + 1, FIRST_DAY + 2), n=1)
    assert {row.position.split("/")[0] for row in rows} == {day_name(FIRST_DAY + 1), day_name(FIRST_DAY + 2)}
    with pytest.raises(DataError, match="no sessions on the days asked for"):
        TableReplay(warehouse, FIRST_DAY + 50)


def test_a_day_computed_anew_is_refused(tmp_path):
    warehouse = make_warehouse(tmp_path, users=10, n_buckets=1)
    found = TableReplay(warehouse).read(None, 5)
    assert found is not None
    table = warehouse.transitions
    gen = table.new_generation()
    written = table.read(0, [FIRST_DAY])
    assert written is not None
    table.commit(gen, {FIRST_DAY: {0: table.write(FIRST_DAY, gen, 0, written)}})
    with pytest.raises(DataError, match="was computed anew after 5 of its sessions were learned"):
        TableReplay(warehouse).read(found.position, 5)


def test_committed_entries_are_acknowledged_and_others_delivered_again(tables, server, stream):
    name, ids = stream
    first = open_source(tables, server, name)
    one = first.read(None, 10)
    two = first.read(one.position, 10) if one else None
    assert one is not None and two is not None
    first.committed(one.position)
    client, _ = connect(server)
    pending: Any = client.xpending(name, "g")
    assert pending["pending"] == 10 and pending["min"].decode() == ids[10]
    second = open_source(tables, server, name)
    again = second.read(one.position, 10)
    assert again is not None and keys([again]) == keys([two])
    second.committed(again.position)
    after: Any = client.xpending(name, "g")
    assert after["pending"] == 0


def test_a_learner_waits_for_what_is_not_there_yet(tables, server, stream):
    name, ids = stream
    source = ValkeyStream(server, name, "g", Warehouse.open(tables).info.features, follow=True)
    position, left = None, len(ids) % 50
    while (rows := source.read(position, 50)) is not None:
        position = rows.position
    assert not source.ended() and left
    more = fill(tables, server, name)
    rows = source.read(position, 50)
    assert rows is not None and rows.position.startswith(more[49 - left])


def test_trimmed_entries_are_refused(tables, server, stream):
    name, ids = stream
    source = open_source(tables, server, name)
    rows = source.read(None, 10)
    assert rows is not None
    client, _ = connect(server)
    client.xtrim(name, minid=ids[9], approximate=False)
    assert source.read(rows.position, 10) is not None  # only what was learned is gone
    client.xtrim(name, minid=ids[40], approximate=False)
    with pytest.raises(DataError, match="were trimmed or deleted before they were learned"):
        all_rows(open_source(tables, server, name), after=rows.position)
    client.xtrim(name, maxlen=0, approximate=False)
    with pytest.raises(DataError, match="were trimmed or deleted before they were learned"):
        all_rows(open_source(tables, server, name), after=rows.position)


def test_deleted_entries_are_refused_by_the_run_that_would_have_learned_them(tables, server, stream):
    name, ids = stream
    source = open_source(tables, server, name)
    rows = source.read(None, 10)
    assert rows is not None
    client, _ = connect(server)
    client.xdel(name, ids[30])
    with pytest.raises(DataError, match="were trimmed or deleted"):
        all_rows(source, after=rows.position)
    accepted = all_rows(open_source(tables, server, name, "new"), n=1)
    assert len(accepted) == len(ids) - 1


def test_a_stream_made_anew_is_refused(tables, server, stream):
    name, _ = stream
    rows = open_source(tables, server, name).read(None, 10)
    assert rows is not None
    client, _ = connect(server)
    client.delete(name)
    with pytest.raises(DataError, match="is gone"):
        open_source(tables, server, name).read(rows.position, 10)
    client.xadd(name, {"row": b""}, id="1-1")
    with pytest.raises(DataError, match="ends before the committed position"):
        open_source(tables, server, name).read(rows.position, 10)


def test_a_second_consumer_of_the_group_is_refused(tables, server, stream):
    name, _ = stream
    source = open_source(tables, server, name)
    rows = source.read(None, 10)
    assert rows is not None
    client, _ = connect(server)
    client.xreadgroup("g", "stranger", {name: ">"}, count=5)
    with pytest.raises(DataError, match="another consumer reads group 'g'"):
        source.read(rows.position, 10)


def test_foreign_entries_and_schemas_are_refused(tables, server, stream):
    name, _ = stream
    other = ValkeyStream(server, name, "other", FeatureSchema(("x", "y")), follow=False)
    with pytest.raises(DataError, match="another schema"):
        other.read(None, 5)
    client, _ = connect(server)
    client.xadd(name, {"something": b"else"})
    with pytest.raises(DataError, match="has no field 'row'"):
        all_rows(open_source(tables, server, name))


def test_a_server_that_is_not_there(monkeypatch):
    with pytest.raises(StateError, match=r"valkey://127.0.0.1:1/0 cannot be used"):
        ValkeyStream("valkey://:secret@127.0.0.1:1/0", "s", "g", FeatureSchema(("x",)))
    monkeypatch.delenv("NO_SUCH_HOST", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_HOST"):
        ValkeyStream("valkey://${NO_SUCH_HOST}:1/0", "s", "g", FeatureSchema(("x",)))
