"""GLAN's Decision Transformer: a page from the day so far and from what the day is still to bring (GLAN 3.2, 5.3.1).

Letters: S sessions of all trajectories of a batch, B users, K pages, N dense inputs, F categorical fields, D width, C sessions
of context, W numbers that a cache holds of a session.

Settled on purpose where the paper is open:
- A session is three tokens, (R_t, s_t, a_t) of eq. 4, and its page is read at s_t, which sees R_t and all that was before.
- R_t is the sum of the rewards from t to the end of the local day (eq. 3). It enters as x and sign(x) ln(1 + |x|), with x in
  units of the training window's mean day: `mean_day_use_s` x `reward_ratio` seconds, the latter 1 for the reward "duration".
- A day longer than `context` is seen through a sliding window of so many sessions, in every layer.
- All heads share one key and one value head, so that a user's day fits into a state record; see `CausalTransformer`.
- Beside the page, `risk` foretells for each page the risk that the session would be dropped there; the label is that of HRM (eq.
  26), of the page that was shown. It reads the state alone: a logged R_t holds the reward of the very session, and so does every
  R before it, so what reads them foretells well in the logs and nothing in service. `risk_weight: 0` leaves it out, which is the
  paper's transformer; so does the reward "duration", without HRM.
- Weights are scaled by constants of the training window (so that a batch's loss is a mean over sessions, whatever else is
  in the batch): 1 / p by its mean K under the logging policy, class weights by their mean over the landings.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from plpm_ray.core.config import Tunable
from plpm_ray.core.errors import DataError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch, Grain, Learner, LearnerConfig
from plpm_ray.nn import MLP, CausalTransformer, FieldInputs, Packing
from plpm_ray.nn.packing import begins

# places of a session's tokens; the page is read at the state
RTG, STATE, ACTION = range(3)

DAY_RTG, DAY_STEP, DAY_PAST = "glan.rtg", "glan.step", "glan.past"
"""Names in `RawFeatures.vectors` of a user's day so far: (B, 1) seconds that it is still to bring, (B, 1) sessions of it, and
(B, C W / 2) float32 whose bits are the cache's. With them `scores` are (B, 2 K): chances of the pages, then chances to stay."""


class DecisionTransformerConfig(LearnerConfig):
    """Imitation of the pages that led to a day of a given value, by a causal transformer over its sessions (GLAN 3.2)."""

    reward: Literal["hrm", "duration"] = Field(
        "hrm",
        description="value of a session: hrm, the column of a reward model (GLAN eq. 28); duration, its seconds of use",
    )
    context: Annotated[int, Tunable(8, 100, log=True, kind="int")] = Field(
        32, ge=1, le=512, description="most sessions of the day that are seen, the present one included"
    )
    width: Annotated[int, Tunable(32, 256, log=True, kind="int")] = Field(
        64, ge=1, le=4096, description="width of a token (D)"
    )
    layers: Annotated[int, Tunable(1, 4, kind="int")] = Field(
        2, ge=1, le=24, description="transformer blocks"
    )
    heads: int = Field(4, ge=1, le=64, description="query heads")
    kv_heads: int = Field(1, ge=1, le=64, description="heads of keys and values; must divide `heads`")
    head_dim: Annotated[int, Tunable(8, 32, log=True, kind="int")] = Field(
        16,
        ge=1,
        le=256,
        description="width of a head; a session takes 12 x layers x kv_heads x head_dim bytes of a user's state",
    )
    ff_ratio: Annotated[int, Tunable(1, 4, kind="int")] = Field(
        4, ge=1, le=16, description="hidden units of a block's feed-forward layer, in widths"
    )
    dropout: Annotated[float, Tunable(0.0, 0.3)] = Field(
        0.0, ge=0, lt=1, description="share of each block's outputs dropped in training"
    )
    embedding_dim: Annotated[int, Tunable(4, 32, log=True, kind="int")] = Field(
        8, ge=1, le=256, description="numbers per categorical field"
    )
    state_hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (64,), description="width of each hidden layer between the features and the state token"
    )
    entry_steps: int = Field(
        64,
        ge=1,
        le=4096,
        description="entry numbers of the day told apart; later ones share the last embedding",
    )
    weighting: Annotated[
        Literal["none", "inverse_propensity", "class_balanced"],
        Tunable(choices=("none", "inverse_propensity", "class_balanced")),
    ] = Field(
        "none",
        description="weight of a session: 1, or 1 / its propensity, or 1 / its page's share of all landings",
    )
    weight_clip: Annotated[float, Tunable(2.0, 50.0, log=True)] = Field(
        10.0,
        gt=0,
        description="1 / propensity, or 1 / share, counts at most so many times what it would be were all pages alike",
    )

    risk_weight: Annotated[float, Tunable(0.1, 10.0, log=True)] = Field(
        1.0, ge=0, description="weight of the foretold risk of a drop-off in the loss; 0 does not foretell it"
    )

    @model_validator(mode="after")
    def _heads(self) -> DecisionTransformerConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        return self


