"""Times and durations as they stand in JetStream's JSON and headers.

Owns text forms only: RFC 3339 with up to nine digits, Go durations. It reads no clock (that is `nimsnats.runtime`).
Times are integer nanoseconds since the epoch, durations integer nanoseconds.
"""

from __future__ import annotations

import re
from time import gmtime, strftime
from typing import Final

from nimsnats.protocol.rfc3339 import nanoseconds

SECOND: Final = 1_000_000_000
MILLISECOND: Final = 1_000_000
ZERO_TIME: Final = "0001-01-01T00:00:00Z"
"""How Go writes "no time"."""

FARTHEST: Final = 2**63 - 1
"""The last time, and the longest duration, that 64 bits can hold."""
_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": MILLISECOND,
    "s": SECOND,
    "m": 60 * SECOND,
    "h": 3600 * SECOND,
}
_DURATION: Final = re.compile(r"([0-9]++\.?[0-9]*+|\.[0-9]++)(ns|us|µs|μs|ms|s|m|h)")
"""Possessive: a long number without a unit is looked at once, not once a digit."""
_DIGITS: Final = 20
"""More digits of a fraction change nothing."""


def format_time(time_ns: int) -> str:
    """RFC 3339 in UTC with as many fraction digits as needed; 0 is Go's zero time."""
    if not time_ns:
        return ZERO_TIME
    seconds, fraction = divmod(time_ns, SECOND)
    text = strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds))
    return f"{text}.{fraction:09d}".rstrip("0") + "Z" if fraction else text + "Z"


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time; Go's zero time is 0. Raises ValueError.

    What 64 bits cannot hold (before 1677, after 2262) becomes the farthest time that they can.
    """
    return 0 if text == ZERO_TIME else max(-FARTHEST, min(nanoseconds(text), FARTHEST))


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration such as `1h30m` or `-1.5s`, within 64 bits. Raises ValueError."""
    duration = unbounded_duration(text)
    if not -FARTHEST <= duration <= FARTHEST:
        raise ValueError("a duration beyond 64 bits")
    return duration


def unbounded_duration(text: str) -> int:
    """The same, as far as Python converts digits. Raises ValueError."""
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in "+-" else text
    if rest == "0" and text:
        return 0
    total, at = 0, 0
    while at < len(rest):
        match = _DURATION.match(rest, at)
        if match is None:
            break
        number, unit = match.groups()
        whole, _, fraction = number.partition(".")
        scale = _UNITS[unit]
        fraction = fraction[:_DIGITS]
        total += int(whole or "0") * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
        at = match.end()
    if not rest or at < len(rest):
        raise ValueError(f"not a duration: {text!r}")
    return sign * total


def format_duration(duration_ns: int) -> str:
    """A duration as Go prints it: `1h0m0s`, `1.5s`, `250ms`, `0s`."""
    if not duration_ns:
        return "0s"
    sign, rest = ("-", -duration_ns) if duration_ns < 0 else ("", duration_ns)
    if rest < SECOND:
        scale, unit = (1, "ns") if rest < 1_000 else (1_000, "µs") if rest < MILLISECOND else (MILLISECOND, "ms")
        return f"{sign}{_decimal(rest, scale)}{unit}"
    minutes, rest = divmod(rest, 60 * SECOND)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, SECOND)}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else sign + text


def _decimal(value: int, scale: int) -> str:
    whole, fraction = divmod(value, scale)
    return f"{whole}.{fraction:0{len(str(scale)) - 1}d}".rstrip("0") if fraction else str(whole)
