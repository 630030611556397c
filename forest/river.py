"""River: the stream of raw things from outside, before anybody has understood them.

Owns: stream RIVER (`river.>`, work-queue, file, 24 h, 100,000 messages) and the envelope
`{"subject", "data" (base64), "ts"}`. What is not an envelope is raw bytes, so `nats pub river.stripe.webhook '{...}'`
works as well. Never looks into the data.

Trade-off: the stream refuses new messages when it is full (discard new) instead of dropping the oldest ones, because
those have been acknowledged: a webhook is then answered 503 and its sender tries again.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from forest.errors import ForestError, Refused
from forest.jet import Jet, Stored
from forest.leaf import format_time, parse_time
from forest.subject import is_literal
from forest.worker import Delivery

STREAM = "RIVER"
REPLAY_MARGIN = 60.0
"""Seconds by which the clocks of nodes and of the stream's leader may differ."""
_ENVELOPE = frozenset({"subject", "data", "ts"})


@dataclass(frozen=True, slots=True)
class RiverItem:
    """One thing from the river. `ts`: the envelope's time, or when the stream stored it. `id`: its identity."""

    subject: str
    data: bytes
    ts: datetime
    id: str
    seq: int


def river_subject(subject: str) -> str:
    """`subject` below `river.`; raises ValueError if it cannot be published to."""
    full = subject if subject.startswith("river.") else f"river.{subject}"
    if not is_literal(full):
        raise ValueError(f"{subject!r} is not a subject of the river")
    return full


def open_envelope(subject: str, payload: bytes) -> tuple[bytes, datetime | None]:
    """The data and time inside an envelope; a payload that is none comes back as it is.

    An envelope has no other keys than its three, its data is base64, and it names the subject it came on: a raw JSON
    payload that happens to look alike is left alone.
    """
    if payload.lstrip()[:1] != b"{":
        return payload, None
    try:
        body = json.loads(payload)
        if not isinstance(body, dict):
            return payload, None
        fields = cast("dict[str, Any]", body)
        data, ts = fields.get("data"), fields.get("ts")
        if not fields.keys() <= _ENVELOPE or fields.get("subject") != subject or not isinstance(data, str):
            return payload, None
        return base64.b64decode(data, validate=True), parse_time(ts) if isinstance(ts, str) else None
    except (ValueError, RecursionError, binascii.Error):
        return payload, None


def river_item(delivery: Delivery) -> RiverItem:
    """What a delivery from the river carries."""
    data, ts = open_envelope(delivery.subject, delivery.data)
    moment = ts or datetime.fromtimestamp(delivery.stored_at, UTC)
    return RiverItem(delivery.subject, data, moment, delivery.id, delivery.seq)


class River:
    """The stream RIVER. `clock` gives seconds since the epoch.

    `tolerance` (seconds, up to six hours) is the age that signatures may have, and the time by which they may be ahead:
    the stream remembers identities for as long as one signature can be accepted, from the earliest moment to the last.
    """

    def __init__(self, jet: Jet, clock: Callable[[], float], *, replicas: int = 1, tolerance: float = 300.0) -> None:
        self._jet = jet
        self._clock = clock
        self._replicas = replicas
        self._window = 2 * tolerance + REPLAY_MARGIN

    @property
    def tolerance(self) -> float:
        """The longest tolerance with which no signed delivery is stored twice, in seconds. Known once it is open."""
        return max(0.0, (self._window - REPLAY_MARGIN) / 2)

    async def open(self) -> None:
        """Make sure that the stream exists, and remembers identities for long enough if it can be made to."""
        wanted = StreamConfig(
            name=STREAM,
            description="Raw data from outside, until a tree has taken it over",
            subjects=["river.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_age=24 * 3600,
            max_msgs=100_000,
            duplicate_window=self._window,
            num_replicas=self._replicas,
        )
        try:
            config = await self._jet.ensure_stream(wanted)
        except Refused:
            wanted.duplicate_window = 0.0  # the server has a limit for it: `tolerance` follows
            config = await self._jet.ensure_stream(wanted)
        before = config.duplicate_window or 0.0
        if before < self._window:
            config.duplicate_window = self._window
            try:
                await self._jet.update_stream(config)
            except Refused:
                self._window = before

    async def flow(self, subject: str, data: bytes, *, msg_id: str = "") -> Stored:
        """Put `data` on `river.<subject>` (the prefix may be given or not); returns when the stream has stored it.

        `msg_id` is an identity: the stream keeps one message per identity within its window, see `tolerance`.
        Raises ValueError for a bad subject or empty data, Unavailable, Refused.
        """
        if not data:
            raise ValueError("nothing flows in an empty message")
        full = river_subject(subject)
        envelope = {
            "subject": full,
            "data": base64.b64encode(data).decode(),
            "ts": format_time(datetime.fromtimestamp(self._clock(), UTC)),
        }
        return await self._jet.publish(full, json.dumps(envelope).encode(), msg_id=msg_id)

    async def adjust_replicas(self, replicas: int) -> bool:
        """Give the stream `replicas` copies; False if nothing had to change."""
        if replicas < 1:
            raise ForestError(f"a stream cannot have {replicas} replicas")
        self._replicas = replicas
        return await self._jet.set_replicas(STREAM, replicas)
