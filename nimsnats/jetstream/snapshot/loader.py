"""Makes a stream of an archive's items: entries of a provisional group, which gets its name when all is there.

Owns the group while it is filled, and the checks of every item. Nobody else sees the stream before `finish`; `abandon`
leaves nothing behind, and a restart removes what a crash has interrupted. Every batch is on disk before the next is
taken, so memory stays bounded and the sender is slowed down to what the disk can do.
"""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream.admission import LAST_SEQUENCE, MAX_HEADERS, TTL, nats_headers
from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.batch import Batch
from nimsnats.jetstream.clock import FARTHEST, parse_time
from nimsnats.jetstream.compaction import FULL_BYTES, FULL_MESSAGES
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.consumer.rules import ServerLimits, traits_of
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.expiry import kept_ttl
from nimsnats.jetstream.kinds import CONSUMER_RESTORED, RESTORED, STREAM_CONFIG, STREAM_RESTORED
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.snapshot.consumers import BadConsumer, beyond, record
from nimsnats.jetstream.stream import Stream
from nimsnats.protocol.archive import ArchivedConsumer, ArchivedMessage, ArchivedState, Item
from nimsnats.protocol.subject import fits_line, has_empty_token
from nimsnats.raft.home import PROVISIONAL_MARK
from nimsnats.raft.machine import NotLeader

if TYPE_CHECKING:
    from nimsnats.raft.host import Host
    from nimsnats.raft.machine import Group

_MOST_LOST: Final = 1 << 20
_SLACK: Final = 1 << 20
"""Bytes by which an archive may hold more than it says: others count them in other ways."""
_SPAN: Final = (1 << 32) - 1
"""Distance of two sequences in one batch."""


class BadItem(ValueError):
    """Something in the archive that no stream can hold; the text says what."""


