"""Qini, uplift curves and what follows from them: definition, ties, weights, scales, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.evaluation.uplift_curves import auuc, qini_coefficient, qini_curve, uplift_at, uplift_curve
from plpm_ray.evaluation.uplift_ranking import descending_order, group_codes, group_ends, spearman

METRICS = {
    "qini": qini_coefficient,
    "auuc": auuc,
    "uplift_at": lambda *args, **kw: uplift_at(*args, 0.35, **kw),
}


def made(n: int, seed: int = 0, share: float = 0.4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores that are right in part, treatment flags, responses in seconds."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=n)
    treated = rng.random(n) < share
    return effect + rng.normal(size=n), treated, 5 + rng.normal(size=n) + treated * (0.3 + effect)


def by_definition(kind: str, score, treated, response) -> tuple[list[float], list[float]]:
    """The curve by counting anew at every threshold, as the equations say."""
    n_arm = int(treated.sum())
    share, gain = [0.0], [0.0]
    for threshold in sorted(set(score), reverse=True):
        top = score >= threshold
        t, c = top & treated, top & ~treated
        if c.sum() == 0 or (kind == "uplift" and t.sum() == 0):
            continue
        if kind == "qini":
            value = (response[t].sum() - response[c].sum() * t.sum() / c.sum()) / n_arm
        else:
            value = (response[t].mean() - response[c].mean()) * top.mean()
        share.append(top.mean())
        gain.append(value)
    return share, gain


@st.composite
def trials(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Small trials with many ties: scores of at most seven values."""
    n = draw(st.integers(2, 40))
    whole = st.integers(-3, 3)
    score = np.array(draw(st.lists(whole, min_size=n, max_size=n)), dtype=float)
    treated = np.array(draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2)) + [True, False])
    response = np.array(draw(st.lists(whole, min_size=n, max_size=n)), dtype=float)
    return score, treated, response


@given(trials())
@settings(max_examples=80, deadline=None)
def test_curves_are_their_definition(trial):
    score, treated, response = trial
    for kind, curve_of in (("qini", qini_curve), ("uplift", uplift_curve)):
        curve = curve_of(score, treated, response)
        share, gain = by_definition(kind, score, treated, response)
        np.testing.assert_allclose(np.interp(curve.share, share, gain), curve.gain, atol=1e-12)
        assert curve.area() == pytest.approx(np.trapezoid(gain, share), abs=1e-12)
        assert curve.end == pytest.approx(response[treated].mean() - response[~treated].mean())


