"""Runs one function over a list of work items, in this process or as tasks of Ray Data: the data plane's only engine.

Items are small (paths, bucket numbers, configs), results are small (row counts); tables never travel through the
object store: tasks read and write files. Ray Data places the tasks where CPUs are free, holds back what does not fit,
and runs an item again when its worker or node dies; so a task must be repeatable (write whole files under final names,
or into a generation that is committed afterwards). There is no shuffle: users are bucketed once (`data.shards`).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import multiprocessing
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from plpm_ray.core.errors import PlpmError

if TYPE_CHECKING:
    import ray.data

Item = TypeVar("Item")
Result = TypeVar("Result")
Backend = Literal["local", "processes", "ray"]
RETRIES = 3
"""How often Ray runs an item again whose worker or node died; Ray Data's own default is for ever."""


def run_tasks(
    fn: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    backend: Backend = "local",
    workers: int | None = None,
    num_cpus: float = 1,
    memory: int | None = None,
    progress: str | None = None,
) -> list[Result]:
    """Calls `fn` on every item.

    Args:
        fn: importable function, closure or partial; with "ray" it and the items are pickled.
        items: any objects; each is one task.
        backend: "local" runs here; "processes" in processes of this machine, of one thread each, without Ray; "ray" on
            this process's cluster (see `ensure_ray`).
        workers: tasks at a time. Default: 1 locally, one a core in processes; with "ray" as many as the cluster's CPUs
            allow.
        num_cpus: CPUs reserved for a task, lowered to those of the largest node. Ignored locally.
        memory: bytes reserved for a task (ray only); bounds how many run on a node.
        progress: what is being done, for the progress bar; shown only on a terminal.

    Returns:
        Results in the order of the items, whichever finished first.

    Raises:
        Exception: the first error that `fn` raised, itself (with the task's traceback as a note, unless it is a
            PlpmError); no further items are started.
        PlpmError: Ray could not run the tasks.
    """
    if not items:
        return []
    if backend == "local":
        return _run_local(fn, items, workers or 1, progress)
    if backend == "processes":
        return _run_processes(fn, items, workers or len(os.sched_getaffinity(0)), progress)
    if backend == "ray":
        return _run_ray(fn, items, workers, num_cpus, memory, progress)
    raise ValueError(f"backend is {backend!r}, it must be 'local', 'processes' or 'ray'")


def ensure_ray() -> None:
    """Connects this process to the cluster at RAY_ADDRESS, or starts a quiet one here, unless it has one already."""
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def _run_local(
    fn: Callable[[Any], Any], items: Sequence[Any], workers: int, progress: str | None
) -> list[Any]:
    if workers == 1:
        return list(_shown(map(fn, items), len(items), progress))
    pool = ThreadPoolExecutor(min(workers, len(items)))
    try:
        return list(_shown(pool.map(fn, items), len(items), progress))
    finally:
        pool.shutdown(cancel_futures=True)


def _run_processes(
    fn: Callable[[Any], Any], items: Sequence[Any], workers: int, progress: str | None
) -> list[Any]:
    # a thread pool in each of them would only make them wait for one another
    limits = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update({name: "1" for name, value in limits.items() if value is None})
    pool = ProcessPoolExecutor(min(workers, len(items)), mp_context=multiprocessing.get_context("spawn"))
    try:
        return list(_shown(pool.map(fn, items), len(items), progress))
    except BrokenProcessPool as error:
        raise PlpmError(
            "a process of this run was killed before it had finished its task",
            hint="was memory short? Lower `workers`, or the users or rows of a task",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in limits.items():
            if value is None:
                os.environ.pop(name, None)


def _shown(results: Iterator[Any], total: int, progress: str | None) -> Iterator[Any]:
    """Passes results on, with a bar on stderr if that is a terminal."""
    if progress is None or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(results, description=progress, total=total, console=Console(stderr=True), transient=True)


def _run_ray(
    fn: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int | None,
    num_cpus: float,
    memory: int | None,
    progress: str | None,
) -> list[Any]:
    import ray
    import ray.exceptions

    ensure_ray()
    largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    rows = [{"index": i, "payload": _dumps(item)} for i, item in enumerate(items)]
    with _quiet():
        source = ray.data.from_items(rows, override_num_blocks=len(rows))
        dataset = source.map_batches(
            _Call(_dumps(fn)),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=min(num_cpus, largest) if largest else num_cpus,
            memory=memory,
            compute=ray.data.TaskPoolStrategy(size=workers),
            **_retry_option(source.map_batches),
        )
        found: dict[int, Any] = {}
        try:
            for index, ok, value in _shown(_outcomes(dataset), len(items), progress):
                if not ok:
                    raise value
                found[index] = value
        except ray.exceptions.RayError as error:
            raise PlpmError(
                f"Ray could not finish {progress or 'the tasks'}: {str(error).splitlines()[0]}",
                hint=f"a worker or node was lost more than {RETRIES} times; look for lack of memory in its logs",
            ) from error
    return [found[i] for i in range(len(items))]


class _Call:
    """The body of a task: unpickles function and item, and returns what happened as a row."""

    def __init__(self, fn: bytes) -> None:
        self.fn = fn

    def __call__(self, batch):
        import pyarrow as pa

        outcomes = []
        for payload in batch["payload"].to_pylist():
            try:
                outcomes.append((True, pickle.loads(self.fn)(pickle.loads(payload))))
            except Exception as error:
                # an error is a result too: the driver raises it as it was, without Ray's wrapping
                error.add_note(f"raised in a Ray task:\n{traceback.format_exc()}")
                outcomes.append((False, error))
        return pa.table(
            {"index": batch["index"], "outcome": pa.array([_pack(o) for o in outcomes], pa.binary())}
        )


def _dumps(value: Any) -> bytes:
    import ray.cloudpickle  # pickles closures and functions of __main__ too

    return ray.cloudpickle.dumps(value)  # pyright: ignore[reportPrivateImportUsage]


def _pack(outcome: tuple[bool, Any]) -> bytes:
    try:
        data = _dumps(outcome)
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps((False, PlpmError(f"a task's outcome cannot be pickled: {outcome[1]!r}")))


def _outcomes(dataset: ray.data.Dataset) -> Iterator[tuple[int, bool, Any]]:
    for row in dataset.iter_rows():
        yield row["index"], *pickle.loads(row["outcome"])


def _retry_option(method: Callable[..., Any]) -> dict[str, Any]:
    # Ray says that free remote options go away in 2.64; a release that takes neither keeps its own default
    parameters = inspect.signature(method).parameters
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {"max_retries": RETRIES} if free or "max_retries" in parameters else {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data without its own bars and chatter; the caller's settings come back afterwards."""
    from ray.data import DataContext

    context = DataContext.get_current()
    changed = ("enable_progress_bars", "enable_operator_progress_bars", "print_on_execution_start")
    before = {name: getattr(context, name) for name in changed if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name in before:
            setattr(context, name, False)
        logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
            yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)
