"""Durations as Go writes them (`10s`, `1h30m`, `250ms`). Pure text to seconds and back, with Go's error texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

_PART: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_UNITS: Final[Mapping[str, Fraction]] = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),  # micro sign
    "μs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
}
_DIGITS: Final = 19
"""More digits are too many before the point, and change nothing behind it."""
_MAX_SECONDS: Final = Fraction(2**63 - 1, 10**9)


def parse_duration(text: str) -> float:
    """Seconds of a Go duration. Raises ValueError with the text of Go's `time.ParseDuration`."""
    invalid = ValueError(f'time: invalid duration "{text}"')
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    if not rest:
        raise invalid
    total, at = Fraction(0), 0
    while at < len(rest):
        match = _PART.match(rest, at)
        if not match or not (match[1] or match[2]):
            raise invalid
        if not match[3]:
            raise ValueError(f'time: missing unit in duration "{text}"')
        unit = _UNITS.get(match[3])
        if unit is None:
            raise ValueError(f'time: unknown unit "{match[3]}" in duration "{text}"')
        whole = match[1].lstrip("0") or "0"
        if len(whole) > _DIGITS:
            raise invalid
        total += Fraction(f"{whole}.{(match[2] or '0')[:_DIGITS]}") * unit
        at = match.end()
    if total > _MAX_SECONDS:
        raise invalid
    return float(-total if text.startswith("-") else total)


def format_duration(seconds: float) -> str:
    """A duration as Go's `Duration.String` prints it: `5s`, `1m30s`, `250ms`."""
    nanoseconds = round(abs(seconds) * 10**9)
    sign = "-" if seconds < 0 else ""
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if nanoseconds < size * 1000:
            return f"{sign}{_decimal(nanoseconds, size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{head}{_decimal(rest, 10**9)}s"


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    digits = str(rest).rjust(len(str(size)) - 1, "0").rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)
