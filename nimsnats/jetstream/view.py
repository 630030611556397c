"""A stream as its readers see it: what is there, where it is, and how to get at it.

Owns the reading half of `MessageSource`. Nothing here changes the stream; `stream.py` builds on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from nimsnats.jetstream import search, seeking
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.index import covers_all
from nimsnats.jetstream.message import StoredMessage
from nimsnats.jetstream.order import PORTION
from nimsnats.jetstream.reading import BlockReader
from nimsnats.jetstream.source import Filters
from nimsnats.jetstream.store import MessageStore


class StreamView:
    """Look-ups over one stream's store. `subjects` are those of the configuration, as bytes."""

    def __init__(self, config: StreamConfig, store: MessageStore, reader: BlockReader) -> None:
        self.config = config
        self.store = store
        self.reader = reader
        self.subjects = config.subject_bytes

    @property
    def name(self) -> str:
        """The stream's name."""
        return self.config.name

    @property
    def retention(self) -> str:
        """`limits`, `interest` or `workqueue`."""
        return self.config.retention

    @property
    def first_seq(self) -> int:
        """Sequence of the oldest message; last_seq + 1 when there is none (0 in a new stream)."""
        return self.store.first_seq

    @property
    def last_seq(self) -> int:
        """The highest sequence ever given out."""
        return self.store.last_seq

    def next_match(self, filters: Filters, start: int) -> int:
        """Lowest live sequence >= `start` whose subject matches, or 0."""
        return search.next_match(self.store, filters, start, self.subjects)

    def _sort_in_soon(self) -> None:
        """Somebody asks again and again: have the subjects in order before long. Until then the messages are walked."""
        if self.store.index.order.unsorted > PORTION:
            self.sort_in()

    def sort_in(self) -> None:
        """Sort in new subjects."""
        self.store.index.order.settle()

    def last_match(self, filters: Filters) -> int:
        """Highest live sequence whose subject matches, or 0."""
        return search.last_match(self.store, filters, self.subjects)

    async def seek_next(self, filters: Filters, start: int) -> int:
        """`next_match` for a client, giving way to others."""
        if search.covers_all(filters, self.subjects):
            return self.next_match(filters, start)
        return await self._sought(lambda: search.next_in_steps(self.store, filters, start))

    async def seek_last(self, filters: Filters) -> int:
        """`last_match` for a client, giving way to others."""
        if search.covers_all(filters, self.subjects):
            return self.last_match(filters)
        return await self._sought(lambda: search.last_in_steps(self.store, filters))

    async def _sought(self, steps: Callable[[], search.Steps[int]]) -> int:
        """The answer of a search. What it found may have gone before it was done: then it looks again."""
        while True:
            found = await self._in_turns(steps)
            if not found or self.live(found):
                return found

    async def tally(self, filters: Filters, start: int) -> int:
        """`count_match` for a client, giving way to others."""
        if search.covers_all(filters, self.subjects):
            return self.count_match(filters, start)
        return await self._in_turns(lambda: search.count_in_steps(self.store, filters, start))

    async def last_of_each(self, filters: Filters, end: int, most: int) -> list[int]:
        """The newest live sequence <= `end` of every matching subject, ascending; when they are more than `most`, some
        of them."""
        return sorted(await self._in_turns(lambda: search.last_of_each_in_steps(self.store, filters, end, most)))

    async def sorted_in(self) -> None:
        """Have the subjects in order, giving way to others."""
        for _ in self.sorting():
            await asyncio.sleep(0)

    async def _in_turns(self, steps: Callable[[], search.Steps[search.T]]) -> search.T:
        """The answer of a search in which others have their turn between two steps."""
        await self.sorted_in()
        for found in steps():
            if found is not None:
                return found
            await asyncio.sleep(0)
        raise AssertionError("a search without an answer")

    def sorting(self) -> Iterator[None]:
        """Have the subjects in order, in steps."""
        for _ in iter(self.store.index.order.settle, False):
            yield

    def last_per_subject(self, filters: Filters) -> search.Steps[list[int]]:
        """The newest live sequence of every matching subject, ascending, found in steps."""
        return search.last_per_subject(self.store, filters, self.subjects)

    def count_match(self, filters: Filters, start: int) -> int:
        """How many live messages at or after `start` match."""
        return search.count_match(self.store, filters, start, self.subjects)

    def covers(self, filters: Filters) -> bool:
        """Whether the filters select all that the stream can hold."""
        return covers_all(filters, self.subjects)

    def count(self, filters: Filters, start: int, looks: int) -> tuple[int, int]:
        """How many live messages match from `start` on, and up to which sequence (not with it) they are counted."""
        self._sort_in_soon()
        return seeking.count(self.store, filters, start, looks)

    def seek(self, filters: Filters, start: int, looks: int) -> tuple[int, int]:
        """The lowest live sequence from `start` on that matches, and where to go on when it is 0."""
        return seeking.seek(self.store, filters, start, looks)

    def upcoming(self, filters: Filters, start: int) -> tuple[Sequence[int], int] | None:
        """Live sequences from `start` on that match, and up to which these are all; None where `seek` is shorter."""
        self._sort_in_soon()
        return seeking.upcoming(self.store, filters, start)

    def seq_at_time(self, time_ns: int) -> int:
        """Lowest live sequence stored at or after `time_ns`; last_seq + 1 when there is none."""
        return search.seq_at_time(self.store, time_ns)

    def get(self, seq: int) -> StoredMessage | None:
        """The message if it is live and in memory."""
        return self.reader.get(seq)

    def subject(self, seq: int) -> bytes | None:
        """The subject of a live message; None when there is none."""
        found = search.describe(self.store, seq)
        return None if found is None else found[0]

    def arrivals(self, first: int) -> list[tuple[int, bytes]]:
        """Which subjects were stored from sequence `first` on, with the lowest of their sequences, ascending."""
        return search.arrivals(self.store, first)

    def take_struck(self, more: bool) -> dict[int, bytes]:
        """Subjects of the messages that have been removed since the last call, as far as that asked for `more`."""
        struck, self.store.struck = self.store.struck, {} if more else None
        return struck or {}

    def live(self, seq: int) -> bool:
        """Whether the stream still holds this sequence."""
        return search.live(self.store, seq)

    def load(self, seq: int) -> Awaitable[StoredMessage | None]:
        """The message, read from disk when needed; None when it is gone or damaged. Raises StorageError when it
        cannot be read now."""
        return self.reader.load(seq)
