"""Tables that an older version built: every command refuses them alike, and `plpm data` builds them again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.command_line import done, only, plpm, refused, write_yaml
from tests.unit.data import own_logs

LEARNER = {"name": "reference.bc", "hidden": [8]}
TRAINING = {"epochs": 2, "batch_size": 256, "device": "cpu"}
SPLIT = {"valid_days": 1, "test_days": 1}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    own_logs.write(folder / "logs", own_logs.sessions(800, days=5))
    dataset, output = {**own_logs.DATASET, "path": str(folder / "logs")}, folder / "warehouse"
    made = {"dataset": dataset, "output": str(output), "n_buckets": 2}
    done("data", write_yaml(folder / "data.yaml", made))
    return output


def aged(tables: Path, folder: Path) -> Path:
    """A copy as a version before the columns of pages and the user-days wrote it; nothing fitted on it is kept."""
    made = Path(shutil.copytree(tables, folder))
    for name in ("user_days", "fitted", "rewards"):
        shutil.rmtree(made / name, ignore_errors=True)
    for file in (made / "transitions").rglob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["page_dwell_s", "page_views", "page_visits"]), file)
    return made


def test_tables_of_an_older_version_are_refused_by_every_command(tmp_path: Path, tables: Path) -> None:
    runs = {"run_root": str(tmp_path / "runs"), "split": SPLIT, "tables": str(tables)}

    def train(name: str, tables: Path, **settings: Any) -> Path:
        return write_yaml(
            tmp_path / f"{name}.yaml",
            {**runs, "name": name, "tables": str(tables), "training": TRAINING, **settings},
        )

    parts = {name: {"learner": {"name": f"glan.{name}"}} for name in ("hrm", "lrtg")}
    for name, part in parts.items():
        done("train", train(name, tables, **part))
    old = aged(tables, tmp_path / "old")
    bundles = {name: str(only(tmp_path / "runs", f"{name}-*")) for name in parts}
    judged = {**runs, "tables": str(old), "policies": [{"navigator": "heuristic.popularity"}]}
    commands = {
        "reward": {"bundle": bundles["hrm"], "tables": str(old)},
        "evaluate": judged,
        "assess": {**runs, "tables": str(old), "bundles": [{"bundle": path} for path in bundles.values()]},
    }
    configs = [(verb, write_yaml(tmp_path / f"{verb}.yaml", what)) for verb, what in commands.items()]
    configs += [("train", train(f"old_{name}", old, **part)) for name, part in parts.items()]
    configs += [
        ("train", train("old_bc", old, learner=LEARNER)),
        ("train", train("old", old, navigator="glan")),
    ]
    for again in (False, True):  # what was fitted on the tables before changes nothing
        for verb, config in configs:
            message = refused(plpm(verb, config))
            assert f"the tables of {old} are not of this version" in message, (verb, config.name)
            assert "build them again: `plpm data`" in message
        if not again:
            shutil.copytree(tables / "fitted", old / "fitted")
    logs = {**own_logs.DATASET, "path": str(tables.parent / "logs")}
    done("data", write_yaml(tmp_path / "data.yaml", {"dataset": logs, "output": str(old), "n_buckets": 2}))
    done("reward", tmp_path / "reward.yaml")
    done("train", tmp_path / "old_lrtg.yaml")
