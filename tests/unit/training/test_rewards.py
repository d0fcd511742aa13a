"""Rewards beside the trajectory table: row for row, only what changed, and what learns from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from plpm_ray.core.errors import BundleError, ConfigError, DataError, PlpmError
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.registry import lookup
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.tables import read_transitions
from plpm_ray.navigators.bundle import Bundle, load_bundle, save_bundle
from plpm_ray.training import rewards
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.rewards import reward_sessions, reward_total, with_outcomes
from plpm_ray.training.run import train
from tests.training_tables import FIRST_DAY, make_warehouse

DAYS = list(range(FIRST_DAY, FIRST_DAY + 5))
BUCKETS = 4


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return make_warehouse(tmp_path / "tables", users=80, n_buckets=BUCKETS)


def model(warehouse: Warehouse, folder: Path, name: str = "glan.hrm", seed: int = 0) -> Path:
    """An untrained learner's bundle whose weights make its answers differ."""
    spec, stats = fit_spec(warehouse, DAYS[:3])
    cls = lookup("learner", name)
    torch.manual_seed(seed)
    made = cls(cls.Config(), spec, warehouse.info.pages, stats)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return save_bundle(Bundle.of_learner(made, spec, warehouse.info.pages, stats), folder / "bundle")


def content(warehouse: Warehouse, name: str) -> dict[tuple[int, int], bytes]:
    table = warehouse.rewards(name)
    return {(d, b): path.read_bytes() for b in range(BUCKETS) for d, path in table.files(b)}


def test_every_session_has_the_reward_and_the_label_of_the_model(warehouse, tmp_path):
    path = model(warehouse, tmp_path)
    done = reward_sessions(warehouse.root, path, batch=50)
    bundle = load_bundle(path)
    assert done.name == bundle.version and done.recomputed == DAYS
    navigator, total = bundle.navigator(), 0.0
    for bucket in range(BUCKETS):
        sessions = read_transitions(warehouse, bucket)
        found = warehouse.rewards(done.name).read(bucket)
        assert found["session_id"].equals(sessions["session_id"])
        raw = with_outcomes(RawFeatures.from_table(warehouse.info.features, sessions), sessions)
        said = navigator.scores(raw)
        np.testing.assert_allclose(found["reward"].to_numpy(), said[:, 0], rtol=1e-5)
        np.testing.assert_allclose(found["drop_off"].to_numpy(), said[:, 1], rtol=1e-5)
        dropped = sessions["landing_dwell_s"].to_numpy() < bundle.config["tau_s"]
        np.testing.assert_array_equal(found["dropped"].to_numpy(), dropped)
        total += found["reward"].to_numpy().astype(np.float64).sum()
    assert done.rows == sum(e.total for e in warehouse.transitions.entries().values())
    assert reward_total(warehouse, done.name, DAYS) == pytest.approx(total)
    with pytest.raises(DataError, match="holds no rewards of"):
        reward_total(warehouse, done.name, [*DAYS, FIRST_DAY + 9])


def test_only_days_that_changed_are_judged_again(warehouse, tmp_path):
    path = model(warehouse, tmp_path)
    first = reward_sessions(warehouse.root, path, days=DAYS[:2])
    assert first.recomputed == DAYS[:2]
    assert reward_sessions(warehouse.root, path).recomputed == DAYS[2:]
    before = content(warehouse, first.name)
    again = reward_sessions(warehouse.root, path)
    assert not again.recomputed and again.unchanged == DAYS and content(warehouse, first.name) == before

    table, gen = warehouse.transitions, warehouse.transitions.new_generation()
    rows = {
        b: table.write(DAYS[1], gen, b, part) for b in range(BUCKETS) if (part := table.read(b, [DAYS[1]]))
    }
    table.commit(gen, {DAYS[1]: rows}, drop=[DAYS[4]])
    changed = reward_sessions(warehouse.root, path)
    assert changed.recomputed == [DAYS[1]] and changed.dropped == [DAYS[4]]
    assert warehouse.rewards(first.name).days() == DAYS[:4]


