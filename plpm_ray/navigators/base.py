"""The two interfaces of every method: a learner is trained, a navigator scores pages.

Letters: B batch, K pages, N dense inputs, F categorical fields, T steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plpm_ray.core.config import StrictConfig, config_hash
from plpm_ray.core.errors import BundleError
from plpm_ray.core.features import FeatureSpec, RawFeatures
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.inputs import example_inputs, input_tensors

Batch = Mapping[str, Tensor]
Grain = Literal["transition", "session", "trajectory", "day", "user"]


class LearnerConfig(StrictConfig):
    """Base of learner configs; each field has a sentence, a unit, bounds, and a Tunable range where a sweep may search it."""


class Learner(nn.Module, ABC):
    """One trainable model with its loss. It knows no Ray, no files and no optimiser.

    Class attributes a subclass sets:
        Config: its config class.
        grain: the table rows it learns from; "transition" adds the next state under the keys `next.*`; "trajectory" are
            the sessions of whole local days, one after the other in each batch and each day in order ("step" 0 begins one);
            "day" are a user's active local days, with features as of their first entry; "user" are the users of a
            randomised trial, with features as of the midnight before it.
        inputs: which encodings it reads: "dense" (B, N) float32, "cat" (B, F) int64, "bins" (B, N) int64,
            "sequences" (keys `seq.<name>`, (B, T) float32), "days" (B, 30, 2) float32 seconds and sessions of the days
            before, yesterday first; "session", what came of the session (the keys `SESSION_KEYS`).
        columns: table columns it reads besides, each (B,): "action" int64, "use_s", "landing_dwell_s" float32 seconds,
            "switches" int64, "hour" int64 0-23, "step" int64 entry number of the day from 0, "done" float32 (1 = last
            of its episode), "propensity" float32 (NaN = unknown); any other numeric column of the table by its name,
            (B,) or (B, width), where `example_batch` must then make it too. Of sessions: "page_dwell_s" (B, K) seconds on
            each page, "reward" and "dropped" (a reward model's, `plpm reward`). Of days: "use_s" and "sessions" of
            the whole day. Of users: "arm" int64 (0 = control, k = the page at position k - 1), "response" float32 in its
            natural unit.
        says: None where `scores` are scores of the K pages; else the names of the numbers it gives. Such a learner is a
            part of others and chooses no pages itself.

        vectors: names in `RawFeatures.vectors` that `scores` reads where they are given, as the keys `vec.<name>` (B, width).
        streamed: it is made to learn sessions in the order in which they happen.

    `name` is set by `@register("learner", ...)`.
    """

    name: ClassVar[str]
    Config: ClassVar[type[LearnerConfig]] = LearnerConfig
    streamed: ClassVar[bool] = False
    vectors: ClassVar[tuple[str, ...]] = ()
    says: ClassVar[tuple[str, ...] | None] = None
    grain: ClassVar[Grain] = "transition"
    inputs: ClassVar[tuple[str, ...]] = ("dense", "cat")
    columns: ClassVar[tuple[str, ...]] = ("action", "use_s", "done", "hour", "step")

    def __init__(
        self, config: LearnerConfig, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats
    ) -> None:
        """`stats` are the totals of the training window; whatever is needed of them must become a buffer or a config."""
        super().__init__()
        self.config = config

    @classmethod
    def needed_columns(cls, config: Any) -> tuple[str, ...]:
        """The columns that a learner of this config reads; all of `columns` unless it can do without some."""
        return cls.columns

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar loss terms of a batch; the one called "loss" is minimised."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, so that data-parallel wrapping sees their computation."""
        return self.losses(batch)

    def after_step(self, step: int) -> None:
        """Called after every optimiser step (counted from 1): target networks, dual variables."""

    def after_losses(self, terms: Mapping[str, Tensor]) -> None:
        """Called before `after_step` with the step's loss terms, averaged over all processes, so that what is kept of
        them (dual variables, running means) is the same in each. It costs a message a step, if a learner has it."""

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """(B, K) page scores, the higher the better, from `inputs` alone; or (B, len(says)) of what it says."""

    def values(self, batch: Batch) -> Tensor | None:
        """(B, K) expected return in seconds when each page is chosen, or None if the method has no such thing."""
        return None

    def labels(self, batch: Batch) -> dict[str, Tensor]:
        """Named (B,) float32 labels made of `columns`; of a reward model they are written beside what it says."""
        return {}

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Named (B,) values of a held-out batch; the caller averages them over rows."""
        return {}

    def of_means(self, means: Mapping[str, float]) -> dict[str, float]:
        """Metrics that follow from the means of `metrics` over all held-out rows, and from no row alone; those of the same name
        are replaced by them."""
        return {}

    @classmethod
    def example_batch(
        cls, seed: int, spec: FeatureSpec, pages: PageCatalogue, rows: int = 32
    ) -> dict[str, Tensor]:
        """A random batch of the right keys, shapes and types, for tests and warm-up."""
        gen = torch.Generator().manual_seed(seed)
        k = len(pages)
        made = {
            "action": torch.randint(k, (rows,), generator=gen),
            "use_s": torch.rand(rows, generator=gen) * 600,
            "landing_dwell_s": torch.rand(rows, generator=gen) * 300,
            "switches": torch.randint(5, (rows,), generator=gen),
            "hour": torch.randint(24, (rows,), generator=gen),
            "step": torch.randint(6, (rows,), generator=gen),
            "done": (torch.rand(rows, generator=gen) < 0.3).float(),
            "propensity": torch.rand(rows, generator=gen) * 0.9 + 0.1,
            "arm": torch.randint(k + 1, (rows,), generator=gen),
            "response": torch.rand(rows, generator=gen) * 1200,
            "sessions": torch.randint(1, 12, (rows,), generator=gen).float(),
            "page_dwell_s": torch.rand(rows, k, generator=gen) * 300,
            "reward": torch.rand(rows, generator=gen) * 500,
            "dropped": (torch.rand(rows, generator=gen) < 0.3).float(),
        }
        if cls.grain == "trajectory":
            # days of 1 to 16 sessions; 32 rows are whole days, whatever the seed
            lengths = torch.tensor([1, 5, 2, 8, 16]).repeat(-(-rows // 32))
            made["step"] = torch.cat([torch.arange(n) for n in lengths.tolist()])[:rows]
        batch = {name: made[name] for name in cls.columns}
        for prefix in ("", "next.") if cls.grain == "transition" else ("",):
            batch |= {
                prefix + key: value for key, value in example_inputs(cls.inputs, spec, k, rows, gen).items()
            }
        return batch


class Navigator(ABC):
    """Scores pages for app entries. It never chooses one: that is the policy's work.

    Attributes:
        name: registered name.
        version: identifies the trained thing in decisions and logs.
        pages: the catalogue; scores have its order.
        state_size: float32 numbers of intra-day state it wants kept per user and local day (0 = none). The state starts
            as zeros on each local day, goes into `scores` and is changed by `observe`.
        answers_unknown: it has an answer for users without any history; others leave them to a simpler navigator.
        reads: names of vectors that jobs write to the state store for each user and that it wants under
            `RawFeatures.vectors`.
        reads_days: it wants `RawFeatures.days`.
    """

    name: str
    version: str
    pages: PageCatalogue
    state_size: int = 0
    answers_unknown: bool = False
    reads: tuple[str, ...] = ()
    reads_days: bool = False

    @abstractmethod
    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        """(B, K) float32 scores, the higher the better, from raw features and (B, state_size) state (None if that is 0)."""

    def explained(
        self, features: RawFeatures, state: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(B, K) scores as `scores` gives them, and the (B, K) float32 parts they were made of, by name."""
        return self.scores(features, state), {}

    def values(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray | None:
        """(B, K) expected return in seconds, or None where the method has no such thing."""
        return None

    def observe(
        self, state: np.ndarray, features: RawFeatures, outcome: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """New (B, state_size) state after sessions ended.

        `outcome` holds (B,) "action", "use_s", "landing_dwell_s", "switches", and "views" (video views; 0 if unknown), and
        (B, K) "page_views" (NaN if unknown) and "page_visits".
        """
        return state


class LearnerNavigator(Navigator):
    """The navigator of a single learner: encode, forward, scores; deterministic and without gradients."""

    def __init__(self, learner: Learner, spec: FeatureSpec, pages: PageCatalogue, version: str) -> None:
        self.learner = learner.eval()
        self.spec = spec
        self.pages = pages
        self.name = learner.name
        self.version = version
        self.reads_days = "days" in learner.inputs

    def inputs(self, features: RawFeatures) -> dict[str, Tensor]:
        """Model input of raw features."""
        found = input_tensors(features, self.spec, self.learner.inputs)
        given = [name for name in self.learner.vectors if name in features.vectors]
        return found | {f"vec.{name}": torch.from_numpy(features.vectors[name]) for name in given}

    @cached_property
    def encoder(self) -> str:
        """The same for navigators whose `inputs` are the same."""
        asked = ("bins", "sequences", "days", "session")
        read = [name in self.learner.inputs for name in asked]
        return config_hash([self.spec.to_dict(), *read, *self.learner.vectors])

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        return self.scored(self.inputs(features))

    @torch.inference_mode()
    def scored(self, inputs: Mapping[str, Tensor]) -> np.ndarray:
        """(B, K) float32 scores of model input."""
        return self.learner.scores(inputs).float().numpy()

    @torch.inference_mode()
    def values(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray | None:
        values = self.learner.values(self.inputs(features))
        return None if values is None else values.float().numpy()


def scores_of(navigators: Mapping[str, Navigator], features: RawFeatures) -> dict[str, np.ndarray]:
    """(B, K) scores of several navigators; what is encoded alike is encoded once."""
    inputs: dict[str, dict[str, Tensor]] = {}
    found: dict[str, np.ndarray] = {}
    for name, navigator in navigators.items():
        if not isinstance(navigator, LearnerNavigator):
            found[name] = navigator.scores(features)
            continue
        if navigator.encoder not in inputs:
            inputs[navigator.encoder] = navigator.inputs(features)
        found[name] = navigator.scored(inputs[navigator.encoder])
    return found


class HeuristicConfig(StrictConfig):
    """Base of the configs of navigators without training."""


class Heuristic(Navigator):
    """Base of navigators without weights of their own; registered with `@register("navigator", ...)`.

    One that is composed of others (scores fused from several learners) names its `roles`, role -> registered name of what
    usually fills it, and finds their navigators in `parts`. `rewarded` says which role learns from the rewards of which,
    `unasked` names the roles that no decision asks, which so need no deployment of their own.
    """

    Config: ClassVar[type[HeuristicConfig]] = HeuristicConfig
    roles: ClassVar[Mapping[str, str]] = {}
    rewarded: ClassVar[Mapping[str, str]] = {}
    unasked: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        config: Any,
        pages: PageCatalogue,
        stats: TableStats,
        version: str = "heuristic",
        parts: Mapping[str, Navigator] | None = None,
    ) -> None:
        """
        Raises:
            BundleError: it is composed of others, and one is missing.
        """
        lacking = self.roles.keys() - (parts or {}).keys()
        if lacking:
            raise BundleError(
                f"{type(self).__name__} is composed of {', '.join(self.roles)}, and {', '.join(sorted(lacking))} is missing",
                hint="give the bundle of a trained one, not its name",
            )
        self.config = config
        self.pages = pages
        self.stats = stats
        self.version = version
        self.parts = dict(parts or {})


class FittedNavigator(Heuristic):
    """Base of navigators that are fitted whole, by another library than PyTorch; registered like heuristics.

    What a fit finds travels in the bundle as named uint8 arrays in a format that is read without running code.

    Class attributes:
        grain, inputs, columns: the table it is fitted on, as for learners; `columns` are those of sessions.
    """

    grain: ClassVar[Grain] = "session"
    inputs: ClassVar[tuple[str, ...]] = ("dense", "cat")
    columns: ClassVar[tuple[str, ...]] = ("action", "use_s")

    def __init__(
        self,
        config: Any,
        pages: PageCatalogue,
        stats: TableStats,
        version: str,
        spec: FeatureSpec,
        weights: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__(config, pages, stats, version)
        self.spec = spec

    @classmethod
    @abstractmethod
    def fit(
        cls,
        config: Any,
        spec: FeatureSpec,
        pages: PageCatalogue,
        stats: TableStats,
        train: Mapping[str, np.ndarray],
        valid: Mapping[str, np.ndarray] | None,
        seed: int,
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Fits on (R, ...) columns named as a learner's batches.

        Returns:
            The named uint8 arrays, and metrics on the validation rows (empty without them).
        """
