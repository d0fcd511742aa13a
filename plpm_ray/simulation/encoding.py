"""Observations of the environments: the features that learners read, encoded by the same fitted spec, as one row of numbers.

Layout: the N dense features of `FeatureSpec.encode`, then the one-hot code of each categorical feature, code 0 (unknown)
included. `plpm_ray.navigators.reference.rllib` makes the same row from the same codes in torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from plpm_ray.core.errors import BundleError, ConfigError, StorageError
from plpm_ray.core.feature_fitting import SpecFitter
from plpm_ray.core.features import FeatureSchema, FeatureSpec, RawFeatures, squash
from plpm_ray.core.stats import TableStats
from plpm_ray.core.storage import read_json
from plpm_ray.simulation.choosers import LoggingPolicy
from plpm_ray.simulation.config import WorldConfig
from plpm_ray.simulation.online import OnlineFeatures
from plpm_ray.simulation.simulation import Sessions, Simulation, run_days
from plpm_ray.simulation.world import World

_FIT_USERS, _FIT_FIRST_USER = 500, 1 << 41
_FIT_WARMUP_DAYS, _FIT_DAYS = 14, 7


@dataclass(frozen=True)
class WorldFeatures:
    """A fitted encoder and the totals of the sessions it was fitted on, as a bundle holds them."""

    spec: FeatureSpec
    stats: TableStats


class ObservationEncoder:
    """Raw features -> (B, W) float32 rows.

    Attributes:
        width: W, dense features and codes of all categorical features.
        low, high: (W,) float32 bounds that no row leaves, whatever the features are.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        sizes = np.array(spec.cat_sizes, dtype=np.int64)
        self._starts = spec.n_dense + np.cumsum(sizes) - sizes
        self.width = int(spec.n_dense + sizes.sum())
        # the squashed value of any finite float32 lies within these
        most = squash(np.array([np.finfo(np.float32).max], dtype=np.float32))[0]
        self.low = np.zeros(self.width, dtype=np.float32)
        self.high = np.ones(self.width, dtype=np.float32)
        self.low[: spec.n_dense] = np.minimum((-most - spec.mean) / spec.std, 0.0)
        self.high[: spec.n_dense] = np.maximum((most - spec.mean) / spec.std, 0.0)

    def encode(self, raw: RawFeatures) -> np.ndarray:
        """Raw features of B rows -> (B, W) float32.

        Raises:
            BundleError: the features belong to another schema than the one fitted.
        """
        encoded = self.spec.encode(raw)
        return self.join(encoded.dense, encoded.cat)

    def join(self, dense: np.ndarray, cat: np.ndarray) -> np.ndarray:
        """Encoded features, (B, N) float32 and (B, F) integers -> (B, W) float32."""
        out = np.zeros((len(dense), self.width), dtype=np.float32)
        out[:, : self.spec.n_dense] = dense
        out[np.arange(len(dense))[:, None], self._starts + cat] = 1.0
        return out


def fit_features(config: WorldConfig) -> WorldFeatures:
    """Encoder and totals of a week of the world's own logs, of users of its own; the same in every process."""
    return _fit(config.model_dump_json())


@lru_cache(maxsize=8)
def _fit(config: str) -> WorldFeatures:
    world = World(WorldConfig.model_validate_json(config))
    simulation = Simulation(world, np.arange(_FIT_USERS) + _FIT_FIRST_USER)
    online, policy = OnlineFeatures(world, simulation.users.profile()), LoggingPolicy()
    run_days(simulation, _FIT_WARMUP_DAYS, policy, online.observe)
    fitter = SpecFitter(online.schema)
    totals: list[TableStats] = []

    def add(sessions: Sessions) -> None:
        fitter.update(online.features(sessions.entries))
        totals.append(TableStats.of(len(world), **sessions.stat_columns()))
        online.observe(sessions)

    run_days(simulation, _FIT_DAYS, policy, add)
    return WorldFeatures(fitter.finish(), sum(totals[1:], totals[0]))


def read_features(path: str | Path, schema: FeatureSchema, owner: str) -> WorldFeatures:
    """Encoder and totals of a bundle, or of a warehouse's training window.

    Args:
        path: a bundle folder, a run folder, a run's name without its hash, `<warehouse>/fitted/<fingerprint>.json`, or a
            warehouse that holds one of these.
        schema: pages and columns that they must have; `owner` names the world or tables to which these belong.

    Raises:
        ConfigError: there are none, there are several, or they belong to other pages or columns.
        BundleError: the bundle is damaged.
    """
    found = _stored(Path(path))
    if found.spec.schema != schema:
        raise ConfigError(
            f"the features of {path} are those of other pages or columns than {owner!r} has",
            hint="give a bundle or a warehouse made from logs of it, or leave `features` out",
        )
    return found


def _stored(path: Path) -> WorldFeatures:
    # torch comes with bundles; environments without one do not need it
    from plpm_ray.navigators.bundle import find_bundle, load_bundle

    files = [path] if path.is_file() else sorted((path / "fitted").glob("*.json"))
    if len(files) > 1:
        raise ConfigError(
            f"{path} holds the features of {len(files)} training windows",
            hint=f"give one of them: {', '.join(str(file) for file in files[:3])}",
        )
    if files:
        try:
            kept = read_json(files[0])
            return WorldFeatures(FeatureSpec.from_dict(kept["spec"]), TableStats.from_dict(kept["stats"]))
        except (KeyError, TypeError, StorageError) as error:
            raise ConfigError(f"{path} holds no readable features: {error}", hint="copy it again") from None
    try:
        folder = find_bundle(path)
    except BundleError:
        raise ConfigError(
            f"{path} holds no fitted features",
            hint="give a bundle, a run folder, or a warehouse that something was trained on",
        ) from None
    bundle = load_bundle(folder)
    return WorldFeatures(bundle.spec, bundle.stats)
