"""`plpm assess`: what it judges and by what, learners it never heard of, what it refuses, and that a report shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from plpm_ray.cli import commands
from plpm_ray.cli.assess import assess
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import SplitConfig, split_days
from plpm_ray.data.tables import build_transitions
from plpm_ray.navigators.bundle import find_bundle, load_bundle, save_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.evaluate import evaluate
from plpm_ray.training.run import train
from tests.world_logs import world_logs

PLUGIN = str(Path(__file__).resolve().parents[2] / "number_plugin.py")
LEARNERS = {"lrtg": "glan.lrtg", "hrm": "glan.hrm", "bc": "reference.bc"}
PLUGGED = {"day": "test.constant_day", "session": "test.constant_session"}


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """A few users of the world, with runs of models that say numbers, and of one that chooses pages, beside them."""
    root = tmp_path_factory.mktemp("assess")
    made = {"dataset": world_logs(80, 7), "output": str(root / "tables"), "n_buckets": 2}
    ingest(IngestConfig.model_validate(made))
    warehouse = Warehouse.open(root / "tables")
    build_transitions(warehouse)
    split = split_days(warehouse.transitions.days(), SplitConfig())
    fitted = fit_spec(warehouse, split.train)
    training = TrainingConfig.model_validate({"epochs": 2, "batch_size": 64, "lr": 3e-3, "device": "cpu"})
    for name, learner in (LEARNERS | PLUGGED).items():
        plugins = [PLUGIN] if name in PLUGGED else []
        days = split.train, split.valid
        train(
            learner, {}, training, warehouse.root, *days, plugins=plugins, run_dir=root / name, fitted=fitted
        )
    return warehouse


def judge(warehouse: Warehouse, tmp_path: Path, *names: str, **more: Any) -> tuple[Path, list[dict]]:
    """The run folder, and what was found of each model."""
    bundles = [{"bundle": str(warehouse.root.parent / name), "label": name} for name in names]
    content = {"tables": str(warehouse.root), "run_root": str(tmp_path), "bundles": bundles, **more}
    path = tmp_path / "assess.yaml"
    path.write_text(yaml.safe_dump(content))
    run = assess(path, [])
    return run, read_json(run / "summary.json")["models"]


def own_metrics(warehouse: Warehouse, name: str) -> dict[str, float]:
    """What the learner measures of itself on the test days."""
    bundle = load_bundle(find_bundle(warehouse.root.parent / name))
    learner = bundle.learner()
    needs = Needs.of(type(learner), learner.config)
    days = split_days(warehouse.transitions.days(), SplitConfig()).test
    return evaluate(learner, TableSource(warehouse.root, tuple(days), bundle.spec, needs).load())


def constraints_by_hand(warehouse: Warehouse) -> dict[str, tuple[float, float]]:
    """Loss and bound of each constraint of L-RTG (GLAN eq. 14, 16, 17), from what it says of the test days."""
    bundle = load_bundle(find_bundle(warehouse.root.parent / "lrtg"))
    learner, stats = bundle.learner(), bundle.stats
    split = split_days(warehouse.transitions.days(), SplitConfig())
    needs = Needs.of(type(learner), learner.config)
    rows = TableSource(warehouse.root, tuple(split.test), bundle.spec, needs).load().columns
    with torch.inference_mode():
        use_s, sessions = learner.scores(rows).double().numpy().T
    n, s, ss, y, yy, x, xx, xy = np.asarray(stats.day_totals)
    a = (xy / n - x * y / n**2) / (xx / n - (x / n) ** 2)
    law_s = a * np.log(1 + sessions) + y / n - a * x / n
    losses = {"se": (sessions - rows["sessions"].numpy()) / (s / n), "rel": (use_s - law_s) / (y / n)}
    bounds = {"se": 0.95 * (n * ss / s**2 - 1), "rel": 0.25 * (n * yy / y**2 - 1)}
    return {name: (float(np.mean(losses[name] ** 2)), bounds[name]) for name in losses}


def test_a_model_of_days_has_the_errors_that_it_measures_itself(warehouse, tmp_path, capsys) -> None:
    run, (found,) = judge(warehouse, tmp_path, "lrtg")
    own = own_metrics(warehouse, "lrtg")
    model = found["model"]
    assert found["rows"] == own["rows"] and found["kind"] == "day"
    assert model["mae_s"]["value"] == pytest.approx(own["abs_error_s"], rel=1e-4)
    assert model["rmse_s"]["value"] ** 2 == pytest.approx(own["squared_error_s2"], rel=1e-4)
    assert model["bias_s"]["value"] == pytest.approx(own["bias_s"], rel=1e-3, abs=0.1)
    assert found["sessions"]["mae"]["value"] == pytest.approx(own["abs_error_sessions"], rel=1e-4)
    gain = found["reference"]["mae_s"]["value"] - model["mae_s"]["value"]
    assert found["mae_gain"]["value"] == pytest.approx(gain)
    wanted = constraints_by_hand(warehouse)
    assert found["constraints"].keys() == wanted.keys()
    for name, constraint in found["constraints"].items():
        value, bound = wanted[name]
        assert constraint["value"] == pytest.approx(value, rel=1e-3)
        assert constraint["bound"] == pytest.approx(bound, rel=1e-4)
        assert constraint["holds"] == (value <= 1.05 * bound)
        assert constraint["low"] < constraint["value"] < constraint["high"]
    printed = capsys.readouterr().out
    assert "7-day mean" in printed and "assess done" in printed
    table = (run / "table.md").read_text()
    assert "| 7-day mean |" in table and "| lrtg | se |" in table
    assert (run / "bias.svg").read_bytes().startswith(b"<?xml") and not (run / "drop_off.svg").exists()


def test_biases_of_the_groups_add_up_to_the_bias(warehouse, tmp_path) -> None:
    _, (found,) = judge(warehouse, tmp_path, "lrtg")
    for errors in (found["model"], found["reference"]):
        for groups in errors["bias_by"].values():
            known = [g for g in groups if g is not None]
            assert sum(g["n"] for g in known) == found["rows"]
            mean = sum(g["n"] * g["value"] for g in known) / found["rows"]
            assert mean == pytest.approx(errors["bias_s"]["value"])
    weekdays = [g is not None for g in found["model"]["bias_by"]["weekday"]]
    days = split_days(warehouse.transitions.days(), SplitConfig()).test
    assert weekdays == [i in {(day + 3) % 7 for day in days} for i in range(7)]


def test_a_reward_model_has_the_errors_that_it_measures_itself(warehouse, tmp_path) -> None:
    run, (found,) = judge(warehouse, tmp_path, "hrm")
    own, drop = own_metrics(warehouse, "hrm"), found["drop_off"]
    assert (found["rows"], found["tau_s"]) == (own["rows"], 10.0)
    for mine, its in (("brier", "brier"), ("log_loss", "log_loss"), ("share", "drop_off")):
        assert drop[mine] == pytest.approx(own[its], rel=1e-4)
    assert drop["brier_interval"][0] < drop["brier"] < drop["brier_interval"][1]
    assert drop["constant_brier"] == pytest.approx(drop["share"] * (1 - drop["share"]))
    for page in found["pages"]:
        assert page["mae_s"] == pytest.approx(own[f"abs_error_s.{page['page']}"], rel=1e-4)
    assert sum(page["bias_s"] for page in found["pages"]) == pytest.approx(own["bias_s"], rel=1e-3, abs=0.1)
    assert (run / "drop_off.svg").exists() and not (run / "bias.svg").exists()


def test_the_validation_days_can_be_asked_for(warehouse, tmp_path) -> None:
    run, _ = judge(warehouse, tmp_path, "lrtg", part="valid")
    assert read_json(run / "summary.json")["part"] == "valid"


def test_learners_that_say_the_same_are_judged_the_same(warehouse, tmp_path) -> None:
    _, (day, session) = judge(warehouse, tmp_path, "day", "session", plugins=[PLUGIN])
    assert day["model"]["spearman"]["value"] is None, "the same for all days"
    assert day["constraints"] == {} and "sessions" not in day
    assert (session["tau_s"], session["pages"]) == (10.0, [])
    drop = session["drop_off"]
    assert drop["auc"] == 0.5 and drop["mean_chance"] == pytest.approx(0.25)


def test_of_a_navigator_all_parts_that_say_numbers_are_judged(warehouse, tmp_path) -> None:
    parts = {role: load_bundle(find_bundle(warehouse.root.parent / role)) for role in LEARNERS}
    whole = replace(parts["lrtg"], kind="navigator", name="glan", config={}, weights={}, parts=parts)
    save_bundle(whole, warehouse.root.parent / "whole")
    _, found = judge(warehouse, tmp_path, "whole")
    assert {m["label"]: m["learner"] for m in found} == {"whole hrm": "glan.hrm", "whole lrtg": "glan.lrtg"}
    _, (alone,) = judge(warehouse, tmp_path, "lrtg")
    assert alone["version"] == next(m["version"] for m in found if m["kind"] == "day")


def test_a_report_shows_all_of_it(warehouse, tmp_path) -> None:
    run, _ = judge(warehouse, tmp_path, "lrtg", "hrm", "day", "session", plugins=[PLUGIN])
    text = commands.report([run], None).read_text(encoding="utf-8")
    for said in (
        "Models that say numbers",
        "Errors of the seconds of a day",
        "By what was foretold",
        "By weekday",
        "Constraints on held-out days",
        "Calibration of the drop-off",
        "Errors by page, over all sessions",
        "7-day mean",
    ):
        assert said in text, said


def test_what_cannot_be_judged_is_refused(warehouse, tmp_path) -> None:
    with pytest.raises(ConfigError, match="holds no model that says numbers"):
        judge(warehouse, tmp_path, "bc")
    with pytest.raises(ConfigError, match="two models are called 'lrtg'"):
        judge(warehouse, tmp_path, "lrtg", "lrtg")
    with pytest.raises(ConfigError, match="a day it is to be judged on"):
        judge(warehouse, tmp_path, "lrtg", split={"valid_days": 0, "test_days": 5})


def test_training_says_whether_constraints_held(warehouse, tmp_path, capsys) -> None:
    content = {"tables": str(warehouse.root), "run_root": str(tmp_path), "learner": "glan.lrtg"}
    path = tmp_path / "train.yaml"
    training = {"epochs": 1, "batch_size": 64, "lr": 0.003}
    path.write_text(yaml.safe_dump({**content, "training": training}))
    run = commands.train(path, [])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "constraint" in line]
    assert [line[1] for line in lines] == ["se", "rel"]
    held = read_json(run.run_dir / "summary.json")["constraints"]
    assert [line[2] == "holds:" for line in lines] == [held[line[1]]["holds"] for line in lines]
    assert all(np.isfinite(held[name]["value"]) for name in held)
