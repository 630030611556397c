"""What a stream keeps in memory about its blocks: which sequences, subjects and sizes, and which of them are dead.

Owns `Block` (the note of one batch on disk), `BlockList` (all of a stream's, by sequence), and `Loaded` (a block's
messages while they are in memory) with the node-wide `BlockCache` of them. It never reads the disk itself.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import compress
from operator import not_
from typing import Any, Final, cast

from nimsnats.jetstream.batch import MAX_MESSAGES, Batch
from nimsnats.jetstream.message import StoredMessage
from nimsnats.jetstream.packing import pack, unpack

_TRIM: Final = 1024
_OBJECT_BYTES: Final = 120
"""Rough price of one loaded message beside its bytes."""


class Block:
    """One block: `count` messages from sequence `first` on, dense unless `seqs` lists them.

    `index` is the log index under which storage knows the bytes. `sizes` are stored sizes (what `max_bytes` counts),
    one number when all are equal. `dead` has a 1 for every message that is gone; None while all are live.
    """

    __slots__ = (
        "changed",
        "count",
        "dead",
        "first",
        "index",
        "live",
        "numbers",
        "rejected",
        "seqs",
        "sizes",
        "stored",
        "table",
        "time",
        "times",
    )

    def __init__(self, index: int, first: int, time: int, table: list[bytes]) -> None:
        self.index = index
        self.first = first
        self.time = time
        self.times: array[int] | None = None
        self.table = table
        self.numbers: array[int] | None = None
        self.sizes: int | array[int] = 0
        self.seqs: array[int] | None = None
        self.dead: bytearray | None = None
        self.rejected: array[int] | None = None
        """Positions in the batch as proposed that were refused when it was applied: they have no sequence."""
        self.count = 0
        self.live = 0
        self.stored = 0
        """Stored size of all live messages."""
        self.changed = True

    @property
    def last(self) -> int:
        """Highest sequence of the block, live or not."""
        return self.seqs[-1] if self.seqs is not None else self.first + self.count - 1

    def position(self, seq: int) -> int:
        """Position of a live sequence, -1 when the block does not hold it (any more)."""
        if self.seqs is None:
            at = seq - self.first
            if not 0 <= at < self.count:
                return -1
        else:
            at = bisect_left(self.seqs, seq)
            if at == self.count or self.seqs[at] != seq:
                return -1
        return -1 if self.dead is not None and self.dead[at] else at

    def seq_at(self, at: int) -> int:
        """Sequence of a position."""
        return self.first + at if self.seqs is None else self.seqs[at]

    def time_at(self, at: int) -> int:
        """Store time of a position, nanoseconds."""
        return self.time if self.times is None else self.times[at]

    def subject_at(self, at: int) -> bytes:
        """Subject of a position."""
        return self.table[0 if self.numbers is None else self.numbers[at]]

    def size_at(self, at: int) -> int:
        """Stored size of a position."""
        return self.sizes if isinstance(self.sizes, int) else self.sizes[at]

    def position_from(self, seq: int) -> int:
        """Position of the first message, live or not, with a sequence >= `seq`; `count` when there is none."""
        if self.seqs is None:
            return min(max(seq - self.first, 0), self.count)
        return bisect_left(self.seqs, seq)

    def next_live(self, seq: int) -> int:
        """Position of the first live message with a sequence >= `seq`, -1 when there is none."""
        at = max(seq - self.first, 0) if self.seqs is None else bisect_left(self.seqs, seq)
        if at >= self.count:
            return -1
        return at if self.dead is None else self.dead.find(0, at)

    def previous_live(self, seq: int) -> int:
        """Position of the last live message with a sequence <= `seq`, -1 when there is none."""
        at = min(seq - self.first + 1, self.count) if self.seqs is None else bisect_right(self.seqs, seq)
        if at <= 0:
            return -1
        return at - 1 if self.dead is None else self.dead.rfind(0, 0, at)

    def live_from(self, seq: int) -> int:
        """How many live messages have a sequence >= `seq`."""
        at = max(seq - self.first, 0) if self.seqs is None else bisect_left(self.seqs, seq)
        if at >= self.count:
            return 0
        return self.count - at if self.dead is None else self.dead.count(0, at)

    def live_positions(self) -> Sequence[int]:
        """Positions of all live messages."""
        if self.dead is None:
            return range(self.count)
        return [at for at, gone in enumerate(self.dead) if not gone]

    def live_seqs(self) -> Sequence[int]:
        """Sequences of all live messages, ascending (not to be changed)."""
        seqs = self.seqs if self.seqs is not None else range(self.first, self.first + self.count)
        return seqs if self.dead is None else list(compress(seqs, map(not_, self.dead)))

    def kill(self, at: int) -> None:
        """Mark a live position dead."""
        if self.dead is None:
            self.dead = bytearray(self.count)
        assert not self.dead[at]
        self.dead[at] = 1
        self.live -= 1
        self.stored -= self.size_at(at)
        self.changed = True

    def retire(self) -> None:
        """Hold nothing any more: whoever still knows the block finds no message in it."""
        self.seqs = None
        self.count = self.live = self.stored = 0

    def note(self) -> bytes:
        """What storage remembers beside the block: enough to find the live sequences in the bytes again."""
        if self.seqs is None:
            dead = None if self.dead is None else _little(array("I", compress(range(self.count), self.dead)))
            live = None
        else:
            dead = None
            live = _little(array("Q", [self.seqs[at] for at in self.live_positions()]))
        rejected = None if self.rejected is None else _little(self.rejected)
        return pack((self.first, self.count, rejected, dead, live, self.stored))


DEAD_NOTE: Final = pack((0, 0, None, None, b"", 0))
"""The note of a block without a live message."""


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _from_little(code: str, data: bytes) -> array[int]:
    column: array[int] = array(code)
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column


class Note:
    """A block's note, read back. Raises ValueError on nonsense, which a checksum should have caught."""

    __slots__ = ("count", "first", "live", "rejected", "stored")

    def __init__(self, note: bytes) -> None:
        try:
            self._read(unpack(note))
        except (TypeError, IndexError) as error:
            raise ValueError(f"not the note of a block: {error}") from error

    def _read(self, fields: Any) -> None:
        first, count, rejected, dead, live, *more = cast("tuple[int, int, Any, Any, Any]", fields)
        stored = cast("int", more[0]) if more else 0
        if any(type(number) is not int or not 0 <= number < 1 << 64 for number in (first, count, stored)):
            raise ValueError("a note with numbers that are none")
        if count > MAX_MESSAGES:
            raise ValueError(f"a note of {count} messages")
        self.stored = stored
        self.first = first
        self.count = count
        self.rejected = None if rejected is None else _from_little("I", rejected)
        self.live: Sequence[int]
        if live is not None:
            self.live = _from_little("Q", live)
        elif dead is not None:
            gone = bytearray(count)
            for at in _from_little("I", dead):
                gone[at] = 1
            self.live = [first + at for at in range(count) if not gone[at]]
        else:
            self.live = range(first, first + count)