@register("learner", "glan.dt")
class DecisionTransformer(Learner):
    """Eq. 29: cross entropy of the logged pages given the state, the return to go, and the day so far.

    A batch holds whole local days one after the other. Where a day is lived through, a session costs the work of its own
    tokens only: `decide` reads the cache, and `kept` says what a session adds to it when it has ended.

    Attributes:
        cache_width: W; the cache of B users is a float16 tensor (B, context, W) of zeros where nothing has happened yet.
    """

    Config: ClassVar[type[DecisionTransformerConfig]] = DecisionTransformerConfig
    config: DecisionTransformerConfig
    grain: ClassVar[Grain] = "trajectory"
    columns: ClassVar[tuple[str, ...]] = ("action", "step", "use_s", "reward", "dropped", "propensity")
    vectors: ClassVar[tuple[str, ...]] = (DAY_RTG, DAY_STEP, DAY_PAST)
    day_value_s: Tensor
    session_value_s: Tensor
    class_weight: Tensor

    def __init__(
        self, config: DecisionTransformerConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats
    ) -> None:
        super().__init__(config, spec, pages, stats)
        width = config.width
        self.fields = FieldInputs(spec.n_dense, spec.cat_sizes, config.embedding_dim)
        self.state = MLP(self.fields.out_features, config.state_hidden, width)
        self.rtg = nn.Linear(2, width)
        self.action = nn.Embedding(len(pages), width)
        self.kind = nn.Parameter(torch.zeros(3, width))
        self.entry = nn.Embedding(config.entry_steps, width)
        for table in (self.action, self.entry):
            nn.init.normal_(table.weight, std=0.02)
        self.transformer = CausalTransformer(
            width,
            config.layers,
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.ff_ratio * width,
            tokens=3,
            read=STATE,
            window=config.context,
            dropout=config.dropout,
        )
        self.head = nn.Linear(width, len(pages))
        foretells = config.reward == "hrm" and config.risk_weight > 0
        hidden = config.state_hidden or (width,)
        self.risk = MLP(self.fields.out_features, hidden, len(pages)) if foretells else None
        self.cache_width = self.transformer.cache_width
        ratio = stats.reward_ratio if config.reward == "hrm" else 1.0
        self.reward_ratio = ratio
        mean_session_s = stats.mean_use_s * ratio
        self.register_buffer("session_value_s", torch.tensor(mean_session_s, dtype=torch.float32))
        self.register_buffer("day_value_s", torch.tensor(stats.mean_day_use_s * ratio, dtype=torch.float32))
        self.register_buffer("class_weight", class_weights(stats, config.weight_clip))

    @classmethod
    def needed_columns(cls, config: DecisionTransformerConfig) -> tuple[str, ...]:
        """The reward in use; what the weights are made of always, so that sweeps may search them."""
        rewards = ("reward", "dropped") if config.reward == "hrm" else ("use_s",)
        return "action", "step", *rewards, "propensity"

    def rtg_of(self, batch: Batch) -> Tensor:
        """(S,) float32 seconds: "rtg" if it is given, else what the rewards sum up to; without them the mean day."""
        if "rtg" in batch:
            return batch["rtg"]
        reward = "reward" if self.config.reward == "hrm" else "use_s"
        if reward not in batch:
            return self.day_value_s.expand(len(batch["dense"]))
        return returns_to_go(batch[reward], begins(batch["step"])).float()

    def tokens(
        self, rtg: Tensor, dense: Tensor, cat: Tensor, step: Tensor, action: Tensor | None = None
    ) -> Tensor:
        """(S, 3, D) tokens of sessions (eq. 4), or (S, 2, D) of those whose page is still open.

        Args:
            rtg: (S,) seconds.
            dense, cat: (S, N) and (S, F).
            step: (S,) entry number of the day.
            action: (S,) pages.
        """
        x = rtg / self.day_value_s
        entry_SD = self.entry(step.clamp(max=self.config.entry_steps - 1))
        kinds = [
            self.rtg(torch.stack([x, x.sign() * x.abs().log1p()], dim=1)),
            self.state(self.fields(dense, cat)),
        ]
        if action is not None:
            kinds.append(self.action(action))
        return torch.stack(kinds, dim=1) + (self.kind[: len(kinds)] + entry_SD.unsqueeze(1))

    def read(self, batch: Batch) -> Tensor:
        """(S, D) state tokens of whole trajectories; of sessions without "step" and "action" from their `vectors`, or, without
        these, each as the first of its day."""
        dense = batch["dense"]
        if f"vec.{DAY_RTG}" in batch:
            rtg, step, past = (batch[f"vec.{name}"] for name in self.vectors)
            # without rows, what comes from NumPy may have strides of which no view can be made
            past = past.contiguous() if len(past) else past.new_empty(past.shape)
            cache = past.view(torch.float16).unflatten(1, (-1, self.cache_width))
            return self._deciding(rtg[:, 0], dense, batch["cat"], step[:, 0].long(), cache)
        rtg = self.rtg_of(batch)
        if "step" not in batch or "action" not in batch:
            none = dense.new_zeros((len(dense), 0, self.cache_width), dtype=torch.float16)
            step = torch.zeros(len(dense), dtype=torch.int64, device=dense.device)
            return self._deciding(rtg, dense, batch["cat"], step, none)
        packing = Packing.of(begins(batch["step"]), self.config.context)
        columns = (rtg, dense, batch["cat"], batch["step"], batch["action"])
        x_S3D = self.tokens(*map(packing.arrange, columns))
        return packing.restore(self.transformer(x_S3D, packing))

    def logits(self, batch: Batch) -> Tensor:
        """(S, K) of the pages, from what `read` reads."""
        return self.head(self.read(batch))

    def weights(self, batch: Batch) -> Tensor | None:
        """(S,) weights of the sessions, about 1 on average; None where all are 1.

        Raises:
            DataError: a propensity is not known that the weights are made of.
        """
        if self.config.weighting == "none":
            return None
        if self.config.weighting == "class_balanced":
            return self.class_weight[batch["action"]]
        weight = 1.0 / (batch["propensity"] * len(self.class_weight))
        if not bool((weight > 0).all()):
            raise DataError(
                "a session's propensity is unknown, and weighting is inverse_propensity",
                hint="train on days whose logs hold propensities, or set weighting to class_balanced or none",
            )
        return weight.clamp(max=self.config.weight_clip)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        read_SD = self.read(batch)
        entropy = F.cross_entropy(self.head(read_SD), batch["action"], reduction="none")
        weight = self.weights(batch)
        loss = entropy.mean() if weight is None else (weight * entropy).mean()
        terms = {"cross_entropy": entropy.detach().mean()}
        if self.risk is not None:
            risk = risk_loss(self.risks(batch), batch).mean()
            loss, terms["risk"] = loss + self.config.risk_weight * risk, risk.detach()
        return {"loss": loss, **terms}

    def scores(self, batch: Batch) -> Tensor:
        """(S, K) chances of the pages (eq. 29); with a day's `vectors` (S, 2 K), behind them the chances to stay on the pages."""
        chance = self.logits(batch).softmax(1)
        if f"vec.{DAY_RTG}" not in batch:
            return chance
        stay = torch.ones_like(chance) if self.risk is None else (-self.risks(batch)).sigmoid()
        return torch.cat([chance, stay], dim=1)

    def risks(self, batch: Batch) -> Tensor:
        """(S, K) log odds of a drop-off on each page, from the features of the entry; not defined without `risk_weight`."""
        assert self.risk is not None
        return self.risk(self.fields(batch["dense"], batch["cat"]))

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """(S,) each: loss, cross entropy without weights, agreement with the logged page, entropy of the scores, and the loss of
        the foretold risk."""
        read_SD, action = self.read(batch), batch["action"]
        logits = self.head(read_SD)
        cross = F.cross_entropy(logits, action, reduction="none")
        weight = self.weights(batch)
        log_p = logits.log_softmax(1)
        found = {
            "loss": cross if weight is None else weight * cross,
            "cross_entropy": cross,
            "agreement": (logits.argmax(1) == action).float(),
            "entropy": -(log_p.exp() * log_p).sum(1),
        }
        if self.risk is not None:
            found["risk"] = risk_loss(self.risks(batch), batch)
            found["loss"] = found["loss"] + self.config.risk_weight * found["risk"]
        return found

    def decide(
        self, rtg_B: Tensor, dense_BN: Tensor, cat_BF: Tensor, step_B: Tensor, cache_BCW: Tensor
    ) -> Tensor:
        """(B, K) logits of sessions that begin, from the sessions of the day so far; equal to `logits` of the whole day.

        Args:
            rtg_B: float32 seconds that the day is to bring from here on.
            dense_BN, cat_BF: features of the entry.
            step_B: int64, sessions of the day before this one.
            cache_BCW: float16, the sessions of the day as `kept` gave them, the n-th in slot n % `context`; C may be less than
                that if no day is longer than C.
        """
        return self.head(self._deciding(rtg_B, dense_BN, cat_BF, step_B, cache_BCW))

    def _deciding(
        self, rtg_B: Tensor, dense_BN: Tensor, cat_BF: Tensor, step_B: Tensor, cache_BCW: Tensor
    ) -> Tensor:
        x_B2D = self.tokens(rtg_B, dense_BN, cat_BF, step_B)
        return self.transformer.decide(x_B2D, cache_BCW, step_B)

    def kept(
        self,
        rtg_B: Tensor,
        dense_BN: Tensor,
        cat_BF: Tensor,
        action_B: Tensor,
        step_B: Tensor,
        cache_BCW: Tensor,
    ) -> Tensor:
        """(B, W) float16, what the cache holds of sessions that have ended; it belongs in slot `step % context`."""
        x_B3D = self.tokens(rtg_B, dense_BN, cat_BF, step_B, action_B)
        return self.transformer.entry(x_B3D, cache_BCW, step_B)


