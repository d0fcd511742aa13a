"""KLAN-IIT: discrete conservative Q-learning with a tidal coefficient (KLAN 4.2, A.4).

Differences from the paper, each settled on purpose:
- Eq. 27 and eq. 28 both multiply by alpha; here it enters once:
  alpha_t = clip(alpha w_hour w_entry, 0.1 alpha, 5 alpha).
- A.4 names the daily entry number as a second tidal feature without a formula; w_entry is eq. 27 over how common the
  day's entry number is (`TableStats.step_activity`).
- alpha_t belongs to a sample, so the penalty of eq. 9 is averaged after weighting.
- The reward is in mean sessions, and p of eq. 11 has a temperature (1 by default).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from plpm_ray.core.config import Tunable
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import MAX_STEP, TableStats
from plpm_ray.navigators.base import Batch
from plpm_ray.navigators.q_learning import QConfig, QLearner, chosen, td_loss

CLIP_LOW, CLIP_HIGH = 0.1, 5.0


class IITConfig(QConfig):
    """Intra-day interest transitions by conservative Q-learning, less careful where the logs are dense (KLAN 4.2).

    Keeps Q low on pages the logging policy rarely chose, by a penalty whose weight follows the tide of the day.
    """

    alpha: Annotated[float, Tunable(0.01, 10.0, log=True)] = Field(
        0.1,
        ge=0,
        description="base weight of the conservative penalty (eq. 10), per unit of squared mean sessions; logs of few thousand "
        "users need more, of millions bear less; 0 gives DQN",
    )
    beta: Annotated[float, Tunable(0.0, 3.0)] = Field(
        1.0,
        ge=0,
        description="how strongly the penalty falls where activity is high (eq. 27); 0 keeps it constant",
    )
    entry_steps: int = Field(
        16,
        ge=1,
        le=MAX_STEP,
        description="entry numbers of the day told apart; later ones share the last cell",
    )


@register("learner", "klan.iit")
class IIT(QLearner):
    """Eq. 10: TD loss plus alpha_t times the conservative regulariser."""

    Config: ClassVar[type[QConfig]] = IITConfig
    config: IITConfig
    columns: ClassVar[tuple[str, ...]] = ("action", "use_s", "done", "hour", "step")
    hour_activity: Tensor
    entry_activity: Tensor
    alpha_table: Tensor

    def __init__(self, config: IITConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats) -> None:
        super().__init__(config, spec, pages, stats)
        hours = torch.as_tensor(stats.hour_activity, dtype=torch.float32)
        entries = torch.as_tensor(stats.step_activity(config.entry_steps), dtype=torch.float32)
        self.register_buffer("hour_activity", hours)
        self.register_buffer("entry_activity", entries)
        # every combination is known in advance, so that a sample's coefficient is one lookup
        self.register_buffer(
            "alpha_table",
            coefficient(config.alpha, config.beta, hours[:, None], entries[None, :]),
            persistent=False,
        )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        table = coefficient(
            self.config.alpha, self.config.beta, self.hour_activity[:, None], self.entry_activity[None, :]
        )
        self.alpha_table.copy_(table)

    def alpha_t(self, batch: Batch) -> Tensor:
        """(B,) coefficient of each sample's penalty (eq. 28)."""
        return self.alpha_table[batch["hour"], batch["step"].clamp(max=self.config.entry_steps - 1)]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        q_BK = self.q(batch["dense"], batch["cat"])
        q_B = chosen(q_BK, batch["action"])
        td = td_loss(q_B, self.td_target(batch)).mean()
        penalty = (self.alpha_t(batch) * regulariser(q_BK, q_B)).mean()
        return {"loss": td + penalty, "td": td.detach(), "penalty": penalty.detach()}

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Those of every Q-learner, alpha_t beside them, and eq. 10 as the loss."""
        found = super().metrics(batch)
        alpha_B = self.alpha_t(batch)
        return found | {"loss": found["td_error_sq"] + alpha_B * found["regulariser"], "alpha_t": alpha_B}


def regulariser(q_BK: Tensor, q_B: Tensor) -> Tensor:
    """(B,) log sum_a exp Q(s, a) - Q(s, a of the log), never negative (eq. 9 before its mean)."""
    return q_BK.logsumexp(1) - q_B


def tidal_weight(activity: Tensor, beta: float) -> Tensor:
    """exp(-beta (V - 1)): above 1 in quiet hours, below 1 in busy ones (eq. 27 without alpha)."""
    return torch.exp(-beta * (activity - 1.0))


def coefficient(alpha: float, beta: float, hour_activity: Tensor, entry_activity: Tensor) -> Tensor:
    """alpha_t = clip(alpha w_hour w_entry, 0.1 alpha, 5 alpha) (eq. 28); the activities are broadcast."""
    # the product of both weights, in one exponential: apart, one may be infinite where the other is 0
    weight = tidal_weight(hour_activity + entry_activity - 1.0, beta)
    return alpha * weight.clamp(CLIP_LOW, CLIP_HIGH)
