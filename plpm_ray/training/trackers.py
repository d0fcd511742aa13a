"""Where the numbers of a run go: always a JSONL file, and TensorBoard or MLflow where they are wanted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from plpm_ray.core.errors import ConfigError
from plpm_ray.core.storage import atomic_writer, storage_errors
from plpm_ray.training.config import Tracker


class MetricTracker(Protocol):
    """Takes the records of a run in order."""

    def log(self, record: Mapping[str, Any]) -> None:
        """A record: "step" (optimiser steps so far), "epoch", and numbers."""
        ...

    def close(self) -> None: ...


class JsonlTracker:
    """One JSON object a line. Records of a resumed run beyond its checkpoint are removed, since they come again."""

    def __init__(self, path: str | Path, after_step: int) -> None:
        self.path = Path(path)
        kept: list[str] = []
        if self.path.exists():
            with storage_errors(f"reading {self.path}"):
                kept = [line for line in self.path.read_text().splitlines() if _step(line) <= after_step]
        with atomic_writer(self.path) as file:
            file.write("".join(line + "\n" for line in kept).encode())

    def log(self, record: Mapping[str, Any]) -> None:
        with storage_errors(f"writing {self.path}"), self.path.open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def close(self) -> None:
        pass


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the last line of a killed process may be cut off


class TensorBoardTracker:
    """Event files in `<run>/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise ConfigError(
                "tracker tensorboard is not installed", hint="pip install 'plpm_ray[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder))

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class MlflowTracker:
    """A run in MLflow's tracking server (MLFLOW_TRACKING_URI), by default the SQLite file `<run>/mlflow.db`."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise ConfigError(
                "tracker mlflow is not installed", hint="pip install 'plpm_ray[mlflow]'"
            ) from None
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.resolve()}/mlflow.db"
        try:
            self._client = MlflowClient(uri)
            self._run = self._open_run(run_dir.name, config)
        except (MlflowException, ImportError, OSError) as error:
            raise ConfigError(
                f"tracker mlflow cannot use {uri}: {str(error).splitlines()[0]}",
                hint="set MLFLOW_TRACKING_URI to a server that can be reached",
            ) from error

    def _open_run(self, name: str, config: Mapping[str, Any]) -> str:
        """Id of the run of that name; a resumed run is found again."""
        experiment = self._client.get_experiment_by_name("plpm_ray")
        number = experiment.experiment_id if experiment else self._client.create_experiment("plpm_ray")
        known = self._client.search_runs([number], f"tags.run_dir = '{name}'", max_results=1)
        if known:
            return known[0].info.run_id
        run = self._client.create_run(number, run_name=name, tags={"run_dir": name}).info.run_id
        for key, value in config.items():
            self._client.log_param(run, key, str(value)[:500])
        return run

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in _numbers(record).items():
            self._client.log_metric(self._run, name.replace("/", "."), value, step=int(record["step"]))

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k != "step"}


def open_trackers(
    names: tuple[Tracker, ...], run_dir: Path, after_step: int, config: Mapping[str, Any]
) -> list[MetricTracker]:
    """metrics.jsonl and the trackers asked for; rank 0 alone calls this.

    Raises:
        ConfigError: a tracker is not installed.
        StorageError: the run folder cannot be written.
    """
    found: list[MetricTracker] = [JsonlTracker(run_dir / "metrics.jsonl", after_step)]
    if "tensorboard" in names:
        found.append(TensorBoardTracker(run_dir / "tensorboard"))
    if "mlflow" in names:
        found.append(MlflowTracker(run_dir, config))
    return found
