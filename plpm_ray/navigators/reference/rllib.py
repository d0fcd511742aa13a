"""Networks trained by RLlib (DQN, PPO, BC, MARWIL), as plain torch: they score, serve and are judged without Ray.

`plpm_ray.simulation.ray_rllib` trains them and copies their weights; `plpm train` can also fit one to tables.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch, Learner, LearnerConfig
from plpm_ray.nn import MLP


class RLlibNetworkConfig(LearnerConfig):
    """The layers of the network, and what its outputs mean."""

    algorithm: Literal["dqn", "ppo", "bc", "marwil"] = Field(
        "bc",
        description="what trained it; outputs of dqn are values of the pages, those of the others logits of a policy",
    )
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (256, 256), min_length=1, description="width of each hidden layer"
    )
    reward_scale_s: float | None = Field(
        None,
        gt=0,
        description="seconds that gave a reward of 1; null: the mean session of the training window",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="divides the outputs in the softmax of the scores; in units of the reward for dqn",
    )


@register("learner", "reference.rllib")
class RLlibNetwork(Learner):
    """An MLP over dense features and one-hot categories, as RLlib's default modules build it for such an observation.

    Its own loss is that of RLlib's algorithms without a next state: the cross entropy of the logged page (BC), or for dqn
    the squared error of the session's reward.
    """

    Config: ClassVar[type[RLlibNetworkConfig]] = RLlibNetworkConfig
    config: RLlibNetworkConfig
    grain: ClassVar[Literal["transition", "session"]] = "session"
    columns: ClassVar[tuple[str, ...]] = ("action", "use_s")
    starts: Tensor
    scale_s: Tensor

    def __init__(
        self, config: RLlibNetworkConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats
    ) -> None:
        super().__init__(config, spec, pages, stats)
        sizes = torch.tensor(spec.cat_sizes, dtype=torch.int64)
        # where the codes of each categorical feature begin; it follows from the spec, so it need not travel
        self.register_buffer("starts", sizes.cumsum(0) - sizes, persistent=False)
        self.n_codes = int(sizes.sum())
        self.mlp = MLP(spec.n_dense + self.n_codes, config.hidden, len(pages))
        scale_s = stats.mean_use_s if config.reward_scale_s is None else config.reward_scale_s
        self.register_buffer("scale_s", torch.tensor(scale_s, dtype=torch.float32))

    def observations(self, batch: Batch) -> Tensor:
        """(B, W) float32, as the environments make them (`plpm_ray.simulation.encoding`)."""
        dense_BN, cat_BF = batch["dense"], batch["cat"]
        codes = dense_BN.new_zeros(len(dense_BN), self.n_codes).scatter_(1, cat_BF + self.starts, 1.0)
        return torch.cat([dense_BN, codes], dim=1)

    def outputs(self, batch: Batch) -> Tensor:
        """(B, K) values in units of the reward (dqn), or logits."""
        return self.mlp(self.observations(batch))

    def scores(self, batch: Batch) -> Tensor:
        """(B, K) softmax of the outputs; for all but dqn the probabilities of the trained policy."""
        return F.softmax(self.outputs(batch) / self.config.temperature, dim=1)

    def values(self, batch: Batch) -> Tensor | None:
        """(B, K) expected return in seconds, of dqn alone."""
        return self.outputs(batch) * self.scale_s if self.config.algorithm == "dqn" else None

    def _loss(self, batch: Batch) -> Tensor:
        outputs_BK = self.outputs(batch)
        if self.config.algorithm != "dqn":
            return F.cross_entropy(outputs_BK, batch["action"], reduction="none")
        chosen_B = outputs_BK.gather(1, batch["action"].unsqueeze(1)).squeeze(1)
        return (chosen_B - batch["use_s"] / self.scale_s).square()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self._loss(batch).mean()}

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """(B,) each: loss, and whether the best page is the logged one."""
        agreement = (self.outputs(batch).argmax(1) == batch["action"]).float()
        return {"loss": self._loss(batch), "agreement": agreement}
