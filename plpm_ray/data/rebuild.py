"""Days of tables computed anew, a task for each user bucket, and made visible together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plpm_ray.data.day_table import DayTable
from plpm_ray.data.ray_exec import Backend, run_tasks


def rebuild(
    tables: Sequence[DayTable],
    stale: Sequence[int],
    prints: Mapping[int, str],
    dropped: Sequence[int],
    task: Callable[[Any], Mapping[int, Sequence[int]]],
    items: Callable[[str], Sequence[Any]],
    *,
    backend: Backend,
    workers: int | None,
    progress: str,
) -> int:
    """Computes days and commits them.

    Args:
        tables: what is changed, all by the same tasks; the caller holds their write lock. They are committed one after the
            other: a day counts as built once all of them have its fingerprint.
        stale: days to compute.
        prints: day -> fingerprint of what it is computed from.
        dropped: days to remove.
        task: computes and writes the stale days of one bucket; day -> rows of each table.
        items: generation -> what `task` is called with, for the buckets 0, 1, ... in order.
        backend, workers, progress: as in `run_tasks`.

    Returns:
        Rows written to the first table.
    """
    if not stale and not dropped:
        return 0
    rows: list[dict[int, dict[int, int]]] = [{day: {} for day in stale} for _ in tables]
    gen = DayTable.new_generation()
    try:
        counts = run_tasks(task, items(gen), backend=backend, workers=workers, progress=progress)
    except BaseException:
        for table in tables:
            table.discard(gen)
        raise
    for bucket, written in enumerate(counts):
        for day, each in written.items():
            for of_table, n in zip(rows, each, strict=True):
                of_table[day][bucket] = n
    for table, of_table in zip(tables, rows, strict=True):
        table.commit(gen, of_table, {day: prints[day] for day in stale}, drop=list(dropped))
    return sum(sum(counted.values()) for counted in rows[0].values())


def unfinished(tables: Sequence[DayTable], prints: Mapping[int, str]) -> list[int]:
    """The days that some table lacks, or has from other inputs."""
    built = [table.entries() for table in tables]
    return [d for d in prints if any(d not in days or days[d].inputs != prints[d] for days in built)]
