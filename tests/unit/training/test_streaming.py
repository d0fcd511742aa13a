"""A streaming run: scored before learned, published whole, going on where it stood, refusing what does not fit."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from plpm_ray.core.errors import ConfigError, PlpmError
from plpm_ray.core.registry import lookup
from plpm_ray.core.storage import exclusive_lock, read_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.navigators.bundle import find_bundle, load_bundle
from plpm_ray.training.checkpoint import load_state
from plpm_ray.training.job import build_learner
from plpm_ray.training.stream_config import StreamConfig
from plpm_ray.training.stream_run import run_stream
from plpm_ray.training.stream_sources import TableReplay
from plpm_ray.training.streaming import StreamLearner, check_learner
from tests import stream_runs
from tests.stream_runs import SMALL, make_job
from tests.training_tables import make_warehouse


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("streaming") / "warehouse"
    make_warehouse(root, users=250, n_buckets=2)
    return root


def run_dir(folder: Path) -> Path:
    (found,) = folder.parent.glob(f"{folder.name}-*")
    return found


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_session_is_scored_before_it_is_learned(tables):
    job = make_job(tables, Path("unused"))
    fresh = build_learner(type(job.learner), SMALL, job.spec, job.pages, job.stats, job.training.seed).eval()
    streamed = StreamLearner(job.learner, job.spec, job.pages, job.training)
    source, position = TableReplay(Warehouse.open(tables)), None
    for step in range(3):
        rows = source.read(position, 200)
        assert rows is not None
        position = rows.position
        with torch.no_grad():
            wanted, label = fresh.predicted(streamed.batch(rows))
        scored, _ = streamed.step(rows)
        assert np.array_equal(scored.label, label.numpy())
        # the chances are those of the weights before this step, as of the last copy
        assert np.array_equal(scored.chance, wanted.numpy())
        fresh.load_state_dict(job.learner.state_dict())
        assert streamed.steps == step + 1
    assert streamed.overall.rows == streamed.sessions == 600


def test_records_describe_their_windows(tables, tmp_path):
    summary = stream_runs.run(tables, tmp_path / "am", None, window_sessions=500)
    found = records(run_dir(tmp_path / "am"))
    assert [r["window"] for r in found] == list(range(len(found))) and len(found) >= 4
    assert all(r["window_sessions"] == 600 for r in found)  # whole micro-batches of 200
    assert [r["sessions"] for r in found] == [600 * (i + 1) for i in range(len(found))]
    assert all(a["to_ms"] <= b["from_ms"] for a, b in pairwise(found))
    pages = Warehouse.open(tables).info.pages.names
    assert sum(found[0][f"page/{page}/sessions"] for page in pages) == 600
    last = found[-1]
    assert last["overall/log_loss"] == pytest.approx(np.mean([r["log_loss"] for r in found]))
    assert last["sessions"] + 600 > summary["sessions"]


def test_passes_are_optimiser_steps(tables, tmp_path):
    summary = stream_runs.run(tables, tmp_path / "am", None, passes=3)
    assert summary["steps"] == 3 * summary["batches"]
    assert records(run_dir(tmp_path / "am"))[0]["step"] == 3 * 8


def test_bundles_are_published_and_the_newest_is_linked(tables, tmp_path):
    summary = stream_runs.run(tables, tmp_path / "am", None, publish_every=500)
    folder = run_dir(tmp_path / "am")
    kept = sorted(p.name for p in (folder / "bundles").iterdir())
    assert len(kept) == 2 and kept[-1] == f"sessions-{summary['sessions']:012d}"
    bundle = load_bundle(find_bundle(folder))
    assert bundle.version == summary["version"] == load_bundle(folder / "bundles" / kept[-1]).version
    assert bundle.metrics["sessions"] == summary["sessions"]
    assert bundle.data["train_days"] == summary["days"]
    assert load_bundle(folder / "bundles" / kept[0]).version != bundle.version
    bundle.navigator()


def test_a_run_in_pieces_is_the_run_in_one(tables, tmp_path):
    whole = stream_runs.run(tables, tmp_path / "whole", None)
    for stop_after in (450, 1000, 1001):
        stream_runs.run(tables, tmp_path / "pieces", None, stop_after=stop_after)
    pieces = stream_runs.run(tables, tmp_path / "pieces", None)
    job = make_job(tables, tmp_path / "stopped")
    asked = iter([False, False, False, True])
    stopped = run_stream(job, TableReplay(Warehouse.open(tables)), lambda: next(asked))
    assert stopped["sessions"] == 600 and stopped["ended"] == "stopped"
    assert find_bundle(run_dir(tmp_path / "stopped")).name == "bundle"
    again = stream_runs.run(tables, tmp_path / "stopped", None)
    assert again["resumed"] and again["learned"] == whole["sessions"] - 600
    for other, folder in ((again, "stopped"), (pieces, "pieces")):
        assert other["version"] == whole["version"] and other["metrics"] == whole["metrics"]
        texts = [(run_dir(tmp_path / name) / "metrics.jsonl").read_text() for name in ("whole", folder)]
        assert texts[0] == texts[1]


def test_stop_after_counts_the_sessions_of_the_whole_run(tables, tmp_path):
    ends = [
        stream_runs.run(tables, tmp_path / "am", None, stop_after=n)["sessions"] for n in (450, 1000, 1001)
    ]
    assert ends == [400, 1000, 1000]


def test_new_days_are_learned_by_the_next_call(tmp_path):
    warehouse = make_warehouse(tmp_path / "warehouse", users=250, n_buckets=2)
    table, days = warehouse.transitions, warehouse.transitions.days()
    entries = table.entries()
    gen = table.new_generation()
    late = {b: table.read(b, [days[-1]]) for b in (0, 1)}
    table.commit(gen, {}, drop=[days[-1]])
    first = stream_runs.run(tmp_path / "warehouse", tmp_path / "am", None)
    rows = {b: table.write(days[-1], gen, b, t) for b, t in late.items() if t is not None}
    table.commit(gen, {days[-1]: rows})
    second = stream_runs.run(tmp_path / "warehouse", tmp_path / "am", None)
    assert second["sessions"] - first["sessions"] >= entries[days[-1]].total - 200
    assert len(second["days"]) == len(first["days"]) + 1


def test_it_starts_from_a_bundle(tables, tmp_path):
    stream_runs.run(tables, tmp_path / "am", None, stop_after=600)
    bundle = load_bundle(find_bundle(run_dir(tmp_path / "am")))
    job = make_job(tables, tmp_path / "next")
    job = dataclasses.replace(job, learner=bundle.learner(), started_from=bundle.version)
    summary = run_stream(job, TableReplay(Warehouse.open(tables)), lambda: True)
    assert summary["version"] == bundle.version
    assert read_json(run_dir(tmp_path / "next") / "config.json")["identity"]["start"] == bundle.version


def test_one_process_at_a_time_and_one_run_a_folder(tables, tmp_path):
    stream_runs.run(tables, tmp_path / "am", None, stop_after=400)
    folder = run_dir(tmp_path / "am")
    with (
        exclusive_lock(folder / ".lock", ConfigError("busy")),
        pytest.raises(ConfigError, match="is in use by another process"),
    ):
        stream_runs.run(tables, tmp_path / "am", None)
    stream_runs.run(tables, tmp_path / "am", None, stop_after=400, lr=5e-3)
    assert len(list(tmp_path.glob("am-*"))) == 2


def test_records_beyond_the_state_are_cut(tables, tmp_path):
    stream_runs.run(tables, tmp_path / "am", None)
    folder = run_dir(tmp_path / "am")
    wanted = (folder / "metrics.jsonl").read_text()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100000, "auc": 1}\n{"step": 10')
    stream_runs.run(tables, tmp_path / "am", None)
    assert (folder / "metrics.jsonl").read_text() == wanted
    assert load_state(folder)["counts"]["sessions"] > 2000


def test_divergence_is_an_error(tables):
    job = make_job(tables, Path("unused"))
    with torch.no_grad():
        next(job.learner.parameters()).fill_(float("nan"))
    rows = TableReplay(Warehouse.open(tables)).read(None, 200)
    assert rows is not None
    with pytest.raises(PlpmError, match="training diverged"):
        StreamLearner(job.learner, job.spec, job.pages, job.training).step(rows)


@pytest.mark.parametrize(
    ("name", "why"), [("klan.iit", "grain 'transition'"), ("reference.bc", "has no `predicted`")]
)
def test_learners_that_a_stream_cannot_teach(name: str, why: str):
    with pytest.raises(ConfigError, match=why):
        check_learner(lookup("learner", name))
    check_learner(lookup("learner", "klan.am"))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"source": {"kind": "table"}}, "either `bundle`"),
        ({"source": {"kind": "table"}, "learner": {"name": "klan.am"}}, "needs `tables`"),
        ({"source": {"kind": "table"}, "bundle": "runs/am"}, "must name a warehouse"),
        ({"source": {"kind": "kafka"}, "bundle": "runs/am"}, "kafka"),
    ],
)
def test_configs_that_say_too_little(given: dict, why: str):
    with pytest.raises(ValueError, match=why):
        StreamConfig.model_validate(given)
