"""Navigators from tables to one bundle: parts that fit, parts that do not, and one fitted whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from plpm_ray.core.errors import BundleError, ConfigError
from plpm_ray.core.registry import lookup
from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.navigators.bundle import Bundle, load_bundle, save_bundle
from plpm_ray.training.compose import ComposeResult, PartJob, compose, fit_whole
from tests.training_tables import FIRST_DAY, fitted, make_warehouse, pages, raw_features

DAYS = list(range(FIRST_DAY, FIRST_DAY + 3))
ROLES = {"isp": "klan.isp", "iit": "klan.iit", "am": "klan.am"}


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    return make_warehouse(tmp_path_factory.mktemp("compose") / "tables", users=300)


def part(warehouse: Warehouse, learner: str, folder: Path) -> Path:
    """An untrained learner's bundle on the warehouse's features."""
    spec, stats = fit_spec(warehouse, DAYS)
    cls = lookup("learner", learner)
    torch.manual_seed(0)
    made = cls(cls.Config(), spec, warehouse.info.pages, stats)
    return save_bundle(Bundle.of_learner(made, spec, warehouse.info.pages, stats), folder / "bundle")


def jobs(warehouse: Warehouse, folder: Path) -> list[PartJob]:
    return [PartJob(role, run=partial(part, warehouse, name, folder / role)) for role, name in ROLES.items()]


def composed(warehouse: Warehouse, folder: Path, **changes) -> ComposeResult:
    given = {"jobs": jobs(warehouse, folder), "options": {}, **changes}
    return compose(
        "klan",
        given.pop("options"),
        given.pop("jobs"),
        warehouse.root,
        DAYS,
        run_root=folder,
        run_name="klan",
        **given,
    )


def test_the_bundle_holds_all_parts_and_what_follows_from_them(warehouse, tmp_path):
    result = composed(warehouse, tmp_path)
    bundle = load_bundle(result.bundle_path)
    assert {role: bundle.parts[role].name for role in ROLES} == ROLES
    assert sum(bundle.config["population"]) == pytest.approx(1.0)
    raw = raw_features(bundle.spec.schema, 9, np.random.default_rng(0))
    scores, details = bundle.navigator().explained(raw)
    assert scores.shape == (9, 3) and set(details) == {"delta", "p", "gamma", "sigma"}
    summary = read_json(result.run_dir / "summary.json")
    assert summary["versions"] == {role: part.version for role, part in bundle.parts.items()}
    assert summary["data"]["train_days"] == ["2024-03-01", "2024-03-02", "2024-03-03"]


def test_the_same_run_is_read_again_and_other_settings_are_another_run(warehouse, tmp_path):
    first, again = composed(warehouse, tmp_path), composed(warehouse, tmp_path)
    assert again.finished_before and not first.finished_before and again.run_dir == first.run_dir
    other = composed(warehouse, tmp_path, options={"weights": "page"})
    assert other.run_dir != first.run_dir and not other.finished_before


def test_parts_may_be_made_side_by_side(warehouse, tmp_path):
    alone = composed(warehouse, tmp_path / "a")
    together = composed(warehouse, tmp_path / "b", backend="processes")
    assert load_bundle(alone.bundle_path).version == load_bundle(together.bundle_path).version


def test_a_missing_role_and_a_wrong_setting_are_refused(warehouse, tmp_path):
    with pytest.raises(ConfigError, match=r"\['am'\] are missing"):
        composed(warehouse, tmp_path, jobs=jobs(warehouse, tmp_path)[:2])
    with pytest.raises(ConfigError, match="weight"):
        composed(warehouse, tmp_path, options={"weigths": "page"})


def test_a_part_of_other_pages_is_refused(warehouse, tmp_path):
    spec, stats = fitted(4)
    cls = lookup("learner", "klan.am")
    foreign = Bundle.of_learner(cls(cls.Config(), spec, pages(4), stats), spec, pages(4), stats)
    save_bundle(foreign, tmp_path / "foreign")
    three = [*jobs(warehouse, tmp_path)[:2], PartJob("am", bundle=str(tmp_path / "foreign"))]
    with pytest.raises(BundleError, match="other pages or columns"):
        composed(warehouse, tmp_path, jobs=three)


def test_options_and_parts_of_a_bundle_make_another_version(warehouse, tmp_path):
    bundle = load_bundle(composed(warehouse, tmp_path).bundle_path)
    alone = bundle.with_options({"fusion": "iit"})
    assert alone.version != bundle.version and alone.parts is bundle.parts
    with pytest.raises(ConfigError, match="one trained learner"):
        bundle.parts["iit"].with_options({"alpha": 1.0})
    with pytest.raises(BundleError, match="has no part 'iti'"):
        bundle.with_parts({"iti": bundle.parts["iit"]})


def test_trees_are_fitted_whole_and_judged_on_the_validation_days(warehouse, tmp_path):
    pytest.importorskip("lightgbm", reason="the extra `lightgbm` is not installed")
    kept = {"run_root": tmp_path, "run_name": "trees"}
    options = {"rounds": 60, "min_leaf_rows": 10, "leaves": 8}
    first = fit_whole("reference.lightgbm", options, warehouse.root, DAYS, [FIRST_DAY + 3], **kept)
    again = fit_whole("reference.lightgbm", options, warehouse.root, DAYS, [FIRST_DAY + 3], **kept)
    assert again.finished_before and again.run_dir == first.run_dir and first.metrics == again.metrics
    assert first.metrics["rmse_s"] > 0
    navigator = load_bundle(first.bundle_path).navigator()
    raw = raw_features(warehouse.info.features, 50, np.random.default_rng(1))
    liked = np.maximum(raw.categorical["last_exit_page"], 0)
    # users stay longest on the page of their last exit
    assert (navigator.scores(raw).argmax(axis=1) == liked).mean() > 0.6
