"""From the measures of models and their draws to the lists of `uplift.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from plpm_ray.evaluation.uplift_bootstrap import draw_counts, percentile_interval
from plpm_ray.evaluation.uplift_models import Measure, ModelPart
from plpm_ray.evaluation.uplift_policy import PolicyTerms
from plpm_ray.evaluation.uplift_trial import Trial


class SingleArms:
    """What giving one arm to everybody is worth: the mean response of each arm, 1 / p weighted."""

    def __init__(self, trial: Trial) -> None:
        arms = range(len(trial.labels))
        self._terms = [PolicyTerms(np.full(len(trial), k), trial) for k in arms]
        self.measures = [Measure("policy_value", k) for k in arms]
        self.measures += [Measure("average_effect", k) for k in arms if k]

    def means(self, weight: np.ndarray) -> np.ndarray:
        """Of each arm, for each row of weights [R, U]; [R, K + 1]."""
        return np.stack([terms.of(weight)[:, 0] for terms in self._terms], axis=1)

    @staticmethod
    def values(means: np.ndarray) -> np.ndarray:
        """The measures from the means [R, K + 1]."""
        return np.concatenate([means, means[:, 1:] - means[:, :1]], axis=1)


@dataclass(frozen=True)
class Drawn:
    """Draws of the measures of each model [R, measures], its curves [R, K, points], and of the arms' means."""

    values: dict[str, np.ndarray]
    curves: dict[str, np.ndarray]
    arm_means: np.ndarray


def draw_all(
    parts: Mapping[str, ModelPart], singles: SingleArms, trial: Trial, repeats: int, seed: int
) -> Drawn:
    """Draws the users again and again, and measures every model on the same draws."""
    values: dict[str, list[np.ndarray]] = {label: [] for label in parts}
    curves: dict[str, list[np.ndarray]] = {label: [] for label in parts}
    alone = []
    for counts in draw_counts(trial.arm, repeats, seed, stratified=not trial.known_propensity):
        weight = counts if trial.weight is None else counts * trial.weight
        alone.append(singles.means(weight))
        for label, part in parts.items():
            drawn, curve = part.draw(counts, weight, alone[-1])
            values[label].append(drawn)
            curves[label].append(curve)
    return Drawn(
        values={label: np.concatenate(chunks) for label, chunks in values.items()},
        curves={label: np.concatenate(chunks) for label, chunks in curves.items()},
        arm_means=np.concatenate(alone),
    )


class Rows:
    """Lists of plain values from measures and draws."""

    def __init__(self, trial: Trial, unit: str, level: float) -> None:
        self._labels, self._level = trial.labels, level
        self._units = {"response": unit, "share": "share of users", "plain": ""}

    def tables(
        self,
        parts: Mapping[str, ModelPart],
        singles: SingleArms,
        drawn: Drawn,
        weight: np.ndarray,
        grid: np.ndarray,
    ) -> dict[str, list[dict[str, Any]]]:
        means = singles.means(weight[None])
        value = {label: part.value(weight, means[0]) for label, part in parts.items()}
        first, *others = parts
        rows, differences = [], []
        for label, part in parts.items():
            rows += self._of({"model": label}, part.measures, value[label], drawn.values[label])
        for label in others:
            mine, theirs = parts[label].measures, parts[first].measures
            # gains differ as the policy values do, and a doubly robust value may be of one model only
            shared = [m for m in mine if m in theirs and not m.metric.startswith("policy_gain")]
            a, b = [mine.index(m) for m in shared], [theirs.index(m) for m in shared]
            differences += self._of(
                {"model": label, "against": first},
                shared,
                value[label][a] - value[first][b],
                drawn.values[label][:, a] - drawn.values[first][:, b],
            )
        return {
            "rows": rows,
            "differences": differences,
            "references": self._of(
                {}, singles.measures, singles.values(means)[0], singles.values(drawn.arm_means)
            ),
            "curves": [c for label, part in parts.items() for c in self._curves(label, part, drawn, grid)],
        }

    def _of(
        self, keys: dict[str, Any], measures: list[Measure], values: np.ndarray, draws: np.ndarray
    ) -> list[dict[str, Any]]:
        low, high = percentile_interval(draws, self._level)
        return [
            {
                **keys,
                "arm": None if m.arm is None else self._labels[m.arm],
                "metric": m.metric,
                "value": _plain(values[i]),
                "low": _plain(low[i]),
                "high": _plain(high[i]),
                "unit": self._units[m.kind],
            }
            for i, m in enumerate(measures)
        ]

    def _curves(self, label: str, part: ModelPart, drawn: Drawn, grid: np.ndarray) -> list[dict[str, Any]]:
        low, high = percentile_interval(drawn.curves[label], self._level)
        curves = []
        for k, arm in enumerate(part.arms):
            curve = arm.curve.thinned(len(grid))
            lines = {"share": curve.share, "qini": curve.gain, "low": low[k], "high": high[k]}
            lines["random"] = curve.random
            plain = {name: [_plain(x) for x in line] for name, line in lines.items()}
            curves.append({"model": label, "arm": self._labels[k + 1], **plain})
        return curves


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