class Loader:
    """Fills a new stream. `limits` are those of consumers on this node."""

    def __init__(self, host: Host, stream: Stream, group_name: str, limits: ServerLimits) -> None:
        self.stream = stream
        self.group_name = group_name
        """The name that the group gets in the end."""
        self.entered = False
        """Whether the stream is in the catalogue, or may be: then nothing is destroyed any more."""
        self._host = host
        self._limits = limits
        self._group: Group | None = None
        self._end: JsonObject = {"last": 0, "time": 0, "lost": [], "lost_bytes": 0}
        self._messages: list[ArchivedMessage] = []
        self._size = 0
        self._most = 0
        self.taken = 0
        """Bytes of the messages so far: subjects, headers, payloads."""

    @property
    def config(self) -> StreamConfig:
        """The configuration of the stream to be."""
        return self.stream.config

    @property
    def group(self) -> Group:
        """The group, once `begin` has been called."""
        assert self._group is not None
        return self._group

    async def begin(self) -> None:
        """Open the provisional group. Raises ApiError and what storage raises."""
        storage = "file" if self.config.storage == "file" else "memory"
        self._group = await self._host.open_group(PROVISIONAL_MARK + self.group_name, self.stream, storage=storage)
        fields = {"config": self.config.to_stored(), "created": self.stream.created}
        await self._change(STREAM_CONFIG, pack(fields))

    async def take(self, item: Item) -> None:
        """The next item. Raises BadItem, ApiError."""
        if isinstance(item, ArchivedMessage):
            await self._take_message(item)
        elif isinstance(item, ArchivedState):
            self._take_state(item)
        else:
            await self._take_consumer(item)

    async def finish(self) -> None:
        """Everything has been taken: give the group its name. Raises ApiError and what storage raises."""
        await self._write()
        await self._change(STREAM_RESTORED, pack({**self._end, "now": self.stream.runtime.time_ns()}))
        await self._host.rename_group(PROVISIONAL_MARK + self.group_name, self.group_name)

    async def abandon(self) -> None:
        """Destroy everything."""
        await self.stream.close(deleted=True)
        for name in (PROVISIONAL_MARK + self.group_name, self.group_name):
            await self._host.remove_group(name)

    # Items

    def _take_state(self, item: ArchivedState) -> None:
        fields = item.fields
        last: int = fields.get("last_seq", 0)
        if last > LAST_SEQUENCE:
            raise BadItem(f"last sequence {last}")
        lost: Any = fields.get("lost") or {}
        try:
            self._end["time"] = max(parse_time(fields.get("last_ts", "0001-01-01T00:00:00Z")), 0)
            seqs: list[int] = list(lost.get("msgs") or ())
            size: int = lost.get("bytes", 0)
            right = all(type(seq) is int and 0 < seq <= last for seq in seqs) and len(seqs) <= _MOST_LOST
        except (AttributeError, TypeError, ValueError) as error:
            raise BadItem(f"nonsense in state.json: {error}") from error
        if not right or type(size) is not int or not 0 <= size <= FARTHEST:
            raise BadItem("nonsense in state.json")
        self._end |= {"last": last, "lost": seqs, "lost_bytes": size}
        self._most = max(fields.get("bytes", 0), self.config.max_bytes) + _SLACK

    async def _take_consumer(self, item: ArchivedConsumer) -> None:
        stream = self.stream
        try:
            body = record(item, traits_of(self.config), self._limits, stream.runtime.time_ns())
            body = beyond(body, self._end["last"])
        except BadConsumer as error:
            raise BadItem(str(error)) from error
        if stream.consumers.get(body["name"]) is not None:
            raise BadItem(f"consumer {item.name!r} comes twice")
        await self._change(CONSUMER_RESTORED, pack(body))

    async def _take_message(self, message: ArchivedMessage) -> None:
        self._check(message)
        first = self._messages[0].seq if self._messages else message.seq
        if self._size >= FULL_BYTES or len(self._messages) >= FULL_MESSAGES or message.seq - first > _SPAN:
            await self._write()
        size = len(message.subject) + len(message.headers) + len(message.payload)
        self._messages.append(message)
        self._size += size
        self.taken += size
        if self.taken > self._most:
            raise BadItem(f"message {message.seq} exceeds the bytes that state.json and the stream's limit allow")

    def _check(self, message: ArchivedMessage) -> None:
        seq, headers = message.seq, message.headers
        size = len(headers) + len(message.payload)
        if not self.stream.store.last_seq < seq <= self._end["last"]:
            raise BadItem(f"message {seq} is outside of the stream's sequences")
        if has_empty_token(message.subject) or not fits_line(message.subject.removeprefix(b"\n").replace(b"\r", b"")):
            raise BadItem(f"message {seq} has no valid subject")
        if not 0 <= message.time <= FARTHEST:
            raise BadItem(f"message {seq} has no valid time")
        if 0 <= self.config.max_msg_size < size:
            raise BadItem(f"message {seq} of {size} bytes exceeds the stream's maximum message size")
        if not headers:
            return
        if len(headers) > MAX_HEADERS:  # what is in them is for who reads them, as when they are published
            raise BadItem(f"message {seq} has {len(headers)} bytes of headers")
        if b"\r\nNats-TTL" in headers:
            try:
                kept_ttl(nats_headers(headers).get(TTL, b"never"))
            except ApiError as error:
                raise BadItem(f"message {seq}: {error.description}") from error

    # Entries

    async def _write(self) -> None:
        """Make a batch of what has been gathered, and wait until it is on disk."""
        messages, self._messages, self._size = self._messages, [], 0
        if not messages:
            return
        headers = [message.headers for message in messages]
        batch = Batch(
            messages[-1].time,
            [message.subject for message in messages],
            [message.payload for message in messages],
            headers if any(headers) else None,
        )
        batch.base = messages[0].seq
        batch.offsets = array("I", [message.seq - batch.base for message in messages])
        batch.times = array("Q", [message.time for message in messages])
        await self._change(RESTORED, batch.encode(), len(messages))

    async def _change(self, kind: int, data: bytes, messages: int = 0) -> None:
        done: asyncio.Future[Any] = self.stream.runtime.loop.create_future()
        try:
            self.group.propose(kind, data, done, messages)
        except NotLeader as error:
            raise BadItem("this server is stopping") from error
        await done