@given(trials(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_of_the_rows_and_monotone_transforms_change_nothing(trial, random):
    score, treated, response = trial
    rows = np.arange(len(score))
    random.shuffle(rows)
    for metric in METRICS.values():
        wanted = metric(score, treated, response)
        for other in (score, 3 * score - 7, score**3, np.exp(score)):
            found = metric(other[rows], treated[rows], response[rows])
            assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@given(trials(), st.integers(-50, 50))
@settings(max_examples=30, deadline=None)
def test_a_constant_added_to_the_response_changes_nothing_and_a_factor_scales(trial, constant):
    score, treated, response = trial
    for metric in METRICS.values():
        wanted = metric(score, treated, response)
        assert metric(score, treated, response + constant) == pytest.approx(wanted, abs=1e-10, nan_ok=True)
        assert metric(score, treated, 4 * response) == pytest.approx(4 * wanted, abs=1e-10, nan_ok=True)


def test_by_hand():
    """Four users, best first: treated 3, control 1, treated 0, control 2."""
    score, treated = np.array([4.0, 3, 2, 1]), np.array([True, False, True, False])
    response = np.array([3.0, 1, 0, 2])
    curve = qini_curve(score, treated, response)
    assert curve.share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # nobody of control at first: straight to (3 - 1) / 2; then (3 - 1 * 2) / 2 and (3 - 3) / 2
    assert curve.gain.tolist() == [0, 0.5, 1, 0.5, 0]
    assert qini_coefficient(score, treated, response) == 0.5
    gain = uplift_curve(score, treated, response).gain
    assert gain.tolist() == [0, 0.5, 1, (1.5 - 1) * 0.75, 0]
    assert uplift_at(score, treated, response, 0.5) == 2
    assert auuc(score, treated, response) == pytest.approx(np.trapezoid(gain, dx=0.25))


def test_equal_scores_are_a_random_order():
    _, treated, response = made(500)
    effect = response[treated].mean() - response[~treated].mean()
    score = np.zeros(500)
    assert qini_coefficient(score, treated, response) == 0
    assert auuc(score, treated, response) == pytest.approx(effect / 2)
    assert uplift_at(score, treated, response, 0.123) == pytest.approx(effect)


def test_a_share_that_cuts_a_tie_takes_a_part_of_it():
    score = np.array([2.0, 2, 1, 1])
    treated, response = np.array([True, False, True, False]), np.array([1.0, 0, 5, 0])
    # all of the first run, half of the second: (1 + 2.5) / 1.5 - 0
    assert uplift_at(score, treated, response, 0.75) == pytest.approx(3.5 / 1.5)


def test_scores_of_the_truth_lead_and_reversed_ones_trail():
    rng = np.random.default_rng(3)
    n = 40_000
    effect, treated = rng.normal(size=n), rng.random(n) < 0.5
    response = rng.normal(size=n) + treated * effect
    noisy = [effect + sd * rng.normal(size=n) for sd in (0.0, 0.5, 1.0, 2.0, 5.0)]
    found = [qini_coefficient(score, treated, response) for score in noisy]
    assert found == sorted(found, reverse=True)
    # E of the gain of the top share of a standard normal effect is its density at the quantile; its area is 1/(2 sqrt(pi))
    assert found[0] == pytest.approx(0.5 / np.sqrt(np.pi), abs=0.015)
    assert qini_coefficient(-effect, treated, response) == pytest.approx(-found[0], abs=0.01)
    assert abs(qini_coefficient(rng.normal(size=n), treated, response)) < 0.02


def test_weights_count_rows_again():
    score, treated, response = made(60)
    copies = np.random.default_rng(1).integers(0, 4, 60)
    repeated = [np.repeat(column, copies) for column in (score, treated, response)]
    for metric in METRICS.values():
        weighted = metric(score, treated, response, weight=copies.astype(float))
        assert weighted == pytest.approx(metric(*repeated), rel=1e-12)


def test_one_propensity_for_all_changes_nothing_and_their_own_removes_a_bias():
    score, treated, response = made(400)
    for metric in METRICS.values():
        wanted = metric(score, treated, response)
        assert metric(score, treated, response, propensity=0.9) == pytest.approx(wanted, rel=1e-12)
    rng = np.random.default_rng(0)
    heavy = rng.random(50_000) < 0.5  # heavy users respond more and are treated more
    propensity = np.where(heavy, 0.8, 0.2)
    treated = rng.random(50_000) < propensity
    response = 10.0 * heavy + rng.normal(size=50_000) + treated
    score = rng.normal(size=50_000)
    assert qini_curve(score, treated, response).end > 5
    curve = qini_curve(score, treated, response, propensity=propensity)
    assert curve.end == pytest.approx(1, abs=0.2)
    assert curve.area_over_random() == pytest.approx(0, abs=0.05)


def test_scales():
    score, treated, seconds = made(3000)
    response = (seconds > 5).astype(float)
    area, end = qini_coefficient(score, treated, response), qini_curve(score, treated, response).end
    assert qini_coefficient(score, treated, response, scale="end") == pytest.approx(area / abs(end))
    whole = auuc(score, treated, response)
    assert auuc(score, treated, response, scale="end") == pytest.approx(whole / abs(end))
    perfect = np.where(treated, response, -response)
    others = [qini_coefficient(s, treated, response, scale="perfect") for s in (score, -score)]
    assert max(others) < qini_coefficient(perfect, treated, response, scale="perfect") <= 1
    with pytest.raises(DataError, match="only defined for responses 0 and 1"):
        qini_coefficient(score, treated, seconds, scale="perfect")
    with pytest.raises(ConfigError, match="unknown scale 'final'"):
        auuc(score, treated, response, scale="final")  # pyright: ignore[reportArgumentType]


def test_no_effect_at_all_has_no_ratio():
    score, treated = np.arange(4.0), np.array([True, False, True, False])
    assert np.isnan(qini_coefficient(score, treated, np.zeros(4), scale="end"))
    assert np.isnan(qini_coefficient(score, treated, np.zeros(4), scale="perfect"))


def test_thinned_curve_lies_on_the_curve():
    curve = qini_curve(*made(5000))
    thin = curve.thinned(11)
    assert thin.share.tolist() == pytest.approx(np.linspace(0, 1, 11).tolist())
    assert thin.end == curve.end and thin.gain[0] == 0
    np.testing.assert_allclose(thin.gain, curve.gain[::500], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(thin.random, thin.share * curve.end)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_of_many_scores_is_the_stable_order(dtype):
    """Equal scores, scores only float64 tells apart, both zeros, tiny and huge ones."""
    rng = np.random.default_rng(0)
    parts = [
        rng.normal(size=30_000),
        rng.integers(-5, 5, 20_000) / 4,
        1 + 1e-12 * rng.integers(0, 50, 10_000),
        rng.choice([0.0, -0.0, 1e-44, -1e-44, 3e38, -3e38], 5_000),
    ]
    if dtype == np.float64:
        parts.append(rng.choice([1e300, 2e300, -1e300, 1e-310, -1e-310], 5_000))
    score = rng.permutation(np.concatenate(parts)).astype(dtype)
    np.testing.assert_array_equal(descending_order(score), np.argsort(-score, kind="stable"))


def test_groups_are_even_and_split_no_tie():
    ordered = -np.sort(np.random.default_rng(0).integers(0, 100, 10_000).astype(float))
    ends = group_ends(ordered, 10)
    assert len(ends) <= 10 and ends[-1] == 9999
    assert (ordered[ends[:-1]] != ordered[ends[:-1] + 1]).all()
    assert np.diff(ends, prepend=-1).max() < 1300
    codes, n = group_codes(np.array([0.5, 2.0, 0.5, -1.0]), 99)
    assert codes.tolist() == [1, 0, 1, 2] and n == 3


def test_spearman_is_scipys():
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    b = np.round(a + rng.normal(size=300), 1)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    copies = rng.integers(0, 3, 300)
    repeated = spearmanr(np.repeat(a, copies), np.repeat(b, copies)).statistic
    assert spearman(a, b, copies.astype(float)) == pytest.approx(repeated)
    assert spearman(a, rankdata(a)) == pytest.approx(1)
    assert np.isnan(spearman(a, np.ones(300)))


BAD = {
    "score: 1 of 4 values are NaN or infinite, the first in row 2": {"score": [1, 2, np.nan, 4]},
    "response: 2 of 4 values are NaN or infinite, the first in row 0": {"response": [np.inf, 1, -np.inf, 2]},
    "response has 3 rows, but there are 4 users": {"response": [1, 2, 3]},
    "treated has 3 rows, but there are 4 users": {"treated": [1, 0, 1]},
    "treated has shape": {"treated": np.ones(3, bool)},
    "treated holds 2": {"treated": [0, 1, 2, 0]},
    "all 4 users are treated": {"treated": [True] * 4},
    "all 4 users are in control": {"treated": [0] * 4},
    "score does not hold numbers": {"score": ["a", "b", "c", "d"]},
    r"score has shape \(0,\)": {"score": []},
    "weight -1 in row 3 is negative": {"weight": [1, 1, 1, -1]},
    "all weights of control are 0": {"weight": [1, 0, 1, 0]},
    r"propensity 1 in row 1 lies outside \(0, 1\)": {"propensity": [0.5, 1, 0.5, 0.5]},
    r"propensity 0 in row 0 lies outside \(0, 1\)": {"propensity": 0.0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    good = {"score": [1.0, 2, 3, 4], "treated": [True, False, True, False], "response": [1.0, 2, 3, 4]}
    with pytest.raises(DataError, match=message) as raised:
        qini_coefficient(**(good | BAD[message]))
    assert raised.value.hint


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_outside_is_refused(share):
    with pytest.raises(ConfigError, match="give a share of users"):
        uplift_at(*made(10), share)
