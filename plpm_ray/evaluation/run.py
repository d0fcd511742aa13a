"""Judges navigators on held-out days: agreement, page shares, overestimation, policy values with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from plpm_ray.core.features import FeatureSpec
from plpm_ray.data.contract import Warehouse
from plpm_ray.evaluation.config import JudgeConfig, ModelsConfig
from plpm_ray.evaluation.estimators import DM, DR, IPS, SNIPS, Estimate, Estimator
from plpm_ray.evaluation.fqe import FQEConfig, QFits, fitted_q
from plpm_ray.evaluation.held_out import Decisions, HeldOutLog, held_out_log, read_decisions
from plpm_ray.evaluation.metrics import agreement, assignment_ratio, overestimation_gap, realised_return
from plpm_ray.evaluation.replay import LoggedDays, moments, read_logged_days, replayed
from plpm_ray.evaluation.sequential import PDIS, SequentialDR, logged_value
from plpm_ray.evaluation.table import PolicyResult, format_table
from plpm_ray.navigators.base import Navigator
from plpm_ray.navigators.page_scores import page_scorer
from plpm_ray.policies.base import Policy

ESTIMATORS: Mapping[str, type[Estimator]] = {"snips": SNIPS, "ips": IPS, "dr": DR, "dm": DM}
"""Estimators of the value per decision."""


@dataclass(frozen=True)
class Judged:
    """One policy to judge.

    Attributes:
        label: name in the table.
        navigator, policy: scores, and how pages are drawn from them.
        gamma: discount of the navigator's values per session within a day; None if it has no values, or they look
            beyond the day.

    Raises:
        BundleError: the navigator is a model that chooses no pages.
    """

    label: str
    navigator: Navigator
    policy: Policy
    gamma: float | None = None

    def __post_init__(self) -> None:
        page_scorer(self.navigator)


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
    judge = LogJudge(log, config, config.seed)
    logged = None
    if any(replayed(policy.navigator) for policy in policies):
        logged = read_logged_days(warehouse, held_out_days, held_out, config.max_sessions)
    judged = (_judge(p, judge, held_out, logged, config.estimators) for p in policies)
    results = [_logged(log, held_out, config), *judged]
    return Evaluation(results, log.diagnostics, warehouse.info.pages.names)


def probabilities(
    judged: Judged, decisions: Decisions, logged: LoggedDays | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(N, K) probabilities of the policy and (N, K) values in seconds (None without) for every decision.

    Args:
        logged: needed by navigators that keep a state of the day, or read the days before it.

    Raises:
        ConfigError: such a navigator, and it is not given.
    """
    navigator, shape = judged.navigator, (len(decisions), len(judged.navigator.pages))
    probs, values = np.empty(shape), np.empty(shape, dtype=np.float32)
    with_values = True
    for rows, features, state in moments(navigator, decisions, logged):
        probs[rows] = judged.policy.probabilities(navigator.scores(features, state))
        found = navigator.values(features, state)
        with_values = with_values and found is not None
        if found is not None:
            values[rows] = found
    return probs, values if with_values else None


class LogJudge:
    """Estimates the values of policies on one log.

    Args:
        log: the held-out rows.
        config: level of the intervals, refusals.
        seed: of folds and bootstraps.
        gamma: discount per entry of a day, of the values per user-day.
        refits: fits of fqe_plug_in on resampled users, for its interval.
    """

    def __init__(
        self, log: HeldOutLog, config: ModelsConfig, seed: int = 0, *, gamma: float = 1.0, refits: int = 0
    ) -> None:
        self.log, self.level, self.thresholds, self.seed = log, config.level, config.thresholds(), seed
        self._settings = FQEConfig(gamma=gamma, level=config.level, refits=refits, bootstrap=0, seed=seed)
        self._fits: QFits | None = None

    def estimate(self, name: str, pi: np.ndarray) -> Estimate:
        """By an estimator, of the policy with probabilities pi (N, K).

        Args:
            name: one of `ESTIMATORS`, per decision; or, per user-day, "fqe", "fqe_plug_in" (without the correction by the
                log), "pdis" or "sequential_dr".
        """
        log = self.log
        if name in ESTIMATORS:
            estimator = ESTIMATORS[name](self.thresholds, level=self.level, seed=self.seed)
            return estimator.estimate(log.data, pi, log.q_hat)
        if name == "pdis":
            return PDIS(self.thresholds, gamma=self._settings.gamma, level=self.level).estimate(log.data, pi)
        settings = replace(self._settings, correction=name != "fqe_plug_in")
        self._fits = self._fits or QFits(log.x, log.data, self._settings)
        fitted = fitted_q(log.x, log.data, pi, settings, self.thresholds, self._fits)
        if name == "sequential_dr":
            by_day = SequentialDR(self.thresholds, gamma=settings.gamma, level=self.level)
            return by_day.estimate(log.data, pi, fitted.q)
        return fitted.estimate


def _judge(
    judged: Judged,
    judge: LogJudge,
    held_out: Decisions,
    logged: LoggedDays | None,
    estimators: Sequence[str],
) -> PolicyResult:
    pi, values = probabilities(judged, held_out, logged)
    estimates = [judge.estimate(name, pi) for name in estimators]
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
        value = logged_value(log.data, "decision" if name in ESTIMATORS else "user-day", level=config.level)
        estimates.append(Estimate(**{**value.__dict__, "estimator": name, "modelled": False}))
    shares = np.bincount(held_out.action, minlength=log.q_hat.shape[1]) / len(held_out)
    return PolicyResult("(the log itself)", estimates, {"agreement": "100%", "pages": shares})
