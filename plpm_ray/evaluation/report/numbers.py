"""Numbers as people read them: precision by the width of the interval, true minus signs, units."""

from __future__ import annotations

import math

MINUS, SPACE, DASH = "−", "\u00a0", "–"


def decimals_for(half_width: float | None, value: float = 0.0, most: int = 4) -> int:
    """Decimals that show two digits of the uncertainty, or three digits of the value where none is known."""
    if half_width is not None and math.isfinite(half_width) and half_width > 0:
        digits = 1 - math.floor(math.log10(half_width))
    elif value and math.isfinite(value):
        digits = 2 - math.floor(math.log10(abs(value)))
    else:
        digits = 1
    return max(0, min(most, digits))


def fixed(value: float | None, decimals: int, sign: bool = False) -> str:
    """With thousands separated, a true minus, and no minus before what rounds to zero; an en dash for nothing."""
    if value is None or not math.isfinite(value):
        return DASH
    shown = f"{abs(value):,.{decimals}f}"
    if float(shown.replace(",", "")) == 0:
        return shown
    return (MINUS if value < 0 else "+" if sign else "") + shown


def number(value: float | None) -> str:
    """Three digits, more where it is large: 1,234, 12.3, 0.00456."""
    return DASH if value is None else fixed(value, decimals_for(None, value, most=6))


def with_unit(shown: str, unit: str) -> str:
    """A number and its unit; nothing is added to a missing number."""
    return shown if shown == DASH or not unit else f"{shown}{SPACE}{unit}"


def percent(share: float | None, decimals: int = 1, sign: bool = False) -> str:
    """A share of 1 as a percentage."""
    return with_unit(fixed(None if share is None else share * 100, decimals, sign), "%")


def change(value: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """A relative change (fraction) and its interval, both in percent; the interval is empty where there is none."""
    if value is None:
        return DASH, ""
    half = _half_width(low, high)
    decimals = decimals_for(None if half is None else half * 100, value * 100, most=3)
    if low is None or high is None:
        return percent(value, decimals, sign=True), ""
    return percent(value, decimals, sign=True), between(low * 100, high * 100, decimals, "%", sign=True)


def estimate(value: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """A value and its interval, without unit."""
    if value is None:
        return DASH, ""
    decimals = decimals_for(_half_width(low, high), value)
    shown = fixed(value, decimals)
    return shown, "" if low is None or high is None else between(low, high, decimals)


def between(low: float, high: float, decimals: int, unit: str = "", sign: bool = False) -> str:
    """`0.80 to 1.66 %`."""
    return with_unit(f"{fixed(low, decimals, sign)} to {fixed(high, decimals, sign)}", unit)


def p_value(p: float | None) -> str:
    """Three decimals, `< 0.001` below, an en dash where there is none."""
    if p is None or not math.isfinite(p):
        return DASH
    return f"<{SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def p_phrase(p: float) -> str:
    """`p = 0.012` or `p < 0.001`."""
    shown = p_value(p)
    return f"p{SPACE}{shown}" if shown.startswith("<") else f"p{SPACE}={SPACE}{shown}"


def count(value: float | int | None) -> str:
    """A whole number with its thousands separated."""
    return DASH if value is None else fixed(float(value), 0)


def plural(n: int, one: str, many: str | None = None) -> str:
    """`1 user`, `2,000 users`."""
    return f"{count(n)}{SPACE}{one if n == 1 else many or one + 's'}"


def _half_width(low: float | None, high: float | None) -> float | None:
    return None if low is None or high is None else (high - low) / 2
