"""What an engineer tries first: a boosted-tree model of a session's seconds for every page, and the page with the most.

Same features, same sessions as the learners; no view beyond the session. Needs the extra `lightgbm`.

Letters: R rows of the table, B rows of a batch, K pages, D = N dense and F categorical inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from plpm_ray.core.config import Tunable
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import Encoded, FeatureSpec, RawFeatures
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import FittedNavigator, HeuristicConfig


class LightGBMConfig(HeuristicConfig):
    """Regression of seconds by the page that was landed on, L2 loss, stopped early on the validation rows."""

    rounds: int = Field(400, ge=1, description="most trees of a page")
    learning_rate: Annotated[float, Tunable(0.01, 0.3, log=True)] = Field(
        0.05, gt=0, le=1, description="shrinkage of each tree"
    )
    leaves: Annotated[int, Tunable(7, 127, log=True, kind="int")] = Field(
        31, ge=2, description="leaves of a tree"
    )
    min_leaf_rows: int = Field(50, ge=1, description="fewest sessions in a leaf")
    patience: int = Field(30, ge=1, description="trees without a better validation error before a page stops")
    threads: int = Field(1, ge=1, description="CPU threads of fitting and scoring")


@register("navigator", "reference.lightgbm")
class LightGBM(FittedNavigator):
    """arg max over pages of predicted seconds; a page with too few sessions predicts its mean."""

    Config: ClassVar[type[HeuristicConfig]] = LightGBMConfig
    config: LightGBMConfig

    def __init__(
        self,
        config: Any,
        pages: PageCatalogue,
        stats: TableStats,
        version: str,
        spec: FeatureSpec,
        weights: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__(config, pages, stats, version, spec, weights)
        booster = _library().Booster
        self._means = weights["means"].view(np.float64)
        self._models = [
            booster(model_str=weights[name].tobytes().decode()) if (name := f"page.{k}") in weights else None
            for k in range(len(pages))
        ]

    @classmethod
    def fit(
        cls,
        config: LightGBMConfig,
        spec: FeatureSpec,
        pages: PageCatalogue,
        stats: TableStats,
        train: Mapping[str, np.ndarray],
        valid: Mapping[str, np.ndarray] | None,
        seed: int,
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        x, action, y = _inputs(train), train["action"], train["use_s"].astype(np.float64)
        means = np.array(
            [y[action == k].mean() if (action == k).any() else y.mean() for k in range(len(pages))]
        )
        weights: dict[str, np.ndarray] = {"means": np.frombuffer(means.tobytes(), np.uint8).copy()}
        for k in range(len(pages)):
            rows = action == k
            if rows.sum() < 2 * config.min_leaf_rows:
                continue
            held = None if valid is None else valid["action"] == k
            text = _fit_page(config, spec, x[rows], y[rows], valid, held, seed)
            weights[f"page.{k}"] = np.frombuffer(text.encode(), np.uint8).copy()
        metrics = {}
        if valid is not None and len(valid["action"]):
            navigator = cls(config, pages, stats, "fitting", spec, weights)
            predicted = navigator._seconds(_inputs(valid))
            error = predicted[np.arange(len(predicted)), valid["action"]] - valid["use_s"]
            metrics = {"loss": float((error**2).mean()), "rmse_s": float(np.sqrt((error**2).mean()))}
        return weights, metrics

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        """(B, K) float32 seconds."""
        return self._seconds(_stacked(self.spec.encode(features))).astype(np.float32)

    def values(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray | None:
        return self.scores(features)

    def _seconds(self, x_BD: np.ndarray) -> np.ndarray:
        found = np.tile(self._means, (len(x_BD), 1))
        for k, model in enumerate(self._models):
            if model is not None and len(x_BD):
                found[:, k] = model.predict(x_BD, num_threads=self.config.threads)
        return found


def _fit_page(
    config: LightGBMConfig,
    spec: FeatureSpec,
    x_RD: np.ndarray,
    y_R: np.ndarray,
    valid: Mapping[str, np.ndarray] | None,
    held: np.ndarray | None,
    seed: int,
) -> str:
    """The model of one page, as LightGBM's own text."""
    lgb = _library()
    codes = list(range(spec.n_dense, x_RD.shape[1]))
    train = lgb.Dataset(x_RD, y_R, categorical_feature=codes, free_raw_data=True)
    sets, callbacks = [], []
    if valid is not None and held is not None and held.sum() >= config.min_leaf_rows:
        sets = [train.create_valid(_inputs(valid)[held], valid["use_s"][held].astype(np.float64))]
        callbacks = [lgb.early_stopping(config.patience, verbose=False)]
    options = {
        "objective": "regression",
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.min_leaf_rows,
        "num_threads": config.threads,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
    }
    model = lgb.train(options, train, config.rounds, valid_sets=sets, callbacks=callbacks)
    return model.model_to_string(num_iteration=model.best_iteration or None)


def _inputs(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """(R, D) float32 dense inputs, then codes."""
    return np.concatenate([columns["dense"], columns["cat"].astype(np.float32)], axis=1)


def _stacked(encoded: Encoded) -> np.ndarray:
    return np.concatenate([encoded.dense, encoded.cat.astype(np.float32)], axis=1)


def _library() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise ConfigError(
            "reference.lightgbm needs the library lightgbm", hint="pip install 'plpm_ray[lightgbm]'"
        ) from None
    return lightgbm
