"""The HTTP service over a policy, without a server. Ray Serve, uvicorn (it is an ASGI application) and tests drive it.

| route | body | answer |
|---|---|---|
| POST /v1/navigate | an app entry, or a list of them | page, scores, propensity, versions, fallback, explanation |
| POST /v1/sessions | a finished session, or a list of them | how many were new, repeated, too late |
| GET /v1/info | | what is served, from which bundle, over which state |
| GET /health | | 200 while the state store answers, else 503 |
| GET /metrics | | counters of this replica for Prometheus |

An explanation says what the score of each page was made of; it is given where the entry has `"explain": true`, or the
address `?explain=1`. 422 names the field that does not fit; 413 says that the body is too large; 503 that the state store failed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import numpy as np

import plpm_ray
from plpm_ray.core.errors import StateError
from plpm_ray.serving.answers import answers, log_row, shown
from plpm_ray.serving.batcher import Batcher
from plpm_ray.serving.config import StreamConfig
from plpm_ray.serving.decision_log import DecisionLog
from plpm_ray.serving.engine import NavigationPolicy
from plpm_ray.serving.metrics import Metrics
from plpm_ray.serving.records import Observed
from plpm_ray.serving.requests import EntryRow, RequestReader
from plpm_ray.serving.tables import FieldError

_JSON = "application/json"
_ROW_BYTES = 16_384  # room for an entry or a session; a larger body is not even parsed
_log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """Status, content type and body."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True)
class _Live:
    policy: NavigationPolicy
    reader: RequestReader
    versions: dict[str, str]


