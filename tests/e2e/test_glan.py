"""GLAN from logs to decisions, held-out judgement and an experiment: the commands of docs/glan.md, on a small world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.navigators.bundle import find_bundle, load_bundle
from tests.command_line import done, only, plpm, write_yaml

pytestmark = pytest.mark.slow
SPLIT = {"valid_days": 1, "test_days": 1}


def sets(*settings: str) -> list[str]:
    return [word for text in settings for word in ("--set", text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data -> train: tables, and a GLAN that was trained in a few steps."""
    root = tmp_path_factory.mktemp("glan")
    small = ["users=200", "days=6", "warmup_days=2", "trial.start_day=2", "trial.days=3"]
    done(
        "data",
        "jobs/data_world.yaml",
        *sets(*(f"dataset.{text}" for text in small), f"output={root / 'tables'}", "n_buckets=2"),
    )
    quick = [f"parts.{role}.training={{epochs: 2, batch_size: 64}}" for role in ("lrtg", "hrm", "dt")]
    place = [f"tables={root / 'tables'}", f"run_root={root / 'runs'}", "split={valid_days: 1, test_days: 1}"]
    said = done("train", "jobs/train_glan.yaml", *sets(*place, *quick))
    assert "part dt" in said and "valid lrtg.abs_error_s" in said
    return root


def test_the_parts_were_trained_in_turn_on_each_others_results(folder):
    bundle = load_bundle(find_bundle(folder / "runs" / "glan"))
    hrm, dt = bundle.parts["hrm"], bundle.parts["dt"]
    assert dt.data["rewards"] == hrm.version
    assert 0 < dt.stats.reward_ratio < 1.5 and dt.stats.reward_s is not None
    summary = read_json(find_bundle(folder / "runs" / "glan-lrtg").parent / "summary.json")
    assert set(summary["constraints"]) == {"se", "rel"}
    assert (find_bundle(folder / "runs" / "glan-lrtg").parent / "constraints.svg").is_file()


def test_the_reward_job_judges_the_days_that_are_left(folder):
    where = sets(f"bundle={folder / 'runs' / 'glan'}", f"tables={folder / 'tables'}")
    assert "days unchanged         5" in done("reward", "jobs/reward_hrm.yaml", *where)
    assert "days unchanged         6" in done("reward", "jobs/reward_hrm.yaml", *where)


def test_a_transformer_without_rewards_says_what_to_do(folder):
    place = sets(f"tables={folder / 'tables'}", f"run_root={folder / 'runs'}", "rewards=null")
    ended = plpm("train", "jobs/train_dt.yaml", *place)
    assert ended.code == 2 and "no reward model is named" in ended.err and "glan.hrm" in ended.err


def test_it_is_judged_on_held_out_days_and_decides_what_the_service_would(folder):
    policies = [
        {"label": "GLAN", "bundle": str(folder / "runs" / "glan")},
        {"label": "GLAN, w/o L-RTG", "bundle": str(folder / "runs" / "glan"), "options": {"rtg": "mean7"}},
        {"navigator": "heuristic.popularity"},
    ]
    content = {"tables": str(folder / "tables"), "run_root": str(folder / "runs"), "split": SPLIT}
    said = done("evaluate", write_yaml(folder / "evaluate.yaml", {**content, "policies": policies}))
    assert "GLAN, w/o L-RTG" in said

    warehouse = Warehouse.open(folder / "tables")
    last = warehouse.transitions.days()[-1]
    sessions = pa.concat_tables([warehouse.sessions.read(b, [last]) for b in range(2)])
    entries = folder / "entries.parquet"
    pq.write_table(
        sessions.select(["user_id", "entry_time", "utc_offset_min", "push", "live_followed"]), entries
    )
    content = {
        "bundle": str(folder / "runs" / "glan"),
        "history": str(folder / "tables"),
        "entries": str(entries),
        "output": str(folder / "decided" / "decisions.parquet"),
    }
    done("decide", write_yaml(folder / "decide.yaml", content))
    decided = pq.read_table(content["output"])
    p, stay = (np.stack(decided[name].to_numpy(zero_copy_only=False)) for name in ("p", "stay"))
    scores = np.stack(decided["scores"].to_numpy(zero_copy_only=False))
    caution = load_bundle(find_bundle(folder / "runs" / "glan")).config["caution"]
    wary = p * stay**caution
    np.testing.assert_allclose(scores, wary / wary.sum(axis=1, keepdims=True), rtol=1e-4)
    rtg = np.stack(decided["rtg"].to_numpy(zero_copy_only=False))[:, 0]
    assert len(np.unique(rtg)) > len(np.unique(decided["user_id"].to_numpy())), "the day goes on"


def test_an_experiment_in_the_world(folder):
    arms = [
        {"label": "logging", "builtin": "logging"},
        {"label": "glan", "bundle": str(folder / "runs" / "glan")},
        {"label": "paper", "bundle": str(folder / "runs" / "glan"), "options": {"caution": 0.0}},
    ]
    days = {"warmup_days": 1, "aa_days": 1, "ab_days": 2, "users": 60}
    content = {"world": "kuaishou", "arms": arms, "design": "twins", "run_root": str(folder / "runs"), **days}
    done("simulate", "ab", write_yaml(folder / "ab.yaml", content))
    result = read_json(only(folder / "runs", "*/ab.json"))
    rows = {(row["arm"], row["metric"]): row for row in result["metrics"]}
    shares = [rows["glan", f"assigned_{page}"]["value"] for page in result["pages"]]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert (
        rows["glan", "use_s"]["value"] > 0 and rows["paper", "pdr"]["value"] != rows["glan", "pdr"]["value"]
    )
