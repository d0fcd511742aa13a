"""Judges navigators on held-out days: agreement, page shares, overestimation, policy values with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.data.contract import Warehouse
from plpm_ray.evaluation.config import JudgeConfig
from plpm_ray.evaluation.estimators import DM, DR, IPS, SNIPS, Estimate, Estimator
from plpm_ray.evaluation.fqe import FQEConfig, QFits, fitted_q
from plpm_ray.evaluation.held_out import Decisions, HeldOutLog, held_out_log, read_decisions
from plpm_ray.evaluation.metrics import agreement, assignment_ratio, overestimation_gap, realised_return
from plpm_ray.evaluation.sequential import logged_value
from plpm_ray.evaluation.table import PolicyResult, format_table
from plpm_ray.navigators.base import Navigator
from plpm_ray.policies.base import Policy

ESTIMATORS: Mapping[str, type[Estimator]] = {"snips": SNIPS, "ips": IPS, "dr": DR, "dm": DM}
_CHUNK = 65_536


@dataclass(frozen=True)
class Judged:
    """One policy to judge.

    Attributes:
        label: name in the table.
        navigator, policy: scores, and how pages are drawn from them.
        gamma: discount of the navigator's values per session within a day; None if it has no values, or they look
            beyond the day.
    """

    label: str
    navigator: Navigator
    policy: Policy
    gamma: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The finished table.

    Attributes:
        results: one per policy; the first row is the log itself.
        diagnostics: quality of the behaviour and reward models on the held-out rows, and what was sampled.
        pages: page names.
    """

    results: Sequence[PolicyResult]
    diagnostics: Mapping[str, Any]
    pages: Sequence[str]

    def table(self, style: Any = "text") -> str:
        """For people; `style` "text" or "markdown"."""
        return format_table(self.results, style=style, pages=self.pages)

    def records(self) -> list[dict[str, Any]]:
        """For machines."""
        return [result.as_record() for result in self.results]


def evaluate(
    warehouse: Warehouse,
    train_days: Sequence[int],
    held_out_days: Sequence[int],
    spec: FeatureSpec,
    policies: Sequence[Judged],
    config: JudgeConfig,
) -> Evaluation:
    """Judges policies on the held-out days; the models that this needs are fitted on the training days.

    Args:
        warehouse: holds built transitions.
        train_days, held_out_days: local days.
        spec: encoder fitted on the training days, for the models of behaviour and reward.
        policies: what to judge.
        config: estimators, models, refusals.
    """
    held_out = read_decisions(warehouse, held_out_days, config.max_sessions)
    log = held_out_log(
        warehouse,
        spec,
        train_days,
        held_out,
        held_out_days,
        propensity=config.propensity_config(config.seed),
        reward=config.reward_config(config.seed),
        fit_rows=config.max_sessions,
    )
    judge = LogJudge(log, config)
    results = [_logged(log, held_out, config), *(_judge(p, judge, held_out) for p in policies)]
    return Evaluation(results, log.diagnostics, warehouse.info.pages.names)


def probabilities(judged: Judged, decisions: Decisions) -> tuple[np.ndarray, np.ndarray | None]:
    """(N, K) probabilities of the policy and (N, K) values in seconds (None without) for every decision.

    Raises:
        ConfigError: the navigator keeps an intra-day state.
    """
    if judged.navigator.state_size:
        raise ConfigError(
            f"{judged.label} keeps a state of the day, which held-out rows do not give back",
            hint="judge it by `plpm decide`, which replays the sessions",
        )
    probs, values = [], []
    for start in range(0, len(decisions), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(decisions)))
        features = decisions.features.take(rows)
        probs.append(judged.policy.probabilities(judged.navigator.scores(features)))
        values.append(judged.navigator.values(features))
    with_values = all(v is not None for v in values)
    return np.concatenate(probs), np.concatenate(values) if with_values else None


class LogJudge:
    """Estimates the values of policies on one log.

    Args:
        log: the held-out rows.
        config: estimators, refusals, level.
    """

    def __init__(self, log: HeldOutLog, config: JudgeConfig) -> None:
        self.log, self.config = log, config
        self._settings = FQEConfig(level=config.level, seed=config.seed)
        self._fits: QFits | None = None

    def estimates(self, pi: np.ndarray) -> list[Estimate]:
        """By each of the config's estimators, of the policy with probabilities pi (N, K)."""
        return [self._estimate(name, pi) for name in self.config.estimators]

    def _estimate(self, name: str, pi: np.ndarray) -> Estimate:
        log, config = self.log, self.config
        if name == "fqe":
            self._fits = self._fits or QFits(log.x, log.data, self._settings)
            return fitted_q(log.x, log.data, pi, self._settings, config.thresholds(), self._fits).estimate
        estimator = ESTIMATORS[name](config.thresholds(), level=config.level, seed=config.seed)
        return estimator.estimate(log.data, pi, log.q_hat)


def _judge(judged: Judged, judge: LogJudge, held_out: Decisions) -> PolicyResult:
    pi, values = probabilities(judged, held_out)
    estimates = judge.estimates(pi)
    metrics: dict[str, Any] = {
        "agreement": agreement(pi, held_out.action, held_out.user),
        "pages": assignment_ratio(pi),
        "Q - return (s, logged / best page)": None,
    }
    if values is not None and judged.gamma is not None:
        returns = realised_return(held_out.use_s, held_out.episode, held_out.step, judged.gamma)
        metrics["Q - return (s, logged / best page)"] = overestimation_gap(
            values, held_out.action, returns, held_out.user
        )
    return PolicyResult(judged.label, estimates, metrics)


def _logged(log: HeldOutLog, held_out: Decisions, config: JudgeConfig) -> PolicyResult:
    """What the logs earned, in the columns of the estimators that it is to be compared with."""
    estimates = []
    for name in config.estimators:
        value = logged_value(log.data, "user-day" if name == "fqe" else "decision", level=config.level)
        estimates.append(Estimate(**{**value.__dict__, "estimator": name, "modelled": False}))
    shares = np.bincount(held_out.action, minlength=log.q_hat.shape[1]) / len(held_out)
    return PolicyResult("(the log itself)", estimates, {"agreement": "100%", "pages": shares})
