"""Times as RFC 3339 texts, read and refused as Go's `time` package does.

Owns the grammar, the ranges and the words of Go's complaints, which clients are shown. It knows no clock, and no zone
but the offset in the text. Go is lenient in places (one digit of hour, a comma before the fraction, digits beyond
nanoseconds), and so is this; `canonical` is the form in which Go writes such a time again.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

_LAYOUT: Final = "2006-01-02T15:04:05Z07:00"
_TIME: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{1,2}):([0-9]{2}):([0-9]{2})(?:[.,]([0-9]+))?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)
_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_CYCLE_YEARS: Final = 400
_CYCLE_DAYS: Final = 146_097
_EPOCH: Final = date(1970, 1, 1).toordinal()
_LONGEST: Final = 200
"""Characters of a bad time that are shown."""


class BadTime(ValueError):
    """Not a time; the text is Go's complaint."""


def canonical(text: str) -> str:
    """The time as Go writes it: fraction without trailing zeros, `Z` for a zero offset. Raises BadTime."""
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = _fields(text)
    shown = fraction[:9].rstrip("0")
    head = f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}"
    zone = f"{sign}{hours:02d}:{minutes:02d}" if hours or minutes else "Z"
    return f"{head}.{shown}{zone}" if shown else head + zone


def nanoseconds(text: str) -> int:
    """Nanoseconds since the epoch; they may need more than 64 bits. Raises BadTime."""
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = _fields(text)
    days = date(year or _CYCLE_YEARS, month, day).toordinal() - (0 if year else _CYCLE_DAYS) - _EPOCH
    away = hours * 3600 + minutes * 60
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second + (away if sign == "-" else -away)
    return seconds * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))


_Fields = tuple[int, int, int, int, int, int, str, str, int, int]


def _fields(text: str) -> _Fields:
    match = _TIME.fullmatch(text)
    if match is None:
        raise BadTime(_unparsed(text))
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    hours, minutes = int(match[9] or 0), int(match[10] or 0)
    complaint = _out_of_range(year, month, day, hour, minute, second, hours, minutes)
    if complaint:
        raise BadTime(f"parsing time {_quoted(text)}: {complaint} out of range")
    return year, month, day, hour, minute, second, match[7] or "", match[8] or "", hours, minutes


def _out_of_range(
    year: int, month: int, day: int, hour: int, minute: int, second: int, hours: int, minutes: int
) -> str:
    """The field that has no such value, in the order in which Go looks. Go reads offsets of 24 hours and of 60 minutes,
    and then cannot write them: they are refused like those above."""
    if not 1 <= month <= 12:
        return "month"
    for name, value, end in (("hour", hour, 24), ("minute", minute, 60), ("second", second, 60)):
        if value >= end:
            return name
    if minutes > 59:
        return "time zone offset minute"
    if hours > 23:
        return "time zone offset hour"
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return "" if 1 <= day <= _DAYS[month - 1] + leap else "day"


_PARTS: Final = (
    (re.compile("[0-9]{4}"), "2006"),
    (re.compile("-"), "-"),
    (re.compile("[0-9]{2}"), "01"),
    (re.compile("-"), "-"),
    (re.compile("[0-9]{2}"), "02"),
    (re.compile("T"), "T"),
    (re.compile("[0-9]{1,2}"), "15"),
    (re.compile(":"), ":"),
    (re.compile("[0-9]{2}"), "04"),
    (re.compile(":"), ":"),
    (re.compile("[0-9]{2}(?:[.,][0-9]+)?"), "05"),
    (re.compile("Z|[+-][0-9]{2}:[0-9]{2}"), "Z07:00"),
)


def _unparsed(text: str) -> str:
    """Go's words for a text that has another form."""
    at = 0
    for part, name in _PARTS:
        match = part.match(text, at)
        if match is None:
            return f'parsing time {_quoted(text)} as "{_LAYOUT}": cannot parse {_quoted(text[at:])} as "{name}"'
        at = match.end()
    return f"parsing time {_quoted(text)}: extra text: {_quoted(text[at:])}"


def _quoted(text: str) -> str:
    """As Go's `time` package quotes: control characters and what is not ASCII byte by byte. Long texts are cut."""
    shown = text[:_LONGEST] + ("..." if len(text) > _LONGEST else "")
    parts = (f"\\{char}" if char in '"\\' else char if " " <= char < "\x7f" else _bytes(char) for char in shown)
    return f'"{"".join(parts)}"'


def _bytes(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "replace"))
