"""Config of `plpm stream`: a learner that learns finished sessions in the order of their entries."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from plpm_ray.core.config import Named, StrictConfig, Tunable

# These change when something is written, not what is learned: a run goes on under other values of them.
OPERATIONAL = ("commit_every", "publish_every", "keep_bundles", "stop_after")


class StreamTraining(StrictConfig):
    """The optimisation, and how often its state is kept."""

    batch_sessions: int = Field(
        256, ge=1, description="sessions of a micro-batch: scored together, then learned from together"
    )
    passes: int = Field(1, ge=1, le=100, description="optimiser steps on each micro-batch")
    lr: Annotated[float, Tunable(1e-4, 1e-2, log=True)] = Field(
        1e-3, gt=0, description="learning rate of Adam, constant over the stream"
    )
    weight_decay: Annotated[float, Tunable(1e-6, 1e-2, log=True)] = Field(
        0.0, ge=0, description="decoupled weight decay (AdamW); 0 is plain Adam"
    )
    grad_clip: float | None = Field(
        10.0, gt=0, description="largest norm of the gradient; null does not clip"
    )
    seed: int = Field(0, ge=0, description="seed of the first weights and of dropout")
    num_threads: int = Field(1, ge=1, description="CPU threads; another number may change the last digits")
    window_sessions: int = Field(
        10_000, ge=1, description="sessions judged together in a record of metrics.jsonl, at least"
    )
    commit_every: int = Field(
        20, ge=1, description="micro-batches between commits; what a crash makes the learner do again"
    )
    publish_every: int = Field(100_000, ge=1, description="sessions between two published bundles, at least")
    keep_bundles: int = Field(3, ge=1, description="published bundles kept, the newest ones")
    stop_after: int | None = Field(
        None,
        ge=1,
        description="sessions of the whole run after which it ends; null: as far as the source goes",
    )

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON-like values: all fields but the operational ones."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in OPERATIONAL}


class TableSourceConfig(StrictConfig):
    """Tables replayed in time order: day by day, in a day by time of entry."""

    kind: Literal["table"]
    tables: str | None = Field(
        default=None, description="warehouse folder that is replayed; null: the run's `tables`"
    )
    first_day: dt.date | None = Field(
        default=None, description="first local day; null: the first of the table"
    )
    last_day: dt.date | None = Field(default=None, description="last local day; null: the last of the table")


class ValkeySourceConfig(StrictConfig):
    """A stream in a Valkey or Redis server, read through a consumer group."""

    kind: Literal["valkey"]
    url: str | None = Field(
        default=None,
        description="server address, as in valkey://host:6379/0; ${NAME} is replaced by that environment variable; "
        "null: a server embedded in this run, for trying things out",
    )
    port: int | None = Field(
        default=None, ge=1, le=65535, description="TCP port of the embedded server; null: a free one"
    )
    stream: str = Field(default="plpm:sessions", min_length=1, description="key of the stream")
    group: str = Field(default="plpm", min_length=1, description="consumer group; one for each run")
    follow: bool = Field(
        default=True, description="wait for further sessions; false: end when no whole micro-batch is there"
    )
    timeout_s: float = Field(default=5.0, gt=0, description="seconds to wait for an answer of the server")


SourceConfig = Annotated[TableSourceConfig | ValkeySourceConfig, Field(discriminator="kind")]


class StreamConfig(StrictConfig):
    """`plpm stream`: one learner on one stream."""

    name: str = Field(
        default="stream", min_length=1, description="run name; the run folder adds a hash of the config"
    )
    run_root: str = Field(default="runs", description="folder that holds the run folders")
    tables: str | None = Field(
        default=None,
        description="warehouse folder whose first days the encoder is fitted on; null with `bundle`",
    )
    fit_days: int = Field(
        default=7, ge=1, description="days of `tables` that the encoder is fitted on, the first ones"
    )
    bundle: str | None = Field(
        default=None,
        description="bundle to start from (of a composed navigator: its part that learns from streams): learner, weights "
        "and encoder; null: untrained",
    )
    learner: Named | None = Field(
        default=None, description="registered learner and its options; null with `bundle`"
    )
    source: SourceConfig = Field(description="where finished sessions come from")
    training: StreamTraining = Field(
        default_factory=lambda: StreamTraining.model_validate({}),
        description="micro-batches, optimiser, commits, bundles",
    )
    plugins: tuple[str, ...] = Field(
        default=(), description="files or modules that register learners of your own"
    )

    @model_validator(mode="after")
    def _one_start(self) -> StreamConfig:
        if (self.bundle is None) == (self.learner is None):
            raise ValueError("give either `bundle` (to go on from it) or `learner` (to start untrained)")
        if self.bundle is None and self.tables is None:
            raise ValueError("an untrained learner needs `tables` to fit its encoder on")
        if self.source.kind == "table" and self.source.tables is None and self.tables is None:
            raise ValueError("source.kind is table, so `tables` or `source.tables` must name a warehouse")
        return self
