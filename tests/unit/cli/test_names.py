"""Names of runs without their hash: a run that is found again takes its name, and commands say which run a name means."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from plpm_ray.core.storage import renew
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.tables import build_transitions
from plpm_ray.navigators.bundle import find_bundle, load_bundle
from tests.command_line import Ended, plpm
from tests.world_logs import world_logs

SMALL = [f"parts.{role}.training={{epochs: 1, batch_size: 256}}" for role in ("lrtg", "hrm", "dt")]
MEAN7 = "navigator.rtg=mean7"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = {"dataset": world_logs(40, 7), "output": str(tmp_path_factory.mktemp("names") / "tables")}
    ingest(IngestConfig.model_validate({**made, "n_buckets": 1}))
    build_transitions(Warehouse.open(made["output"]))
    return Path(made["output"])


def train(config: str, tables: Path, folder: Path, *settings: str) -> Ended:
    """A run of a template on few users, which must end well."""
    sets = [f"tables={tables}", f"run_root={folder}", *settings]
    ended = plpm("train", config, *(word for text in sets for word in ("--set", text)))
    assert ended.code == 0, ended.err
    return ended


def glan(tables: Path, folder: Path, *settings: str) -> Ended:
    return train("jobs/train_glan.yaml", tables, folder, *SMALL, *settings)


def test_a_navigator_that_is_found_again_is_what_its_name_means(tables, tmp_path) -> None:
    def meant(name: str = "glan") -> str:
        return load_bundle(find_bundle(tmp_path / name)).config["rtg"]

    glan(tables, tmp_path)
    first = find_bundle(tmp_path / "glan-lrtg")
    glan(tables, tmp_path, MEAN7, "parts.lrtg.training={epochs: 2, batch_size: 256}")
    assert meant() == "mean7" and find_bundle(tmp_path / "glan-lrtg") != first

    again = glan(tables, tmp_path)
    assert f"{tmp_path / 'glan'} means this run" in again.out and "nothing was run" in again.out
    assert meant() == "lrtg" and find_bundle(tmp_path / "glan-lrtg") == first


def test_an_ablation_of_another_name_takes_the_parts_of_the_first(tables, tmp_path) -> None:
    glan(tables, tmp_path)
    before = {folder.name for folder in tmp_path.iterdir()}
    ended = glan(tables, tmp_path, "name=glan_mean7", "parts_name=glan", MEAN7)
    (made,) = {folder.name for folder in tmp_path.iterdir()} - before
    assert made.startswith("glan_mean7-") and ended.err.count("finished before") == 3
    assert find_bundle(tmp_path / "glan").parent.name in before


def test_a_learner_that_is_found_again_takes_its_name_where_it_may(tables, tmp_path, monkeypatch) -> None:
    def bc(width: int) -> Ended:
        return train("jobs/train_bc.yaml", tables, tmp_path, f"learner.hidden=[{width}]", "training.epochs=1")

    assert "means" not in bc(8).out
    first = find_bundle(tmp_path / "bc")
    bc(4)
    assert find_bundle(tmp_path / "bc") != first
    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", refuse)
        assert "means another run" in bc(8).out
    assert find_bundle(tmp_path / "bc") != first
    assert "means this run" in bc(8).out
    assert find_bundle(tmp_path / "bc") == first


def refuse(*arguments: object, **options: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_command_says_once_which_run_a_name_means(tables, tmp_path) -> None:
    for width in (8, 4):
        train("jobs/train_bc.yaml", tables, tmp_path, f"learner.hidden=[{width}]", "training.epochs=1")
    runs = sorted(tmp_path.glob("bc-*"))
    renew(runs[0], ["bundle/bundle.json", "summary.json"])

    def evaluated(*bundles: Path) -> str:
        policies = ", ".join(f"{{label: p{i}, bundle: {bundle}}}" for i, bundle in enumerate(bundles))
        sets = [f"tables={tables}", f"run_root={tmp_path}", f"policies=[{policies}]"]
        sets += ["judge.estimators=[snips]"]
        ended = plpm("evaluate", "jobs/evaluate.yaml", *(word for text in sets for word in ("--set", text)))
        assert ended.code == 0, ended.err
        return ended.err

    said = f"{tmp_path / 'bc'} means {runs[0]}, the latest of 2 runs of that name"
    assert evaluated(tmp_path / "bc", tmp_path / "bc").count(said) == 1
    assert "means" not in evaluated(*runs)
