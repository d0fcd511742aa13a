"""GLAN's L-RTG: how long a user will use the app today, from what the last 30 days were like (GLAN 4.1, eq. 5 to 20).

Letters: B batch, T days before (the first is yesterday), D width, N daily numeric and F daily categorical features, M experts.

Settled on purpose where the paper is open:
- A row is a user's active day. Only features that stay the same within a local day are read, and its weekday, so that the
  prediction is the same at every entry of the day.
- Seconds are learnt in units of the mean day and sessions in units of their mean, both of the training window.
- A session that crosses midnight belongs to the day on which it began where a day's use is foretold, and to the one on which
  it ended among the days before: like all features these count what has ended.
- The transformation layer before eq. 6 is linear on seconds, sessions and the logarithms of both (ln(1 + x), in mean days).
- Days without a session are masked everywhere. Who has had none in 30 days gets zeros for e^p and e^d.
- Attention pooling (eq. 11) is a softmax of one learned direction.
- The prediction of sessions is within the logarithm of eq. 17 in natural units, as a and b were found.
- The bounds of eq. 14 are shares: epsilon_se of the variance of a day's sessions (the loss of a constant prediction),
  epsilon_rel of the variance of a day's use. So they mean the same on any data. Where that variance is 0, it counts as 1.
  The defaults bind, and can be met: sessions are hard to foretell (in the world `kuaishou` nothing gets below 0.9), and the law
  of eq. 17 holds for days on average, not for each user, so that a bound far below 0.2 makes the prediction of use worse.
- The moving averages of eq. 20 are divided by the sum of their weights, and so begin with the first batch.
- Where a run with patience looks for its best weights, the loss of use on held-out days counts, and a constraint that does not
  hold in training weighs as much as it can (`of_means`): weights from before the dual variables had risen would foretell use as
  well. What the constraints come to on held-out days is told, and not chosen by: that differs by what days these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from plpm_ray.core.config import Tunable
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import HISTORY_DAYS, FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch, Grain, Learner, LearnerConfig
from plpm_ray.navigators.uplift import UNIT_LOGIT
from plpm_ray.nn import BranchMLP, DualVariables, FieldInputs, MMoE
from plpm_ray.nn.transformer import TransformerEncoder

DISTANCE_ENDS = (1, 2, 3, 5, 7, 14, 21, HISTORY_DAYS)
"""Last day of each bin of distances: 1, 2, 3, 4-5, 6-7, 8-14, 15-21, 22-30 days ago."""


class LRTGConfig(LearnerConfig):
    """Use and sessions expected of a user's day: weekly attention beside a Transformer over 30 days, trained under constraints.

    Its prediction of seconds is the return-to-go with which a day of GLAN begins.
    """

    embedding_dim: Annotated[int, Tunable(4, 32, log=True, kind="int")] = Field(
        8, ge=1, le=256, description="numbers per categorical field"
    )
    width: Annotated[int, Tunable(choices=(16, 32, 64))] = Field(
        16, ge=2, le=1024, description="width of a day's representation (d); a multiple of `heads`"
    )
    heads: int = Field(1, ge=1, le=16, description="attention heads of the Transformer")
    layers: Annotated[int, Tunable(1, 3, kind="int")] = Field(
        1, ge=1, le=12, description="layers of the Transformer"
    )
    ff_width: int = Field(32, ge=1, description="hidden units of a Transformer layer")
    experts: Annotated[int, Tunable(2, 8, kind="int")] = Field(
        4, ge=1, le=64, description="experts shared by the two tasks (M)"
    )
    expert_hidden: Annotated[int, Tunable(16, 128, log=True, kind="int")] = Field(
        48, ge=1, description="hidden units of an expert"
    )
    expert_width: int = Field(24, ge=1, description="outputs of an expert, which the gates mix")
    tower_hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16,), description="width of each hidden layer of a task's tower"
    )
    delta: Annotated[float, Tunable(0.5, 8.0, log=True)] = Field(
        4.0,
        gt=0,
        description="error of a day's use from which the loss is linear, in mean days (eq. 15); a small one aims at the median",
    )
    epsilon_se: Annotated[float, Tunable(0.5, 1.0)] = Field(
        0.95,
        gt=0,
        description="bound of the error of sessions, as a share of the variance of a day's sessions; 1 is a constant's",
    )
    epsilon_rel: Annotated[float, Tunable(0.02, 0.5, log=True)] = Field(
        0.25,
        gt=0,
        description="bound of the squared distance from the law of use and sessions, as a share of the variance of use",
    )
    eta: Annotated[float, Tunable(0.003, 0.3, log=True)] = Field(
        0.05, gt=0, description="step of the dual variables (eq. 19)"
    )
    rho: float = Field(
        0.9, ge=0, lt=1, description="weight of the past in the constraints' moving averages (eq. 20)"
    )
    lambda_max: float = Field(
        5.0,
        gt=0,
        description="largest dual variable; one that stays there tells that its bound cannot be met",
    )
    constrained: bool = Field(
        True, description="false: both dual variables stay 0, which is the model without constraints"
    )

    @model_validator(mode="after")
    def _whole_heads(self) -> LRTGConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class PeriodicAttention(nn.Module):
    """e^p: the days before, weighed by what they were and by how long ago they were (eq. 6 to 8).

    W_K and W_V are applied to the query and to the weighted sum instead of to every day, which is the same product.

    Args:
        width_in: of the context.
        width: D.
    """

    week: Tensor
    distance: Tensor

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width_in, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.week_bias = nn.Parameter(torch.zeros(7))
        self.distance_bias = nn.Parameter(torch.zeros(len(DISTANCE_ENDS)))
        days = torch.arange(1, HISTORY_DAYS + 1)
        # they follow from the number of days, so they need not travel with the weights
        self.register_buffer("week", days % 7, persistent=False)
        self.register_buffer("distance", torch.bucketize(days, torch.tensor(DISTANCE_ENDS)), persistent=False)

    def bias(self) -> Tensor:
        """(T,) learned bias of the day so long ago (eq. 7)."""
        return self.week_bias[self.week] + self.distance_bias[self.distance]

    def weights(self, context_BC: Tensor, h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T) shares of the days, 0 where the mask is False; a row has at least one True (eq. 6 under the softmax)."""
        query_BD = self.query(context_BC) @ self.key.weight * h_BTD.shape[2] ** -0.5
        scores_BT = torch.bmm(h_BTD, query_BD.unsqueeze(2)).squeeze(2) + self.bias()
        return scores_BT.masked_fill(~mask_BT, -torch.inf).softmax(1)

    def forward(self, context_BC: Tensor, h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, C) context, (B, T, D) days, (B, T) bool -> (B, D)."""
        weights_BT = self.weights(context_BC, h_BTD, mask_BT)
        return self.out(torch.bmm(weights_BT.unsqueeze(1), h_BTD).squeeze(1))


class Trend(nn.Module):
    """e^d: a Transformer encoder over the days, pooled by attention (eq. 10, 11)."""

    def __init__(self, config: LRTGConfig) -> None:
        super().__init__()
        width = config.width
        self.position = nn.Parameter(torch.randn(HISTORY_DAYS, width) * width**-0.5)
        self.encoder = TransformerEncoder(width, config.heads, config.layers, config.ff_width)
        self.pool = nn.Linear(width, 1, bias=False)

    def forward(self, h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, D) days, (B, T) bool with a True in each row -> (B, D)."""
        d_BTD = self.encoder(h_BTD + self.position, mask_BT)
        scores_BT = self.pool(d_BTD).squeeze(2).masked_fill(~mask_BT, -torch.inf)
        return torch.bmm(scores_BT.softmax(1).unsqueeze(1), d_BTD).squeeze(1)