def risk_loss(risk_SK: Tensor, batch: Batch) -> Tensor:
    """(S,) cross entropy of the risk foretold for the page that was shown, against whether it was dropped."""
    shown_S = risk_SK.gather(1, batch["action"].unsqueeze(1)).squeeze(1)
    return F.binary_cross_entropy_with_logits(shown_S, batch["dropped"], reduction="none")


def returns_to_go(reward_S: Tensor, begins_S: Tensor) -> Tensor:
    """(S,) float64, R_t: rewards from session t to the end of its day (eq. 3)."""
    first = torch.nonzero(begins_S).squeeze(1)
    total = reward_S.cumsum(0, dtype=torch.float64)
    last = torch.cat([first[1:], first.new_tensor([len(reward_S)])]) - 1
    day = begins_S.cumsum(0) - 1
    return total[last][day] - total + reward_S


def class_weights(stats: TableStats, clip: float) -> Tensor:
    """(K,) weights in inverse proportion to the pages' landings, those of pages rarer than 1 / (K `clip`) of them all alike;
    their mean over landings is 1."""
    share = torch.as_tensor(stats.landings, dtype=torch.float64)
    share = share / share.sum().clamp(min=1.0)
    weight = (1.0 / (len(share) * share)).clamp(max=clip)
    mean = (share * weight).sum()
    return (weight / mean if mean > 0 else torch.ones_like(weight)).float()
