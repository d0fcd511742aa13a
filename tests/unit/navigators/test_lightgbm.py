"""The boosted-tree reward models: what they learn, what they cannot, and their bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import lookup
from plpm_ray.navigators.bundle import Bundle, load_bundle, save_bundle
from plpm_ray.navigators.reference.lightgbm import LightGBM, LightGBMConfig
from tests.training_tables import fitted, pages, raw_features

pytest.importorskip("lightgbm", reason="the extra `lightgbm` is not installed")
K, ROWS = 3, 3000


def columns(seed: int) -> dict[str, np.ndarray]:
    """Sessions on page 0 or 1; page 0 is worth more where the first feature is high, page 2 is never shown."""
    spec, _ = fitted(K)
    rng = np.random.default_rng(seed)
    encoded = spec.encode(raw_features(spec.schema, ROWS, rng))
    action = rng.integers(0, 2, ROWS)
    liked = (encoded.dense[:, 0] > 0) == (action == 0)
    use_s = np.where(liked, 200, 50) * rng.gamma(5, 0.2, ROWS)
    return {"dense": encoded.dense, "cat": encoded.cat, "action": action, "use_s": use_s.astype(np.float32)}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    spec, stats = fitted(K)
    config = LightGBMConfig(rounds=40)
    weights, metrics = LightGBM.fit(config, spec, pages(K), stats, columns(0), columns(1), seed=0)
    assert metrics["rmse_s"] < columns(1)["use_s"].std() * 0.8
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    plain = config.model_dump(mode="json")
    return Bundle("navigator", "reference.lightgbm", plain, pages(K), spec, stats, tensors, metrics)


def test_it_finds_the_better_page_of_each_entry(bundle):
    spec, _ = fitted(K)
    raw = raw_features(spec.schema, 500, np.random.default_rng(7))
    scores = bundle.navigator().scores(raw)
    better = (spec.encode(raw).dense[:, 0] <= 0).astype(int)
    assert scores.shape == (500, K) and scores.dtype == np.float32
    assert (scores[:, :2].argmax(axis=1) == better).mean() > 0.95


def test_a_page_without_sessions_predicts_the_mean_of_all(bundle):
    spec, _ = fitted(K)
    raw = raw_features(spec.schema, 5, np.random.default_rng(7))
    np.testing.assert_allclose(bundle.navigator().scores(raw)[:, 2], columns(0)["use_s"].mean(), rtol=1e-4)
    assert "page.2" not in bundle.weights


def test_bundle_round_trip(bundle, tmp_path):
    loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle"))
    raw = raw_features(fitted(K)[0].schema, 40, np.random.default_rng(1))
    assert loaded.version == bundle.version
    assert np.array_equal(loaded.navigator().scores(raw), bundle.navigator().scores(raw))
    assert bundle.navigator().scores(raw.take(np.arange(0))).shape == (0, K)


def test_options_of_a_bundle_are_checked(bundle):
    assert bundle.with_options({}) is bundle
    with pytest.raises(ConfigError, match="leafs"):
        bundle.with_options({"leafs": 3})


def test_the_same_seed_gives_the_same_trees():
    spec, stats = fitted(K)
    config = lookup("navigator", "reference.lightgbm").Config(rounds=5)
    one, two = (LightGBM.fit(config, spec, pages(K), stats, columns(0), None, seed=3)[0] for _ in range(2))
    assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)
