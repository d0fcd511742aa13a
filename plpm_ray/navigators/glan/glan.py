"""GLAN: a Decision Transformer that is told how much use to expect of the day, and what every session was worth (GLAN 5.3.1).

The closed loop of a user's local day. At the first entry L-RTG says how long the user will use the app today: R_1. At every
entry the Decision Transformer scores the pages from R_t, the state and the day's past (eq. 29). After a session HRM says what
it was worth, and R_{t+1} = R_t - r_t (eq. 30).

**The day's state** is explicit: number of sessions so far, R_t, R_1, and what the transformer's attention needs of each of the
last `context` sessions, rounded to half precision as the transformer itself rounds it, so that nothing is recomputed and
nothing is lost. It starts as zeros on each local day. A user's record has room for 12 + 2 `cache_width` `context` bytes of it:
12 + 384 * 32 = 12,300 at the defaults. What a server keeps is 12 bytes and 384 a session of the day, and a bit for each 4 bytes;
at the defaults, beside the history: nothing before the first session, 0.5 KB after one, 2.0 KB after 5, 11.9 KB after 30, and no
more than 12.7 KB.

**When feedback is late, or never comes.** A decision counts what has been reported until then. A session that is never reported
is not in the past and takes nothing from R. Sessions reported out of order are subtracted all the same, whatever the order; what
HRM says of one may depend on which others were known by then, its duration does not. The transformer sees them in the order in
which they were reported. One of an earlier local day that is reported late changes nothing; who enters after a clock was put
back over midnight goes on with the later day.

Different from the paper, on purpose: the chance of a page is multiplied by (1 - risk) ** `caution`, the risk being what the
transformer foretells of HRM's drop-off. With `caution: 0` it is the paper's, which imitates the policy of the logs and little
else; docs/glan_results.md has what each came to.

Settled on purpose where the paper is open:
- R_1 is in seconds of use, the rewards are not: they are discounted by the risk of a drop-off. R_1 is therefore multiplied by
  the reward per second of use in the training window (`TableStats.reward_ratio`), and by `rtg_multiplier`.
- R_t may fall below zero, which no day of the logs does: who enters is about to have a session. The transformer is asked with
  no less than `rtg_floor` mean sessions, for near zero the logs know only sessions that are over at once; what is subtracted
  from, and shown, is R_t itself.
- `mean7` is the mean of the active days among the last seven, and the mean of all users where there was none; the mean over all
  seven days would promise too little to everybody who skips a day.

Letters: B rows, K pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from plpm_ray.core.config import Tunable
from plpm_ray.core.errors import BundleError
from plpm_ray.core.features import SESSION_KEYS, RawFeatures
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.base import Heuristic, HeuristicConfig, LearnerNavigator, Navigator, scores_of
from plpm_ray.navigators.glan.decision_transformer import (
    DAY_PAST,
    DAY_RTG,
    DAY_STEP,
    DecisionTransformer,
)

_HEAD = 3  # sessions so far, R_t, R_1
_Asks = Callable[[RawFeatures, Sequence[str]], dict[str, np.ndarray]]


class GLANConfig(HeuristicConfig):
    """How the parts are put together; the parts themselves are bundles."""

    rtg: Literal["lrtg", "mean7"] = Field(
        "lrtg",
        description="what a day begins with: lrtg: L-RTG's prediction; mean7: the mean of the last week (the paper's ablation)",
    )
    rtg_multiplier: Annotated[float, Tunable(0.5, 3.0, log=True)] = Field(
        1.0, gt=0, description="R_1 is multiplied by it: above 1 asks for better days than are to be expected"
    )
    caution: Annotated[float, Tunable(0.0, 16.0)] = Field(
        8.0,
        ge=0,
        description="how much the foretold risk of a drop-off counts: a page's chance is multiplied by (1 - risk) to this "
        "power; 0: the transformer's chances alone, as in the paper",
    )
    rtg_floor: Annotated[float, Tunable(0.0, 2.0)] = Field(
        1.0, ge=0, description="the transformer is never asked with less, in mean sessions"
    )


class _Day(NamedTuple):
    """State of B users' days: sessions so far (B,) int64; R_t and R_1 (B,) float32 in seconds of reward; and the past,
    (B, C W / 2) float32 whose bits are the transformer's cache."""

    step: np.ndarray
    rtg: np.ndarray
    first: np.ndarray
    past: np.ndarray


