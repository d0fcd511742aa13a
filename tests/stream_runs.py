"""Streams to learn from in tests, and runs of them in processes that may be killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.navigators.klan.am import AM
from plpm_ray.training.job import build_learner
from plpm_ray.training.stream_config import StreamTraining
from plpm_ray.training.stream_run import StreamJob, run_stream
from plpm_ray.training.stream_sources import StreamSource, TableReplay
from plpm_ray.training.stream_valkey import ValkeyStream, add_rows, connect

SMALL = {"experts": 2, "expert_hidden": 8, "expert_width": 4, "tower_hidden": (), "embedding_dim": 2}
TRAINING = {
    "batch_sessions": 200,
    "window_sessions": 1500,
    "commit_every": 7,
    "publish_every": 4000,
    "keep_bundles": 2,
}


def make_job(tables: Path, folder: Path, **training: Any) -> StreamJob:
    warehouse = Warehouse.open(tables)
    spec, stats = fit_spec(warehouse, warehouse.transitions.days()[:2])
    settings = StreamTraining.model_validate({**TRAINING, **training})
    learner = build_learner(AM, SMALL, spec, warehouse.info.pages, stats, settings.seed)
    return StreamJob(learner, spec, warehouse.info.pages, stats, settings, folder, warehouse.info.name)


def open_source(tables: Path, url: str | None, stream: str = "sessions", group: str = "g") -> StreamSource:
    """The table, or what `fill` put into a server."""
    warehouse = Warehouse.open(tables)
    if url is None:
        return TableReplay(warehouse)
    return ValkeyStream(url, stream, group, warehouse.info.features, follow=False)


def fill(tables: Path, url: str, stream: str = "sessions") -> list[str]:
    """Adds the sessions of the table to a stream, in its order; gives the ids of the entries."""
    client, _ = connect(url)
    replay, position, ids = TableReplay(Warehouse.open(tables)), None, []
    for n in (500, 20, 1):
        while (found := replay.read(position, n)) is not None:
            ids += add_rows(client, stream, found.features, found.outcome)
            position = found.position
    client.close()
    return ids


def run(
    tables: Path, folder: Path, url: str | None, die_at: int | None = None, **training: Any
) -> dict[str, Any]:
    """A run to the end of the stream, or until the process kills itself before its `die_at`-th write to the disk."""
    if die_at is not None:
        _kill_self_at(die_at)
    source = open_source(tables, url)
    try:
        return run_stream(make_job(tables, folder, **training), source)
    finally:
        source.close()


def _kill_self_at(call: int) -> None:
    """SIGKILL in the place of the n-th fsync or rename: a moment between two steps of a commit or a publication."""
    left = [call]

    def deadly(original: Any) -> Any:
        def instead(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        return instead

    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
