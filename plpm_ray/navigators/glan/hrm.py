"""GLAN's HRM: what a session was worth, once it has ended (GLAN 4.2, A.2, eq. 21 to 28 and 32, 33).

Letters: B batch, K pages, F fields, N numeric and C coded fields, D width of an embedding, M experts, H width of z.

Settled on purpose where the paper is open:
- Session features v are the video views on each page, the visits to each page and the number of switches. Durations are
  what is learnt, so none of them may enter: neither those of the pages nor of the landing nor of the whole session.
- Views that were not recorded count as 0, and a flag a page says whether they were.
- Counts are embedded by ln(1 + count) and by count / 8, each times a vector: the one sees few, the other many.
- The weights of eq. 33 depend on the landing page alone, so e_u is one weighted sum of tables (`FieldPool.picked`). Every
  landing page has a W and b of its own; the paper shares them between pages that are alike, and does not say which are.
- Durations are learnt in units of the mean session, and eq. 25 is averaged over the batch as eq. 26 is.

Different from the paper, on purpose:
- Focal loss (eq. 26) makes the chance of a drop-off a distorted one: with gamma = 2, a true chance of 1 % is learnt as about
  15 %, and eq. 28 would take 15 % off the reward. What minimises the focal loss is a known function of the true chance, whose
  inverse (`calibrated_odds`) needs no data; with `calibrated` the reward uses it. Without, it is the paper's.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from plpm_ray.core.config import Tunable
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch, Grain, Learner, LearnerConfig
from plpm_ray.nn import BranchMLP, FieldPool, MMoE

MANY = 8.0


class HRMConfig(LearnerConfig):
    """Reward of a session that has ended: seconds on each page, and the risk that the landing page was left at once.

    Learns to tell a session that was long because of its landing page from one that was long in spite of it.
    """

    tau_s: Annotated[float, Tunable(2.0, 30.0, log=True)] = Field(
        10.0,
        gt=0,
        description="seconds on the landing page below which it counts as left at once (tau); effective visits begin there",
    )
    switch_weight: Annotated[float, Tunable(0.1, 10.0, log=True)] = Field(
        1.0, ge=0, description="weight of the drop-off loss against that of the durations (lambda of eq. 27)"
    )
    gamma: Annotated[float, Tunable(0.0, 4.0)] = Field(
        2.0,
        ge=0,
        description="how much less the drop-off loss heeds sessions it is sure of (eq. 26); 0 is cross entropy",
    )
    calibrated: bool = Field(
        True,
        description="undo the distortion that gamma brings into the chance of a drop-off; false: as in the paper",
    )
    delta: Annotated[float, Tunable(0.5, 8.0, log=True)] = Field(
        4.0,
        gt=0,
        description="error of a page's seconds from which the loss is linear, in mean sessions; a small one aims at the median",
    )
    embedding_dim: Annotated[int, Tunable(8, 64, log=True, kind="int")] = Field(
        32, ge=1, le=256, description="numbers per embedded field and per landing page (D)"
    )
    experts: Annotated[int, Tunable(2, 8, kind="int")] = Field(
        4, ge=1, le=64, description="experts shared by all towers"
    )
    expert_hidden: Annotated[int, Tunable(16, 256, log=True, kind="int")] = Field(
        64, ge=1, description="hidden units of an expert"
    )
    expert_width: int = Field(32, ge=1, description="outputs of an expert, which the gates mix")
    tower_hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16,), description="width of each hidden layer of a tower"
    )


@register("learner", "glan.hrm")
class HRM(Learner):
    """Eq. 27: Huber loss of the seconds on every page, and focal loss of leaving the landing page at once."""

    Config: ClassVar[type[HRMConfig]] = HRMConfig
    config: HRMConfig
    grain: ClassVar[Grain] = "session"
    inputs: ClassVar[tuple[str, ...]] = ("dense", "cat", "session")
    columns: ClassVar[tuple[str, ...]] = ("page_dwell_s", "landing_dwell_s")
    says: ClassVar[tuple[str, ...] | None] = ("reward", "drop_off")
    mean_use_s: Tensor

    def __init__(self, config: HRMConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats) -> None:
        super().__init__(config, spec, pages, stats)
        k, width = len(pages), config.embedding_dim
        self.pages = pages.names
        session = session_width(k)
        self.fields = FieldPool([0] * (spec.n_dense + session), spec.cat_sizes, width, "linear")
        self.landing = nn.Embedding(k, width)
        nn.init.normal_(self.landing.weight, std=width**-0.5)
        self.selection_weight = nn.Parameter(torch.empty(k, self.fields.n_fields, width))
        self.selection_bias = nn.Parameter(torch.zeros(k, self.fields.n_fields))
        nn.init.normal_(self.selection_weight, std=width**-0.5)
        self.mmoe = MMoE(2 * width, config.expert_hidden, config.expert_width, config.experts, k + 1)
        self.towers = BranchMLP(k + 1, config.expert_width, config.tower_hidden, 1)
        self.register_buffer("mean_use_s", torch.tensor(stats.mean_use_s, dtype=torch.float32))

    def selection(self) -> Tensor:
        """(K, F) softmax(W^k e_k + b^k) of every landing page (eq. 33)."""
        logits = torch.einsum("kfd,kd->kf", self.selection_weight, self.landing.weight) + self.selection_bias
        return logits.softmax(1)

    def fused(self, batch: Batch) -> Tensor:
        """(B, 2 D) f: what the landing page selects, beside its embedding (eq. 21, 22)."""
        values_BN = torch.cat([batch["dense"], session_features(batch)], dim=1)
        selected_BD = self.fields.picked(batch["cat"], values_BN, self.selection(), batch["action"])
        return torch.cat([selected_BD, self.landing(batch["action"])], dim=1)

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, K) durations in mean sessions, and (B,) log odds of the focal drop-off chance (eq. 23, 24)."""
        out_BK = self.towers(self.mmoe(self.fused(batch))).squeeze(2).float()
        return F.softplus(out_BK[:, :-1]), out_BK[:, -1]

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, K) expected seconds on each page, and (B,) chance that the landing page was left at once."""
        units_BK, logit_B = self.outputs(batch)
        return units_BK * self.mean_use_s, self.odds(logit_B).sigmoid()

    def page_seconds(self, batch: Batch) -> Tensor:
        """(B, K) expected seconds on each page."""
        return self.predict(batch)[0]

    def odds(self, logit_B: Tensor) -> Tensor:
        """(B,) log odds of a drop-off as the config wants them."""
        return calibrated_odds(logit_B, self.config.gamma) if self.config.calibrated else logit_B

    def label(self, batch: Batch) -> Tensor:
        """(B,) float32, 1 where the landing page was left within tau seconds."""
        return (batch["landing_dwell_s"] < self.config.tau_s).float()

    def labels(self, batch: Batch) -> dict[str, Tensor]:
        return {"dropped": self.label(batch)}

    def terms(self, units_BK: Tensor, logit_B: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,) each: the losses of the durations (eq. 25) and of the drop-off (eq. 26)."""
        target_BK = batch["page_dwell_s"] / self.mean_use_s
        durations = F.huber_loss(units_BK, target_BK, reduction="none", delta=self.config.delta).sum(1)
        return durations, focal_loss(logit_B, self.label(batch), self.config.gamma)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        reg, sw = (term_B.mean() for term_B in self.terms(*self.outputs(batch), batch))
        return {"loss": reg + self.config.switch_weight * sw, "reg": reg.detach(), "sw": sw.detach()}

    def scores(self, batch: Batch) -> Tensor:
        """(B, 2) the reward of the session in seconds (eq. 28), and the chance of a drop-off."""
        units_BK, logit_B = self.outputs(batch)
        odds_B = self.odds(logit_B)
        return torch.stack([reward(units_BK * self.mean_use_s, odds_B), odds_B.sigmoid()], dim=1)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """(B,) each: eq. 27; log loss and squared error of the chance of a drop-off, whether there was one and how likely it was
        held to be; error of the session's seconds and of those on each page, `abs_error_s.<page>`."""
        units_BK, logit_B = self.outputs(batch)
        reg_B, sw_B = self.terms(units_BK, logit_B, batch)
        label_B, chance_B = self.label(batch), self.odds(logit_B).sigmoid()
        error_BK = units_BK * self.mean_use_s - batch["page_dwell_s"]
        found = {
            "loss": reg_B + self.config.switch_weight * sw_B,
            "log_loss": F.binary_cross_entropy(chance_B.clamp(1e-7, 1 - 1e-7), label_B, reduction="none"),
            "brier": (chance_B - label_B).square(),
            "drop_off": label_B,
            "predicted_drop_off": chance_B,
            "bias_s": error_BK.sum(1),
        }
        return found | {f"abs_error_s.{page}": error_BK[:, i].abs() for i, page in enumerate(self.pages)}


