"""One `CONSUMER.MSG.NEXT` request: how its body is read, what it still wants, and the statuses that can end it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import BOOL, DURATION, INT, INT64, STRING, Struct, decode
from nimsnats.jetstream.errors import ApiError
from nimsnats.protocol.headers import status_block

BODY: Final = Struct(
    "",
    {
        "expires": DURATION,
        "batch": INT,
        "max_bytes": INT,
        "no_wait": BOOL,
        "idle_heartbeat": DURATION,
        "group": STRING,
        "min_pending": INT64,
        "min_ack_pending": INT64,
        "id": STRING,
        "priority": INT,
    },
    strict=False,
)

_DIGITS: Final = 18
"""A plain number of more digits is none, and asks for one message."""

SHORTEST_HEARTBEAT: Final = 50_000_000
"""Nanoseconds between two heartbeats of a request, at least."""
TIMEOUT: Final = (408, "Request Timeout")
SIZE: Final = (409, "Message Size Exceeds MaxBytes")
COMPLETED: Final = (409, "Batch Completed")
SHUTDOWN: Final = (409, "Server Shutdown")
WRONG_PIN: Final = (423, "Nats-Wrong-Pin-Id")
NO_MESSAGES: Final = status_block(404, "No Messages")
REQUESTS_PENDING: Final = status_block(408, "Requests Pending")
MAX_WAITING: Final = status_block(409, "Exceeded MaxWaiting")
PUSH_BASED: Final = status_block(409, "Consumer is push based")
DELETED: Final = status_block(409, "Consumer Deleted")
LEADERSHIP: Final = status_block(409, "Leadership Change")
API_LEVEL: Final = status_block(412, "Required Api Level")
PIN_MISMATCH: Final = status_block(423, "Nats-Pin-Id mismatch")


def bad_request(text: str) -> bytes:
    """The status block that refuses a body."""
    return status_block(400, f"Bad Request - {text}")


def heartbeat(number: int, seq: int, stalled: bytes = b"") -> bytes:
    """The header block of an idle heartbeat: last consumer and stream sequence."""
    pairs = [(b"Nats-Last-Consumer", b"%d" % number), (b"Nats-Last-Stream", b"%d" % seq)]
    if stalled:
        pairs.append((b"Nats-Consumer-Stalled", stalled))
    return status_block(100, "Idle Heartbeat", pairs)


class BadRequest(Exception):
    """The body is not a request; the text goes into the 400 status."""


class PullRequest:
    """An open request. Times in nanoseconds on the consumer's clock, 0 for none."""

    __slots__ = (
        "asked",
        "bytes_left",
        "delivered",
        "expires",
        "expires_at",
        "group",
        "heartbeat",
        "heartbeat_at",
        "lane",
        "left",
        "limited",
        "min_ack_pending",
        "min_pending",
        "no_wait",
        "pin_id",
        "plain",
        "priority",
        "reply",
        "turn",
    )

    def __init__(self, reply: bytes, fields: dict[str, Any], plain: bool, now: int) -> None:
        self.reply = reply
        self.plain = plain
        """Whether the request had no JSON body, which exempts it from the rules of priority groups."""
        self.left = max(fields.get("batch", 1), 1)
        self.bytes_left = max(fields.get("max_bytes", 0), 0)
        self.limited = self.bytes_left > 0
        self.expires = max(fields.get("expires", 0), 0)
        self.expires_at = now + self.expires if self.expires else 0
        self.no_wait = bool(fields.get("no_wait", False))
        heartbeat = fields.get("idle_heartbeat", 0)
        self.heartbeat = max(heartbeat, SHORTEST_HEARTBEAT) if heartbeat > 0 else 0
        self.heartbeat_at = now + self.heartbeat if self.heartbeat else 0
        self.group = str(fields.get("group", ""))
        self.min_pending = int(fields.get("min_pending", 0))
        self.min_ack_pending = int(fields.get("min_ack_pending", 0))
        self.pin_id = str(fields.get("id", ""))
        self.priority = int(fields.get("priority", 0))
        self.delivered = 0
        self.lane: Hashable = None
        self.turn = self.asked = 0
        """Where it waits, since when, and for which count of ended subscriptions it was last asked whether anybody
        listens: all of these are `waiting.py`'s."""

    def status(self, status: tuple[int, str]) -> bytes:
        """A status block that tells what the request did not get."""
        return status_block(
            *status,
            ((b"Nats-Pending-Messages", b"%d" % self.left), (b"Nats-Pending-Bytes", b"%d" % self.bytes_left)),
        )


def _plain_error(description: str) -> str:
    """The text of Go's own decoder, which reads these bodies: without a prefix and without offsets."""
    text = description.removeprefix(errors.INVALID_JSON(err="").description)
    if text == "unexpected EOF":
        return "unexpected end of JSON input"
    return text.partition(" at offset ")[0]


def read_request(body: bytes, reply: bytes, now: int) -> PullRequest:
    """A request from its body. Raises BadRequest."""
    text = body.strip()
    fields: dict[str, Any] = {}
    if text[:1] == b"{":
        try:
            fields = decode(text, BODY, strict=False)
        except ApiError as error:
            raise BadRequest(_plain_error(error.description)) from None
        request = PullRequest(reply, fields, False, now)
        if fields.get("idle_heartbeat", 0) * 2 > request.expires:
            raise BadRequest("heartbeat value too large")
        return request
    if text.isdigit() and len(text) <= _DIGITS:
        fields["batch"] = int(text)
    return PullRequest(reply, fields, True, now)
