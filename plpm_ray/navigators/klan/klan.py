"""KLAN: static preference (ISP), dynamic interest (IIT) and what weighs them against each other (AM) (KLAN 4.3.2, 4.3.3).

Eq. 13 is sigma_k = gamma_k delta_k + (1 - gamma_k) p_k; the policy takes the largest (eq. 14), or explores. Three ways to use
gamma, all of them on what ISP, IIT and AM say as the paper has them:

- `page`: eq. 13 to the letter. Its weights differ between the pages of one decision, so sigma is no mixture of two
  preferences: where p_k > delta_k, and that is the page that IIT likes best, a *higher* chance that the user stays static there
  *lowers* the page's sigma. What AM knows of the pages works against it.
- `shared`: eq. 13 with the mean of gamma over the pages, g, for all of them.
- `gate`, the default: sigma_k = gamma_k (g delta_k + (1 - g) p_k). g weighs the preferences as AM is meant to, and gamma_k, the
  chance that a user who lands on page k stays with it, speaks for page k. docs/klan.md has what each came to.

Both exponents, y_k / y_0 in eq. 6 and Q in eq. 11, are in units of the mean use (of a day, of a session), so that the same
difference means the same gain in both and the temperatures are 1. A constant gamma and each part alone are settings.

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
from plpm_ray.navigators.base import Heuristic, HeuristicConfig, Navigator, scores_of

DELTA = "delta"
"""Name of the stored vectors that hold delta."""
_TINY = 1e-12


class KLANConfig(HeuristicConfig):
    """How the parts are fused; the parts themselves are bundles."""

    fusion: Literal["adaptive", "isp", "iit", "am"] = Field(
        "adaptive",
        description="adaptive: all parts; isp: delta alone; iit: p alone (the paper's ablations); am: gamma alone",
    )
    weights: Literal["gate", "shared", "page"] = Field(
        "gate",
        description="how gamma enters: page: eq. 13 with a weight for each page; shared: eq. 13 with their mean for all; "
        "gate: the shared mixture times gamma of the page",
    )
    gamma: Annotated[float | None, Tunable(0.0, 1.0)] = Field(
        None, ge=0, le=1, description="the same weight of delta for all pages and entries; null asks AM"
    )
    delta_temperature: Annotated[float, Tunable(0.05, 5.0, log=True)] = Field(
        1.0, gt=0, description="divides the ratios of eq. 6; below 1 delta is sharper"
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
        if config.fusion != "adaptive":
            alone = config.fusion
            return () if alone == "isp" and DELTA in features.vectors else (alone,)
        isp = () if DELTA in features.vectors else ("isp",)
        return (*isp, "iit") if config.gamma is not None else (*isp, "iit", "am")

    def part_scores(self, features: RawFeatures, roles: Sequence[str]) -> dict[str, np.ndarray]:
        """(B, K) scores of the parts asked for; serving may put in its place what asks them side by side."""
        return scores_of({role: self.parts[role] for role in roles}, features)

    def fused(
        self, features: RawFeatures, part_scores: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(B, K) sigma, and what it is made of: delta, p, gamma (as far as they were needed), sigma."""
        config, found = self.config, {}
        if config.fusion in ("adaptive", "isp"):
            raw = features.vectors[DELTA] if DELTA in features.vectors else part_scores["isp"]
            missing = np.isnan(raw).any(axis=1, keepdims=True)
            found["delta"] = sharpened(np.where(missing, self._population, raw), config.delta_temperature)
        if config.fusion in ("adaptive", "iit"):
            found["p"] = sharpened(part_scores["iit"], config.p_temperature)
        if config.fusion == "am" or (config.fusion == "adaptive" and config.gamma is None):
            found["gamma"] = part_scores["am"].astype(np.float32)
        elif config.fusion == "adaptive":
            found["gamma"] = np.full_like(found["p"], config.gamma)
        if config.fusion == "adaptive":
            sigma = self._mixed(**found)
        else:
            sigma = found[{"isp": "delta", "iit": "p", "am": "gamma"}[config.fusion]]
        found["sigma"] = sigma
        return sigma, found

    def _mixed(self, delta: np.ndarray, p: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        if self.config.weights == "page" or self.config.gamma is not None:
            return fuse(gamma, delta, p)
        shared = fuse(gamma.mean(axis=1, keepdims=True), delta, p)
        return shared if self.config.weights == "shared" else gamma * shared

    def explained(
        self, features: RawFeatures, state: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.fused(features, self.part_scores(features, self.needed(features)))

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        return self.explained(features)[0]

    def composed(self, features: RawFeatures) -> KLANConfig:
        """The config with the population's delta filled in.

        Args:
            features: (B,) rows of the training window, at least one.
        """
        if self.config.population is not None:
            return self.config
        mean = self.parts["isp"].scores(features).astype(np.float64).mean(axis=0)
        return self.config.model_copy(update={"population": tuple((mean / mean.sum()).tolist())})


def fuse(gamma: np.ndarray, delta: np.ndarray, p: np.ndarray) -> np.ndarray:
    """(B, K) sigma = gamma delta + (1 - gamma) p (eq. 13)."""
    return gamma * delta + (1 - gamma) * p


def sharpened(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(B, K) softmax of log x / temperature: eq. 6 or 11 with their exponents divided by it."""
    if temperature == 1.0:
        return probabilities.astype(np.float32)
    logits = np.log(np.maximum(probabilities, _TINY)).astype(np.float64) / temperature
    logits -= logits.max(axis=1, keepdims=True, initial=-np.inf) if len(logits) else 0.0
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