class Service:
    """Answers requests; used inside one event loop.

    Args:
        policy: what decides.
        log: where decisions and sessions are written, if anywhere.
        replica: name of this process in metrics and info.
        max_batch: most entries or sessions in one request.
        in_thread: decide and observe in a thread beside the event loop; so it is with a remote store in any case.
        stream: where new sessions are appended for online learners.
    """

    def __init__(
        self,
        policy: NavigationPolicy,
        *,
        log: DecisionLog | None = None,
        replica: str = "0",
        max_batch: int = 1000,
        in_thread: bool = False,
        stream: StreamConfig | None = None,
    ) -> None:
        self.metrics = Metrics(replica)
        self.notes: dict[str, Any] = {}
        self._replica = replica
        self._log = log
        self._max_batch = max_batch
        self._stream = stream
        self._max_body = 2**20 + max_batch * _ROW_BYTES
        self._started = time.time()
        self._live = self._made_live(policy)
        executor = ThreadPoolExecutor(1, "decisions") if in_thread or policy.store.remote else None
        self._decide = Batcher(self._decided, executor)
        self._observe = Batcher(
            self._observed, executor, key=lambda row: (type(row["user_id"]), type(row["session_id"]))
        )
        self._routes: dict[tuple[str, str], Callable[[bytes, str], Awaitable[Reply]]] = {
            ("POST", "/v1/navigate"): self._navigate,
            ("POST", "/v1/sessions"): self._sessions,
            ("GET", "/v1/info"): self._info,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
        }

    @property
    def policy(self) -> NavigationPolicy:
        """What decides now."""
        return self._live.policy

    def swap(self, policy: NavigationPolicy) -> None:
        """Lets another policy over the same store answer from the next batch on; requests under way are not lost."""
        self._live = self._made_live(policy)

    async def handle(self, method: str, path: str, body: bytes, query: str = "") -> Reply:
        """The answer to one request; `query` is what follows the question mark in its address."""
        started = time.perf_counter()
        route = self._routes.get((method, path))
        if route is None:
            reply, path = self._no_route(method, path), "other"
        elif len(body) > self._max_body:
            reply = _json(
                413,
                {
                    "error": "too_large",
                    "problem": f"the body has {len(body)} bytes",
                    "expected": f"at most {self._max_body} bytes; send several requests",
                },
            )
        else:
            try:
                reply = await route(body, query)
            except FieldError as error:
                reply = _json(
                    422,
                    {
                        "error": "invalid_request",
                        "field": error.field,
                        "problem": error.problem,
                        "expected": error.expected,
                    },
                )
            except StateError as error:
                self.metrics.count("plpm_errors_total", kind="state_store")
                reply = _json(503, {"error": "state_store", "problem": error.message})
            except Exception:
                _log.exception("request to %s failed", path)
                self.metrics.count("plpm_errors_total", kind="internal")
                reply = _json(
                    500,
                    {
                        "error": "internal",
                        "problem": "the request failed here; the log of the replica has the reason",
                    },
                )
        self.metrics.count("plpm_requests_total", route=path, status=str(reply.status))
        self.metrics.latency(path, time.perf_counter() - started)
        return reply

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """The service as an ASGI application."""
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        query = scope.get("query_string", b"").decode("latin-1")
        reply = await self.handle(scope["method"], scope["path"], body, query)
        headers = [
            (b"content-type", reply.content_type.encode()),
            (b"content-length", str(len(reply.body)).encode()),
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    def close(self) -> None:
        """Writes the log and the store's snapshot."""
        if self._log is not None:
            self._log.close()
        self.policy.store.close()

    async def _navigate(self, body: bytes, query: str) -> Reply:
        payload = _parsed(body)
        rows = self._live.reader.entry_rows(payload, time.time_ns() // 1_000_000, _wants(query, "explain"))
        made = await self._decide(rows)
        return _json(200, made if isinstance(payload, list) else made[0])

    async def _sessions(self, body: bytes, query: str) -> Reply:
        rows = self._live.reader.session_rows(_parsed(body), time.time_ns() // 1_000_000)
        statuses = await self._observe(rows)
        total = Observed(*(statuses.count(i) for i in range(3)))
        return _json(200, total._asdict())

    async def _health(self, body: bytes, query: str) -> Reply:
        store = self.policy.store
        await asyncio.to_thread(store.ping) if store.remote else store.ping()
        return _json(200, {"status": "ok"})

    async def _info(self, body: bytes, query: str) -> Reply:
        policy = self.policy
        return _json(
            200,
            {
                "plpm_ray": plpm_ray.__version__,
                "versions": self._live.versions,
                "pages": list(policy.pages.names),
                "context": dict(policy.schema.context),
                "profile": dict(policy.schema.profile),
                "user_id": policy.user_type,
                "data": policy.bundle.data,
                "store": policy.store.stats(),
                "replica": self._replica,
                "uptime_s": round(time.time() - self._started, 1),
                "decision_log": None
                if self._log is None
                else {"folder": self._log.config.folder, "error": self._log.error},
                **({"part_error": policy.chain.failure.message} if policy.chain.failure else {}),
                **self.notes,
            },
        )

    async def _metrics(self, body: bytes, query: str) -> Reply:
        gauges = [("plpm_info", self._live.versions, 1.0)]
        users = self.policy.store.stats()["users"]
        if users is not None:
            gauges.append(("plpm_users", {}, float(users)))
        return Reply(200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.text(gauges).encode())

    def _no_route(self, method: str, path: str) -> Reply:
        allowed = [m for m, p in self._routes if p == path]
        if allowed:
            return _json(
                405,
                {
                    "error": "method_not_allowed",
                    "problem": f"{path} takes {', '.join(allowed)}, not {method}",
                },
            )
        return _json(
            404,
            {
                "error": "not_found",
                "problem": f"no route {path!r}",
                "routes": sorted({p for _, p in self._routes}),
            },
        )

    def _made_live(self, policy: NavigationPolicy) -> _Live:
        reader = RequestReader(policy.pages, policy.schema, policy.user_type, self._max_batch)
        parts = {f"navigator_{role}": part.version for role, part in policy.bundle.parts.items()}
        return _Live(policy, reader, policy.versions._asdict() | parts)

    def _decided(self, rows: list[EntryRow]) -> Sequence[dict[str, Any]]:
        """Decisions of rows that may come from several requests, as they are answered."""
        live = self._live
        if len({type(row.user) for row in rows}) > 1:  # integers and strings from different clients
            made: list[Any] = [None] * len(rows)
            for kind in (int, str):
                index = [i for i, row in enumerate(rows) if isinstance(row.user, kind)]
                for i, answer in zip(index, self._decided([rows[i] for i in index]), strict=True):
                    made[i] = answer
            return made
        entries = live.reader.entries(rows)
        decisions = live.policy.decide_entries(entries)
        versions = {**live.versions, **decisions.stored}
        made = answers(
            rows, entries, decisions, live.policy.pages.names, live.policy.versions.labels, versions
        )
        for answer in made:
            self.metrics.count("plpm_decisions_total", page=answer["page"])
            if answer["fallback"]:
                self.metrics.count("plpm_fallbacks_total", reason=answer["fallback"])
        if self._log is not None:
            self._log.decided([log_row(row, answer) for row, answer in zip(rows, made, strict=True)])
        return [shown(row, answer) for row, answer in zip(rows, made, strict=True)]

    def _observed(self, rows: list[dict[str, Any]]) -> Sequence[int]:
        """What became of each session: 0 new, 1 repeated, 2 too late."""
        live = self._live
        stored = live.reader.sessions(rows)
        status = live.policy.observe_status(stored, self._stream)
        for name, number in zip(Observed._fields, np.bincount(status, minlength=3).tolist(), strict=True):
            self.metrics.count("plpm_sessions_total", by=number, result=name)
        if self._log is not None and (status == 0).any():
            new = np.flatnonzero(status == 0)
            self._log.ended([rows[i] for i in new], stored.take(new))
        return status.tolist()


def _parsed(body: bytes) -> Any:
    expected = "a JSON object, or a list of them"
    try:
        value = json.loads(body)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise FieldError("(body)", "half of a surrogate pair in a string", "text in Unicode") from None
    except RecursionError:
        raise FieldError("(body)", "nested too deeply", expected) from None
    except ValueError as error:
        raise FieldError("(body)", f"not JSON: {error}", expected) from None
    return value


def _wants(query: str, name: str) -> bool:
    """Whether a flag of the address is on.

    Raises:
        FieldError: it is neither 0 nor 1.
    """
    given = parse_qs(query).get(name, ["0"])[-1]
    if given not in ("0", "1", "false", "true"):
        raise FieldError(f"?{name}", f"{given!r} does not fit", "1 or 0")
    return given in ("1", "true")


def _json(status: int, value: Any) -> Reply:
    return Reply(status, _JSON, json.dumps(value, separators=(",", ":")).encode())
