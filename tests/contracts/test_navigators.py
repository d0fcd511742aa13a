"""What every registered navigator without training must keep; learners are wrapped and go through the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from plpm_ray.core.registry import lookup, names
from plpm_ray.navigators.base import FittedNavigator, Navigator
from plpm_ray.navigators.bundle import Bundle, load_bundle, save_bundle
from tests.training_tables import fitted, pages, raw_features, with_session

# tests of other folders register some of their own
LEARNERS = [n for n in names("learner") if lookup("learner", n).__module__.startswith("plpm_ray.")]
HEURISTICS = [
    n
    for n in names("navigator")
    if lookup("navigator", n).__module__.startswith("plpm_ray.")
    and not issubclass(lookup("navigator", n), FittedNavigator)
]


def bundle_of(name: str, k: int = 3) -> Bundle:
    spec, stats = fitted(k)
    if name in LEARNERS:
        cls = lookup("learner", name)
        torch.manual_seed(0)
        return Bundle.of_learner(cls(cls.Config(), spec, pages(k), stats), spec, pages(k), stats)
    cls = lookup("navigator", name)
    parts = {role: bundle_of(part, k) for role, part in cls.roles.items()}
    return Bundle("navigator", name, cls.Config().model_dump(mode="json"), pages(k), spec, stats, parts=parts)


def features(k: int = 3, rows: int = 40, name: str = ""):
    """Entries; for a model of sessions that have ended, with what came of them."""
    rng = np.random.default_rng(3)
    raw = raw_features(fitted(k)[0].schema, rows, rng)
    ended = name in LEARNERS and "session" in lookup("learner", name).inputs
    return with_session(raw, rng) if ended else raw


def width(name: str, k: int) -> int:
    """Numbers a row: K, or those of a part that chooses no pages."""
    says = lookup("learner", name).says if name in LEARNERS else None
    return k if says is None else len(says)


def scored(navigator: Navigator, raw):
    size = navigator.state_size
    return navigator.scores(raw, np.zeros((len(raw), size), dtype=np.float32) if size else None)


every_navigator = pytest.mark.parametrize("name", HEURISTICS + LEARNERS)


@every_navigator
@pytest.mark.parametrize("k", [2, 3, 32])
def test_scores_are_finite_and_of_the_pages_shape(name, k):
    navigator: Navigator = bundle_of(name, k).navigator()
    raw = features(k, name=name)
    state = np.zeros((len(raw), navigator.state_size), dtype=np.float32)
    scores = navigator.scores(raw, state)
    assert (
        scores.shape == (len(raw), width(name, k))
        and scores.dtype == np.float32
        and np.isfinite(scores).all()
    )
    values = navigator.values(raw, state)
    assert values is None or values.shape == (len(raw), k)


@every_navigator
def test_scores_are_deterministic_and_rows_do_not_mix(name):
    navigator = bundle_of(name).navigator()
    raw = features(name=name)
    scores = scored(navigator, raw)
    assert np.array_equal(scores, scored(navigator, raw))
    some = np.array([7, 0, 31])
    np.testing.assert_allclose(scored(navigator, raw.take(some)), scores[some], rtol=1e-5, atol=1e-6)


@every_navigator
def test_no_rows_give_no_scores(name):
    found = scored(bundle_of(name).navigator(), features(rows=0, name=name))
    assert found.shape == (0, width(name, 3))


@every_navigator
def test_state_keeps_its_shape_and_is_not_changed_in_place(name):
    navigator = bundle_of(name).navigator()
    raw = features(name=name)
    state = np.zeros((len(raw), navigator.state_size), dtype=np.float32)
    outcome = {
        "action": np.zeros(len(raw), dtype=np.int16),
        "use_s": np.ones(len(raw), dtype=np.float32),
        "landing_dwell_s": np.ones(len(raw), dtype=np.float32),
        "switches": np.zeros(len(raw), dtype=np.int16),
        "views": np.zeros(len(raw), dtype=np.int64),
        "page_views": np.full((len(raw), 3), np.nan, dtype=np.float32),
        "page_visits": np.ones((len(raw), 3), dtype=np.float32),
    }
    after = navigator.observe(state, raw, outcome)
    assert after.shape == state.shape and not state.any()
    none = {key: values[:0] for key, values in outcome.items()}
    assert navigator.observe(state[:0], raw.take(np.arange(0)), none).shape == (0, navigator.state_size)
    again = navigator.scores(raw, after)
    assert again.shape == (len(raw), width(name, 3)) and np.isfinite(again).all()


@every_navigator
def test_bundle_round_trip(name, tmp_path):
    bundle = bundle_of(name)
    loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle"))
    assert loaded.version == bundle.version
    raw = features(name=name)
    assert np.array_equal(scored(loaded.navigator(), raw), scored(bundle.navigator(), raw))
    assert loaded.navigator().version == bundle.navigator().version


@pytest.mark.parametrize("name", HEURISTICS)
def test_config_refuses_unknown_keys(name):
    with pytest.raises(ValidationError):
        lookup("navigator", name).Config(no_such_setting=1)
