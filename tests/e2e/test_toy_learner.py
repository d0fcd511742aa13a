"""What a new learner costs: one Python file and one YAML, and it goes through train, sweep, evaluate, decide and serve."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.registry import load_plugins
from plpm_ray.core.storage import read_json, write_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.serving.deployment import read_args
from plpm_ray.serving.replica import Replica
from tests.command_line import REPO, done, only, plpm_process, write_yaml
from tests.contracts import test_learners as contracts
from tests.world_logs import world_logs

LEARNER = REPO / "tests" / "e2e" / "toy_learner.py"
CONFIG = REPO / "tests" / "e2e" / "toy_learner.yaml"
SPLIT = {"valid_days": 1, "test_days": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated logs, their tables, and the toy trained on them by its own YAML."""
    folder = tmp_path_factory.mktemp("toy")
    data = {"dataset": world_logs(150, 7), "n_buckets": 2}
    done("data", write_yaml(folder / "data.yaml", {**data, "output": str(folder / "tables")}))
    done("train", CONFIG, *changes(folder))
    return folder


def changes(folder: Path, **more: Any) -> list[str]:
    """`--set` of the places that a test changes, and of others."""
    values = {"tables": folder / "tables", "run_root": folder / "runs", "split": SPLIT, **more}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def test_training_leaves_a_bundle_that_names_its_plugin(folder: Path) -> None:
    run = only(folder / "runs", "toy-*")
    bundle = load_bundle(run / "bundle")
    assert (bundle.name, bundle.config, bundle.plugins) == ("toy.seconds", {"ridge": 0.01}, (str(LEARNER),))
    epochs = read_json(run / "summary.json")["history"]
    assert len(epochs) == 5 and epochs[-1]["train/squared_error"] < epochs[0]["train/squared_error"]


def sweep_config(folder: Path) -> Path:
    """No `search`: what is searched is what the learner's config declares."""
    content = {
        "name": "sweep",
        "learner": {"name": "toy.seconds"},
        "plugins": ["tests/e2e/toy_learner.py"],
        "training": {"epochs": 2, "batch_size": 512},
        "objective": {"estimator": "snips", "policy": {"kind": "softmax"}},
        "trials": 3,
        "backend": "local",
    }
    return write_yaml(folder / "sweep.yaml", content)


def test_a_sweep_searches_what_its_config_declares(folder: Path) -> None:
    printed = done("sweep", sweep_config(folder), *changes(folder))
    assert "sweep done: 3 trials" in printed and "ridge" in printed
    summary = read_json(only(folder / "runs", "sweep-*") / "summary.json")
    assert (summary["trials"], summary["searched"]) == (3, ["ridge"])
    assert summary["best"]["value"] is not None


def test_the_sweep_goes_on_in_ray_and_its_best_point_trains(folder: Path, ray_session: None) -> None:
    done("sweep", sweep_config(folder), *changes(folder))
    printed = done(
        "sweep", sweep_config(folder), *changes(folder, backend="ray", trials=5, cpus_per_trial=0.5)
    )
    assert "sweep done: 5 trials (resumed)" in printed
    best = only(folder / "runs", "sweep-*") / "best.yaml"
    done("train", best)
    bundle = load_bundle(only(folder / "runs", "sweep-best-*") / "bundle")
    summary = read_json(best.parent / "summary.json")
    assert bundle.config["ridge"] == pytest.approx(summary["best"]["params"]["ridge"])


def test_it_is_judged_beside_the_heuristics(folder: Path) -> None:
    policies = [
        {"label": "toy", "bundle": str(folder / "runs" / "toy"), "policy": {"kind": "softmax"}},
        {"navigator": "heuristic.popularity"},
    ]
    config = write_yaml(
        folder / "evaluate.yaml", {"policies": policies, "judge": {"estimators": ["snips", "dr"]}}
    )
    printed = done("evaluate", config, *changes(folder))
    results = read_json(only(folder / "runs", "evaluate-*") / "summary.json")["results"]
    assert [r["policy"] for r in results] == ["(the log itself)", "toy", "heuristic.popularity"]
    assert results[1]["estimates"]["dr"]["refused"] is None and "toy " in printed


def test_decisions_in_a_fresh_process_are_those_of_the_service(folder: Path) -> None:
    """The bundle says where its learner comes from: neither config names the plugin."""
    users = Warehouse.open(folder / "tables").sessions.read(0)["user_id"].unique().to_pylist()[:20]
    times = pa.array([1_712_000_000_000] * len(users), pa.timestamp("ms", tz="UTC"))
    pq.write_table(pa.table({"user_id": users, "entry_time": times}), folder / "entries.parquet")
    shared = {"bundle": str(folder / "runs" / "toy"), "history": str(folder / "tables")}
    files = {
        "entries": str(folder / "entries.parquet"),
        "output": str(folder / "decided" / "decisions.parquet"),
    }
    ended = plpm_process("decide", write_yaml(folder / "decide.yaml", {**shared, **files}))
    assert ended.code == 0, ended.err
    decided = pq.read_table(files["output"]).to_pylist()

    service = Replica(read_args(shared)).start()
    body = [{"user_id": row["user_id"], "entry_time": row["entry_time"].isoformat()} for row in decided]
    reply = asyncio.run(service.handle("POST", "/v1/navigate", json.dumps(body).encode()))
    service.close()
    for answer, row in zip(json.loads(reply.body), decided, strict=True):
        assert answer["page"] == row["page"] and answer["fallback"] is row["fallback"] is None
        np.testing.assert_allclose(list(answer["scores"].values()), row["scores"], rtol=0, atol=1e-6)
        assert answer["versions"]["navigator"].startswith("toy.seconds-")


def test_on_another_machine_the_plugin_is_named_anew(folder: Path) -> None:
    bundle = folder / "moved" / "bundle"
    shutil.copytree(only(folder / "runs", "toy-*") / "bundle", bundle)
    record = read_json(bundle / "bundle.json")
    write_json(bundle / "bundle.json", record | {"plugins": ["/elsewhere/toy_learner.py"]})
    pq.write_table(pa.table({"user_id": [1], "entry_time": [1_712_000_000_000]}), folder / "one.parquet")
    decide = {
        "bundle": str(bundle),
        "entries": str(folder / "one.parquet"),
        "output": str(folder / "m" / "d.parquet"),
    }
    ended = plpm_process("decide", write_yaml(folder / "moved.yaml", decide))
    assert ended.code == 2 and "'/elsewhere/toy_learner.py' does not exist" in ended.err
    assert "under `plugins`" in ended.err
    done("decide", folder / "moved.yaml", "--set", f"plugins=[{LEARNER}]")
    judged = {"policies": [{"bundle": str(bundle)}], "judge": {"estimators": ["snips"]}, "name": "moved"}
    done(
        "evaluate", write_yaml(folder / "moved_judged.yaml", judged), *changes(folder, plugins=f"[{LEARNER}]")
    )


CONTRACTS = [
    check
    for name, check in vars(contracts).items()
    if name.startswith("test_") and [*inspect.signature(check).parameters] == ["name"]
]


@pytest.mark.parametrize("check", CONTRACTS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_it_keeps_what_every_learner_must_keep(check: Any) -> None:
    load_plugins([str(LEARNER)])
    check("toy.seconds")
