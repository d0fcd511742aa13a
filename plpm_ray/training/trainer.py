"""The TorchTrainer around the loop: worker group, data-parallel gradients, restarts from the last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.report_config import CheckpointUploadMode

from plpm_ray.core.errors import PlpmError
from plpm_ray.data.ray_exec import ensure_ray
from plpm_ray.training.checkpoint import CheckpointFolder, load_state, save_state
from plpm_ray.training.comm import Comm, ProcessGroup, together
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Part
from plpm_ray.training.device import pick_device
from plpm_ray.training.job import TrainJob
from plpm_ray.training.ray_data import PartRuns, RayReader, load_shard, materialised, run_of
from plpm_ray.training.run import RunCallback, check_state, execute
from plpm_ray.training.stream import StreamTable

READER_CPUS = 0.25
_UNEVEN = 1.3  # largest share of the rows against the mean one


def run_on_ray(job: TrainJob, notify: Callable[[str], None]) -> bool:
    """Trains with Ray Train until the last checkpoint is written; True if it went on from an earlier one.

    Raises:
        PlpmError: what a worker raised, or that workers were lost more often than `max_failures` allows.
    """
    ensure_ray()
    before = CheckpointFolder(job.run_dir / "checkpoints", job.training.keep_checkpoints).all()
    try:
        result = _trainer(job, notify).fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise _cause(error, job.training) from error
    if isinstance(result.return_value, PlpmError):
        raise result.return_value
    return bool(before)


def _trainer(job: TrainJob, notify: Callable[[str], None]) -> TorchTrainer:
    """The trainer, its data read and encoded already (unless it is to be streamed)."""
    config = job.training
    low, high = (config.workers, config.workers) if isinstance(config.workers, int) else config.workers
    streams = config.data.mode == "stream"
    source, valid = job.train_source(), job.valid_source()
    parts = source.parts(min_parts=high, max_rows=config.data.window_rows if streams else None)
    if len(parts) < high:
        notify(f"the tables divide into {len(parts)} parts only, so at most {len(parts)} workers train")
        low, high = min(low, len(parts)), len(parts)
    resources, low, high = fit_to_cluster(config, low, high, notify)
    rows = [sum(part.rows for part in run_of(parts, rank, high)) for rank in range(high)]
    if max(rows) * high > _UNEVEN * sum(rows):
        notify(
            f"{len(parts)} parts are dealt to {high} workers unevenly: steps follow the largest share, {max(rows):,} rows "
            f"of {sum(rows):,}; tables whose n_buckets is a multiple of the workers would waste none"
        )
    valid_parts = valid.parts(min_parts=high) if valid is not None else []
    datasets: dict[str, Any] = {} if streams else {"train": materialised(source, parts)}
    if valid is not None:
        datasets["valid"] = materialised(valid, valid_parts)
    return TorchTrainer(
        worker,
        train_loop_config={"job": job, "parts": parts, "valid_parts": valid_parts},
        scaling_config=ray.train.ScalingConfig(
            num_workers=high if low == high else (low, high),
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            storage_path=str(job.run_dir),
            name="checkpoints",
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.keep_checkpoints),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        datasets=datasets,
        dataset_config=PartRuns(),
    )


def fit_to_cluster(
    config: TrainingConfig,
    low: int,
    high: int,
    notify: Callable[[str], None],
    nodes: Sequence[Mapping[str, float]] | None = None,
) -> tuple[dict[str, float], int, int]:
    """Resources per worker, and how many workers there may be, so that the group can be placed here.

    CPUs per worker are lowered first (to a half at least), then the number of workers. Nothing is changed on a cluster
    that has no CPU yet, since that is one that scales up on demand. `nodes` are the resources of each node, by default
    those of the cluster that this process has joined.
    """
    nodes = nodes if nodes is not None else [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    per_worker = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker != "auto":
        per_worker["GPU"] = float(config.gpus_per_worker)
    elif config.device != "cpu" and gpus >= high:
        per_worker["GPU"] = 1.0
    per_worker = {kind: amount for kind, amount in per_worker.items() if amount}
    if not cpus:
        return per_worker, low, high
    # a stream is read by tasks that need room beside the workers, as much as a reader of each node's workers
    reserve = max(READER_CPUS, cpus / 8) if config.data.mode == "stream" else 0.0
    wanted = per_worker["CPU"]
    share = math.floor((cpus - reserve) / high * 100) / 100
    fitting = min(wanted, max(share, 0.5), max(node.get("CPU", 0.0) for node in nodes))
    room = (
        sum(math.floor((node.get("CPU", 0.0) + 1e-9) / fitting) for node in nodes)
        if not reserve
        else math.floor((cpus - reserve) / fitting)
    )
    if "GPU" in per_worker:
        room = min(room, sum(math.floor(node.get("GPU", 0.0) / per_worker["GPU"]) for node in nodes))
    if room < 1 and "GPU" in per_worker:
        raise PlpmError(
            "no node has the GPUs asked for", hint="set training.gpus_per_worker to auto, or add a GPU node"
        )
    few = max(1, min(high, room))
    if fitting != wanted or few != high:
        notify(
            f"the cluster has {cpus:g} CPUs: {few} of {high} workers train, "
            f"with {fitting:g} CPUs each instead of {wanted:g}"
        )
    return per_worker | {"CPU": fitting}, min(low, few), few


def worker(config: dict[str, Any]) -> PlpmError | None:
    """What runs in every worker; errors of our own come back as the result, since a restart would only repeat them."""
    try:
        _train(config["job"], config["parts"], config["valid_parts"])
    except PlpmError as error:
        if ray.train.get_context().get_world_size() == 1 or getattr(error, "in_all_processes", False):
            return error
        raise
    return None


def _train(job: TrainJob, parts: Sequence[Part], valid_parts: Sequence[Part]) -> None:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = pick_device(job.training)
    comm = ProcessGroup(device) if world > 1 else Comm()
    mine = run_of(parts, rank, world)
    if job.training.data.mode == "stream":
        source = job.train_source()
        reader = RayReader(source, READER_CPUS)
        table = StreamTable(mine, reader, job.training.data.window_rows, device, source.needs.grain)
    else:
        table = load_shard(ray.train.get_dataset_shard("train"), mine).to(device)
    valid = (
        load_shard(ray.train.get_dataset_shard("valid"), run_of(valid_parts, rank, world)).to(device)
        if valid_parts
        else None
    )
    checkpoint = ray.train.get_checkpoint()
    state = None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = check_state(job, load_state(folder))
    save = _Report(comm, job.run_dir / "checkpoints")
    execute(job, table, valid, comm, RunCallback(job, comm, save, state), state)


class _Report:
    """Writes rank 0's checkpoint into the run folder and tells Ray Train of it; a call of all workers.

    Ray Train keeps the books (which checkpoint is the last, which are removed); the file is written by us, in place, so
    that a full disk gives our error and nothing is copied twice.
    """

    def __init__(self, comm: Comm, root: Path) -> None:
        self._comm, self._root = comm, root

    def __call__(self, state: dict[str, Any], step: int) -> None:
        folder = self._root / f"step-{step:09d}"
        first = self._comm.rank == 0

        def write() -> None:
            if first:
                save_state(state, folder)

        together(self._comm, write)
        ray.train.report(
            {"step": step, "epoch": state["position"]["epoch"]},
            checkpoint=ray.train.Checkpoint.from_directory(folder) if first else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )


def _cause(error: Exception, config: TrainingConfig) -> PlpmError:
    """The error of our own inside Ray's, or one that says what happened to the workers."""
    failures = list(getattr(error, "worker_failures", {}).values()) + [
        getattr(error, "controller_failure", None)
    ]
    chain = [e for failure in (*failures, error) for e in _chain(failure)]
    for found in reversed(chain):
        if isinstance(found, PlpmError):
            return found
    for found in chain:
        if isinstance(found, OSError):
            return PlpmError(
                f"training failed: {found}",
                hint="look for a full disk or missing permissions under the run folder",
            )
    lines = [line for line in str(error).splitlines() if line.strip()]
    return PlpmError(
        f"training failed on Ray: {lines[-1] if lines else type(error).__name__}",
        hint=f"the group was restarted up to {config.max_failures} times (training.max_failures); "
        "the same command goes on from the last checkpoint",
    )


def _chain(error: Any) -> list[Any]:
    found: list[Any] = []
    while error is not None and error not in found:
        found.append(error)
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return found
