"""The split into training, validation and test days: by time, never at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from plpm_ray.core.config import StrictConfig
from plpm_ray.core.errors import DataError
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
