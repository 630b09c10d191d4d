"""Numbers and times as a reader wants them."""

from __future__ import annotations

import math
from datetime import datetime, timezone

NONE = "–"


def figure(value: float | None, digits: int = 4) -> str:
    """Return `value` with so many significant digits: 12,345, 0.4123, 2e-5."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    size = math.floor(math.log10(abs(value)))
    if size >= digits - 1:
        return f"{value:,.0f}"
    if size < -3:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{digits - 1 - size}f}"


def short(value: float, digits: int = 4) -> str:
    """Return `figure` without the zeros at its end, for an axis."""
    made = figure(value, digits)
    return made.rstrip("0").rstrip(".") if "." in made and "e" not in made else made


def compact(value: float, digits: int = 4) -> str:
    """Return a figure in little room: 150k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{short(value / size, digits)}{letter}"
    return short(value, digits)


def coordinate(value: float) -> str:
    """Return a number for the box of a chart."""
    return f"{value:.1f}".removesuffix(".0")


def percent(part: float | None, digits: int = 0) -> str:
    return NONE if part is None else f"{100 * part:.{digits}f}\u00a0%"


def gib(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} GiB" if value >= 10 else f"{value:.2f} GiB"


def duration(seconds: float | None) -> str:
    """Return seconds as `42 s`, `6 min 12 s`, `3 h 05 min`."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{figure(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(seconds: float | None) -> str:
    """Return Unix seconds as a date in UTC."""
    if seconds is None:
        return ""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return ""
