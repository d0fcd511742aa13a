"""Bundles: damaged and changed ones are refused, and one may be composed of others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from plpm_ray.core.errors import BundleError
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.registry import register
from plpm_ray.navigators.base import Heuristic, HeuristicConfig
from plpm_ray.navigators.bundle import Bundle, load_bundle, save_bundle
from tests.training_tables import fitted, pages, raw_features


class BlendConfig(HeuristicConfig):
    """Two navigators' scores, mixed."""

    gamma: float = 0.5


@register("navigator", "test.blend")
class Blend(Heuristic):
    """gamma x the one's scores + (1 - gamma) x the other's."""

    Config = BlendConfig
    roles: ClassVar[Mapping[str, str]] = {"one": "heuristic.longest_use", "other": "heuristic.popularity"}

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        one, other = (self.parts[role].scores(features) for role in ("one", "other"))
        return self.config.gamma * one + (1 - self.config.gamma) * other


def heuristic(name: str, **extra) -> Bundle:
    spec, stats = fitted()
    return Bundle("navigator", name, extra.pop("config", {}), pages(), spec, stats, **extra)


def blend() -> Bundle:
    parts = {role: heuristic(name) for role, name in Blend.roles.items()}
    return heuristic("test.blend", config={"gamma": 0.25}, parts=parts)


def test_a_bundle_of_bundles(tmp_path: Path) -> None:
    bundle = blend()
    loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle"))
    assert loaded.version == bundle.version
    assert {role: part.version for role, part in loaded.parts.items()} == {
        role: part.version for role, part in bundle.parts.items()
    }
    raw = raw_features(bundle.spec.schema, 20, np.random.default_rng(0))
    one, other = (loaded.parts[role].navigator().scores(raw) for role in ("one", "other"))
    np.testing.assert_allclose(loaded.navigator().scores(raw), 0.25 * one + 0.75 * other)
    assert not np.allclose(one, other)


def test_a_part_that_was_taken_away_or_changed_is_noticed(tmp_path: Path) -> None:
    path = save_bundle(blend(), tmp_path / "bundle")
    save_bundle(heuristic("heuristic.last_exit_page"), path / "parts" / "one")
    with pytest.raises(BundleError, match="recorded version"):
        load_bundle(path)


def test_a_role_must_be_filled(tmp_path: Path) -> None:
    bundle = blend()
    del bundle.parts["other"]
    with pytest.raises(BundleError, match="composed of"):
        bundle.navigator()


def test_other_pages_are_another_version(tmp_path: Path) -> None:
    path = save_bundle(heuristic("heuristic.popularity"), tmp_path / "bundle") / "bundle.json"
    record = json.loads(path.read_text())
    record["pages"]["pages"][0]["values"] = ["another"]
    path.write_text(json.dumps(record))
    with pytest.raises(BundleError, match="recorded version"):
        load_bundle(path.parent)


@pytest.mark.parametrize("content", ["[]", "{", "null", '{"format": 1}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    path = save_bundle(heuristic("heuristic.popularity"), tmp_path / "bundle") / "bundle.json"
    path.write_text(content)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(path.parent)
