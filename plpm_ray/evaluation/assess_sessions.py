"""A reward model on held-out sessions: how well it knew the drop-offs and the seconds on each page, beside constants.

R sessions, K pages. Intervals are 95 %, clustered by user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from plpm_ray.evaluation.assess import HeldOut
from plpm_ray.evaluation.metrics import clustered_mean
from plpm_ray.evaluation.rank_correlation import clustered_spearman
from plpm_ray.evaluation.session_models import drop_off_quality, page_errors
from plpm_ray.navigators.base import Learner

USUAL_TAU_S = 10.0
"""Seconds below which a landing page was left at once, where a learner's config has no `tau_s` of its own."""


def judge_sessions(learner: Learner, rows: HeldOut, pages: Sequence[str]) -> dict[str, Any]:
    """What is to be said of a reward model, JSON-like.

    Returns:
        "rows", "users", "tau_s"; "drop_off": a `DropOffQuality`, intervals of "brier" and "log_loss" as "<name>_interval", and
        those two of the best constant as "constant_<name>"; "pages": a `PageErrors` each and "constant_mae_s", the error of the
        page's mean (none where the model does not tell seconds by page); "reward": mean seconds of reward and of use, and the
        rank correlation of the two.
    """
    tau_s = float(getattr(learner.config, "tau_s", USUAL_TAU_S))
    dropped = rows.columns["landing_dwell_s"] < tau_s
    use_s = rows.columns["use_s"].astype(np.float64)
    reward = rows.of("reward")
    return {
        "rows": len(rows),
        "users": rows.users,
        "tau_s": tau_s,
        "drop_off": _drop_off(rows.of("drop_off"), dropped, rows.user),
        "pages": _pages(rows, pages),
        "reward": {
            "mean_s": float(reward.mean()),
            "mean_use_s": float(use_s.mean()),
            "spearman_use": asdict(clustered_spearman(reward, use_s, rows.user)),
        },
    }


def _drop_off(chance: np.ndarray, dropped: np.ndarray, user: np.ndarray) -> dict[str, Any]:
    quality = drop_off_quality(chance, dropped)
    kept = np.clip(chance, 1e-7, 1 - 1e-7)
    by_row = {
        "brier": np.square(chance - dropped),
        "log_loss": -np.log(np.where(dropped, kept, 1 - kept)),
    }
    blind = drop_off_quality(np.full(len(chance), quality.share), dropped)
    intervals = {f"{n}_interval": _ends(clustered_mean(values, user)) for n, values in by_row.items()}
    constants = {"constant_brier": blind.brier, "constant_log_loss": blind.log_loss}
    return {**quality.to_dict(), **intervals, **constants}


def _pages(rows: HeldOut, pages: Sequence[str]) -> list[dict[str, Any]]:
    if rows.page_s is None:
        return []
    came = rows.columns["page_dwell_s"]
    constant = np.abs(came - came.mean(0, dtype=np.float64)).mean(0)
    found = page_errors(rows.page_s, came, pages)
    return [{**asdict(errors), "constant_mae_s": float(c)} for errors, c in zip(found, constant, strict=True)]


def _ends(mean: Any) -> list[float]:
    return [mean.low, mean.high]
