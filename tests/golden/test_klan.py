"""Fusion of KLAN, equations 13 and 14, and LT, equation 15, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.features import RawFeatures
from plpm_ray.evaluation.experiment import analyse
from plpm_ray.navigators.base import Navigator
from plpm_ray.navigators.klan.klan import KLAN, KLANConfig, fuse, sharpened
from plpm_ray.policies.base import Policy
from tests.training_tables import fitted, pages, raw_features

K = 3
DELTA = np.array([[0.30, 0.36, 0.34], [0.35, 0.33, 0.32]], dtype=np.float32)
P = np.array([[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]], dtype=np.float32)
GAMMA = np.array([[0.9, 0.8, 0.1], [0.5, 1.0, 0.0]], dtype=np.float32)


class Fixed(Navigator):
    """Says the same two rows, and counts how often it was asked."""

    def __init__(self, scores: np.ndarray) -> None:
        self.pages, self.name, self.version = pages(K), "fixed", "fixed-1"
        self._scores, self.asked = scores, 0

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        self.asked += 1
        return self._scores[: len(features)]


def klan(**config) -> KLAN:
    parts = {"isp": Fixed(DELTA), "iit": Fixed(P), "am": Fixed(GAMMA)}
    return KLAN(KLANConfig(**config), pages(K), fitted(K)[1], "klan-1", parts)


@pytest.fixture
def rows() -> RawFeatures:
    return raw_features(fitted(K)[0].schema, 2, np.random.default_rng(0))


def test_equation_13(rows):
    scores, details = klan(weights="page").explained(rows)
    # 0.9 * 0.30 + 0.1 * 0.5 = 0.32; 0.8 * 0.36 + 0.2 * 0.2 = 0.328; 0.1 * 0.34 + 0.9 * 0.3 = 0.304
    # 0.5 * 0.35 + 0.5 * 0.1 = 0.225; 1 * 0.33; 1 * 0.7
    expected = np.array([[0.32, 0.328, 0.304], [0.225, 0.33, 0.7]])
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    np.testing.assert_allclose(fuse(GAMMA, DELTA, P), expected, rtol=1e-6)
    for name, part in (("delta", DELTA), ("p", P), ("gamma", GAMMA), ("sigma", expected)):
        np.testing.assert_allclose(details[name], part, rtol=1e-6)
    assert np.array_equal(scores, klan(weights="page").scores(rows))


def test_equation_14(rows):
    chosen = Policy().probabilities(klan(weights="page").scores(rows))
    assert chosen.argmax(axis=1).tolist() == [1, 2] and (chosen.max(axis=1) == 1).all()


@pytest.mark.parametrize(("fusion", "part"), [("isp", DELTA), ("iit", P), ("am", GAMMA)])
def test_ablations_are_a_setting_and_ask_nothing_else(rows, fusion, part):
    navigator = klan(fusion=fusion)
    np.testing.assert_array_equal(navigator.scores(rows), part)
    asked = {role: navigator.parts[role].asked for role in ("isp", "iit", "am")}
    assert asked == {role: int(role == fusion) for role in asked}


def test_constant_gamma_does_not_ask_am(rows):
    navigator = klan(gamma=0.25)
    np.testing.assert_allclose(navigator.scores(rows), 0.25 * DELTA + 0.75 * P, rtol=1e-6)
    assert navigator.parts["am"].asked == 0


def test_temperatures_divide_the_exponents_of_equations_6_and_11():
    ratios, t = np.array([[1.02, 0.97, 1.0]]), 0.05
    delta = np.exp(ratios) / np.exp(ratios).sum()
    wanted = np.exp(ratios / t) / np.exp(ratios / t).sum()
    np.testing.assert_allclose(sharpened(delta, t), wanted, rtol=1e-5)
    assert np.array_equal(sharpened(P, 1.0), P)
    assert sharpened(P[:0], 0.5).shape == (0, 3)


def test_stored_delta_is_taken_and_strangers_get_the_populations(rows):
    population = (0.5, 0.3, 0.2)
    navigator = klan(fusion="isp", population=population)
    rows.vectors["delta"] = np.array([[0.2, 0.2, 0.6], [np.nan] * 3], dtype=np.float32)
    np.testing.assert_allclose(navigator.scores(rows), [[0.2, 0.2, 0.6], population], rtol=1e-6)
    assert navigator.parts["isp"].asked == 0


def test_the_shared_weight_is_the_mean_and_the_gate_multiplies_by_the_pages_own(rows):
    # means of gamma: 0.6 and 0.5
    shared = np.array([[0.6], [0.5]]) * DELTA + np.array([[0.4], [0.5]]) * P
    np.testing.assert_allclose(klan(weights="shared").scores(rows), shared, rtol=1e-6)
    np.testing.assert_allclose(klan().scores(rows), GAMMA * shared, rtol=1e-6)
    assert klan().config.weights == "gate"


def test_eq_13_lowers_the_page_that_iit_prefers_where_gamma_rises(rows):
    """Why the weight of each page is not the default."""
    more = GAMMA.copy()
    more[0, 0] = 1.0  # the page with p > delta: certainly static there
    navigator = klan(weights="page")
    before = navigator.scores(rows)[0, 0]
    navigator.parts["am"] = Fixed(more)
    assert navigator.scores(rows)[0, 0] < before
    gated = klan()
    before = gated.scores(rows)[0, 0]
    gated.parts["am"] = Fixed(more)
    assert gated.scores(rows)[0, 0] > before


def test_composition_finds_the_populations_delta(rows):
    config = klan().composed(rows)
    np.testing.assert_allclose(config.population, DELTA.astype(np.float64).mean(axis=0), rtol=1e-6)
    kept = klan(population=(0.2, 0.3, 0.5)).composed(rows)
    assert kept.population == (0.2, 0.3, 0.5)


def test_equation_15():
    """LT = DAU of the last seven days, summed, over the users active at least once; by hand for four users and two arms."""
    last_seven = {"a": [7, 0, 3, 0], "b": [7, 1, 4, 0]}
    active = {"a": [9, 0, 3, 2], "b": [9, 1, 5, 2]}
    rows = {name: [] for name in ("user_id", "arm", "ab_active_days", "ab_last7_active_days")}
    for arm in "ab":
        rows["user_id"] += [1, 2, 3, 4]
        rows["arm"] += [arm] * 4
        rows["ab_active_days"] += active[arm]
        rows["ab_last7_active_days"] += last_seven[arm]
    totals = (
        "use_s",
        "watch_s",
        "video_views",
        "sessions",
        "drop_offs",
        *(f"{t}_{p}" for t in ("effective", "assigned") for p in "xy"),
    )
    rest = {f"ab_{name}": np.ones(8) for name in totals}
    before = {f"aa_{name}": np.ones(8) for name in (*totals, "active_days", "last7_active_days")}
    found = analyse(
        pa.table({**rows, **rest, **before}), ["x", "y"], control="a", aa_days=1, ab_days=14, design="twins"
    )
    lt = next(r for r in found["metrics"] if r["metric"] == "lt" and r["arm"] == "b")
    assert lt["control"] == pytest.approx((7 + 3) / 3) and lt["unadjusted"] == pytest.approx((7 + 1 + 4) / 4)
