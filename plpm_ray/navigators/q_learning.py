"""What value-based learners share: Q-network, target copy, TD loss and softmax scores (KLAN eq. 7, 8, 11).

Letters: B batch, K pages, N dense inputs, F categorical fields, D width of an embedding.
Values are in units of the training window's mean session (`mean_use_s` seconds), so that the learning rate, the
temperature and the conservative coefficient mean the same on every dataset.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from plpm_ray.core.config import Tunable
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch, Learner, LearnerConfig
from plpm_ray.nn import MLP, FieldEmbedding


class QConfig(LearnerConfig):
    """Settings of a Q-network and its TD target; KLAN leaves their values open."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (256, 256), description="width of each hidden layer"
    )
    embedding_dim: Annotated[int, Tunable(4, 32, log=True, kind="int")] = Field(
        8, ge=1, le=256, description="numbers per categorical field"
    )
    gamma: Annotated[float, Tunable(0.5, 0.99)] = Field(
        0.9, ge=0, le=1, description="discount per session; 0 looks at the present session only"
    )
    horizon: Literal["day", "continuing"] = Field(
        "day",
        description="day: a local day's last session ends the episode; continuing: the next day's first one follows",
    )
    double_q: bool = Field(
        False,
        description="the main network picks the next page, the target network values it; KLAN takes the maximum",
    )
    target: Literal["soft", "hard"] = Field(
        "soft",
        description="soft: the target network moves by tau each step; hard: it is copied every target_every steps",
    )
    tau: Annotated[float, Tunable(0.001, 0.05, log=True)] = Field(
        0.005, gt=0, le=1, description="share of a soft update"
    )
    target_every: int = Field(500, ge=1, description="steps between hard updates")
    reward_clip: float | None = Field(
        None, gt=0, description="largest reward of a session, in mean sessions; null keeps all of it"
    )
    temperature: Annotated[float, Tunable(0.1, 10.0, log=True)] = Field(
        1.0, gt=0, description="divides Q in the softmax of the scores (KLAN eq. 11), in mean sessions"
    )


class QNetwork(nn.Module):
    """Q(s, .) for all pages at once: embedded fields beside dense inputs, then an MLP."""

    def __init__(self, config: QConfig, spec: FeatureSpec, n_pages: int) -> None:
        super().__init__()
        self.fields = FieldEmbedding(spec.cat_sizes, config.embedding_dim)
        self.mlp = MLP(spec.n_dense + self.fields.out_features, config.hidden, n_pages)

    def forward(self, dense_BN: Tensor, cat_BF: Tensor) -> Tensor:
        """(B, N) float32 and (B, F) integers -> (B, K) in mean sessions."""
        if self.fields.table is None:
            return self.mlp(dense_BN)
        return self.mlp(torch.cat([dense_BN, self.fields(cat_BF)], dim=1))


class QLearner(Learner):
    """Base of Q-learners: `losses` is the TD loss; a subclass adds terms to it."""

    Config: ClassVar[type[QConfig]] = QConfig
    config: QConfig
    grain: ClassVar[Literal["transition", "session"]] = "transition"
    columns: ClassVar[tuple[str, ...]] = ("action", "use_s", "done")
    mean_use_s: Tensor

    def __init__(self, config: QConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats) -> None:
        super().__init__(config, spec, pages, stats)
        self.q = QNetwork(config, spec, len(pages))
        self.q_target = QNetwork(config, spec, len(pages)).requires_grad_(False)
        self.q_target.load_state_dict(self.q.state_dict())
        self.register_buffer("mean_use_s", torch.tensor(stats.mean_use_s, dtype=torch.float32))

    def reward(self, batch: Batch) -> Tensor:
        """(B,) seconds of the session in units of the training mean."""
        reward_B = batch["use_s"] / self.mean_use_s
        return reward_B if self.config.reward_clip is None else reward_B.clamp(max=self.config.reward_clip)

    @torch.no_grad()
    def td_target(self, batch: Batch) -> Tensor:
        """(B,) r + gamma max_a' Q_target(s', a'), the sum ending where the episode does (KLAN eq. 7, 8)."""
        target_B = self.reward(batch)
        done_B, dense_BN, cat_BF = batch["done"], batch["next.dense"], batch["next.cat"]
        if dense_BN.is_cpu and not torch.compiler.is_compiling():
            # most episodes are short, and the value after their end is multiplied by 0: those rows are not computed
            rows = torch.nonzero(done_B < 1).squeeze(1)
            if len(rows) < len(done_B):
                value = self._next_value(dense_BN.index_select(0, rows), cat_BF.index_select(0, rows))
                return target_B.index_add(0, rows, (1.0 - done_B[rows]) * value, alpha=self.config.gamma)
        return target_B + self.config.gamma * (1.0 - done_B) * self._next_value(dense_BN, cat_BF)

    def _next_value(self, dense_BN: Tensor, cat_BF: Tensor) -> Tensor:
        next_BK = self.q_target(dense_BN, cat_BF)
        if not self.config.double_q:
            return next_BK.amax(1)
        best_B1 = self.q(dense_BN, cat_BF).argmax(1, keepdim=True)
        return next_BK.gather(1, best_B1).squeeze(1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        q_BK = self.q(batch["dense"], batch["cat"])
        td = td_loss(chosen(q_BK, batch["action"]), self.td_target(batch)).mean()
        return {"loss": td}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        followers: list[Tensor] = list(self.q_target.parameters())
        leaders: list[Tensor] = list(self.q.parameters())
        if self.config.target == "soft":
            torch._foreach_lerp_(followers, leaders, weight=self.config.tau)  # pyright: ignore[reportPrivateImportUsage]
        elif step % self.config.target_every == 0:
            torch._foreach_copy_(followers, leaders)  # pyright: ignore[reportPrivateImportUsage]

    def scores(self, batch: Batch) -> Tensor:
        """(B, K) softmax of Q / temperature (KLAN eq. 11)."""
        return softmax_scores(self.q(batch["dense"], batch["cat"]), self.config.temperature)

    def values(self, batch: Batch) -> Tensor:
        """(B, K) Q in seconds."""
        return self.q(batch["dense"], batch["cat"]) * self.mean_use_s

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """(B,) each: loss, squared TD error, conservative gap, Q of logged and best page (seconds), agreement."""
        q_BK = self.q(batch["dense"], batch["cat"])
        q_B = chosen(q_BK, batch["action"])
        td_B = td_loss(q_B, self.td_target(batch))
        return {
            "loss": td_B,
            "td_error_sq": td_B,
            "regulariser": q_BK.logsumexp(1) - q_B,
            "q_logged_s": q_B * self.mean_use_s,
            "q_max_s": q_BK.amax(1) * self.mean_use_s,
            "agreement": (q_BK.argmax(1) == batch["action"]).float(),
        }


def chosen(q_BK: Tensor, action_B: Tensor) -> Tensor:
    """(B,) Q(s, a) of the logged pages."""
    return q_BK.gather(1, action_B.unsqueeze(1)).squeeze(1)


def td_loss(q_B: Tensor, target_B: Tensor) -> Tensor:
    """(B,) squared TD error, the target held fixed (KLAN eq. 8)."""
    return (q_B - target_B.detach()).square()


def softmax_scores(q_BK: Tensor, temperature: float) -> Tensor:
    """(B, K) softmax of Q / temperature over the pages (KLAN eq. 11)."""
    return F.softmax(q_BK / temperature, dim=1)
