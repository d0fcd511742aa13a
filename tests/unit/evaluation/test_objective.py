"""Held-out logs and the objective of sweeps: fitted on training days, kept, and equal to the estimators they lean on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.split import Split, split_days
from plpm_ray.evaluation.config import JudgeConfig
from plpm_ray.evaluation.estimators import DR, SNIPS
from plpm_ray.evaluation.held_out import assemble, held_out_log, prepare_log, read_decisions
from plpm_ray.evaluation.objective import ObjectiveConfig, PolicyValue
from plpm_ray.evaluation.run import Judged, evaluate
from plpm_ray.navigators.heuristics import Popularity
from plpm_ray.policies.base import Policy
from tests.sweep_world import build_tables


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory) -> Warehouse:
    return Warehouse.open(build_tables(tmp_path_factory.mktemp("tables") / "demo"))


@pytest.fixture(scope="module")
def split(warehouse: Warehouse) -> Split:
    return split_days(warehouse.transitions.days())


@pytest.fixture(scope="module")
def parts(warehouse, split):
    spec, _ = fit_spec(warehouse, split.train)
    return spec, read_decisions(warehouse, split.train), read_decisions(warehouse, split.valid)


@pytest.fixture(scope="module")
def log(parts):
    spec, train, valid = parts
    return prepare_log(train, valid, spec)


def some_policy(rows: int, k: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(k), rows)


def config(**changes) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate(changes)


def test_all_sessions_of_the_days_are_read_and_days_are_episodes(warehouse, split, parts):
    _, _, valid = parts
    entries = warehouse.transitions.entries()
    assert len(valid) == sum(entries[day].total for day in split.valid)
    assert valid.user.dtype == np.int64 and not np.isnan(valid.propensity).any()
    for episode in np.unique(valid.episode)[:50]:
        rows = valid.episode == episode
        assert len(np.unique(valid.user[rows])) == 1
        assert sorted(valid.step[rows]) == list(range(rows.sum()))


def test_large_logs_are_thinned_by_whole_users(warehouse, split, parts):
    _, _, valid = parts
    thin = read_decisions(warehouse, split.valid, max_rows=len(valid) // 3)
    assert 0.15 < len(thin) / len(valid) < 0.5
    kept = set(thin.user.tolist())
    assert sum(u in kept for u in valid.user.tolist()) == len(thin)


def test_days_without_sessions_are_an_error(warehouse):
    with pytest.raises(DataError, match="no sessions on the 1 days"):
        read_decisions(warehouse, [1])


def test_logged_propensities_are_used_and_modelled_ones_are_said_to_be(parts, log):
    spec, train, valid = parts
    assert log.diagnostics["propensities"] == "logged" and not log.data.modelled
    np.testing.assert_array_equal(log.data.logged_propensity, valid.propensity)
    unknown = replace(valid, propensity=np.full(len(valid), np.nan))
    modelled = prepare_log(train, unknown, spec)
    assert modelled.data.modelled and modelled.diagnostics["propensities"] == "modelled"
    assert log.diagnostics["behaviour_log_loss"] < log.diagnostics["behaviour_marginal_log_loss"]
    # rules over the user's last pages decide together with a coin; a linear model finds most of that out
    assert np.corrcoef(modelled.data.logged_propensity, valid.propensity)[0, 1] > 0.7


def test_held_out_rewards_have_no_part_in_the_models(parts, log):
    spec, train, valid = parts
    other = prepare_log(train, replace(valid, use_s=valid.use_s[::-1].copy()), spec)
    np.testing.assert_array_equal(other.q_hat, log.q_hat)
    np.testing.assert_array_equal(other.data.behaviour, log.data.behaviour)


def test_the_models_are_fitted_once_and_found_again(warehouse, split, parts, log, monkeypatch):
    spec, _, valid = parts
    first = held_out_log(warehouse, spec, split.train, valid, split.valid)
    np.testing.assert_allclose(first.q_hat, log.q_hat)
    (kept,) = (warehouse.root / "fitted").glob("held-out-*.npz")
    monkeypatch.setattr("plpm_ray.evaluation.held_out.predict", None)
    again = held_out_log(warehouse, spec, split.train, valid, split.valid)
    np.testing.assert_array_equal(again.q_hat, first.q_hat)
    assert again.diagnostics == first.diagnostics
    monkeypatch.undo()
    kept.write_bytes(kept.read_bytes()[:100])
    repaired = held_out_log(warehouse, spec, split.train, valid, split.valid)
    np.testing.assert_array_equal(repaired.q_hat, first.q_hat)


@pytest.mark.parametrize("estimator", ["dr", "snips"])
def test_values_are_those_of_the_estimators(log, estimator):
    pi = some_policy(len(log))
    value, gain = PolicyValue(log, config(estimator=estimator)).estimate(pi)
    expected = {"dr": DR, "snips": SNIPS}[estimator]().estimate(log.data, pi, log.q_hat)
    assert (value.value, value.low, value.high) == (expected.value, expected.low, expected.high)
    assert gain is not None and gain.value is not None and value.value is not None
    assert gain.value == pytest.approx(value.value - log.data.reward.mean())


def test_a_policy_gains_nothing_over_itself(log):
    pi = some_policy(len(log))
    for estimator in ("dr", "snips", "fqe"):
        judge = PolicyValue(log, config(estimator=estimator, baseline="heuristic.popularity"), pi)
        value, gain = judge.estimate(pi)
        assert gain is not None and gain.value == pytest.approx(0, abs=1e-9)
        assert judge.baseline_value == pytest.approx(value.value)


def test_pairing_narrows_the_interval_of_the_gain(log):
    first, second = some_policy(len(log)), some_policy(len(log), seed=0) * 0.9 + 0.1 / 3
    value, gain = PolicyValue(log, config(), second).estimate(first)
    assert gain is not None and gain.standard_error is not None and value.standard_error is not None
    assert gain.standard_error < 0.3 * value.standard_error


def test_fitted_q_is_per_user_day(log):
    judge = PolicyValue(log, config(estimator="fqe"))
    value, gain = judge.estimate(some_policy(len(log)))
    days = log.data.grid.rows.shape[0]
    assert judge.unit == "s per user-day"
    assert judge.baseline_value == pytest.approx(log.data.reward.sum() / days)
    assert value.value is not None and value.value > 1.1 * log.data.reward.mean()
    assert gain is not None and gain.low < gain.value < gain.high


def test_without_a_baseline_there_is_no_gain(log):
    value, gain = PolicyValue(log, config(baseline=None)).estimate(some_policy(len(log)))
    assert value.value is not None and gain is None


def test_what_is_ranked_by(log):
    pi = some_policy(len(log))
    for changes, expected in (
        ({"rank_by": "value"}, lambda value, gain: value.value),
        ({"rank_by": "lower"}, lambda value, gain: gain.low),
        ({"rank_by": "lower", "baseline": None}, lambda value, gain: value.low),
        ({"min_effective_samples": 1e9}, lambda value, gain: None),
    ):
        judge = PolicyValue(log, config(**changes))
        estimates = judge.estimate(pi)
        assert judge.goal(*estimates) == expected(*estimates)


def test_thin_support_is_refused_in_value_and_gain(log):
    judge = PolicyValue(log, config(min_effective_samples=1e9))
    value, gain = judge.estimate(some_policy(len(log)))
    assert value.value is None and "effective sample size" in (value.refused or "")
    assert gain is not None and gain.value is None


def test_a_refused_baseline_gives_no_gain_and_is_known(log):
    judge = PolicyValue(log, config(min_effective_samples=1e9), some_policy(len(log)))
    assert judge.baseline is not None and "effective sample size" in (judge.baseline.refused or "")
    assert judge.baseline_value is None
    assert judge.estimate(some_policy(len(log)))[1] is None


def test_a_sweep_and_an_evaluation_say_the_same_of_a_policy(warehouse, split, parts):
    spec, _, valid = parts
    _, stats = fit_spec(warehouse, split.train)
    navigator = Popularity(Popularity.Config(), warehouse.info.pages, stats)
    judged = Judged("popularity", navigator, Policy())
    table = evaluate(
        warehouse, split.train, split.valid, spec, [judged], JudgeConfig(estimators=("dr", "snips"))
    )
    pi = Policy().probabilities(navigator.scores(valid.features))
    log = held_out_log(warehouse, spec, split.train, valid, split.valid, fit_rows=JudgeConfig().max_sessions)
    for estimate in table.results[1].estimates:
        value, _ = PolicyValue(log, config(estimator=estimate.estimator)).estimate(pi)
        assert value.value == pytest.approx(estimate.value)
        assert value.refused == estimate.refused


def test_kept_predictions_fit_only_their_rows(parts, log):
    spec, _, valid = parts
    wrong = {"behaviour": log.data.behaviour[:-1], "q_hat": log.q_hat[:-1]}
    with pytest.raises(DataError):
        assemble(valid, spec, wrong)
