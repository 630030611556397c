"""A stream held still: its messages, state and consumers as of one entry of its log, while it goes on.

Owns what a snapshot under way keeps: the list of blocks with their live messages at that moment, and the hold on them
in the store (neither dropped nor rewritten until they are read). Payloads stay on disk and are read a block at a time.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import compress
from operator import not_
from typing import Final

from nimsnats.jetstream.api.decode import JsonObject
from nimsnats.jetstream.batch import BadBatch, Batch
from nimsnats.jetstream.blocks import Block, Loaded
from nimsnats.jetstream.info import stream_state
from nimsnats.jetstream.snapshot.consumers import OURS, document
from nimsnats.jetstream.stream import Stream
from nimsnats.protocol.archive import ArchivedMessage
from nimsnats.storage import Corrupt, StorageError

VERSION: Final = 1
"""Of what `state.json` holds under our own key."""


class Unreadable(Exception):
    """The snapshot cannot be finished; the text says why."""


class _Held:
    """One block as it was: which sequences live in it."""

    __slots__ = ("_dead", "_first", "_seqs", "count", "index", "rejected")

    def __init__(self, block: Block) -> None:
        self.index = block.index
        self.rejected = block.rejected
        self.count = block.count
        self._first = block.first
        self._seqs: array[int] | None = block.seqs
        self._dead = None if block.dead is None else bytes(block.dead)

    @property
    def first(self) -> int:
        return self._first

    def live(self) -> Iterable[int]:
        seqs: Sequence[int] = self._seqs if self._seqs is not None else range(self._first, self._first + self.count)
        return seqs if self._dead is None else compress(seqs, map(not_, self._dead))


class SnapshotView:
    """See the module. `consumers`: with them; `after`: only messages above this sequence, for whoever has the others.

    It must be closed, or the blocks stay.
    """

    def __init__(self, stream: Stream, *, consumers: bool = True, after: int = 0) -> None:
        self.time = stream.runtime.time_ns()
        self.config = stream.config.to_json(dynamic=False)
        self.state: JsonObject = stream_state(stream)
        self.consumers: list[tuple[str, JsonObject]] = []
        if consumers:
            found = [(name, stream.consumers.get(name)) for name in stream.consumers.names()]
            self.consumers = [(name, document(consumer)) for name, consumer in found if consumer is not None]
        self._stream = stream
        self._after = after
        self._restored = stream.restored
        blocks = stream.store.blocks
        self._blocks = deque(_Held(block) for block in (blocks.ascending(after + 1) if after else blocks))
        self._held = {held.index for held in self._blocks}
        stream.store.hold(self._held)
        self._gone = _gaps(stream, after) if after else []

    def archived_state(self) -> JsonObject:
        """`state.json`, with what helps whoever already holds the messages up to a sequence: which are gone."""
        ours: JsonObject = {"version": VERSION, "created": self._stream.created}
        if self._after:
            ours |= {"after": self._after, "gone": self._gone}
        return {**self.state, "consumer_count": len(self.consumers), OURS: ours}

    async def next_block(self) -> list[ArchivedMessage] | None:
        """The messages of the next block, None after the last. Raises Unreadable."""
        if not self._blocks:
            return None
        held = self._blocks.popleft()
        loaded = await self._load(held)
        messages: list[ArchivedMessage] = []
        for seq in held.live():
            if seq <= self._after:
                continue
            message = loaded.get(seq)
            if message is None:
                raise Unreadable(f"message {seq} is not in its block")
            messages.append(ArchivedMessage(seq, message.time, message.subject, message.headers, message.payload))
        self._held.discard(held.index)
        self._stream.store.release(self._held)
        return messages

    async def _load(self, held: _Held) -> Loaded:
        stream = self._stream
        try:
            data = await stream.group.read_block(held.index)
            loaded = Loaded(held.first, Batch.decode(data), held.rejected)
        except (Corrupt, BadBatch) as error:
            await self._report(held)
            raise Unreadable(f"{error}; it has been reported, and the next snapshot names what is lost") from error
        if stream.restored != self._restored:
            raise Unreadable("this replica has been replaced by its leader's")
        return loaded

    async def _report(self, held: _Held) -> None:
        """Damage is dealt with where messages are read."""
        for seq in held.live():
            if self._stream.live(seq):
                with suppress(StorageError):  # the snapshot fails for its own reason
                    await self._stream.load(seq)
                return

    def close(self) -> None:
        """Let everything go."""
        self._blocks.clear()
        self._held.clear()
        self._stream.store.release(self._held)


def _gaps(stream: Stream, last: int) -> list[int]:
    """Sequences between the first live one and `last` that are not there, as runs (first, count)."""
    gaps: list[int] = []
    expected = stream.store.first_seq
    for block in stream.store.blocks:
        if expected > last:
            break
        for at in block.live_positions():
            seq = block.seq_at(at)
            if seq > expected:
                gaps += (expected, seq - expected)
            expected = seq + 1
    if expected <= last:
        gaps += (expected, last - expected + 1)
    return gaps