def test_what_was_cut_off_goes_on_and_ends_in_the_same_bytes(warehouse, tmp_path, monkeypatch):
    path = model(warehouse, tmp_path)
    whole = content(warehouse, reward_sessions(warehouse.root, path).name)
    other = make_warehouse(tmp_path / "other", users=80, n_buckets=BUCKETS)
    judge, seen = rewards._judge_bucket, []

    def dies(task):
        seen.append(task.bucket)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return judge(task)

    monkeypatch.setattr(rewards, "_judge_bucket", dies)
    with pytest.raises(KeyboardInterrupt):
        reward_sessions(other.root, path)
    name = load_bundle(path).version
    assert not other.rewards(name).days() and not list(other.rewards(name).root.glob("day=*/gen=*"))
    monkeypatch.setattr(rewards, "_judge_bucket", judge)
    assert reward_sessions(other.root, path).recomputed == DAYS
    assert content(other, name) == whole


def test_models_that_judge_nothing_are_refused(warehouse, tmp_path):
    with pytest.raises(BundleError, match="0 reward models"):
        reward_sessions(warehouse.root, model(warehouse, tmp_path, "glan.lrtg"))
    other = make_warehouse(tmp_path / "other", users=20, k=4)
    with pytest.raises(BundleError, match="other pages"):
        reward_sessions(warehouse.root, model(other, tmp_path / "four"))


def test_numbers_that_are_not_finite_are_not_written(warehouse, tmp_path):
    path = model(warehouse, tmp_path)
    bundle = load_bundle(path)
    bundle.weights["mean_use_s"] = torch.tensor(float("inf"))
    save_bundle(bundle, path)
    with pytest.raises(PlpmError, match="not finite"):
        reward_sessions(warehouse.root, path)
    assert not warehouse.rewards(load_bundle(path).version).days()


def test_the_transformer_learns_from_them_and_says_where_they_lack(warehouse, tmp_path):
    settings = TrainingConfig.model_validate({"epochs": 1, "batch_size": 64, "device": "cpu"})
    given = (warehouse.root, DAYS[:3], DAYS[3:4], tmp_path / "runs", "dt")
    with pytest.raises(ConfigError, match="no reward model is named"):
        train("glan.dt", {"width": 16}, settings, *given)
    path = model(warehouse, tmp_path)
    run = train("glan.dt", {"width": 16}, settings, *given, rewards=path)
    bundle = load_bundle(run.bundle_path)
    version = load_bundle(path).version
    assert bundle.data["rewards"] == version
    assert bundle.stats.reward_s == pytest.approx(reward_total(warehouse, version, DAYS[:3]))
    assert warehouse.rewards(version).days() == DAYS[:4]
    plain = train("glan.dt", {"width": 16, "reward": "duration"}, settings, *given)
    assert "rewards" not in load_bundle(plain.bundle_path).data

    needs = Needs("trajectory", ("dense",), ("reward", "step"))
    spec = fit_spec(warehouse, DAYS[:3])[0]
    with pytest.raises(DataError, match="does not hold the rewards of these sessions"):
        TableSource(warehouse.root, tuple(DAYS), spec, needs, None, version).load()


def test_a_lost_file_is_named_and_its_day_is_judged_once_it_is_back(warehouse, tmp_path):
    path, table, bucket, day = model(warehouse, tmp_path), warehouse.transitions, 1, DAYS[1]
    ((_, file),) = table.files(bucket, [day])
    before = file.read_bytes()
    file.unlink()
    with pytest.raises(DataError, match=file.name):
        reward_sessions(warehouse.root, path)
    assert not warehouse.rewards(load_bundle(path).version).days()
    table.write(day, table.entries()[day].gen, bucket, table.read(bucket, [DAYS[2]]).slice(0, 7))
    with pytest.raises(DataError, match="holds 7 sessions"):
        reward_sessions(warehouse.root, path)
    file.write_bytes(before)
    assert reward_sessions(warehouse.root, path).rows == sum(e.total for e in table.entries().values())


def test_a_day_whose_rewards_lack_a_bucket_is_judged_again(warehouse, tmp_path):
    path = model(warehouse, tmp_path)
    name = reward_sessions(warehouse.root, path).name
    kept, whole = warehouse.rewards(name), content(warehouse, name)
    entry = kept.entries()[DAYS[2]]
    kept.commit(entry.gen, {DAYS[2]: {b: n for b, n in entry.rows.items() if b}}, {DAYS[2]: entry.inputs})
    assert content(warehouse, name) != whole
    assert reward_sessions(warehouse.root, path).recomputed == [DAYS[2]]
    assert content(warehouse, name) == whole
