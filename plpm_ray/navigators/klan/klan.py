"""KLAN: static preference (ISP), dynamic interest (IIT) and what weighs them against each other (AM) (KLAN 4.3.2, 4.3.3).

sigma_k = gamma_k delta_k + (1 - gamma_k) p_k (eq. 13); the policy takes the largest (eq. 14), or explores.

Differences from the paper, each settled on purpose:
- delta (eq. 6) and p (eq. 11) live on scales of their own: the ratios in eq. 6 differ by some percent between pages, so
  that delta at temperature 1 is almost the same for all pages and eq. 13 hardly hears it, whatever gamma says. Both have
  a temperature; that of delta is set when the parts are composed, so that delta spreads over the pages as p does.
- A constant gamma, ISP alone and IIT alone are settings.

Letters: B rows, K pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from plpm_ray.core.config import Tunable
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Heuristic, HeuristicConfig, Navigator

DELTA = "delta"
"""Name of the stored vectors that hold delta."""
_TINY = 1e-12


class KLANConfig(HeuristicConfig):
    """How the parts are fused; the parts themselves are bundles."""

    fusion: Literal["adaptive", "isp", "iit"] = Field(
        "adaptive", description="adaptive: eq. 13; isp: delta alone; iit: p alone (the paper's ablations)"
    )
    gamma: Annotated[float | None, Tunable(0.0, 1.0)] = Field(
        None, ge=0, le=1, description="the same weight of delta for all pages and entries; null asks AM"
    )
    delta_temperature: Annotated[float | None, Tunable(0.005, 2.0, log=True)] = Field(
        None,
        gt=0,
        description="divides the ratios of eq. 6; 1 is the paper's; null: set when composed, so that delta spreads as p does",
    )
    p_temperature: Annotated[float, Tunable(0.05, 5.0, log=True)] = Field(
        1.0, gt=0, description="divides Q in eq. 11, on top of IIT's own temperature"
    )
    population: tuple[float, ...] | None = Field(
        None,
        description="delta of users for whom none is stored; set when composed; null: the same for all pages",
    )


@register("navigator", "klan")
class KLAN(Heuristic):
    """The composed navigator. delta comes from the state store where it was scored, else from ISP itself: ISP reads
    only features that are constant within a local day, so that both are the same number."""

    Config: ClassVar[type[HeuristicConfig]] = KLANConfig
    config: KLANConfig
    roles: ClassVar[Mapping[str, str]] = {"isp": "klan.isp", "iit": "klan.iit", "am": "klan.am"}
    settled = ("delta_temperature", "population")
    reads = (DELTA,)
    answers_unknown = True

    def __init__(
        self,
        config: Any,
        pages: PageCatalogue,
        stats: TableStats,
        version: str = "klan",
        parts: Mapping[str, Navigator] | None = None,
    ) -> None:
        super().__init__(config, pages, stats, version, parts)
        k = len(pages)
        self._population = np.array(config.population or [1.0 / k] * k, dtype=np.float32)

    def needed(self, features: RawFeatures) -> tuple[str, ...]:
        """The roles whose scores a decision on these features needs."""
        config = self.config
        stored = DELTA in features.vectors
        isp = () if stored or config.fusion == "iit" else ("isp",)
        iit = () if config.fusion == "isp" else ("iit",)
        am = ("am",) if config.fusion == "adaptive" and config.gamma is None else ()
        return (*isp, *iit, *am)

    def part_scores(self, features: RawFeatures, roles: Sequence[str]) -> dict[str, np.ndarray]:
        """(B, K) scores of the parts asked for; serving may put in its place what asks them side by side."""
        return {role: self.parts[role].scores(features) for role in roles}

    def fused(
        self, features: RawFeatures, part_scores: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(B, K) sigma of eq. 13, and what it is made of: delta, p, gamma (as far as they were needed), sigma."""
        config, found = self.config, {}
        if config.fusion != "iit":
            raw = features.vectors[DELTA] if DELTA in features.vectors else part_scores["isp"]
            missing = np.isnan(raw).any(axis=1, keepdims=True)
            found["delta"] = sharpened(np.where(missing, self._population, raw), config.delta_temperature)
        if config.fusion != "isp":
            found["p"] = sharpened(part_scores["iit"], config.p_temperature)
        if config.fusion == "adaptive":
            gamma = part_scores["am"] if config.gamma is None else np.full_like(found["p"], config.gamma)
            found["gamma"] = gamma.astype(np.float32)
            sigma = fuse(found["gamma"], found["delta"], found["p"])
        else:
            sigma = found["delta" if config.fusion == "isp" else "p"]
        found["sigma"] = sigma
        return sigma, found

    def explained(
        self, features: RawFeatures, state: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.fused(features, self.part_scores(features, self.needed(features)))

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        return self.explained(features)[0]

    def composed(self, features: RawFeatures) -> KLANConfig:
        """The config with what follows from the parts filled in: population's delta, and delta's temperature.

        Args:
            features: (B,) rows of the training window, at least one.
        """
        scores = self.part_scores(features, ("isp", "iit"))
        found: dict[str, Any] = {}
        if self.config.population is None:
            mean = scores["isp"].astype(np.float64).mean(axis=0)
            found["population"] = tuple((mean / mean.sum()).tolist())
        if self.config.delta_temperature is None:
            wanted = spread(sharpened(scores["iit"], self.config.p_temperature))
            # where one of the two says nothing at all, there is nothing to match
            own = spread(scores["isp"])
            found["delta_temperature"] = own / wanted if own > _TINY and wanted > _TINY else 1.0
        return self.config.model_copy(update=found)


def fuse(gamma: np.ndarray, delta: np.ndarray, p: np.ndarray) -> np.ndarray:
    """(B, K) sigma = gamma delta + (1 - gamma) p (eq. 13)."""
    return gamma * delta + (1 - gamma) * p


def sharpened(probabilities: np.ndarray, temperature: float | None) -> np.ndarray:
    """(B, K) softmax of log x / temperature: eq. 6 or 11 with their exponents divided by it. None changes nothing."""
    if temperature is None or temperature == 1.0:
        return probabilities.astype(np.float32)
    logits = np.log(np.maximum(probabilities, _TINY)).astype(np.float64) / temperature
    logits -= logits.max(axis=1, keepdims=True, initial=-np.inf) if len(logits) else 0.0
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def spread(probabilities: np.ndarray) -> float:
    """Standard deviation over the pages of log x, root mean square over B rows: 0 where all pages are alike."""
    logits = np.log(np.maximum(probabilities, _TINY)).astype(np.float64)
    return float(np.sqrt(logits.var(axis=1).mean())) if len(logits) else 0.0
