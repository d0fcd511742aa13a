"""Days of a table computed anew, a task for each user bucket, and made visible together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plpm_ray.data.day_table import DayTable
from plpm_ray.data.ray_exec import Backend, run_tasks


def rebuild(
    table: DayTable,
    stale: Sequence[int],
    prints: Mapping[int, str],
    dropped: Sequence[int],
    task: Callable[[Any], Mapping[int, int]],
    items: Callable[[str], Sequence[Any]],
    *,
    backend: Backend,
    workers: int | None,
    progress: str,
) -> int:
    """Computes days and commits them.

    Args:
        table: what is changed; the caller holds its write lock.
        stale: days to compute.
        prints: day -> fingerprint of what it is computed from.
        dropped: days to remove.
        task: computes and writes the stale days of one bucket; day -> rows.
        items: generation -> what `task` is called with, for the buckets 0, 1, ... in order.
        backend, workers, progress: as in `run_tasks`.

    Returns:
        Rows written.
    """
    if not stale and not dropped:
        return 0
    rows: dict[int, dict[int, int]] = {day: {} for day in stale}
    gen = table.new_generation()
    try:
        counts = run_tasks(task, items(gen), backend=backend, workers=workers, progress=progress)
    except BaseException:
        table.discard(gen)
        raise
    for bucket, written in enumerate(counts):
        for day, n in written.items():
            rows[day][bucket] = n
    table.commit(gen, rows, {day: prints[day] for day in stale}, drop=list(dropped))
    return sum(sum(counted.values()) for counted in rows.values())
