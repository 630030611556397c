"""Consumer entries of a stream's log: their bytes, and what travels beside them on the proposer.

Owns the encoding (msgpack) and the context objects. Deliveries and acknowledgements are kept as runs, because most
consumers deliver and acknowledge contiguous sequences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, cast

from nimsnats.jetstream import typed
from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.consumer.state import delivery_runs, expand_deliveries, expand_known, runs_of
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.kinds import CONSUMER_CREATE, CONSUMER_DELETE, CONSUMER_PAUSE, CONSUMER_RESET
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.source import MessageSource
from nimsnats.raft.machine import BadEntry, Entry

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
        """The entry's data. Raises ValueError, TypeError, OverflowError; see `drop_unwritable`."""
        return pack(
            [
                [id, time, number, seq, delivery_runs(fresh), [part for pair in again for part in pair], exhausted]
                for id, time, number, seq, fresh, again, exhausted in self.items
            ]
        )

    def alone(self, item: list[Any]) -> Deliveries:
        """A batch of one item, to see whether it can be written."""
        batch = Deliveries()
        batch.items = [item]
        return batch


class Acks:
    """One tick's acknowledgements: items of [consumer id, time, acked, acked up to, touched].

    `replies` are the subjects of those who asked for an answer.
    """

    __slots__ = ("items", "replies")

    def __init__(self) -> None:
        self.items: list[list[Any]] = []
        self.replies: list[bytes] = []

    def alone(self, item: list[Any]) -> Acks:
        """A batch of one item, to see whether it can be written."""
        batch = Acks()
        batch.items = [item]
        return batch

    def encode(self) -> bytes:
        """The entry's data. Raises ValueError, TypeError, OverflowError; see `drop_unwritable`."""
        return pack([[id, time, runs_of(acked), to, touched] for id, time, acked, to, touched in self.items])


UNWRITABLE: Final = (ValueError, TypeError, OverflowError)
"""What `encode` raises for a value that no entry can hold."""


def drop_unwritable(batch: Deliveries | Acks) -> list[int]:
    """Take the items out of a batch that cannot be encoded, so that the others can; whose they were (consumer ids)."""
    kept: list[list[Any]] = []
    dropped: list[int] = []
    for item in batch.items:
        try:
            batch.alone(item).encode()
        except UNWRITABLE:
            dropped.append(item[0])
        else:
            kept.append(item)
    batch.items = kept
    return dropped


def read_deliveries(data: bytes, source: MessageSource) -> list[list[Any]]:
    """The items of an entry made elsewhere; messages that the stream has lost since are left out. Raises BadEntry."""
    items: list[list[Any]] = []
    for id, time, number, seq, runs, again, exhausted in typed.rows(typed.opened(data), _DELIVERED, "a delivery"):
        if len(runs) % 4 or len(again) % 2:
            raise BadEntry("a delivery has other parts than it can have")
        fresh = expand_deliveries(runs, partial(_live, source))
        items.append([id, time, number, seq, fresh, list(zip(again[::2], again[1::2], strict=True)), exhausted])
    return items


def _live(source: MessageSource, first: int, count: int) -> Iterable[int]:
    """The messages that are there, of so many from one on; at a cost that does not grow with what is not there."""
    end = first + count
    if count <= _SHORT:
        return filter(source.live, range(first, end))
    return takewhile(end.__gt__, iterate(source, first))


def iterate(source: MessageSource, first: int) -> Iterator[int]:
    """All messages from a sequence on."""
    while seq := source.next_match((), first):
        yield seq
        first = seq + 1


def read_acks(data: bytes, pending: Callable[[int], Collection[int]]) -> list[list[Any]]:
    """The items of an entry made elsewhere. `pending` are a consumer's unacknowledged messages. Raises BadEntry."""
    items: list[list[Any]] = []
    for id, time, runs, to, touched in typed.rows(typed.opened(data), _ACKNOWLEDGED, "an acknowledgement"):
        if len(runs) % 2 or len(touched) % 2:
            raise BadEntry("an acknowledgement has other parts than it can have")
        items.append([id, time, expand_known(runs, pending(id)), to, touched])
    return items


_SHORT: Final = 4096
"""Deliveries in a row that are looked at one by one."""
_DELIVERED: Final = (
    *(typed.natural, typed.integer, typed.natural, typed.position),
    *(typed.naturals, typed.naturals, typed.naturals),
)


def _pair(value: Any) -> bool:
    """A stream and a consumer sequence, or nothing."""
    return value is None or (typed.naturals(value) and len(cast("list[int]", value)) == 2)


_ACKNOWLEDGED: Final = (typed.natural, typed.integer, typed.naturals, _pair, typed.integers)


_NAMED: Final[dict[str, typed.Test]] = {"name": typed.name}
_MADE: Final[dict[str, typed.Test]] = {
    "name": typed.name,
    "config": typed.anything,
    "created": typed.integer,
    "generated": typed.flag,
}
_BODIES: Final[dict[int, dict[str, typed.Test]]] = {
    CONSUMER_CREATE: {**_MADE, "action": typed.text},
    CONSUMER_DELETE: _NAMED,
    CONSUMER_PAUSE: {**_NAMED, "until": typed.integer},
    CONSUMER_RESET: {**_NAMED, "start": typed.positive},
}
"""What the bodies of operations hold. A configuration is read by its own class."""
_OPTIONAL: Final[dict[str, typed.Test]] = {"id": typed.natural}


def read_operation(entry: Entry) -> dict[str, Any]:
    """The body of an operation. Raises BadEntry."""
    tests = _BODIES.get(entry.kind)
    if tests is None:
        raise BadEntry("its kind is unknown")
    return typed.mapping(typed.opened(entry.data), tests, _OPTIONAL)


def read_restored(body: Any) -> dict[str, Any]:
    """The body of a consumer out of an archive; its state is read by its own class. Raises BadEntry."""
    return typed.mapping(body, {**_MADE, "state": typed.anything})


def read_kept(stored: Any) -> list[Any]:
    """A consumer of a snapshot: id, name, configuration, when it was created, whether its name was drawn, state. Raises
    BadEntry."""
    head = (typed.natural, typed.name, typed.anything)
    return typed.row(stored, (*head, typed.integer, typed.flag, typed.anything), "it")


def name_in(stored: Any) -> str:
    """What a consumer of a snapshot that cannot be read is called, as far as it can be told."""
    parts = cast("list[Any]", stored) if type(stored) is list else []
    return f"consumer {parts[1]}" if len(parts) > 1 else "a consumer"
