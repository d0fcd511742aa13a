"""Axes: ranges, round ticks, and where a value stands on the drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from plpm_ray.evaluation.report.numbers import fixed


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`, drawn from `start` to `end` (which may be the smaller, as for heights)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def inside(self, value: float) -> float:
        """Like a call, values beyond the ends moved to them."""
        return self(min(max(value, self.low), self.high))


def extent(
    values: Iterable[float | None], include: Iterable[float] = (), margin: float = 0.06
) -> tuple[float, float]:
    """Smallest and largest finite value with a margin; never an empty range."""
    finite = [v for v in [*values, *include] if v is not None and math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    pad = (high - low) * margin
    fixed_low, fixed_high = low in set(include), high in set(include)
    return low - (0 if fixed_low and low == 0 else pad), high + (0 if fixed_high and high == 0 else pad)


def ticks(low: float, high: float, about: int = 5) -> tuple[list[float], int]:
    """Round values (1, 2 or 5 times a power of ten) inside the range, about so many, and the decimals they need."""
    step = _step((high - low) / max(about, 1))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [round(i * step, decimals + 2) for i in range(first, last + 1)], decimals


def tick_labels(low: float, high: float, about: int = 5, sign: bool = False) -> list[tuple[float, str]]:
    """Ticks with their text."""
    values, decimals = ticks(low, high, about)
    return [(v, fixed(v, decimals, sign) if v else "0") for v in values]


def _step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
