"""What uplift learners share: the trial's rows, responses of every arm, and the static preference (KLAN 4.1.3, eq. 6).

Letters: B batch, K pages, N numeric and F categorical features that are constant within a user's local day.
Arm 0 is the control, arm k the page at position k - 1. Responses are learnt in units of the control group's mean, found in
the data pass and kept with the model, so that learning rate, guard and KL weight mean the same on every trial.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plpm_ray.core.config import Tunable
from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Batch, Grain, Learner, LearnerConfig
from plpm_ray.nn import BranchMLP, Groups

# softplus of it is 1: an untrained model predicts the control group's mean for everyone
UNIT_LOGIT = 0.5413


class UpliftConfig(LearnerConfig):
    """Settings of every uplift learner."""

    embedding_dim: Annotated[int, Tunable(4, 64, log=True, kind="int")] = Field(
        16, ge=1, le=256, description="numbers per embedded field and per arm"
    )
    control_floor: float = Field(
        0.05,
        gt=0,
        le=1,
        description="smallest control prediction that eq. 6 divides by, in mean responses of the control group",
    )
    response_clip: float | None = Field(
        None,
        gt=0,
        description="largest response learnt from, in mean responses of the control group; null keeps all of it",
    )


class UpliftLearner(Learner):
    """Base of learners of a randomised trial: one row a user, the arm he was given and his response.

    A subclass defines `predict` and `losses`. Only features of the schema that are constant within a local day are read, so
    that the preference found at any entry is the one found at midnight.

    A page that no user of the trial was given has no known effect: its response is the control's, so its ratio in eq. 6 is
    that of the control.
    """

    Config: ClassVar[type[UpliftConfig]] = UpliftConfig
    config: UpliftConfig
    grain: ClassVar[Grain] = "user"
    inputs: ClassVar[tuple[str, ...]] = ("dense", "cat")
    columns: ClassVar[tuple[str, ...]] = ("arm", "response")
    control_mean: Tensor
    given: Tensor
    numeric: Tensor
    categorical: Tensor

    def __init__(
        self, config: UpliftConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats
    ) -> None:
        """
        Raises:
            ConfigError: the schema has no feature that is constant within a day.
            DataError: the trial has no control group.
        """
        super().__init__(config, spec, pages, stats)
        self.n_pages = len(pages)
        schema = spec.schema
        numeric, categorical = schema.daily_numeric, schema.daily_categorical
        if not numeric and not categorical:
            raise ConfigError(
                f"{type(self).__name__} reads features that stay the same within a user's day, and this schema has none",
                hint="add profile columns to the dataset's description, or build features with history",
            )
        self.n_numeric, self.n_categorical = len(numeric), len(categorical)
        self.cat_sizes = [spec.cat_sizes[i] for i in categorical]
        self.bin_sizes = [spec.bin_sizes[i] for i in numeric]
        # they follow from the schema, so they need not travel with the weights
        self.register_buffer("numeric", torch.tensor(numeric, dtype=torch.int64), persistent=False)
        self.register_buffer("categorical", torch.tensor(categorical, dtype=torch.int64), persistent=False)
        self._all_numeric = numeric == tuple(range(spec.n_dense))
        self._all_categorical = categorical == tuple(range(len(spec.cat_sizes)))
        given = torch.ones(self.n_pages, dtype=torch.bool)
        if stats.arm_users is not None:
            if not stats.arm_users[0]:
                raise DataError(
                    "no user of the trial is in the control group",
                    hint="users of arm null are the control; give the split more users if it lost them",
                )
            given = torch.as_tensor(stats.arm_users[1:] > 0)
        self.register_buffer("given", given)
        self.register_buffer("control_mean", torch.tensor(stats.control_mean, dtype=torch.float32))

    def daily(self, batch: Batch, key: str) -> Tensor:
        """The columns of "dense", "bins" (B, N) or "cat" (B, F) that are constant within a day."""
        whole, columns = (
            (self._all_categorical, self.categorical) if key == "cat" else (self._all_numeric, self.numeric)
        )
        return batch[key] if whole else batch[key].index_select(1, columns)

    def target(self, batch: Batch) -> Tensor:
        """(B,) response in mean responses of the control group."""
        scaled_B = batch["response"] / self.control_mean
        return (
            scaled_B if self.config.response_clip is None else scaled_B.clamp(max=self.config.response_clip)
        )

    @abstractmethod
    def predict(self, batch: Batch) -> Tensor:
        """(B, K + 1) predicted responses of all arms, the control first, in mean responses of the control group."""

    def effects(self, batch: Batch) -> Tensor:
        """(B, K + 1) as `predict`, a page that nobody was given having the control's response."""
        y_BA = self.predict(batch)
        return torch.cat([y_BA[:, :1], torch.where(self.given, y_BA[:, 1:], y_BA[:, :1])], dim=1)

    def responses(self, batch: Batch) -> Tensor:
        """(B, K + 1) predicted responses of all arms in natural units, the control first, in one pass."""
        return self.effects(batch) * self.control_mean

    def scores(self, batch: Batch) -> Tensor:
        """(B, K) static preference delta (KLAN eq. 6); a row sums to 1."""
        return static_preference(self.effects(batch), self.config.control_floor)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """(B,) each: squared error of the given arm (squared control means), predicted minus true response, and what the best
        page is predicted to add (both in natural units)."""
        y_BA, target_B = self.effects(batch), self.target(batch)
        error_B = own(y_BA, batch["arm"]) - target_B
        return {
            "loss": error_B.square(),
            "bias": error_B * self.control_mean,
            "best_effect": (y_BA[:, 1:].amax(1) - y_BA[:, 0]) * self.control_mean,
        }


def own(y_BA: Tensor, arm_B: Tensor) -> Tensor:
    """(B,) the prediction for the arm that the user was given."""
    return y_BA.gather(1, arm_B.unsqueeze(1)).squeeze(1)


def arm_error(heads: BranchMLP, x_BD: Tensor, arm_B: Tensor, target_B: Tensor) -> Tensor:
    """Mean squared error of each row under the head of its own arm.

    Args:
        heads: one branch an arm, one output each, read through softplus.
        x_BD: input of the heads.
        arm_B: (B,) arms.
        target_B: (B,) responses in the unit of the prediction.
    """
    if not x_BD.is_cpu or torch.compiler.is_compiling():
        return F.mse_loss(own(F.softplus(heads(x_BD).squeeze(2)), arm_B), target_B)
    # on a CPU only what is compared with something is computed
    groups = Groups.of(arm_B, heads.branches)
    y_GT = F.softplus(heads(groups.take(x_BD).transpose(0, 1)).squeeze(2)).t()
    return ((y_GT - groups.take(target_B)) * groups.kept).square().sum() / len(arm_B)


def static_preference(y_BA: Tensor, floor: float) -> Tensor:
    """delta_k = exp(y_k / y_0) / sum_j exp(y_j / y_0) (KLAN eq. 6).

    A control prediction near 0 would make the ratio arbitrarily large, so it is divided by no less than `floor`: where the
    control and all pages are predicted below it, the ratios fall towards 0 together and the preference becomes even.

    Args:
        y_BA: (B, K + 1) predicted responses, the control first, none negative.
        floor: in the unit of `y_BA`, above 0.

    Returns:
        (B, K), each row sums to 1.
    """
    return torch.softmax(y_BA[:, 1:] / y_BA[:, :1].clamp(min=floor), dim=1)