@register("learner", "glan.lrtg")
class LRTG(Learner):
    """Eq. 14 to 20: Huber loss of the day's use; errors of sessions and of their law are kept below bounds by dual variables."""

    Config: ClassVar[type[LRTGConfig]] = LRTGConfig
    config: LRTGConfig
    grain: ClassVar[Grain] = "day"
    inputs: ClassVar[tuple[str, ...]] = ("dense", "cat", "days")
    columns: ClassVar[tuple[str, ...]] = ("use_s", "sessions")
    says: ClassVar[tuple[str, ...] | None] = ("use_s", "sessions")
    unit: Tensor
    law: Tensor
    numeric: Tensor
    categorical: Tensor

    def __init__(
        self, config: LRTGConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats
    ) -> None:
        """
        Raises:
            ConfigError: the schema has no features of past sessions.
        """
        super().__init__(config, spec, pages, stats)
        schema = spec.schema
        if not schema.history:
            raise ConfigError(
                "glan.lrtg reads what a user did on the days before, and this schema has no history",
                hint="train it on tables built from logs, not on a trial's table of users",
            )
        numeric = schema.daily_numeric
        categorical = (*schema.daily_categorical, schema.categorical.index("weekday"))
        # they follow from the schema, so they need not travel with the weights
        self.register_buffer("numeric", torch.tensor(numeric, dtype=torch.int64), persistent=False)
        self.register_buffer("categorical", torch.tensor(categorical, dtype=torch.int64), persistent=False)
        unit_s, unit_sessions = stats.mean_day_use_s, stats.mean_day_sessions
        self.register_buffer("unit", torch.tensor([unit_s, unit_sessions], dtype=torch.float32))
        law = torch.tensor(stats.day_law, dtype=torch.float64) / unit_s
        self.register_buffer("law", law.float())

        cat_sizes = [spec.cat_sizes[i] for i in categorical]
        self.fields = FieldInputs(len(numeric), cat_sizes, config.embedding_dim)
        context, width = self.fields.out_features, config.width
        self.day = nn.Linear(4, width)
        self.periodic = PeriodicAttention(context, width)
        self.trend = Trend(config)
        user = context + width
        self.mmoe = MMoE(user, config.expert_hidden, config.expert_width, config.experts, 2, user + width)
        self.towers = BranchMLP(2, config.expert_width, config.tower_hidden, 1)
        nn.init.constant_(self.towers.layers[-1].bias, UNIT_LOGIT)  # type: ignore[arg-type]
        bounds = (
            config.epsilon_se * (stats.day_sessions_variance / unit_sessions**2 or 1.0),
            config.epsilon_rel * (stats.day_use_variance / unit_s**2 or 1.0),
        )
        step = config.eta if config.constrained else 0.0
        self.duals = DualVariables(
            ("se", "rel"), bounds, step=step, decay=config.rho, largest=config.lambda_max
        )

    def context(self, batch: Batch) -> Tensor:
        """(B, N + F * embedding_dim) e^context: what stays the same within the day (eq. 5)."""
        return self.fields(
            batch["dense"].index_select(1, self.numeric), batch["cat"].index_select(1, self.categorical)
        )

    def days(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, T, D) H of the days before, and (B, T) bool, True where the user was active."""
        scaled_BT2 = batch["days"] / self.unit
        return self.day(torch.cat([scaled_BT2, scaled_BT2.log1p()], dim=2)), batch["days"][..., 1] > 0

    def predict(self, batch: Batch) -> Tensor:
        """(B, 2) use in mean days, and sessions in their mean (eq. 5 to 13)."""
        context_BC = self.context(batch)
        h_BTD, active_BT = self.days(batch)
        known_B1 = active_BT.any(1, keepdim=True)
        # where nothing is to be seen a softmax would be undefined: see all of it, and take nothing from it
        mask_BT = active_BT | ~known_B1
        periodic_BD = self.periodic(context_BC, h_BTD, mask_BT) * known_B1
        trend_BD = self.trend(h_BTD, mask_BT) * known_B1
        user_BU = torch.cat([context_BC, periodic_BD], dim=1)
        z_B2H = self.mmoe(user_BU, torch.cat([trend_BD, user_BU], dim=1))
        return F.softplus(self.towers(z_B2H).squeeze(2).float())

    def target(self, batch: Batch) -> Tensor:
        """(B, 2) what came, in the units of `predict`."""
        return torch.stack([batch["use_s"], batch["sessions"].float()], dim=1) / self.unit

    def terms(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) each: the losses of use (eq. 15), of sessions (eq. 16), and of the law between the two (eq. 17)."""
        y_B2, target_B2 = self.predict(batch), self.target(batch)
        use = F.huber_loss(y_B2[:, 0], target_B2[:, 0], reduction="none", delta=self.config.delta)
        sessions = (y_B2[:, 1] - target_B2[:, 1]).square()
        return use, sessions, consistency(y_B2[:, 0], y_B2[:, 1] * self.unit[1], self.law)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        wt, se, rel = (term_B.mean() for term_B in self.terms(batch))
        lambda_se, lambda_rel = self.duals.value.clone()
        loss = wt + self.duals.penalty(torch.stack([se, rel]))
        parts = {"wt": wt, "se": se, "rel": rel, "lambda_se": lambda_se, "lambda_rel": lambda_rel}
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def after_losses(self, terms: Mapping[str, Tensor]) -> None:
        self.duals.update(torch.stack([terms["se"], terms["rel"]]))

    def constraints(self) -> dict[str, dict[str, Any]]:
        """Whether the constraints hold at the end of training; see `DualVariables.report`."""
        return self.duals.report()

    def scores(self, batch: Batch) -> Tensor:
        """(B, 2) expected seconds and sessions of the day."""
        return self.predict(batch) * self.unit

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """(B,) each: Huber loss of use (squared mean days), errors in natural units, and each constraint's loss minus its bound,
        whose mean is above 0 where the constraint does not hold."""
        wt_B, se_B, rel_B = self.terms(batch)
        error_B2 = self.scores(batch) - torch.stack([batch["use_s"], batch["sessions"].float()], dim=1)
        return {
            "loss": wt_B,
            "wt": wt_B,
            "abs_error_s": error_B2[:, 0].abs(),
            "squared_error_s2": error_B2[:, 0].square(),
            "bias_s": error_B2[:, 0],
            "abs_error_sessions": error_B2[:, 1].abs(),
            "excess_se": se_B - self.duals.bound[0],
            "excess_rel": rel_B - self.duals.bound[1],
        }

    def of_means(self, means: Mapping[str, float]) -> dict[str, float]:
        """As "loss" Huber loss of use on these rows, and `lambda_max` times what exceeds the constraints in training (an exact
        penalty): patience must not keep weights from before they held."""
        beyond = self.duals.violation() if self.config.constrained else 0.0
        return {"loss": means["wt"] + self.config.lambda_max * beyond}


def consistency(use_B: Tensor, sessions_B: Tensor, law_2: Tensor) -> Tensor:
    """(B,) squared distance of the predicted use from a ln(1 + predicted sessions) + b (eq. 17).

    Args:
        use_B: in the unit of `law_2`.
        sessions_B: in natural units.
        law_2: a and b.
    """
    return (use_B - law_2[0] * sessions_B.log1p() - law_2[1]).square()
