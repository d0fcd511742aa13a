"""Configs of `plpm serve`, of the Serve application, and of `plpm decide`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plpm_ray.core.config import StrictConfig
from plpm_ray.policies.base import PolicyConfig


class StoreConfig(StrictConfig):
    """Which state store to use."""

    kind: Literal["memory", "valkey"] = Field(
        default="memory",
        description="memory: in the replica itself; valkey: a Valkey or Redis server that all replicas share",
    )
    url: str | None = Field(
        default=None,
        description="server address, as in valkey://host:6379/0; ${NAME} is replaced by that environment variable",
    )
    prefix: str = Field(
        default="plpm", pattern=r"^[A-Za-z0-9_.\-]+$", description="first part of every key in the server"
    )
    ttl_days: float | None = Field(
        default=None, gt=0, description="days after which a user without sessions is forgotten; null = never"
    )
    timeout_s: float = Field(
        default=2.0, gt=0, description="seconds to wait for the server before the request fails"
    )
    snapshot: str | None = Field(
        default=None, description="file that the memory store is saved to and started from; null = none"
    )
    snapshot_interval_s: float = Field(
        default=300.0, gt=0, description="seconds between two snapshots of the memory store"
    )


class DecisionLogConfig(StrictConfig):
    """Where decisions and sessions are written."""

    folder: str = Field(description="folder of the log files")
    format: Literal["parquet", "jsonl"] = Field(
        default="parquet", description="parquet, or jsonl: one JSON object a line"
    )
    rows_per_file: int = Field(
        default=50_000, ge=1, description="a file is written when so many rows are waiting"
    )
    interval_s: float = Field(
        default=60.0, gt=0, description="seconds after which waiting rows are written all the same"
    )
    sessions: bool = Field(default=True, description="whether received sessions are written too")


class PartConfig(StrictConfig):
    """How a part of a composed navigator runs in the graph layout."""

    num_replicas: int = Field(default=1, ge=1, description="replicas")
    num_cpus: float = Field(default=1.0, ge=0, description="CPUs reserved for a replica")
    num_threads: int = Field(default=1, ge=1, description="threads of a replica's matrix products")
    max_ongoing_requests: int = Field(
        default=64,
        ge=1,
        description="requests that a replica takes in at once; those that wait are scored together",
    )


class StreamConfig(StrictConfig):
    """The Valkey stream to which every new session is appended, for learners that train while the service runs."""

    name: str = Field(
        default="sessions",
        pattern=r"^[A-Za-z0-9_.\-]+$",
        description="the stream's key is `<store.prefix>:<name>`",
    )
    maxlen: int = Field(
        default=1_000_000, ge=1, description="the server forgets the oldest sessions beyond about so many"
    )


class SwapConfig(StrictConfig):
    """What can be changed while serving: the deployment's `user_config`. What is null stays as the application's args say."""

    bundle: str | None = Field(default=None, description="bundle folder")
    plugins: tuple[str, ...] | None = Field(
        default=None, description="files or modules that register the bundle's learner"
    )
    parts: dict[str, str] | None = Field(
        default=None, description="role -> bundle folder of that part; other roles stay as the args say"
    )
    policy: PolicyConfig | None = Field(default=None, description="how pages are drawn from scores")
    fallback: str | None = Field(default=None, description="heuristic that answers for users without history")


class ServeArgs(StrictConfig):
    """Arguments of the Serve application."""

    bundle: str = Field(description="bundle folder, for example runs/<run>/bundle")
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register the bundle's learner"
    )
    policy: PolicyConfig = Field(default=PolicyConfig(), description="how pages are drawn from scores")
    fallback: str = Field(
        default="heuristic.popularity", description="heuristic that answers for users without history"
    )
    store: StoreConfig = Field(default=StoreConfig(), description="where the per-user state lives")
    users: str | None = Field(
        default=None,
        description="user profiles to load at the start: a Parquet file or folder, or a warehouse; "
        "default: those of the history's warehouse",
    )
    history: str | None = Field(
        default=None,
        description="sessions to fill the state with at the start: a warehouse, or canonical Parquet (file or folder)",
    )
    parts: dict[str, str] = Field(
        default={},
        description="role -> bundle folder (of a composed navigator's part) that stands in for the one inside `bundle`; "
        "with `refresh_s` it may come later",
    )
    refresh_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds between two looks whether a folder of `parts` (or, in memory stores, `deltas`) has something "
        "new, which is then swapped in; null = never",
    )
    deltas: str | None = Field(
        default=None,
        description="folder that the daily scoring job writes; its newest complete day is loaded into the store",
    )
    stream: StreamConfig | None = Field(
        default=None,
        description="where new sessions are appended for online learners; needs store.kind=valkey",
    )
    layout: Literal["fused", "graph"] = Field(
        default="fused",
        description="fused: all parts of a composed navigator in each replica; graph: a deployment for each part",
    )
    graph: dict[str, PartConfig] = Field(
        default={}, description="role -> how that part runs in the graph layout; default: as PartConfig says"
    )
    part_timeout_s: float = Field(
        default=1.0,
        gt=0,
        description="seconds to wait for the parts of the graph layout before the fallback answers",
    )
    num_replicas: int = Field(default=1, ge=1, description="replicas; more than one needs store.kind=valkey")
    num_cpus: float = Field(default=1.0, ge=0, description="CPUs reserved for a replica")
    num_threads: int = Field(default=1, ge=1, description="threads of a replica's matrix products")
    max_ongoing_requests: int = Field(default=64, ge=1, description="requests a replica works on at once")
    max_queued_requests: int = Field(
        default=512, ge=-1, description="requests that may wait before others get 503; -1 = no limit"
    )
    max_batch: int = Field(default=1000, ge=1, description="most entries or sessions in one request")
    decision_log: DecisionLogConfig | None = Field(
        default=None, description="where decisions and sessions are written; null = nowhere"
    )


class ServeConfig(ServeArgs):
    """Arguments of the application, and how it is reached."""

    host: str = Field(
        default="127.0.0.1", description="address to listen on; 0.0.0.0 opens the service to the network"
    )
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port")
    request_timeout_s: float | None = Field(
        default=30.0, gt=0, description="seconds after which a request fails with 408; null = never"
    )
    haproxy: bool = Field(
        default=False,
        description="HAProxy before the replicas: several times the requests a second; replicas then listen on all "
        "interfaces and ports 9101 and 8404 are used, so put a firewall before it",
    )
    valkey_folder: str | None = Field(
        default=None,
        description="where the embedded server of store.kind=valkey without store.url keeps its data; null forgets them",
    )

    @property
    def args(self) -> ServeArgs:
        """The application's own arguments."""
        return ServeArgs.model_validate({name: getattr(self, name) for name in ServeArgs.model_fields})


class DecideConfig(StrictConfig):
    """`plpm decide`: page, scores and propensity for every row of a Parquet of app entries."""

    bundle: str = Field(description="bundle folder, or run folder")
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register the bundle's learner"
    )
    policy: PolicyConfig = Field(default=PolicyConfig(), description="how pages are drawn from scores")
    fallback: str = Field(
        default="heuristic.popularity", description="heuristic that answers for users without history"
    )
    entries: str = Field(description="app entries: a Parquet file, or a folder of them")
    history: str | None = Field(
        default=None,
        description="sessions before and between the entries: a warehouse, or canonical Parquet (file or folder)",
    )
    users: str | None = Field(
        default=None,
        description="user profiles: a Parquet file or folder, or a warehouse; default: those of the history's warehouse",
    )
    output: str = Field(description="Parquet file that is written")