@register("navigator", "glan")
class GLAN(Heuristic):
    """The closed loop of R_1 (L-RTG), actions (Decision Transformer) and rewards (HRM).

    Whether the reward is HRM's or the plain duration (the paper's ablation) is what the transformer was trained on, its
    setting `reward`.
    """

    Config: ClassVar[type[HeuristicConfig]] = GLANConfig
    config: GLANConfig
    roles: ClassVar[Mapping[str, str]] = {"lrtg": "glan.lrtg", "hrm": "glan.hrm", "dt": "glan.dt"}
    rewarded: ClassVar[Mapping[str, str]] = {"dt": "hrm"}
    unasked: ClassVar[tuple[str, ...]] = ("hrm",)
    answers_unknown = True

    def __init__(
        self,
        config: Any,
        pages: PageCatalogue,
        stats: TableStats,
        version: str = "glan",
        parts: Mapping[str, Navigator] | None = None,
    ) -> None:
        """
        Raises:
            BundleError: the part `dt` is no Decision Transformer.
        """
        super().__init__(config, pages, stats, version, parts)
        part = self.parts["dt"]
        if not isinstance(part, LearnerNavigator) or not isinstance(part.learner, DecisionTransformer):
            raise BundleError(
                f"part 'dt' is {part.name}, which keeps no past of a day", hint="train a glan.dt for it"
            )
        self.dt, self._encode = part.learner, part.inputs
        self.reads_days = self.config.rtg == "lrtg"
        self.context, self._width = self.dt.config.context, self.dt.cache_width // 2
        self.state_size = _HEAD + self.context * self._width
        # the mean day in seconds of reward, and reward per second of use, both as the transformer learned them
        self._mean_day = float(self.dt.day_value_s)
        self._ratio = float(self.dt.reward_ratio)

    def part_scores(self, features: RawFeatures, roles: Sequence[str]) -> dict[str, np.ndarray]:
        """What the parts asked for say; serving may put in its place what asks them where they are."""
        return self._own_scores(features, roles)

    def _own_scores(self, features: RawFeatures, roles: Sequence[str]) -> dict[str, np.ndarray]:
        return scores_of({role: self.parts[role] for role in roles}, features)

    def first_rtg(self, features: RawFeatures, ask: _Asks | None = None) -> np.ndarray:
        """(B,) float32 R_1 of days that begin, seconds of reward; `ask` answers for L-RTG, by default `part_scores`."""
        if self.config.rtg == "lrtg":
            use_s = (ask or self.part_scores)(features, ("lrtg",))["lrtg"][:, 0]
        else:
            days = features.column("active_days_7d")
            mean = features.column("use_s_7d") / np.maximum(days, 1)
            use_s = np.where(days > 0, mean, np.float32(self._mean_day / self._ratio))
        return (use_s * np.float32(self._ratio * self.config.rtg_multiplier)).astype(np.float32)

    def scores(self, features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        return self.explained(features, state)[0]

    def explained(
        self, features: RawFeatures, state: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(B, K) scores, and what they are made of: `p`, the chance of each page; `stay`, the foretold chance that it is not
        dropped; and `rtg`, R_t in seconds of reward, the same for all pages."""
        day = self._day(features, state)
        step = day.step[:, None].astype(np.float32)
        vectors = {DAY_RTG: self._asked(day.rtg)[:, None], DAY_STEP: step, DAY_PAST: day.past}
        told = replace(features, vectors={**features.vectors, **vectors})
        p, stay = np.split(self.part_scores(told, ("dt",))["dt"], 2, axis=1)
        # as logarithms: the product may be too small for float32 on all pages, and their order still counts
        least = np.finfo(np.float32).tiny
        logits = np.log(np.maximum(p, least, dtype=np.float64))
        logits += self.config.caution * np.log(np.maximum(stay, least, dtype=np.float64))
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (chances / chances.sum(axis=1, keepdims=True)).astype(np.float32)
        return scores, {"p": p, "stay": stay, "rtg": np.repeat(day.rtg[:, None], p.shape[1], axis=1)}

    @torch.inference_mode()
    def observe(
        self, state: np.ndarray, features: RawFeatures, outcome: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        # feedback must not be lost because a part elsewhere does not answer
        day = self._day(features, state, self._own_scores)
        inputs = self._encode(features)
        slot = self.dt.kept(
            torch.from_numpy(self._asked(day.rtg)),
            inputs["dense"],
            inputs["cat"],
            torch.from_numpy(np.asarray(outcome["action"], dtype=np.int64)),
            torch.from_numpy(day.step),
            torch.from_numpy(day.past.view(np.float16)).unflatten(1, (-1, self.dt.cache_width)),
        )
        made = np.array(state, dtype=np.float32)
        made[:, 0] = day.step + 1
        made[:, 1] = day.rtg - self.reward(features, outcome)
        made[:, 2] = day.first
        at = _HEAD + (day.step % self.context)[:, None] * self._width + np.arange(self._width)
        np.put_along_axis(made, at, slot.numpy().view(np.float32), axis=1)
        return made

    def reward(self, features: RawFeatures, outcome: Mapping[str, np.ndarray]) -> np.ndarray:
        """(B,) float32 seconds that sessions were worth (eq. 28), or their length where the transformer learned from that."""
        if self.dt.config.reward == "duration":
            return np.asarray(outcome["use_s"], dtype=np.float32)
        ended = replace(features, session={key: np.asarray(outcome[key]) for key in SESSION_KEYS})
        return self.parts["hrm"].scores(ended)[:, 0]

    def _day(self, features: RawFeatures, state: np.ndarray | None, ask: _Asks | None = None) -> _Day:
        """The day's state, with R_1 filled in where the day begins."""
        b = len(features)
        state = np.zeros((b, _HEAD), dtype=np.float32) if state is None else state
        step = state[:, 0].astype(np.int64)
        rtg, first = state[:, 1].copy(), state[:, 2].copy()
        begins = np.flatnonzero(step == 0)
        if len(begins):
            whole = len(begins) == b
            rtg[begins] = first[begins] = self.first_rtg(features if whole else features.take(begins), ask)
        slots = min(int(step.max(initial=0)), self.context)
        past = np.ascontiguousarray(state[:, _HEAD : _HEAD + slots * self._width])
        return _Day(step, rtg, first, past)

    def _asked(self, rtg: np.ndarray) -> np.ndarray:
        """(B,) float32 R_t as the transformer is asked with it."""
        return np.maximum(rtg, np.float32(self.config.rtg_floor * float(self.dt.session_value_s)))
