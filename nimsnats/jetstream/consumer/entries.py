"""Consumer entries of a stream's log: their bytes, and what travels beside them on the proposer.

Owns the encoding (msgpack) and the context objects. Deliveries and acknowledgements are kept as runs, because most
consumers deliver and acknowledge contiguous sequences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.consumer.state import delivery_runs, expand, expand_deliveries, runs_of
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.packing import pack, unpack

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer
    from nimsnats.jetstream.consumer.outbox import Outbox, Parcel


class Operation:
    """A create, delete, pause or reset that a client waits for."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[JsonObject]) -> None:
        self.future = future

    def succeed(self, info: JsonObject) -> None:
        """It was applied; `info` is the consumer's at that moment, before anything was delivered."""
        if not self.future.done():
            self.future.set_result(info)

    def fail(self, error: ApiError) -> None:
        """It was applied and refused, or it was dropped."""
        if not self.future.done():
            self.future.set_exception(error)


class Deliveries:
    """One tick's deliveries: items of [consumer id, time, last number, last seq, fresh, again, exhausted].

    `repeated` when the entry was dropped once, so that acknowledgements may have been applied before it. `held` is what
    is sent when it is applied.
    """

    __slots__ = ("held", "items", "repeated")

    def __init__(self) -> None:
        self.items: list[list[Any]] = []
        self.held: list[tuple[Consumer, Outbox, list[Parcel]]] = []
        self.repeated = False

    def encode(self) -> bytes:
        """The entry's data."""
        return pack(
            [
                [id, time, number, seq, delivery_runs(fresh), [part for pair in again for part in pair], exhausted]
                for id, time, number, seq, fresh, again, exhausted in self.items
            ]
        )


class Acks:
    """One tick's acknowledgements: items of [consumer id, time, acked, acked up to, touched].

    `replies` are the subjects of those who asked for an answer.
    """

    __slots__ = ("items", "replies")

    def __init__(self) -> None:
        self.items: list[list[Any]] = []
        self.replies: list[bytes] = []

    def encode(self) -> bytes:
        """The entry's data."""
        return pack([[id, time, runs_of(acked), to, touched] for id, time, acked, to, touched in self.items])


def read_deliveries(data: bytes, live: Callable[[int], bool]) -> list[list[Any]]:
    """The items of an entry made elsewhere; messages that the stream has lost since are left out."""
    items: list[list[Any]] = []
    for id, time, number, seq, runs, again, exhausted in unpack(data):
        fresh = {s: record for s, record in expand_deliveries(runs).items() if live(s)}
        items.append([id, time, number, seq, fresh, list(zip(again[::2], again[1::2], strict=True)), exhausted])
    return items


def read_acks(data: bytes) -> list[list[Any]]:
    """The items of an entry made elsewhere."""
    return [[id, time, expand(runs), to, touched] for id, time, runs, to, touched in unpack(data)]