def session_width(n_pages: int) -> int:
    """Numbers of `session_features`."""
    return 2 * (2 * n_pages + 1) + n_pages


def session_features(batch: Batch) -> Tensor:
    """(B, 5 K + 2) v: logarithms and shares of views, visits and switches, then whether the views of each page are known."""
    known_BK = ~batch["page_views"].isnan()
    views_BK = batch["page_views"].nan_to_num(0.0)
    counts = torch.cat([views_BK, batch["page_visits"], batch["switches"].float().unsqueeze(1)], dim=1)
    return torch.cat([counts.log1p(), counts / MANY, known_BK.float()], dim=1)


def reward(seconds_BK: Tensor, odds_B: Tensor) -> Tensor:
    """(B,) seconds of the session, discounted by the risk of a drop-off, of which the log odds are given (eq. 28)."""
    # the chance to stay by itself: 1 - chance would be 0 long before it is
    return (-odds_B).sigmoid() * seconds_BK.sum(1)


def focal_loss(logit_B: Tensor, label_B: Tensor, gamma: float) -> Tensor:
    """(B,) cross entropy, each side weighed by (1 - its chance) ** gamma (eq. 26 before its mean)."""
    # powers as exponentials of logarithms: a chance may be too small for float32
    log_p, log_q = F.logsigmoid(logit_B), F.logsigmoid(-logit_B)
    return -(label_B * (gamma * log_q).exp() * log_p + (1 - label_B) * (gamma * log_p).exp() * log_q)


def calibrated_odds(logit_B: Tensor, gamma: float) -> Tensor:
    """(B,) log odds of the true chance for which a prediction minimises the expected focal loss.

    With p the prediction, setting the derivative of eq. 26 to zero gives
    chance = b / (a + b), a = (1 - p)^gamma / p - gamma (1 - p)^(gamma - 1) ln p, b the same with p and 1 - p exchanged.
    """
    log_p, log_q = F.logsigmoid(logit_B), F.logsigmoid(-logit_B)
    # logarithms of a p (1 - p) and b p (1 - p), all of whose parts are positive
    a = gamma * log_q + (log_q.exp() - gamma * log_p.exp() * log_p).log()
    b = gamma * log_p + (log_p.exp() - gamma * log_q.exp() * log_q).log()
    return b - a
