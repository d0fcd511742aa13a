"""`plpm stream`: from a config to a run folder, stopped by a signal, and on from there; a live stream in a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from plpm_ray.core.storage import read_json
from plpm_ray.serving.local_valkey import LocalValkey
from tests.command_line import REPO, plpm
from tests.stream_runs import SMALL, fill
from tests.training_tables import make_warehouse


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cli_stream") / "warehouse"
    make_warehouse(root, users=150, n_buckets=2)
    return root


def write(folder: Path, warehouse: Path, **changes: Any) -> Path:
    config = {
        "name": "am",
        "run_root": str(folder / "runs"),
        "tables": str(warehouse),
        "fit_days": 2,
        "learner": {"name": "klan.am", **SMALL, "tower_hidden": []},
        "source": {"kind": "table"},
        "training": {"batch_sessions": 100, "window_sessions": 300},
    }
    path = folder / "stream.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return path


def test_a_table_is_streamed_and_the_bundle_streamed_on(tables, tmp_path):
    ended = plpm("stream", write(tmp_path, tables), "--set", "training.stop_after=500")
    assert ended.code == 0, ended.err
    assert "stream done" in ended.out and "prequential auc" in ended.out and "stop_after" in ended.out
    ended = plpm("stream", tmp_path / "stream.yaml")
    assert "(resumed)" in ended.out and "end of the source" in ended.out
    again = write(
        tmp_path,
        tables,
        name="next",
        tables=None,
        learner=None,
        bundle=str(tmp_path / "runs" / "am"),
        source={"kind": "table", "tables": str(tables)},
    )
    ended = plpm("stream", again)
    assert ended.code == 0, ended.err
    (run,) = (tmp_path / "runs").glob("next-*")
    (before,) = (tmp_path / "runs").glob("am-*")
    start = read_json(run / "config.json")["identity"]["start"]
    assert start == read_json(before / "summary.json")["version"]


def test_mistakes_are_named(tables, tmp_path):
    config = write(tmp_path, tables, learner={"name": "klan.am"})
    for override, said in (
        ("learner.name=klan.iit", "learner 'klan.iit' cannot learn from a stream"),
        ("learner.thresold=1", "did you mean 'threshold'?"),
        ("training.batch=3", "unknown key 'batch' in training"),
        ("source.first_dat=2024-03-01", "did you mean 'first_day'?"),
        ("source.first_day=2030-01-01", "no sessions on the days asked for"),
    ):
        ended = plpm("stream", config, "--set", override)
        assert ended.code == 2 and said in ended.err, ended.err


def test_a_signal_ends_it_with_a_commit(tables, tmp_path):
    with LocalValkey() as url:
        ids = fill(tables, url, "live")
        source = {"kind": "valkey", "url": url, "stream": "live", "group": "g"}
        config = write(tmp_path, tables, source=source)
        code = "import sys; sys.argv[0] = 'plpm'; from plpm_ray.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "stream", str(config), "--set", "training.commit_every=1"],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        while process.poll() is None and not list((tmp_path / "runs").glob("am-*/state.pt")):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped" in out
    (run,) = (tmp_path / "runs").glob("am-*")
    summary = read_json(run / "summary.json")
    assert summary["position"].partition("|")[0] == ids[summary["sessions"] - 1]


def test_a_server_of_its_own(tables, tmp_path):
    source = {"kind": "valkey", "follow": False}
    ended = plpm("stream", write(tmp_path, tables, source=source))
    assert ended.code == 0, ended.err
    assert "waiting for sessions in stream 'plpm:sessions' at valkey://127.0.0.1:" in ended.out
    (run,) = (tmp_path / "runs").glob("am-*")
    assert read_json(run / "summary.json")["sessions"] == 0 and (run / "valkey").is_dir()
