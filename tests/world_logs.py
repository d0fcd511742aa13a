"""Small logs of the simulated world, for tests that need something to learn from and true propensities."""

from __future__ import annotations

from typing import Any


def world_logs(users: int, days: int, **changes: Any) -> dict[str, Any]:
    """A `dataset:` section: some five sessions a user and day, landing pages drawn evenly in a third of the entries."""
    policy = {"builtin": "logging", "explore": 0.3}
    section = {
        "name": "world",
        "world": "kuaishou",
        "users": users,
        "days": days,
        "warmup_days": 1,
        "policy": policy,
    }
    return {**section, **changes}
