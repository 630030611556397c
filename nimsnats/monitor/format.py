"""Values as nats-server's monitoring prints them: uptimes, numbers, and JSON for people.

Pure functions. Times and durations are `jetstream.clock`'s; the compact JSON of replies on the wire is
`jetstream.api.decode.encode`, with the same escapes.
"""

from __future__ import annotations

import json
from typing import Any, Final

JsonObject = dict[str, Any]

_SECOND: Final = 1_000_000_000
_ESCAPES: Final = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def pretty(value: object, indent: int = 2) -> bytes:
    """JSON with line breaks as Go's MarshalIndent writes it; `indent` 0 writes it compact."""
    if indent:
        text = json.dumps(value, indent=indent, ensure_ascii=False)
    else:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return escaped(text)


def escaped(text: str) -> bytes:
    """A piece of JSON as bytes, with the characters escaped that Go escapes."""
    return text.translate(_ESCAPES).encode("utf-8", "replace")


def uptime(ns: int) -> str:
    """How long, as varz and connz say it: `45s`, `3m5s`, `2h3m5s`, `1d2h3m5s`, `1y2d3h4m5s`."""
    minutes, seconds = divmod(max(0, ns) // _SECOND, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    years, days = divmod(days, 365)
    parts = ((years, "y"), (days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s"))
    first = next((i for i, (amount, _) in enumerate(parts) if amount), len(parts) - 1)
    return "".join(f"{amount}{unit}" for amount, unit in parts[first:])


def number(value: float) -> float | int:
    """Go prints a float without a fraction as an integer."""
    return int(value) if float(value).is_integer() else value


def seconds_ns(seconds: float) -> int:
    """A setting in seconds as the integer nanoseconds that varz shows."""
    return round(seconds * _SECOND)


def present(fields: JsonObject) -> JsonObject:
    """The fields that are not zero, empty or None: what Go's `omitempty` leaves."""
    return {key: value for key, value in fields.items() if value}
