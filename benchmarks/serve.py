"""Requests a second and latency of the service: Ray Serve against plain uvicorn with the same engine, in one run.

    python benchmarks/serve.py                   # random weights of the default size; about two minutes
    python benchmarks/serve.py --bundle runs/iit --haproxy

All servers run on this machine, one after the other, each in processes of its own; the load generator (asyncio over raw
sockets, loopback) shares the cores with them, so read the numbers as proportions. `CPU ms` is the processor time of all
server processes per request. `hello` is uvicorn with an empty answer: the floor of any Python service.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from plpm_ray.core.feature_fitting import SpecFitter
from plpm_ray.core.features import FeatureSchema
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.data.features.layout import empty_states, state_dtype
from plpm_ray.data.features.sessions import EntryArrays
from plpm_ray.data.features.state import features
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle, save_bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.api import Service
from plpm_ray.serving.config import ServeConfig
from plpm_ray.serving.engine import NavigationPolicy, load_policy
from plpm_ray.serving.run import running

USERS = 2000
NOW_MS = 1_700_000_000_000
POLICY = PolicyConfig(kind="epsilon", epsilon=0.05)


def random_bundle(pages: int = 6) -> Bundle:
    """KLAN-IIT of the default size with random weights: decisions cost what they cost after training."""
    catalogue = PageCatalogue.model_validate([f"page_{k}" for k in range(pages)])
    schema = FeatureSchema(catalogue.names, {"push": "numeric", "device": "categorical"}, {})
    states = empty_states(state_dtype(schema), 64)
    fitter = SpecFitter(schema)
    fitter.update(features(states, EntryArrays(np.full(64, NOW_MS), np.zeros(64, np.int64)), schema))
    stats = TableStats(1, 60.0, np.ones(24), np.ones(64), np.ones(pages), np.ones(pages), np.ones(pages))
    torch.manual_seed(0)
    cls = lookup("learner", "klan.iit")
    spec = fitter.finish()
    return Bundle.of_learner(cls(cls.Config(), spec, catalogue, stats), spec, catalogue, stats)


def history(policy: NavigationPolicy, users: int, per_user: int = 6) -> pa.Table:
    """Random finished sessions, `per_user` a user over the last three days."""
    rng, n = np.random.default_rng(0), users * per_user
    names = np.array(policy.pages.names)
    exit_ms = NOW_MS - rng.integers(1000, 3 * 86_400_000, n)
    page = rng.integers(0, len(names), n)
    offsets = pa.array(np.arange(n + 1, dtype=np.int32))
    return pa.table(
        {
            "user_id": np.arange(n) % users,
            "session_id": np.arange(n),
            "entry_time": exit_ms - 60_000,
            "exit_time": exit_ms,
            "landing_page": names[page],
            "pages": pa.ListArray.from_arrays(offsets, pa.array(names[page])),
            "dwell_s": pa.ListArray.from_arrays(offsets, pa.array(rng.exponential(60, n).astype(np.float32))),
        }
    )


def cpu_seconds(root: int) -> float:
    """Processor time of a process and everything under it (Linux)."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], used[pid] = int(fields[1]), sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    total = 0.0
    for pid in used:
        at = pid
        while at not in (0, root):
            at = parents.get(at, 0)
        total += used[pid] if at == root else 0.0
    return total


