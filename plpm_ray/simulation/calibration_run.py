"""`plpm simulate calibrate`: a calibration as a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from plpm_ray.core.config import config_hash
from plpm_ray.core.storage import write_json
from plpm_ray.simulation.calibration import CalibrationConfig, calibrate
from plpm_ray.simulation.config import WorldRef, load_world


class CalibrationRunConfig(CalibrationConfig):
    """A calibration and where its run folder goes."""

    name: str = Field(
        default="calibrate", min_length=1, description="run name; the run folder adds a hash of the config"
    )
    run_root: str = Field(default="runs", description="folder that holds the run folders")
    world: WorldRef = Field(default="kuaishou", description="name, path or section of a world")


def run_calibration(config: CalibrationRunConfig) -> dict[str, Any]:
    """Calibrates and writes `calibration.json`.

    Returns:
        Its content, with the run folder under "run".
    """
    identity = {
        **config.model_dump(mode="json", exclude={"run_root", "backend", "workers", "chunk_users"}),
        "world": load_world(config.world).model_dump(mode="json"),
    }
    run_dir = Path(config.run_root) / f"{config.name}-{config_hash(identity)}"
    write_json(run_dir / "config.json", identity)
    record = calibrate(config)
    write_json(run_dir / "calibration.json", record)
    return {**record, "run": str(run_dir)}