class Loaded:
    """The messages of one block in memory, aligned with sequences: dense from `first`, or as `seqs` lists them."""

    __slots__ = ("first", "headers", "last", "payloads", "seqs", "size", "subjects", "time", "times")

    def __init__(self, first: int, batch: Batch, rejected: array[int] | None) -> None:
        self.first = first
        self.time = batch.time
        self.times = batch.times
        self.subjects = batch.subjects
        self.headers = batch.headers
        self.payloads = batch.payloads
        self.seqs: Sequence[int] | None = None
        if batch.offsets is not None:
            self.seqs = [first + offset for offset in batch.offsets]
        elif rejected:
            keep = bytearray(b"\1") * len(batch)
            for at in rejected:
                keep[at] = 0
            self.subjects = list(compress(self.subjects, keep))
            self.payloads = list(compress(self.payloads, keep))
            if self.headers is not None:
                self.headers = list(compress(self.headers, keep))
        count = len(self.payloads)
        self.last = self.seqs[-1] if self.seqs else first + count - 1
        self.size = sum(batch.sizes) + count * _OBJECT_BYTES + sum(map(len, self.headers or ()))

    def get(self, seq: int) -> StoredMessage | None:
        """The message with this sequence, if its bytes are here."""
        if self.seqs is None:
            at = seq - self.first
            if not 0 <= at < len(self.payloads):
                return None
        else:
            at = bisect_left(self.seqs, seq)
            if at == len(self.seqs) or self.seqs[at] != seq:
                return None
        headers = b"" if self.headers is None else self.headers[at]
        time = self.time if self.times is None else self.times[at]
        return StoredMessage(seq, time, self.subjects[at], headers, self.payloads[at])


