"""Leaf: the structured event that travels on the wind.

Owns: the value and its JSON form, `{"subject", "data", "source", "ts"}` with `ts` in RFC 3339 (UTC). A leaf also has
an identity, which travels beside the JSON in the `Nats-Msg-Id` header: two drops of one leaf have one identity, so
the wind's stream keeps one of them, and a core subscriber that sees both can tell.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from forest.errors import Poison
from forest.subject import is_literal

_FRACTION = re.compile(r"\.(\d+)")


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds, `2026-01-02T15:04:05.000000Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """The moment of an RFC 3339 string (fractions down to nanoseconds are cut to microseconds). Raises ValueError."""
    moment = datetime.fromisoformat(_FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", text, count=1))
    if moment.tzinfo is None:
        raise ValueError(f"no time zone in {text!r}")
    return moment.astimezone(UTC)


def load_object(payload: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `payload`. Raises `Poison` (`not-json`) for anything else; `what` names it in the message."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise Poison("not-json", f"{what} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise Poison("not-json", f"{what} is not a JSON object but {type(value).__name__}")
    return cast("dict[str, Any]", value)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One event. `data` is any JSON value, `source` the tree or nim that made it, `ts` an aware datetime.

    `id` is the identity for deduplication; empty means "the one who drops it derives one".
    """

    subject: str
    data: Any
    source: str
    ts: datetime
    id: str = ""

    def __post_init__(self) -> None:
        if not is_literal(self.subject):
            raise ValueError(f"{self.subject!r} is not a subject a leaf can have")
        if not self.source:
            raise ValueError("a leaf needs a source")
        if self.ts.tzinfo is None:
            raise ValueError("a leaf's ts needs a time zone")

    def to_json(self) -> bytes:
        """The wire form. Raises TypeError or ValueError if `data` is not JSON."""
        body = {
            "subject": self.subject,
            "data": self.data,
            "source": self.source,
            "ts": format_time(self.ts),
        }
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, payload: bytes, leaf_id: str = "") -> Leaf:
        """The leaf of a wire form; raises `Poison` if it is none."""
        body = load_object(payload, "leaf")
        subject, source, ts = body.get("subject"), body.get("source"), body.get("ts")
        if not isinstance(subject, str) or not isinstance(source, str) or not isinstance(ts, str):
            raise Poison("missing-field", "a leaf needs subject, source and ts as strings")
        if "data" not in body:
            raise Poison("missing-field", "a leaf needs data")
        try:
            return cls(subject, body["data"], source, parse_time(ts), leaf_id)
        except ValueError as error:
            raise Poison("bad-field", f"leaf: {error}") from None
