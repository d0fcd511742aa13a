"""The HTTP service, driven as an ASGI application: answers, refusals, metrics, log, swap."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.errors import ConfigError, StateError
from plpm_ray.navigators.bundle import save_bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.api import Service
from plpm_ray.serving.config import DecisionLogConfig, ServeArgs
from plpm_ray.serving.decision_log import DecisionLog
from plpm_ray.serving.deployment import read_args
from plpm_ray.serving.engine import load_policy
from plpm_ray.serving.memory_store import MemoryStore
from plpm_ray.serving.replica import Replica
from plpm_ray.serving.store import Users
from tests.unit.serving.serving_world import PAGES, bundle_of, profiles_table

SESSION = {
    "user_id": 1,
    "session_id": 500,
    "entry_time": "2023-11-14T22:13:20Z",
    "exit_time": "2023-11-14T22:20:00Z",
    "utc_offset_min": 480,
    "landing_page": "featured",
    "pages": ["featured", "featured", "live"],
    "dwell_s": [10, 20.5, 100],
    "video_views": [1, 0, 4],
    "context": {"push": 1, "device": "phone"},
}


async def asgi(service: Service, method: str, path: str, body: bytes) -> tuple[int, Any]:
    sent: list[dict] = []
    chunks = [
        {"type": "http.request", "body": body[:5], "more_body": True},
        {"type": "http.request", "body": body[5:]},
    ]

    async def receive() -> dict:
        return chunks.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    await service(scope, receive, send)
    data = sent[1]["body"]
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(data)).encode()
    is_json = b"json" in dict(sent[0]["headers"])[b"content-type"]
    return sent[0]["status"], json.loads(data) if is_json else data.decode()


def call(service: Service, method: str, path: str, value: Any = None) -> tuple[int, Any]:
    body = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
    return asyncio.run(asgi(service, method, path, body))


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service(load_policy(bundle_of(), PolicyConfig(kind="softmax"), users=profiles_table()))
    yield made
    made.close()


def test_navigate_and_sessions(service: Service) -> None:
    status, first = call(service, "POST", "/v1/navigate", {"user_id": 1})
    assert status == 200 and first["fallback"] == "unknown_user"
    assert call(service, "POST", "/v1/sessions", SESSION) == (200, {"accepted": 1, "duplicate": 0, "late": 0})
    assert call(service, "POST", "/v1/sessions", [SESSION, SESSION]) == (
        200,
        {"accepted": 0, "duplicate": 2, "late": 0},
    )
    entry = {"user_id": 1, "entry_time": 1_700_010_000_000, "context": {"push": 0.5, "device": None}}
    status, answer = call(service, "POST", "/v1/navigate", entry)
    assert status == 200 and answer["fallback"] is None
    assert list(answer["scores"]) == list(PAGES.names)
    assert answer["entry_time"] == "2023-11-15T01:00:00.000Z"
    assert answer["versions"] == service.policy.versions._asdict()
    assert (answer["policy"], first["policy"]) == service.policy.versions.labels
    status, batch = call(service, "POST", "/v1/navigate", [entry, {"user_id": 77}])
    assert [a["fallback"] for a in batch] == [None, "unknown_user"]
    assert batch[0] == answer


def test_merged_pages_lead_to_the_same_state() -> None:
    a, b = (Service(load_policy(bundle_of())) for _ in range(2))
    call(a, "POST", "/v1/sessions", SESSION)
    merged = SESSION | {"pages": ["featured", "live"], "dwell_s": [30.5, 100], "video_views": [1, 4]}
    flat = {k: v for k, v in merged.items() if k != "context"} | SESSION["context"]
    call(b, "POST", "/v1/sessions", flat)
    user = Users.of([1])
    assert a.policy.store.load(user)[0].tobytes() == b.policy.store.load(user)[0].tobytes()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": None}, "user_id"),
        ({"user_id": 1.5}, "user_id"),
        ({"user_id": True}, "user_id"),
        ({"user_id": 1 << 70}, "user_id"),
        ({"entry_time": "soon"}, "entry_time"),
        ({"entry_time": 1_700_000_000}, "entry_time"),
        ({"utc_offset_min": 9000}, "utc_offset_min"),
        ({"utc_offset_min": "8h"}, "utc_offset_min"),
        ({"context": [1]}, "context"),
        ({"context": 0}, "context"),
        ({"context": {"pushed": 1}}, "context.pushed"),
        ({"context": {"push": "yes"}}, "context.push"),
        ({"context": {"push": float("nan")}}, "context.push"),
        ({"context": {"push": 10**400}}, "context.push"),
        ({"context": {"device": 5}}, "context.device"),
        ({"users_id": 5}, "users_id"),
    ],
)
def test_bad_entries_get_422_with_the_field(service: Service, change: dict, field: str) -> None:
    status, answer = call(service, "POST", "/v1/navigate", {"user_id": 1} | change)
    assert (status, answer["field"]) == (422, field)
    assert answer["problem"] and answer["expected"]
    status, answer = call(service, "POST", "/v1/navigate", [{"user_id": 2}, {"user_id": 1} | change])
    assert (status, answer["field"]) == (422, f"[1].{field}")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"session_id": None}, "session_id"),
        ({"landing_page": "nowhere"}, "landing_page"),
        ({"landing_page": "live"}, "landing_page"),
        ({"landing_page": 0}, "landing_page"),
        ({"pages": ["featured", "x", "live"]}, "pages[1]"),
        ({"pages": []}, "pages"),
        ({"pages": "featured"}, "pages"),
        ({"dwell_s": [1, 2]}, "dwell_s"),
        ({"dwell_s": [1, 2, -3]}, "dwell_s[2]"),
        ({"dwell_s": [1, None, 3]}, "dwell_s[1]"),
        ({"video_views": [1, 2, 2.5]}, "video_views[2]"),
        ({"watch_s": [1]}, "watch_s"),
        ({"exit_time": "2023-11-14T22:13:19Z"}, "exit_time"),
        ({"exit_time": "2098-01-01T00:00:00Z"}, "exit_time"),
        ({"dwell_s": [3e38, 3e38, 1]}, "dwell_s"),
        ({"video_views": [2**31 - 1, 1, 1]}, "video_views"),
        ({"propensity": 0}, "propensity"),
        ({"policy": 3}, "policy"),
        ({"dwel_s": []}, "dwel_s"),
        ({"push": "much"}, "push"),
    ],
)
def test_bad_sessions_get_422_with_the_field(service: Service, change: dict, field: str) -> None:
    status, answer = call(service, "POST", "/v1/sessions", SESSION | change)
    assert (status, answer["field"]) == (422, field)


@pytest.mark.parametrize("body", [b"", b"{", b"5", b"[]", b"[1]", b"\xff", b"[" * 100_000, b'"\\ud800"'])
def test_bodies_that_are_no_objects(service: Service, body: bytes) -> None:
    assert call(service, "POST", "/v1/navigate", body)[0] == 422


def test_a_hint_for_a_misspelt_field(service: Service) -> None:
    assert "'user_id'" in call(service, "POST", "/v1/navigate", {"userid": 1})[1]["expected"]


def test_user_ids_of_the_wrong_type_for_the_dataset() -> None:
    service = Service(load_policy(bundle_of(data={"user_id": "int64"})))
    assert call(service, "POST", "/v1/navigate", {"user_id": "1"})[1]["field"] == "user_id"


def test_requests_at_one_moment_are_answered_together(service: Service) -> None:
    calls: list[int] = []
    original = service.policy.decide_entries
    service.policy.decide_entries = lambda entries: (calls.append(len(entries)), original(entries))[1]  # type: ignore[method-assign]

    async def many() -> list[tuple[int, Any]]:
        bodies = [json.dumps({"user_id": i if i % 2 else f"u{i}"}).encode() for i in range(20)]
        return await asyncio.gather(*(asgi(service, "POST", "/v1/navigate", body) for body in bodies))

    answers = asyncio.run(many())
    assert [a["user_id"] for _, a in answers] == [i if i % 2 else f"u{i}" for i in range(20)]
    assert sum(calls) == 20 and len(calls) <= 4


def test_a_wrong_request_spoils_no_other_at_the_same_moment(service: Service) -> None:
    async def both() -> list[tuple[int, Any]]:
        bodies = [{"user_id": "\ud800"}, {"user_id": "good"}]
        return await asyncio.gather(
            *(asgi(service, "POST", "/v1/navigate", json.dumps(body).encode()) for body in bodies)
        )

    assert [status for status, _ in asyncio.run(both())] == [422, 200]


def test_a_body_beyond_all_measure_is_not_parsed() -> None:
    service = Service(load_policy(bundle_of()), max_batch=1)
    status, answer = call(service, "POST", "/v1/navigate", b" " * 2_000_000)
    assert (status, answer["error"]) == (413, "too_large")


def test_health_says_when_the_store_fails(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(service, "GET", "/health") == (200, {"status": "ok"})

    def broken(*_: Any) -> None:
        raise StateError("gone")

    monkeypatch.setattr(MemoryStore, "ping", broken)
    monkeypatch.setattr(MemoryStore, "load", broken)
    assert call(service, "GET", "/health")[0] == 503
    assert call(service, "POST", "/v1/navigate", {"user_id": 1})[0] == 503


def test_internal_errors_are_answered(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStore, "load", lambda *_: 1 / 0)
    status, answer = call(service, "POST", "/v1/navigate", {"user_id": 1})
    assert (status, answer["error"]) == (500, "internal")


def test_metrics_and_info(service: Service) -> None:
    call(service, "POST", "/v1/sessions", SESSION)
    call(service, "POST", "/v1/navigate", {"user_id": 1})
    call(service, "POST", "/v1/navigate", {})
    call(service, "GET", "/x")
    text = call(service, "GET", "/metrics")[1]
    assert 'plpm_requests_total{route="/v1/navigate",status="200",replica="0"} 1' in text
    assert 'plpm_requests_total{route="/v1/navigate",status="422",replica="0"} 1' in text
    assert 'plpm_requests_total{route="other",status="404",replica="0"} 1' in text
    assert 'plpm_sessions_total{result="accepted",replica="0"} 1' in text
    assert 'plpm_request_latency_seconds_bucket{route="/v1/navigate",le="+Inf",replica="0"} 2' in text
    assert 'plpm_users{replica="0"} 1' in text
    info = call(service, "GET", "/v1/info")[1]
    assert info["pages"] == list(PAGES.names) and info["store"]["users"] == 1


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_decisions_come_back_as_log_rows(tmp_path: Path, kind: str) -> None:
    config = DecisionLogConfig(folder=str(tmp_path), interval_s=30, format=kind)  # type: ignore[arg-type]
    service = Service(
        load_policy(bundle_of(), PolicyConfig(kind="softmax")),
        log=DecisionLog(config, "r0", PAGES.names),
        replica="r0",
    )
    entry = {"user_id": 1, "entry_time": SESSION["entry_time"], "context": {"push": 1}}
    answer = call(service, "POST", "/v1/navigate", entry)[1]
    page = answer["page"]
    session = SESSION | {"landing_page": page, "pages": [page], "dwell_s": [5], "video_views": None}
    call(service, "POST", "/v1/sessions", session)
    call(service, "POST", "/v1/sessions", session)
    service.close()
    if kind == "jsonl":
        rows = [
            json.loads(line) for line in next(tmp_path.glob("decisions-*.jsonl")).read_text().splitlines()
        ]
        assert rows[0]["landing_page"] == page and rows[0]["propensity"] == pytest.approx(
            answer["propensity"]
        )
        return
    decisions = pq.read_table(next(tmp_path.glob("decisions-*.parquet"))).to_pylist()
    assert decisions[0]["landing_page"] == page and decisions[0]["push"] == 1
    assert decisions[0]["decision_id"] == answer["decision_id"]
    logged = pq.read_table(next(tmp_path.glob("sessions-*.parquet")))
    assert logged.num_rows == 1
    row = logged.to_pylist()[0]
    assert (row["policy"], row["propensity"]) == (answer["policy"], answer["propensity"])
    assert load_policy(bundle_of()).observe(logged) == 1  # canonical, as any other log


def test_a_replica_swaps_bundles_beside_the_old_one(tmp_path: Path) -> None:
    paths = [str(save_bundle(bundle_of(seed=seed), tmp_path / f"b{seed}")) for seed in (0, 1)]
    replica = Replica(ServeArgs(bundle=paths[0]))
    assert replica.configure({}) is None and replica.service is not None
    service = replica.service
    call(service, "POST", "/v1/sessions", SESSION)
    before = call(service, "POST", "/v1/navigate", {"user_id": 1, "entry_time": 1_700_010_000_000})[1]
    thread = replica.configure({"bundle": paths[1], "policy": {"kind": "epsilon", "epsilon": 0.5}})
    assert thread is not None
    thread.join()
    after = call(service, "POST", "/v1/navigate", {"user_id": 1, "entry_time": 1_700_010_000_000})[1]
    assert after["fallback"] is None and after["versions"] != before["versions"]
    assert not np.allclose(list(after["scores"].values()), list(before["scores"].values()))
    assert replica.configure({"bundle": paths[1], "policy": {"kind": "epsilon", "epsilon": 0.5}}) is None
    with pytest.raises(ConfigError, match="bundel"):
        replica.configure({"bundel": paths[0]})
    thread = replica.configure({"bundle": str(tmp_path / "absent")})
    assert thread is not None
    thread.join()
    assert "absent" in call(service, "GET", "/v1/info")[1]["swap_error"]
    assert service.metrics.value("plpm_swaps_total", result="failed") == 1
    assert call(service, "POST", "/v1/navigate", {"user_id": 1})[1]["versions"] == after["versions"]


def test_application_arguments() -> None:
    made = read_args(
        {"bundle": "runs/a", "policy.kind": "epsilon", "policy.epsilon": "0.1", "store": {"prefix": "x"}}
    )
    assert made.policy == PolicyConfig(kind="epsilon", epsilon=0.1) and made.store.prefix == "x"
    with pytest.raises(ConfigError, match="bundel") as caught:
        read_args({"bundel": "runs/a"})
    assert "'bundle'" in str(caught.value)
    with pytest.raises(ConfigError, match="num_replicas"):
        read_args({"bundle": "runs/a", "num_replicas": 2})
    with pytest.raises(ConfigError, match="store.url"):
        read_args({"bundle": "runs/a", "store.kind": "valkey"})