class BlockCache:
    """Loaded blocks of all streams of a node, least recently used first out, bounded in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._blocks: OrderedDict[tuple[int, int], Loaded] = OrderedDict()
        self._of: dict[int, set[int]] = {}
        """Log indexes of the blocks of each store."""

    def get(self, key: tuple[int, int]) -> Loaded | None:
        """A block by (store id, log index)."""
        loaded = self._blocks.get(key)
        if loaded is not None:
            self._blocks.move_to_end(key)
        return loaded

    def put(self, key: tuple[int, int], loaded: Loaded) -> None:
        """Keep a block, pushing out the ones that nobody asked for."""
        self.drop(key)
        self._blocks[key] = loaded
        self._of.setdefault(key[0], set()).add(key[1])
        self._size += loaded.size
        while self._size > self._limit and len(self._blocks) > 1:
            self.drop(next(iter(self._blocks)))

    def drop(self, key: tuple[int, int]) -> None:
        """Forget a block."""
        old = self._blocks.pop(key, None)
        if old is not None:
            self._size -= old.size
            of = self._of[key[0]]
            of.remove(key[1])
            if not of:
                del self._of[key[0]]

    def drop_store(self, store: int) -> None:
        """Forget all blocks of one store."""
        for index in list(self._of.get(store, ())):
            self.drop((store, index))


class BlockList:
    """The blocks of one stream, ascending by sequence; cheap at both ends."""

    __slots__ = ("_blocks", "_firsts", "_head")

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._firsts: array[int] = array("Q")
        self._head = 0

    def __len__(self) -> int:
        return len(self._blocks) - self._head

    def __iter__(self) -> Iterator[Block]:
        for at in range(self._head, len(self._blocks)):
            yield self._blocks[at]

    def first(self) -> Block:
        """The block with the lowest sequences."""
        return self._blocks[self._head]

    def last(self) -> Block:
        """The block with the highest sequences."""
        return self._blocks[-1]

    def append(self, block: Block) -> None:
        """Add a block above all others."""
        self._blocks.append(block)
        self._firsts.append(block.first)

    def find(self, seq: int) -> Block | None:
        """The block in whose range `seq` falls, or None."""
        at = bisect_right(self._firsts, seq, self._head) - 1
        if at < self._head:
            return None
        block = self._blocks[at]
        return block if seq <= block.last else None

    def ascending(self, seq: int) -> Iterator[Block]:
        """Blocks that may hold sequences >= `seq`, lowest first."""
        start = max(bisect_right(self._firsts, seq, self._head) - 1, self._head)
        for at in range(start, len(self._blocks)):
            yield self._blocks[at]

    def below(self, seq: int, start: int = 0) -> list[Block]:
        """Blocks that may hold sequences from `start` up to `seq`, without it, lowest first: a copy, so that they may
        be removed on the way."""
        first = max(bisect_right(self._firsts, start, self._head) - 1, self._head) if start else self._head
        return self._blocks[first : max(bisect_left(self._firsts, seq, self._head), self._head)]

    def descending(self, seq: int) -> Iterator[Block]:
        """Blocks that may hold sequences <= `seq`, highest first."""
        for at in range(bisect_right(self._firsts, seq, self._head) - 1, self._head - 1, -1):
            yield self._blocks[at]

    def remove(self, block: Block) -> None:
        """Take out a block."""
        at = bisect_left(self._firsts, block.first, self._head)
        assert self._blocks[at] is block
        if at != self._head:
            del self._blocks[at], self._firsts[at]
            return
        self._head += 1
        if self._head >= _TRIM and self._head * 2 >= len(self._blocks):
            del self._blocks[: self._head], self._firsts[: self._head]
            self._head = 0

    def clear(self) -> None:
        """Take out all."""
        self._blocks.clear()
        del self._firsts[:]
        self._head = 0
