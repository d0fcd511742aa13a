"""Sweeps of KLAN in a small world: parts shared and kept, resumption, refusals, and a best point that can be trained."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from plpm_ray.cli import commands, configs
from plpm_ray.cli.doctor import diagnose
from plpm_ray.cli.navigators import train_navigator
from plpm_ray.core.config import load_config, read_config, validate
from plpm_ray.core.errors import BundleError, ConfigError, PlpmError
from plpm_ray.core.storage import read_json
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.tuning.ledger import EpochReport
from plpm_ray.tuning.world import WorldSweepConfig
from plpm_ray.tuning.world_prepare import prepare_world
from plpm_ray.tuning.world_run import sweep_world
from plpm_ray.tuning.world_subject import open_subject
from plpm_ray.tuning.world_trial import WorldPlace, WorldTrial
from tests.command_line import write_yaml
from tests.sweep_world import build_tables
from tests.world_sweeps import build_klan, world_sweep

REPO = Path(__file__).resolve().parents[3]
PARTS = {"iit.alpha": None, "am.threshold": None, "navigator.gamma": {"choices": [None, 0.5]}}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    return build_tables(tmp_path_factory.mktemp("tables") / "demo", users=120, days=5)


@pytest.fixture(scope="module")
def klan(tables: Path, tmp_path_factory) -> Path:
    return build_klan(tables, tmp_path_factory.mktemp("klan"))


def outcomes(run_dir: Path) -> dict[int, Any]:
    """What is on record, without what a clock measured."""
    found = {}
    for line in (run_dir / "trials.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "end":
            for report in event["reports"]:
                del report["seconds"], report["metrics"]["latency_us"]
            found[event["number"]] = event
    return found


def run_whole(trial: WorldTrial) -> list[EpochReport]:
    reports = []
    while not trial.done:
        reports.append(trial.run_epoch())
    return reports


def test_a_sweep_of_the_fusion_leaves_its_files_and_seeds(tables: Path, klan: Path, tmp_path: Path):
    search = {"navigator.delta_temperature": None, "policy.epsilon": {"low": 0.0, "high": 0.2}}
    changes = {"policy": {"kind": "epsilon"}, "seed": 3, "final_seeds": [101, 102]}
    result = sweep_world(world_sweep(tables, klan, tmp_path, search=search, **changes))
    assert result.best is not None and result.best.last is not None and result.n_trials == 2
    low, gain, high = (getattr(result.best.last, name) for name in ("gain_low", "gain", "gain_high"))
    assert low < gain < high
    summary = read_json(result.run_dir / "summary.json")
    assert summary["seeds"]["world"] == 3 and summary["seeds"]["final"] == [101, 102]
    assert summary["retrained_parts"] == [] and summary["objective"] == "world value"
    for name in ("table.csv", "table.md", "response.svg", "best.yaml", "config.json", "metrics.jsonl"):
        assert (result.run_dir / name).stat().st_size > 0
    text = result.table.read_text()
    assert "PDR, change %" in text and "EPEF explore, change %" in text and "CPU us a decision" in text
    assert "only shows its cost" in text and "[101, 102]" in text
    first = outcomes(result.run_dir)[0]["params"]
    assert first["navigator.delta_temperature"] == load_bundle(klan).config["delta_temperature"]
    assert first["policy.epsilon"] == 0.0


def test_an_interrupted_sweep_goes_on_and_ends_as_if_nothing_had_happened(
    tables: Path, klan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = world_sweep(tables, klan, tmp_path / "a", search=PARTS, trials=3)
    whole, run_epoch = WorldTrial.run_epoch, []

    def interrupted(self: WorldTrial) -> EpochReport:
        run_epoch.append(1)
        if len(run_epoch) == 4:  # in the second group of the second trial
            raise KeyboardInterrupt
        return whole(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(WorldTrial, "run_epoch", interrupted)
        sweep_world(config)
    result = sweep_world(config)
    assert (result.n_trials, result.resumed) == (3, 1)
    undisturbed = sweep_world(world_sweep(tables, klan, tmp_path / "b", search=PARTS, trials=3))
    assert outcomes(result.run_dir) == outcomes(undisturbed.run_dir)
    again = sweep_world(config)
    assert (again.run_dir, again.resumed) == (result.run_dir, 3)


def test_another_process_finds_the_same(tables: Path, klan: Path, tmp_path: Path):
    task, _ = prepare_world(open_subject(world_sweep(tables, klan, tmp_path, search=PARTS)))
    params = {"iit.alpha": 0.3, "am.threshold": 0.004, "navigator.gamma": None}
    other = {"iit.alpha": 5.0, "am.threshold": 0.001, "navigator.gamma": 0.5}
    one, two = WorldPlace(task), WorldPlace(pickle.loads(pickle.dumps(task)))
    run_whole(WorldTrial(two, other))  # what a process did before makes no difference
    assert one.bundle(params).version == two.bundle(params).version
    for a, b in zip(run_whole(WorldTrial(one, params)), run_whole(WorldTrial(two, params)), strict=True):
        assert (a.value, a.gain, a.gain_low, a.refused) == (b.value, b.gain, b.gain_low, b.refused)


def test_parts_are_kept_for_trials_that_differ_in_the_fusion_only(tables: Path, klan: Path, tmp_path: Path):
    task, _ = prepare_world(open_subject(world_sweep(tables, klan, tmp_path, search=PARTS)))
    assert set(task.parts) == {"iit", "am"}
    place, params = WorldPlace(task), {"iit.alpha": 0.3, "am.threshold": 0.004, "navigator.gamma": None}
    first = place.bundle(params)
    assert place.trained == 2
    second = place.bundle({**params, "navigator.gamma": 0.5})
    assert place.trained == 2 and second.parts["iit"].version == first.parts["iit"].version
    third = place.bundle({**params, "am.threshold": 0.01})
    assert place.trained == 3 and third.parts["am"].version != first.parts["am"].version
    kept = load_bundle(klan)
    assert first.parts["isp"].version == kept.parts["isp"].version
    assert third.parts["am"].config == {**kept.parts["am"].config, "threshold": 0.01}


def test_the_best_point_is_a_config_that_makes_the_very_navigator(tables: Path, klan: Path, tmp_path: Path):
    for search in (PARTS, {"navigator.p_temperature": None}):
        config = world_sweep(tables, klan, tmp_path, search=search, name=f"of_{len(search)}")
        result = sweep_world(config)
        assert result.best is not None
        source = read_config(result.run_dir / "best.yaml")
        made = train_navigator(validate(configs.TrainRunConfig, source), source)
        wanted = WorldPlace(prepare_world(open_subject(config))[0]).bundle(result.best.params)
        assert load_bundle(made.bundle_path).version == wanted.version
    assert "belongs to the arm" in (result.run_dir / "best.yaml").read_text()


def test_a_part_that_learns_from_a_trials_users(tables: Path, klan: Path, tmp_path: Path):
    trial = {"start_day": 1}
    of_trial = build_tables(tmp_path / "trial", users=120, days=5, trial=trial)
    split = {"valid_share": 0.0, "test_share": 0.3}
    config = world_sweep(of_trial, klan, tmp_path, search={"isp.kl_weight": None}, user_split=split)
    result = sweep_world(config)
    assert result.best is not None and result.summary["retrained_parts"] == ["isp"]
    source = read_config(result.run_dir / "best.yaml")
    made = load_bundle(train_navigator(validate(configs.TrainRunConfig, source), source).bundle_path).parts
    wanted = WorldPlace(prepare_world(open_subject(config))[0]).bundle(result.best.params).parts
    kept = load_bundle(klan).parts
    assert made["isp"].version == wanted["isp"].version != kept["isp"].version
    assert made["iit"].version == wanted["iit"].version == kept["iit"].version


def test_a_trial_that_breaks_a_constraint_cannot_win(tables: Path, klan: Path, tmp_path: Path, capsys):
    budget = world_sweep(tables, klan, tmp_path, constraints={"epef": None, "latency_us": 0.001})
    result = sweep_world(budget)
    assert result.best is None and result.summary["refused"] == 2
    assert not (result.run_dir / "best.yaml").exists()
    text = result.table.read_text()
    assert "| refused | 2 |" in text and "0.001 are allowed" in text
    commands.sweep(write_yaml(tmp_path / "sweep.yaml", budget.model_dump(mode="json")), [])
    said = capsys.readouterr().out
    assert "sweep done: 2 trials (resumed); no best.yaml" in said
    assert "No trial meets the constraints, so there is no best.yaml. Most often (2 of 2 trials)" in said
    # always the page that few want: the others lose entries
    search = {"navigator.p_temperature": {"low": 4.0, "high": 5.0}}
    always = {"fusion": "iit"}
    config = world_sweep(tables, klan, tmp_path, search=search, options=always, constraints={})
    reasons = [r["reason"] for r in sweep_world(config).summary["refusals"]]
    assert reasons and all("below the logging policy's" in reason for reason in reasons)


def test_a_poor_trial_ends_after_some_of_its_users(tables: Path, klan: Path, tmp_path: Path):
    asha = {"name": "asha", "grace_epochs": 1, "reduction": 2}
    # the more even draws, the poorer
    search = {"policy.epsilon": {"low": 0.0, "high": 1.0}}
    rest = {"policy": {"kind": "epsilon"}, "trials": 5, "groups": 3, "startup_trials": 5}
    config = world_sweep(tables, klan, tmp_path, scheduler=asha, search=search, **rest)
    result = sweep_world(config)
    found = outcomes(result.run_dir)
    stopped = [event for event in found.values() if event["status"] == "stopped"]
    assert stopped and all(len(event["reports"]) < 3 for event in stopped)
    assert result.best is not None and result.best.status == "finished"
    assert all(len(event["reports"]) == 3 for event in found.values() if event["status"] == "finished")


def test_a_final_seed_is_refused(tables: Path, klan: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="seed 7 is one of final_seeds"):
        sweep_world(world_sweep(tables, klan, tmp_path, seed=7, final_seeds=[7, 8]))
    with pytest.raises(ConfigError, match="seed 0 is one of final_seeds"):
        sweep_world(world_sweep(tables, klan, tmp_path, final_seeds=[0]))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"iit.alhpa": None}}, r"search\.iit\.alhpa: unknown parameter"),
        ({"search": {"alpha": None}}, r"search\.alpha: unknown parameter"),
        ({"search": {"isp.kl_weight": None}}, "needs a randomised trial"),
        ({"search": {"iit.training.epochs": {"low": 1, "high": 3}}}, "how long a part is trained"),
        ({"search": {"policy.epsilon": None}}, "does nothing with kind greedy"),
        ({"options": {"fusoin": "iit"}}, "fusoin"),
        ({"world": "five_pages"}, "not for the world"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_simulated(tables, klan, tmp_path, changes, message):
    with pytest.raises(PlpmError, match=message):
        sweep_world(world_sweep(tables, klan, tmp_path, **changes))
    assert not (tmp_path / "runs").exists()


def test_a_learner_alone_and_no_bundle_at_all_are_refused(tables: Path, klan: Path, tmp_path: Path):
    with pytest.raises(BundleError, match="no bundle"):
        sweep_world(world_sweep(tables, tmp_path / "nowhere", tmp_path))
    with pytest.raises(ConfigError, match="not composed of parts"):
        sweep_world(world_sweep(tables, klan / "parts" / "iit", tmp_path))


def test_the_folder_follows_what_the_sweep_is(tables: Path, klan: Path, tmp_path: Path):
    def folder(**changes: Any) -> Path:
        config = world_sweep(tables, klan, tmp_path, **changes)
        return config.run_dir(open_subject(config).fingerprint())

    for same in (
        {"trials": 99},
        {"backend": "ray"},
        {"cpus_per_trial": 0.5},
        {"final_seeds": [5]},
        {"seed": 0},
    ):
        assert folder(**same) == folder()
    others = [{"seed": 1}, {"users": 80}, {"suggestions": 1}, {"constraints": {}}, {"world": "hard"}]
    others += [{"search": PARTS}, {"options": {"gamma": 0.5}}, {"policy": {"kind": "softmax"}}]
    assert len({folder(**other) for other in others} | {folder()}) == len(others) + 1


def test_the_command_takes_a_world_for_what_it_is(tables: Path, klan: Path, tmp_path: Path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(world_sweep(tables, klan, tmp_path).model_dump_json())  # JSON is YAML
    assert not [f for f in diagnose(path, []) if f.level == "bad"]
    bad = [f.what for f in diagnose(path, ["bundle=runs/nowhere"]) if f.level == "bad"]
    assert len(bad) == 1 and "no bundle at runs/nowhere" in bad[0]
    result = commands.sweep(path, ["search.iit.training.lr={low: 0.001, high: 0.01}", "trials=1"])
    assert "sweep done: 1 trials" in capsys.readouterr().out
    assert set(result.summary["searched"]) == {
        "navigator.p_temperature",
        "navigator.gamma",
        "iit.training.lr",
    }


@pytest.mark.parametrize(
    ("name", "searched", "trained"),
    [
        (
            "klan_world",
            ("navigator.delta_temperature", "navigator.p_temperature", "navigator.gamma", "policy.epsilon"),
            (),
        ),
        ("klan_alpha_beta", ("iit.alpha", "iit.beta"), ("iit",)),
        ("klan_threshold", ("am.threshold",), ("am",)),
    ],
)
def test_the_yaml_that_comes_along_is_valid(tables: Path, klan: Path, name: str, searched, trained):
    here = [f"tables={tables}", f"bundle={klan}", "split={valid_days: 1, test_days: 1}"]
    config = load_config(WorldSweepConfig, REPO / "tune" / f"{name}.yaml", here)
    subject = open_subject(config)
    assert subject.space.names == searched and set(subject.searched) == set(trained)
    assert subject.world.seed not in config.final_seeds and config.constraints.epef is not None
