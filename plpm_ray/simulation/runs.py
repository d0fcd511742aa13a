"""What the simulated runs share: the keys of their configs, and the run folder `<run_root>/<name>-<hash>`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

import plpm_ray
from plpm_ray.core.config import StrictConfig, config_hash
from plpm_ray.core.registry import plugin_digest
from plpm_ray.core.storage import exclusive_folder, read_json, write_json
from plpm_ray.data.ray_exec import Backend
from plpm_ray.simulation.config import WorldConfig, WorldRef

RunName = Annotated[
    str, Field(min_length=1, description="run name; the run folder adds a hash of the config")
]


class RunConfig(StrictConfig):
    """Base of the configs of runs in a world; subclasses give `name` its default."""

    operational: ClassVar[frozenset[str]] = frozenset({"run_root", "backend", "workers"})
    """Fields that change where and how fast a run is made, not what it finds; subclasses add theirs."""

    name: RunName
    run_root: str = Field(default="runs", description="folder that holds the run folders")
    world: WorldRef = Field(
        default="kuaishou", description="shipped world, path of a YAML file, or the world itself"
    )
    backend: Backend = Field(default="local", description="local: this process; ray: tasks on the cluster")
    workers: int | None = Field(
        default=None, ge=1, description="tasks at a time; default: what the backend gives"
    )

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON-like values: all fields but the operational ones, plugins by their content."""
        values = self.model_dump(mode="json", exclude=set(self.operational))
        if "plugins" in values:
            values["plugins"] = [plugin_digest(plugin) for plugin in values["plugins"]]
        return values


@contextlib.contextmanager
def run_folder(config: RunConfig, world: WorldConfig, **more: Any) -> Iterator[Path]:
    """Makes the folder of a run, writes its `config.json`, and keeps other processes out of it while the block runs.

    Args:
        config: what is run.
        world: the world that `config.world` means, with what the run changes about it.
        more: what else decides the result, JSON-like; versions of what chooses pages, for example.

    Raises:
        ConfigError: another process works in the folder.
        StorageError: it cannot be written.
    """
    identity = {
        **config.identity(),
        "world": world.model_dump(mode="json"),
        **more,
        "software": plpm_ray.__version__,
    }
    run_dir = Path(config.run_root) / f"{config.name}-{config_hash(identity)}"
    with exclusive_folder(run_dir):
        write_json(run_dir / "config.json", identity)
        yield run_dir


def finished(run_dir: Path, name: str) -> dict[str, Any] | None:
    """The record `name` of a run that finished before, which stderr is told of; None if it did not."""
    path = run_dir / name
    if not path.is_file():
        return None
    print(f"{run_dir.name} finished before; its results are returned", file=sys.stderr)
    return {**read_json(path), "run": str(run_dir)}
