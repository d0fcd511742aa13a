"""GLAN's parts on held-out days of KuaiRand-Pure, beside constants and rules.

What these data can show: about 1 impression in 200 is there, so a "day" is the watch time of 1.9 impressions of an active user,
a missing day is no absence, and half of the sessions are a single impression of a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plpm_ray.core.config import load_config
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import Split, SplitConfig, split_days
from plpm_ray.data.tables import build_transitions
from plpm_ray.evaluation.assess_run import assess_model
from plpm_ray.navigators.bundle import Bundle, load_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.evaluate import evaluate
from plpm_ray.training.run import train

JOB = Path(__file__).resolve().parents[2] / "jobs" / "data_kuairand.yaml"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def warehouse(data_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    root = tmp_path_factory.mktemp("kuairand")
    overrides = [f"dataset.path={data_folder('KuaiRand-Pure')}", f"output={root / 'tables'}"]
    ingest(load_config(IngestConfig, JOB, overrides))
    warehouse = Warehouse.open(root / "tables")
    build_transitions(warehouse)
    return warehouse


@pytest.fixture(scope="module")
def split(warehouse: Warehouse) -> Split:
    """Six days to learn from, the last two held out."""
    return split_days(warehouse.transitions.days(), SplitConfig(valid_days=0, test_days=2, train_days=6))


def fit(warehouse: Warehouse, split: Split, learner: str, **more: Any) -> Bundle:
    settings = {"epochs": 3, "batch_size": 2048, "lr": 3e-3, "device": "cpu", **more.pop("training", {})}
    training = TrainingConfig.model_validate(settings)
    run_dir = warehouse.root.parent / learner
    run = train(learner, more, training, warehouse.root, split.train, run_dir=run_dir)
    return load_bundle(run.bundle_path)


def assessed(warehouse: Warehouse, split: Split, bundle: Bundle) -> dict[str, Any]:
    stats = fit_spec(warehouse, split.train)[1]
    return assess_model(bundle.name, bundle, warehouse, split.test, stats)


def measured(warehouse: Warehouse, split: Split, bundle: Bundle) -> dict[str, float]:
    """What a learner measures of itself on the held-out days."""
    learner = bundle.learner()
    needs = Needs.of(type(learner), learner.config)
    source = TableSource(warehouse.root, tuple(split.test), bundle.spec, needs)
    return evaluate(learner, source.load())


def test_lrtg_foretells_watch_time_better_than_the_rules(warehouse: Warehouse, split: Split) -> None:
    found = assessed(warehouse, split, fit(warehouse, split, "glan.lrtg", training={"batch_size": 1024}))
    model, mean, constant = (found[name] for name in ("model", "reference", "constant"))
    assert found["mae_gain"]["low"] > 0, "over the mean of the active ones of the last seven days"
    assert model["spearman"]["low"] > mean["spearman"]["value"]
    for error in ("mae_s", "rmse_s"):
        assert model[error]["value"] < constant[error]["value"], error


def test_hrm_tells_drop_offs_and_seconds_better_than_constants(warehouse: Warehouse, split: Split) -> None:
    table = warehouse.transitions.read(0, split.test, ["page_views"])
    assert table is not None
    views = table["page_views"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    assert not np.isnan(views).any() and views.max() > 1, "the adapter counts video views"
    found = assessed(warehouse, split, fit(warehouse, split, "glan.hrm", training={"epochs": 8}))
    drop = found["drop_off"]
    for loss in ("brier", "log_loss"):
        assert drop[f"{loss}_interval"][1] < drop[f"constant_{loss}"], loss
    assert drop["auc"] > 0.5 and drop["pr_auc"] > drop["share"]
    # trained so shortly, the rarest page (0.2 s of a session of 34 s) is no better foretold than by its mean
    seconds = {page["page"]: page for page in found["pages"]}
    for name in ("tab_1", "tab_4", "tab_2"):
        assert seconds[name]["mae_s"] < seconds[name]["constant_mae_s"], name


def test_the_transformer_imitates_the_log_given_what_came_of_it(warehouse: Warehouse, split: Split) -> None:
    """Its return-to-go is that of the logged day, which tells of the page that was shown: this is how well it fits, not how well
    it would choose. Behaviour cloning is not told, and beats the shares of the pages."""
    cloned = measured(warehouse, split, fit(warehouse, split, "reference.bc"))
    transformer = fit(
        warehouse, split, "glan.dt", reward="duration", training={"epochs": 2, "batch_size": 512}
    )
    told = measured(warehouse, split, transformer)
    stats = transformer.stats
    share = stats.landings / stats.landings.sum()
    table = [
        warehouse.transitions.read(b, split.test, ["landing_page"]) for b in range(warehouse.info.n_buckets)
    ]
    pages = np.concatenate([t["landing_page"].to_numpy() for t in table if t is not None])
    by_shares = float(-np.log(share[pages]).mean())
    assert cloned["log_loss"] < by_shares and cloned["agreement"] > (pages == share.argmax()).mean()
    assert told["cross_entropy"] < cloned["log_loss"] and told["agreement"] > cloned["agreement"]
