"""Several models on one trial: rows, intervals, paired differences, curves, files and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.evaluation.uplift import UpliftReport, UpliftSettings, uplift_report
from plpm_ray.evaluation.uplift_bootstrap import PairDraws, draw_counts, percentile_interval
from plpm_ray.evaluation.uplift_curves import auuc, qini_coefficient, qini_curve, uplift_at
from plpm_ray.evaluation.uplift_models import ModelPart
from plpm_ray.evaluation.uplift_policy import best_arm, policy_value
from plpm_ray.evaluation.uplift_sums import trapezoid
from plpm_ray.evaluation.uplift_trial import Trial
from plpm_ray.evaluation.uplift_truth import effect_error

NAMES = ["featured", "following", "store"]


def world(n: int = 3000, seed: int = 0) -> dict[str, np.ndarray]:
    """True and predicted effects of three arms, arms and responses of a trial."""
    rng = np.random.default_rng(seed)
    effects = rng.normal([2, 0, -1], 3, size=(n, 3))
    base = rng.gamma(2, 5, size=n)
    outcomes = np.column_stack([base, base[:, None] + effects])
    arm = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
    return {
        "outcomes": outcomes,
        "arm": arm,
        "response": outcomes[np.arange(n), arm],
        "good": np.round(effects + rng.normal(size=(n, 3)), 1),
        "noise": rng.normal(size=(n, 3)),
    }


@pytest.fixture(scope="module")
def made() -> dict[str, np.ndarray]:
    return world()


def judge(made: dict[str, np.ndarray], **given) -> UpliftReport:
    settings = {"repeats": 100, **given.pop("settings", {})}
    arguments = {
        "models": {"noise": made["noise"], "good": made["good"]},
        "arm": made["arm"],
        "response": made["response"],
        "names": NAMES,
        "potential_outcomes": made["outcomes"],
        "predicted_responses": {"good": made["outcomes"]},
        "settings": UpliftSettings(**settings),
    }
    return uplift_report(**(arguments | given))


@pytest.fixture(scope="module")
def report(made) -> UpliftReport:
    return judge(made)


def pick(rows: list[dict], metric: str, arm: str | None = None, model: str | None = None) -> dict:
    found = [r for r in rows if r["metric"] == metric and r["arm"] == arm and r.get("model") == model]
    assert len(found) == 1, (metric, arm, model)
    return found[0]


def test_values_are_those_of_the_functions(made, report):
    trial = Trial.of(made["arm"], made["response"])
    for k, name in enumerate(NAMES, 1):
        pair = np.isin(made["arm"], (0, k))
        data = made["good"][pair, k - 1], made["arm"][pair] == k, made["response"][pair]
        assert pick(report.rows, "qini", name, "good")["value"] == qini_coefficient(*data)
        assert pick(report.rows, "auuc", name, "good")["value"] == auuc(*data)
        assert pick(report.rows, "uplift_at_10", name, "good")["value"] == uplift_at(*data, 0.1)
        effect = pick(report.references, "average_effect", name)["value"]
        assert effect == pytest.approx(qini_curve(*data).end)
    choice = best_arm(made["good"])
    for metric, method in (("policy_value", "snips"), ("policy_value_ips", "ips"), ("policy_value_dr", "dr")):
        wanted = policy_value(choice, trial, method=method, predicted=made["outcomes"])
        assert pick(report.rows, metric, None, "good")["value"] == pytest.approx(wanted)
    error = effect_error(made["good"], made["outcomes"][:, 1:] - made["outcomes"][:, :1])
    assert pick(report.rows, "pehe", "store", "good")["value"] == pytest.approx(error.pehe[2])
    assert pick(report.rows, "spearman", "store", "good")["value"] == pytest.approx(error.spearman[2])
    assert pick(report.rows, "regret", None, "good")["value"] == pytest.approx(error.regret)
    assert pick(report.rows, "assigned", "control", "good")["value"] == pytest.approx((choice == 0).mean())
    value, alone = (pick(rows, "policy_value", arm, model)["value"] for rows, arm, model in (
        (report.rows, None, "good"), (report.references, "featured", None)))  # fmt: skip
    assert pick(report.rows, "policy_gain_best_arm", None, "good")["value"] == pytest.approx(value - alone)


def test_intervals_hold_their_value_and_tell_good_from_noise(report):
    for row in report.rows + report.references + report.differences:
        assert row["low"] <= row["value"] <= row["high"], row
    for name in NAMES:
        assert pick(report.rows, "qini", name, "good")["low"] > 0
    assert pick(report.differences, "policy_value", None, "good")["low"] > 0
    assert pick(report.differences, "regret", None, "good")["high"] < 0


def test_differences_are_paired(made):
    """Two models that are the same in all but scale rank alike: differences are zero in every draw."""
    report = judge(made, models={"a": made["good"], "b": 3 * made["good"]}, predicted_responses=None)
    for row in report.differences:
        if row["metric"] not in ("pehe", "bias"):
            assert row["value"] == row["low"] == row["high"] == pytest.approx(0, abs=1e-12), row
    paired, one = (pick(rows, "policy_value", None, "b") for rows in (report.differences, report.rows))
    assert one["high"] - one["low"] > 0.1 > paired["high"] - paired["low"]


@pytest.mark.parametrize("given", ["nothing", "weight", "propensity"])
def test_a_draw_is_the_trial_with_its_users_repeated(given):
    """No draw sorts, and yet it is the metric of the resampled users."""
    made = world(400, seed=4)
    rng = np.random.default_rng(0)
    extra = {
        "nothing": {},
        "weight": {"weight": rng.integers(1, 4, 400).astype(float)},
        "propensity": {"propensity": rng.dirichlet(np.full(4, 9.0), size=400)},
    }[given]
    effects, outcomes = made["good"], made["outcomes"]
    part = {"shares": (0.25,), "grid": np.linspace(0, 1, 5), "best_single": 1, "control_is_choice": True}
    trial = Trial.of(made["arm"], made["response"], **extra)
    model = ModelPart(effects, trial, predicted=outcomes, outcomes=outcomes, **part)
    shares = np.bincount(trial.arm, weights=trial.weight) / (
        400 if trial.weight is None else trial.weight.sum()
    )
    counts = next(draw_counts(trial.arm, 3, seed=1))
    weight = counts if trial.weight is None else counts * trial.weight
    found, curves = model.draw(counts, weight, np.zeros((3, 4)))
    for i, row in enumerate(counts.astype(int)):
        again = np.repeat(np.arange(400), row)
        data = {key: values[again] for key, values in extra.items()}
        data.setdefault("propensity", shares)  # of the trial, whoever was drawn
        resampled = Trial.of(trial.arm[again], trial.response[again], **data)
        whole = ModelPart(
            effects[again], resampled, predicted=outcomes[again], outcomes=outcomes[again], **part
        )
        own = np.ones(400) if resampled.weight is None else resampled.weight
        wanted = whole.value(own, np.zeros(4))
        ranks = np.array([m.metric == "spearman" for m in model.measures])
        np.testing.assert_allclose(found[i, ~ranks], wanted[~ranks], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[i, ranks], wanted[ranks], atol=5e-4)
        for k in range(3):
            np.testing.assert_allclose(curves[i, k], whole.arms[k].curve.thinned(5).gain, atol=1e-9)


def test_groups_of_a_large_trial_move_a_metric_by_next_to_nothing():
    rng = np.random.default_rng(0)
    arm, score = rng.integers(0, 2, 60_000), rng.normal(size=60_000)
    response = rng.normal(size=60_000) + arm * score
    sums = PairDraws(score, Trial.of(arm, response), 1).sums(np.ones((1, 60_000)))
    assert sums.treated.shape == (1, 2001)
    share, gain = sums.qini()
    found = trapezoid(share, gain)[0] - gain[0, -1] / 2
    assert found == pytest.approx(qini_coefficient(score, arm == 1, response), abs=1e-5)


def test_draws_are_stratified_and_repeatable():
    arm = np.array([0] * 50 + [1] * 2 + [2])
    counts = np.concatenate(list(draw_counts(arm, 200, seed=7)))
    for k, n in enumerate((50, 2, 1)):
        assert (counts[:, arm == k].sum(axis=1) == n).all()
    assert counts[:, :50].var() == pytest.approx(1 - 1 / 50, abs=0.05)
    np.testing.assert_array_equal(counts, np.concatenate(list(draw_counts(arm, 200, seed=7))))
    assert (counts != np.concatenate(list(draw_counts(arm, 200, seed=8)))).any()


def test_draws_with_known_propensities_let_the_arms_vary_but_lose_none(made):
    arm = np.array([0] * 50 + [1] * 2 + [2])
    counts = np.concatenate(list(draw_counts(arm, 300, seed=7, stratified=False)))
    sizes = np.stack([counts[:, arm == k].sum(axis=1) for k in range(3)])
    assert (sizes.sum(axis=0) == 53).all() and sizes.min() == 1
    assert sizes[1].max() > 1 and len(np.unique(sizes[0])) > 3
    # the store for everybody: plain IPS then counts the users who happen to be in the store's arm
    models, shares = {"m": np.tile([0.0, 0, 1], (3000, 1))}, np.bincount(made["arm"]) / 3000
    fixed, free = (
        pick(
            judge(made, models=models, predicted_responses=None, propensity=p).rows,
            "policy_value_ips",
            None,
            "m",
        )
        for p in (None, shares)
    )
    assert fixed["value"] == pytest.approx(free["value"])
    assert free["high"] - free["low"] > 1.2 * (fixed["high"] - fixed["low"])


def test_same_seed_same_report_and_order_of_models_is_free(made, report):
    assert judge(made).as_record() == report.as_record()
    swapped = judge(made, models={"good": made["good"], "noise": made["noise"]})
    for row in report.rows:
        assert row in swapped.rows
    assert swapped.differences[0]["against"] == "good"


def test_intervals_cover_at_their_rate():
    """95 % intervals of Qini, uplift in the top 30 % and policy value over 120 trials of 500 users."""
    rng = np.random.default_rng(11)

    def trial(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        effect = rng.normal(0.5, 1, n)
        arm = rng.integers(0, 2, n)
        return effect + rng.normal(0, 1, n), arm, rng.normal(0, 1, n) + arm * effect

    score, arm, response = trial(600_000)
    truth = {
        "qini": qini_coefficient(score, arm == 1, response),
        "uplift_at_30": uplift_at(score, arm == 1, response, 0.3),
        "policy_value": policy_value(best_arm(score[:, None]), Trial.of(arm, response)),
    }
    covered = dict.fromkeys(truth, 0)
    settings = UpliftSettings(repeats=200, shares=(0.3,), curve_points=2)
    for _ in range(120):
        score, arm, response = trial(500)
        rows = uplift_report({"model": score}, arm, response, settings=settings).rows
        for row in rows:
            if row["metric"] in truth:
                covered[row["metric"]] += row["low"] <= truth[row["metric"]] <= row["high"]
    # the binomial interval of 120 at 0.95 reaches from 0.91 to 0.98; percentiles of 200 draws cost a little
    for metric, count in covered.items():
        assert 0.89 <= count / 120 <= 0.99, (metric, count)


def test_random_scores_are_told_from_nothing_at_the_stated_rate():
    rng = np.random.default_rng(5)
    settings = UpliftSettings(repeats=100, shares=(), curve_points=2)
    hits = 0
    for _ in range(100):
        arm = rng.integers(0, 2, 400)
        report = uplift_report(
            {"m": rng.normal(size=400)}, arm, rng.normal(size=400) + arm, settings=settings
        )
        row = pick(report.rows, "qini", "arm 1", "m")
        hits += row["low"] <= 0 <= row["high"]
    assert 87 <= hits <= 100


def test_record_is_json_of_the_agreed_form(made, report, tmp_path):
    record = json.loads(report.write(tmp_path).read_text())
    assert record["kind"] == "uplift" and record["users"] == 3000 and record["models"] == ["noise", "good"]
    assert {"data", "seed", "unit", "level", "repeats", "differences", "references"} <= set(record)
    assert all({"model", "arm", "metric", "value", "low", "high"} <= set(row) for row in record["rows"])
    assert len(record["curves"]) == 6
    for curve in record["curves"]:
        assert {len(curve[key]) for key in ("share", "qini", "random", "low", "high")} == {101}
        assert curve["share"][0] == 0 and curve["share"][-1] == 1
        assert curve["qini"][-1] == curve["random"][-1]
        assert curve["low"][50] < curve["qini"][50] < curve["high"][50]
    assert "NaN" not in (tmp_path / "uplift.json").read_text()


def test_what_cannot_be_measured_is_null(made):
    """A constant prediction has no rank correlation, in the trial and in the draws."""
    report = judge(made, models={"flat": np.ones((3000, 3))}, predicted_responses=None)
    row = pick(report.rows, "spearman", "store", "flat")
    assert (row["value"], row["low"], row["high"]) == (None, None, None)
    assert pick(report.rows, "qini", "store", "flat")["value"] == 0
    assert report.differences == []
    assert "- [-, -]" in report.as_text()


def test_percentiles_with_missing_draws():
    draws = np.arange(100.0)[:, None].repeat(3, axis=1)
    draws[:4, 1] = np.nan
    draws[:6, 2] = np.nan
    low, high = percentile_interval(draws, 0.9)
    assert low[0] == pytest.approx(4.95) and high[0] == pytest.approx(94.05)
    assert low[1] == pytest.approx(4 + 0.05 * 95) and np.isnan(low[2]) and np.isnan(high[2])


def test_text_names_metrics_arms_units_and_what_the_interval_is(report):
    text = report.as_text()
    for part in ("Qini coefficient", "uplift in the top 10 %", "policy value (SNIPS)", "users given", "Differences to noise",
                 "One arm for everybody", "95% bootstrap interval", "control 1,", "share of users"):  # fmt: skip
        assert part in text, part


def test_without_control_as_a_choice_somebody_is_always_treated(made):
    report = judge(made, settings={"control_is_choice": False})
    assert pick(report.rows, "assigned", "control", "good")["value"] == 0


BAD = {
    "effects of model 'good': 1 of 9000 values are NaN or infinite, the first in row 7, column 1": "nan",
    "effects of model 'good' have shape": "rows",
    "2 arm names": "names",
    "potential outcomes have shape": "outcomes",
    r"no user is in arm 3 \(store\)": "arm",
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(made, message):
    bad = made["good"].copy()
    bad[7, 1] = np.nan
    given = {
        "nan": {"models": {"good": bad}},
        "rows": {"models": {"noise": made["noise"], "good": made["good"][1:]}},
        "names": {"names": NAMES[:2]},
        "outcomes": {"potential_outcomes": made["outcomes"][:, 1:]},
        "arm": {"arm": np.minimum(made["arm"], 2)},
    }[BAD[message]]
    with pytest.raises(DataError, match=message) as raised:
        judge(made, **given)
    assert raised.value.hint


def test_bad_settings_are_named(made):
    with pytest.raises(ConfigError, match="no model was given"):
        judge(made, models={})
    with pytest.raises(ConfigError, match="responses of 'other'"):
        judge(made, predicted_responses={"other": made["outcomes"]})
    for wrong in ({"repeats": 1}, {"level": 1.0}, {"curve_points": 1}, {"shares": (0.0,)}):
        with pytest.raises(ConfigError):
            UpliftSettings(**wrong)
