"""`plpm simulate logs`: the same content however it is made, whole or resumed, and no folder is mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import ConfigError, StorageError
from plpm_ray.core.storage import exclusive_lock, read_json, read_parquet
from plpm_ray.simulation import logs_run
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.dataset import WorldLogs
from plpm_ray.simulation.logs import content_hash
from plpm_ray.simulation.logs_run import LogsConfig, write_logs

WORLD = load_world("kuaishou").model_dump(mode="json")
WORLD["entries"]["most"] = 8


def config(output: Path, **changes: Any) -> LogsConfig:
    settings = {"world": WORLD, "users": 100, "days": 2, "warmup_days": 1, "users_per_file": 30}
    return LogsConfig.model_validate({**settings, "output": str(output), **changes})


def test_the_folder_holds_what_the_summary_says(tmp_path: Path):
    settings = config(tmp_path, trial={"arms": ["explore"]}, potential_outcomes=1)
    summary = write_logs(settings)
    files = {
        name: sorted((tmp_path / name).iterdir()) for name in ("sessions", "users", "potential_outcomes")
    }
    assert all(
        [f.name for f in found] == [f"part-{n:05d}.parquet" for n in range(4)] for found in files.values()
    )
    tables = {name: pa.concat_tables([read_parquet(f) for f in found]) for name, found in files.items()}
    assert tables["sessions"].num_rows == summary["sessions"] > 300
    assert (summary["first_day"], summary["last_day"]) == ("2024-03-05", "2024-03-06")
    for table in (tables["users"], tables["potential_outcomes"]):
        assert table["user_id"].to_pylist() == list(range(100))
    whole = WorldLogs(settings).run(np.arange(100), replicates=1)
    assert tables["sessions"].equals(whole.sessions)
    assert tables["potential_outcomes"].equals(whole.potential_outcomes)
    assert read_parquet(tmp_path / "responses.parquet").equals(whole.responses)
    arms = read_parquet(tmp_path / "assignments.parquet")["arm"].to_pylist()
    assert summary["arms"] == {"control": arms.count(None), "explore": arms.count("explore")}
    pages = tables["sessions"]["landing_page"].to_pylist()
    assert summary["landing_shares"]["explore"] == pytest.approx(
        pages.count("explore") / len(pages), abs=1e-6
    )
    record = read_json(tmp_path / "parts" / "part-00001.json")
    assert record["hashes"]["sessions"] == content_hash(read_parquet(files["sessions"][1]))
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["complete"] and manifest["hash"] == summary["hash"]
    assert load_world(str(tmp_path / "world.yaml")) == load_world(WORLD)


def test_workers_do_not_change_the_content(tmp_path: Path):
    one, four = (write_logs(config(tmp_path / str(n), workers=n, trial={})) for n in (1, 4))
    assert one["hash"] == four["hash"]
    other = write_logs(config(tmp_path / "seed", seed=1, trial={}))
    assert other["hash"] != one["hash"] and other["seed"] == 1


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = write_logs(config(tmp_path / "whole"))
    task, asked = logs_run.write_part, []

    def failing(settings: Any, folder: Any, number: int) -> None:
        if number == 2:
            (folder.root / "sessions" / ".part-00002.parquet.x.tmp").touch()
            raise MemoryError
        asked.append(number)
        task(settings, folder, number)

    monkeypatch.setattr(logs_run, "write_part", failing)
    with pytest.raises(MemoryError):
        write_logs(config(tmp_path / "part"))
    assert asked == [0, 1] and not read_json(tmp_path / "part" / "manifest.json")["complete"]
    (tmp_path / "part" / "sessions" / "part-00001.parquet").write_bytes(b"half")
    monkeypatch.setattr(logs_run, "write_part", task)
    again = write_logs(config(tmp_path / "part"))
    assert again["hash"] == whole["hash"] and again["reused_files"] == 1
    assert not list((tmp_path / "part").rglob("*.tmp"))
    assert write_logs(config(tmp_path / "part"))["reused_files"] == 4


def test_folders_of_others_are_refused(tmp_path: Path):
    write_logs(config(tmp_path / "logs"))
    changed = WORLD | {"landing": {"leave": 0.5}}
    for changes, key in (
        ({"users": 101}, "config.users"),
        ({"world": changed}, "config.world.landing.leave"),
    ):
        with pytest.raises(
            StorageError, match=f"holds the logs of another config; it differs in (.*, )?{key}\n"
        ):
            write_logs(config(tmp_path / "logs", **changes))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(StorageError, match="not empty"):
        write_logs(config(tmp_path / "mine"))
    with (
        exclusive_lock(tmp_path / "logs" / ".write.lock", StorageError("busy")),
        pytest.raises(StorageError, match="another run writes"),
    ):
        write_logs(config(tmp_path / "logs"))


def test_mistakes_show_before_anything_is_written(tmp_path: Path):
    for changes in ({"policy": "featurd"}, {"trial": {"arms": ["x"]}}, {"world": "kuaishu"}):
        with pytest.raises(ConfigError):
            write_logs(config(tmp_path / "none", **changes))
    with pytest.raises(ValueError, match="add `trial: {}`"):
        config(tmp_path, potential_outcomes=1)
    assert not (tmp_path / "none").exists()
