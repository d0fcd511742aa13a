"""`plpm uplift`: what it judges, on whom, what it refuses, and that a report shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from plpm_ray.cli import commands
from plpm_ray.cli.uplift import uplift
from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.split import TEST, UserSplitConfig
from plpm_ray.data.trials import read_part
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train
from tests.training_tables import make_warehouse
from tests.uplift_trial import PLUGIN, make_trial

SPLIT = UserSplitConfig(valid_share=0.2, test_share=0.3, seed=3)
USERS = SPLIT.model_dump()


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """A trial, with runs of two uplift learners and of one that predicts no responses beside it."""
    warehouse = make_trial(tmp_path_factory.mktemp("trial"))
    for name, learner, epochs in (("t", "reference.t_learner", 30), ("raw", "klan.isp", 1)):
        fit(warehouse, name, learner, epochs)
    fit(warehouse, "linear", "test.uplift", 1, plugins=[PLUGIN])
    return warehouse


def fit(warehouse: Warehouse, name: str, learner: str, epochs: int, **more) -> None:
    settings = TrainingConfig.model_validate(
        {"epochs": epochs, "batch_size": 128, "lr": 0.005, "device": "cpu"}
    )
    run_dir = warehouse.root.parent / name
    train(
        learner, {}, settings, warehouse.root, run_dir=run_dir, users=SPLIT, notify=lambda text: None, **more
    )


def judge(warehouse: Warehouse, tmp_path: Path, *names: str, **more) -> Path:
    bundles = [{"bundle": str(warehouse.root.parent / name), "label": name} for name in names]
    content = {"tables": str(warehouse.root), "run_root": str(tmp_path), "users": USERS, "draws": 20}
    path = tmp_path / "uplift.yaml"
    path.write_text(yaml.safe_dump({**content, "bundles": bundles, **more}))
    return uplift(path, [])


def value(record: dict, model: str, metric: str, arm: str | None = None) -> float:
    return next(
        r["value"] for r in record["rows"] if (r["model"], r["metric"], r["arm"]) == (model, metric, arm)
    )


def test_models_are_judged_on_the_test_users(warehouse: Warehouse, tmp_path: Path, capsys) -> None:
    run = judge(warehouse, tmp_path, "t", "raw")
    record = read_json(run / "uplift.json")
    mine = [read_part(warehouse, b, SPLIT, TEST) for b in range(warehouse.info.n_buckets)]
    arm = np.concatenate([t["arm"].to_numpy() for t in mine if t is not None])
    assert record["arms"] == dict(zip(("control", "a", "b"), np.bincount(arm).tolist(), strict=True))
    assert record["models"] == ["t", "raw"] and record["users"] == len(arm)
    # page a adds 20 to everyone, page b adds or takes 30: the best policy is worth 125, the best single page 120
    assert value(record, "t", "policy_value") == pytest.approx(125, abs=1.5)
    assert value(record, "t", "policy_value_dr") == pytest.approx(125, abs=1.5)
    assert value(record, "t", "qini", "b") == pytest.approx(7.5, abs=1.5)
    assert {d["against"] for d in record["differences"]} == {"t"}
    assert (
        "policy value (SNIPS)" in (run / "table.txt").read_text() and "uplift done" in capsys.readouterr().out
    )
    page = commands.report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Qini" in page and "trial, test users" in page


def test_the_valid_users_are_others(warehouse: Warehouse, tmp_path: Path) -> None:
    record = read_json(judge(warehouse, tmp_path, "t", part="valid") / "uplift.json")
    assert record["data"] == "trial, valid users" and 300 < record["users"] < 500


def test_another_division_of_the_users_is_refused(warehouse: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"another division.*seed 3 in training, 4 here.*\n.*same `users`"):
        judge(warehouse, tmp_path, "t", users={**USERS, "seed": 4})


def test_what_cannot_be_judged_is_refused(warehouse: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'test.uplift' does not predict responses"):
        judge(warehouse, tmp_path, "linear")
    with pytest.raises(ConfigError, match="two bundles are called 't'"):
        judge(warehouse, tmp_path, "t", "t")
    other = make_warehouse(tmp_path / "logs").root
    with pytest.raises(DataError, match="needs a randomised trial"):
        judge(warehouse, tmp_path, "t", tables=str(other))
