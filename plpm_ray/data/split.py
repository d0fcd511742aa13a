"""The split into training, validation and test days: by time, never at random. Users of trials are split by their hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from plpm_ray.core.config import StrictConfig
from plpm_ray.core.errors import DataError
from plpm_ray.core.hashing import splitmix64
from plpm_ray.core.hashing import user_hash as hash_of
from plpm_ray.data.day_table import day_name


class SplitConfig(StrictConfig):
    """How the days of a data set are divided; days without any session do not count."""

    valid_days: int = Field(
        default=2, ge=0, description="days before the test days on which settings are compared"
    )
    test_days: int = Field(default=2, ge=0, description="last days, looked at once, for the final numbers")
    train_days: int | None = Field(
        default=None,
        ge=1,
        description="days before the validation days to learn from; null takes all there are",
    )


@dataclass(frozen=True)
class Split:
    """Days (since 1970-01-01) of each part, in order: training before validation before test."""

    train: list[int]
    valid: list[int]
    test: list[int]

    def to_dict(self) -> dict[str, list[str]]:
        """The same with days as `YYYY-MM-DD`, for summaries."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: [day_name(day) for day in days] for name, days in parts.items()}


def split_days(days: Sequence[int], config: SplitConfig | None = None) -> Split:
    """Divides days (since 1970-01-01, any order, repeats ignored).

    Raises:
        DataError: no day is left to learn from, or fewer than `train_days`.
    """
    config = config or SplitConfig()
    ordered = sorted(set(days))
    held_out = config.valid_days + config.test_days
    left = len(ordered) - held_out
    wanted = config.train_days or 1
    if left < wanted:
        have = (
            f"{len(ordered)} days ({day_name(ordered[0])} to {day_name(ordered[-1])})"
            if ordered
            else "no days"
        )
        raise DataError(
            f"the data holds {have}, but {config.valid_days} for validation, {config.test_days} for test "
            f"and at least {wanted} for training were asked for",
            hint="add data, or lower split.valid_days, split.test_days or split.train_days",
        )
    first = left - config.train_days if config.train_days else 0
    return Split(
        ordered[first:left], ordered[left : left + config.valid_days], ordered[left + config.valid_days :]
    )


class UserSplitConfig(StrictConfig):
    """How the users of a randomised trial are divided; a user is always in the same part."""

    valid_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of the users on which settings are compared"
    )
    test_share: float = Field(
        default=0.2, ge=0, lt=1, description="share of the users looked at once, for the final numbers"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="another seed divides the users otherwise")
    official: bool = Field(
        default=False,
        description="take the test users that came with the data, where it has such a split, and of the others a "
        "share of valid_share / (1 - test_share) for validation",
    )

    @model_validator(mode="after")
    def _some_left(self) -> UserSplitConfig:
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share and test_share leave no users to learn from")
        return self


TRAIN, VALID, TEST = 0, 1, 2
"""Parts of the users, as `user_parts` numbers them."""


def user_parts(user_hash: np.ndarray, config: UserSplitConfig) -> np.ndarray:
    """The part of each user: a function of user and seed alone, and independent of the bucket.

    Args:
        user_hash: (n,) uint64 from `core.hashing.user_hash`.
        config: shares and seed; `official` is not looked at (see `trial_parts`).

    Returns:
        (n,) int8: 0 train, 1 valid, 2 test.
    """
    draw = _draws(user_hash, config.seed)
    parts = np.full(len(draw), TRAIN, dtype=np.int8)
    parts[draw < config.test_share + config.valid_share] = VALID
    parts[draw < config.test_share] = TEST
    return parts


def trial_parts(trial: pa.Table, config: UserSplitConfig) -> np.ndarray:
    """The part of each row of a trial table, by its column user_id, and `part` where the official split is asked for.

    Returns:
        (n,) int8: 0 train, 1 valid, 2 test.

    Raises:
        DataError: the official split is asked for, and the data came without one.
    """
    hashes = hash_of(trial["user_id"])
    if not config.official:
        return user_parts(hashes, config)
    if "part" not in trial.column_names:
        raise DataError(
            "users.official is set, but this trial came without a split of its own",
            hint="set users.official=false; users are then divided by their hash",
        )
    parts = trial["part"].to_numpy().astype(np.int8)
    share = config.valid_share / (1 - config.test_share)
    parts[(parts == TRAIN) & (_draws(hashes, config.seed) < share)] = VALID
    return parts


def _draws(user_hash: np.ndarray, seed: int) -> np.ndarray:
    """(n,) float64 in [0, 1); mixed once more, so that it tells nothing of the bits that make buckets."""
    key = splitmix64(np.array([seed], dtype=np.int64))
    return (splitmix64(user_hash ^ key) >> np.uint64(11)) * 2.0**-53