class Load:
    """Sends requests over keep-alive connections as fast as the answers come."""

    def __init__(self, port: int, path: str, context: bool) -> None:
        self.port = port
        extra = {"context": {"push": 1.0, "device": "phone"}} if context else {}
        self.requests = []
        for user in np.random.default_rng(1).permutation(USERS).tolist():
            body = json.dumps({"user_id": user, "entry_time": NOW_MS + user, **extra}).encode()
            head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
            self.requests.append(head.encode() + body)

    async def run(self, clients: int, seconds: float) -> np.ndarray:
        """Latencies in seconds of all requests sent within the given time by `clients` connections."""
        found: list[float] = []
        end = time.perf_counter() + seconds
        await asyncio.gather(*(self._client(i, end, found) for i in range(clients)))
        return np.array(found)

    async def _client(self, number: int, end: float, found: list[float]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        at = number
        while (start := time.perf_counter()) < end:
            writer.write(self.requests[at % len(self.requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"the server answered {head.splitlines()[0].decode()}")
            await reader.readexactly(_length(head))
            found.append(time.perf_counter() - start)
            at += 16
        writer.close()
        await writer.wait_closed()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    raise SystemExit("the server answered without content-length")


def measure(name: str, load: Load, root: Callable[[], float], seconds: float) -> dict[str, Any]:
    """One line of the table: latency alone (c=1), then throughput with 16 clients."""
    asyncio.run(load.run(4, 1.0))
    alone = asyncio.run(load.run(1, seconds))
    before, start = root(), time.perf_counter()
    many = asyncio.run(load.run(16, seconds))
    took = time.perf_counter() - start
    row = {
        "server": name,
        "p50 c=1 ms": 1e3 * float(np.median(alone)),
        "p99 c=1 ms": 1e3 * float(np.quantile(alone, 0.99)),
        "req/s c=16": len(many) / took,
        "p50 c=16 ms": 1e3 * float(np.median(many)),
        "p99 c=16 ms": 1e3 * float(np.quantile(many, 0.99)),
        "CPU ms": 1e3 * (root() - before) / len(many),
    }
    print("| " + " | ".join(v if isinstance(v, str) else f"{v:.2f}" for v in row.values()) + " |", flush=True)
    return row


@contextmanager
def uvicorn_process(kind: str, bundle: Path, port: int) -> Iterator[int]:
    """This file as a server in a process of its own; gives its pid."""
    command = [sys.executable, __file__, "--child", kind, "--bundle", str(bundle), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_for(port)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def child(kind: str, bundle: Path, port: int) -> None:
    """Serves with uvicorn: the Service, or an empty answer."""
    import uvicorn

    torch.set_num_threads(1)
    if kind == "service":
        app = Service(load_policy(bundle, POLICY))
    else:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await receive()
                await send(
                    {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
                )
                await send({"type": "http.response.body", "body": b"{}"})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


def fill(port: int, table: pa.Table) -> None:
    """Feeds the history to a service through its own route."""
    for start in range(0, len(table), 500):
        rows = table.slice(start, 500).to_pylist()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/sessions", json.dumps(rows).encode(), method="POST"
        )
        urllib.request.urlopen(request, timeout=60).read()


def engine_alone(bundle: Path, table: pa.Table) -> None:
    policy = load_policy(bundle, POLICY)
    policy.observe(table)
    for size in (1, 16, 256, 4096, 50_000):
        ids = np.arange(size) % USERS
        columns = {"user_id": ids, "entry_time": np.full(size, NOW_MS)}
        entries = pa.table(columns)
        policy.decide(entries)
        repeats = max(3, min(300, 20_000 // size))
        start = time.process_time()
        for _ in range(repeats):
            policy.decide(entries)
        took = (time.process_time() - start) / repeats
        print(f"| decide(), {size} users | {1e3 * took:.2f} ms | {size / took:,.0f} decisions/CPU s |")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="bundle or run folder; default: random weights")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each measurement")
    parser.add_argument(
        "--haproxy", action="store_true", help="Ray Serve behind HAProxy instead of its own proxy"
    )
    parser.add_argument("--child", choices=["service", "hello"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.bundle, options.port)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bundle = (
            find_bundle(options.bundle)
            if options.bundle
            else save_bundle(random_bundle(), Path(folder) / "bundle")
        )
        compare(bundle, options.seconds, options.haproxy)


def compare(bundle: Path, seconds: float, haproxy: bool) -> None:
    loaded = load_bundle(bundle)
    context = {"push", "device"} <= set(loaded.spec.schema.context)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}"
    print(f"{loaded.version}, {len(loaded.pages)} pages, {machine}\n")
    table = history(load_policy(loaded), USERS)
    engine_alone(bundle, table)
    print("\n| server | p50 c=1 ms | p99 c=1 ms | req/s c=16 | p50 c=16 ms | p99 c=16 ms | CPU ms |")
    print("|---|---|---|---|---|---|---|")
    port = free_port()
    with uvicorn_process("hello", bundle, port) as pid:
        measure("uvicorn, hello", Load(port, "/", context), lambda: cpu_seconds(pid), seconds)
    port = free_port()
    with uvicorn_process("service", bundle, port) as pid:
        fill(port, table)
        plain = measure(
            "uvicorn, service", Load(port, "/v1/navigate", context), lambda: cpu_seconds(pid), seconds
        )
    port = free_port()
    name = "Ray Serve, HAProxy" if haproxy else "Ray Serve"
    with running(ServeConfig(bundle=str(bundle), policy=POLICY, port=port, haproxy=haproxy)):
        wait_for(port)
        fill(port, table)
        own = time.process_time  # the load generator is this process; the servers are its children
        ray = measure(
            name, Load(port, "/v1/navigate", context), lambda: cpu_seconds(os.getpid()) - own(), seconds
        )
    print(
        f"\nRay Serve against uvicorn: {ray['req/s c=16'] / plain['req/s c=16']:.2f} x the requests a second, "
        f"{ray['p50 c=1 ms'] / plain['p50 c=1 ms']:.2f} x the latency alone, {ray['CPU ms'] / plain['CPU ms']:.2f} x the CPU"
    )


if __name__ == "__main__":
    main()
