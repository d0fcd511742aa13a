"""The ranked table, the best point as a config, the summary and the plot."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import yaml

from plpm_ray.core.storage import read_json
from plpm_ray.tuning.config import SweepConfig
from plpm_ray.tuning.ledger import EpochReport, TrialRecord, close_record
from plpm_ray.tuning.report import Telling, best_of, no_best, rank, write_results

CONFIG = SweepConfig.model_validate(
    {
        "name": "ab",
        "tables": "data/x",
        "learner": {"name": "klan.iit", "hidden": [16]},
        "training": {"epochs": 2},
        "search": {"alpha": None, "beta": None, "training.lr": None, "policy.epsilon": None},
        "objective": {"policy": {"kind": "epsilon"}},
    }
)


def params(alpha):
    return {"alpha": alpha, "beta": 0.5, "training.lr": 0.002, "policy.epsilon": 0.1}


def trial(number, alpha, value, epochs=2):
    report = EpochReport(
        epoch=epochs,
        value=value,
        low=None if value is None else value - 2,
        high=None if value is None else value + 2,
        effective_samples=250.0,
        refused="effective sample size 12.0 is below 100" if value is None else None,
        gain=None if value is None else value - 50,
        gain_low=None if value is None else value - 51,
        gain_high=None if value is None else value - 49,
        seconds=1.5,
    )
    return close_record(number, params(alpha), (report,), 2)


RECORDS = [
    trial(0, 1.0, 60.0),
    trial(1, 0.1, 90.0, epochs=1),
    trial(2, 5.0, None),
    trial(3, 0.5, 62.0),
    TrialRecord(4, params(9.0), "failed", (), "training diverged"),
]
FACTS = {"unit": "s per session", "baseline": "logged", "baseline_value": 50.0}


def test_trials_that_ran_on_stand_above_stopped_ones_and_those_above_refused_ones():
    ranked = rank(RECORDS)
    assert [r.number for r in ranked] == [3, 0, 1, 2, 4]
    best = best_of(ranked)
    assert best is not None and best.number == 3


def test_without_an_estimate_nobody_wins(tmp_path: Path):
    records = [trial(0, 1.0, None), trial(1, 2.0, None)]
    summary = write_results(tmp_path, CONFIG, CONFIG.space(), records, FACTS)
    assert summary["best"] is None and summary["refused"] == 2
    assert summary["refusals"] == [{"trials": 2, "reason": "effective sample size 12.0 is below 100"}]
    assert not (tmp_path / "best.yaml").exists()
    told = (tmp_path / "table.md").read_text().splitlines()[-2:]
    assert told == [
        "No trial has an estimate that the logs support, so there is no best.yaml. Most often (2 of 2 trials), as in trial 0: "
        "effective sample size 12.0 is below 100.",
        "To go on: search policies nearer to the logs, or loosen the limits in `objective`, which begins a sweep of its own.",
    ]


def test_what_refused_most_trials_is_named_whatever_its_numbers():
    def refused(number: int, reason: str) -> TrialRecord:
        return close_record(number, {}, (EpochReport(epoch=1, value=None, refused=reason),), 1)

    telling = Telling(about={}, ranked_by="", notes=[], best=lambda record: "")
    lost, slow = "EPEF of {} is {} % below the logging policy's, 2 % are allowed", "a decision takes 90 us"
    records = [
        refused(0, lost.format("explore", 3.1)),
        refused(1, f"{lost.format('explore', 12)}; {slow}"),
        refused(2, lost.format("featured", 1_000)),
        TrialRecord(3, {}, "failed", (), "training diverged"),
    ]
    said = " ".join(no_best(records, telling))
    assert said.startswith("No trial meets the constraints, so there is no best.yaml.")
    assert "(2 of 4 trials), as in trial 0: EPEF of explore is 3.1 % below" in said
    assert "constraints.epef=null" in said
    assert not no_best([*records, RECORDS[0]], telling) and not no_best(records[3:], telling)


def test_a_stopped_trial_wins_only_where_none_ran_to_its_end():
    best = best_of(rank([RECORDS[1], RECORDS[2]]))
    assert best is not None and best.status == "stopped"


def test_files(tmp_path: Path):
    summary = write_results(tmp_path, CONFIG, CONFIG.space(), RECORDS, FACTS)
    assert read_json(tmp_path / "summary.json") == summary
    assert summary["best"]["trial"] == 3 and summary["best"]["params"]["alpha"] == 0.5
    assert {name: summary[name] for name in ("finished", "stopped", "refused", "failed")} == {
        "finished": 2,
        "stopped": 1,
        "refused": 1,
        "failed": 1,
    }
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["3", "0", "1", "2", "4"]
    assert rows[0]["low"] == "60.0" and rows[3]["value"] == "" and rows[4]["reason"] == "training diverged"
    text = (tmp_path / "table.md").read_text()
    assert "| 1 | 3 | 0.5 |" in text and "Trial 2 refused: effective sample size" in text
    assert "12 [11, 13]" in text


def test_the_best_point_is_a_config_for_training(tmp_path: Path):
    from plpm_ray.cli.configs import TrainRunConfig
    from plpm_ray.core.config import load_config

    write_results(tmp_path, CONFIG, CONFIG.space(), RECORDS, FACTS)
    loaded = load_config(TrainRunConfig, tmp_path / "best.yaml")
    assert loaded.learner.name == "klan.iit"
    assert loaded.learner.options == {"hidden": [16], "alpha": 0.5, "beta": 0.5}
    assert (loaded.training.lr, loaded.training.epochs) == (0.002, 2)
    raw = (tmp_path / "best.yaml").read_text()
    assert "policy.epsilon = 0.1" in raw and "policy" not in yaml.safe_load(raw)


def test_the_plot_is_an_svg_with_a_panel_per_parameter(tmp_path: Path):
    write_results(tmp_path, CONFIG, CONFIG.space(), RECORDS, FACTS)
    root = ElementTree.parse(tmp_path / "response.svg").getroot()
    assert root.tag.endswith("svg")
    axes = [e for e in root.iter() if (e.get("id") or "").startswith("axes_")]
    assert len(axes) >= 4


def test_the_plot_takes_choices_and_trials_without_values(tmp_path: Path):
    from plpm_ray.tuning.plot import response_plot
    from plpm_ray.tuning.space import Dimension, Space

    space = Space((Dimension("target", "learner", ("target",), choices=("soft", "hard")),))
    report = EpochReport(epoch=1, value=None, refused="too few")
    record = close_record(0, {"target": "hard"}, (report,), 1)
    assert response_plot([record], space, "s").startswith(b"<?xml")
