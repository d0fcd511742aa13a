"""Per-user tables of experiments with known effects, for the tests of their statistics."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from plpm_ray.evaluation.experiment import analyse

PAGES = ("featured", "following")
TOTALS = ("active_days", "last7_active_days", "sessions", "use_s", "watch_s", "video_views", "drop_offs")
DAYS = 14
ARMS = {"control": 0.0, "random": -0.05, "oracle": 0.3, "model": 0.1}


def totals(rng: np.random.Generator, habit: Mapping[str, np.ndarray], days: int) -> dict[str, np.ndarray]:
    """Totals of one period of users with the given habits: share of active days, sessions, drop-off, taste."""
    last = min(7, days)
    last7 = rng.binomial(last, habit["active"])
    active = last7 + rng.binomial(days - last, habit["active"])
    sessions = active + rng.poisson(habit["rate"] * active)
    use = 200.0 * rng.gamma(np.maximum(0.7 * sessions, 1e-9)) * (sessions > 0)
    featured = rng.binomial(sessions, habit["taste"])
    return {
        "active_days": active,
        "last7_active_days": last7,
        "sessions": sessions,
        "use_s": use,
        "watch_s": use * rng.beta(8, 2, len(use)),
        "video_views": rng.poisson(use / 25),
        "drop_offs": rng.binomial(sessions, habit["drop"]),
        "assigned_featured": featured,
        "assigned_following": sessions - featured,
        "effective_featured": rng.binomial(sessions, 0.8),
        "effective_following": rng.binomial(sessions, 0.3),
    }


def habits(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Habits of n users that last through both periods."""
    return {
        "active": rng.beta(1.2, 0.9, n),
        "rate": rng.gamma(2.0, 1.0, n),
        "drop": rng.beta(1, 6, n),
        "taste": rng.beta(2, 2, n),
    }


def changed(habit: Mapping[str, np.ndarray], effect: np.ndarray) -> dict[str, np.ndarray]:
    """Habits under arms whose users drop off 2 x effect less and have 1 x effect more sessions."""
    return {**habit, "rate": habit["rate"] * (1 + effect), "drop": habit["drop"] * (1 - 2 * effect)}


def split_table(
    seed: int, n: int, effects: Mapping[str, float], shares: Sequence[float] | None = None
) -> pa.Table:
    """n users in arms {label: effect}; see `changed`."""
    rng = np.random.default_rng(seed)
    arm = rng.choice(len(effects), n, p=shares)
    habit = habits(rng, n)
    before = totals(rng, habit, DAYS)
    after = totals(rng, changed(habit, np.array(list(effects.values()))[arm]), DAYS)
    return table(np.array(list(effects))[arm], before, after)


def twin_table(seed: int, n: int, effects: Mapping[str, float]) -> pa.Table:
    """The same n users under every arm, each with its own random numbers again."""
    rng = np.random.default_rng(seed)
    habit = habits(rng, n)
    before = totals(rng, habit, DAYS)
    luck = int(rng.integers(2**32))
    parts = []
    for arm, effect in effects.items():
        after = totals(np.random.default_rng(luck), changed(habit, np.full(n, effect)), DAYS)
        parts.append(table(np.full(n, arm), before, after))
    return pa.concat_tables(parts)


def table(arm: np.ndarray, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> pa.Table:
    columns = {f"aa_{name}": values for name, values in before.items()}
    columns |= {f"ab_{name}": values for name, values in after.items()}
    return pa.table({"user_id": np.arange(len(arm)), "arm": arm, **columns})


def with_columns(users: pa.Table, **columns) -> pa.Table:
    """users with some columns replaced."""
    for name, values in columns.items():
        users = users.set_column(users.column_names.index(name), name, pa.array(values))
    return users


def run(users: pa.Table, **options) -> dict:
    """The analysis of a table, which warns of nothing and can be written as JSON."""
    options = {"control": "control", "aa_days": DAYS, "ab_days": DAYS, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = analyse(users, PAGES, **options)
    json.dumps(result, allow_nan=False)
    return result


def pick(result: dict, metric: str, arm: str) -> dict:
    """The row of a metric and an arm."""
    (row,) = [row for row in result["metrics"] if (row["metric"], row["arm"]) == (metric, arm)]
    return row
