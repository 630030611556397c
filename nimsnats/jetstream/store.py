"""The messages of one stream: sequences, sizes, subjects and times in memory, payloads in blocks.

Owns the blocks and the subject index and keeps the two in step while messages are stored and removed. Everything is
synchronous and works on memory only, because it is called from `apply`. It decides nothing (limits and checks live
in `content.py`), searches nothing (`search.py`) and reads nothing (`reading.py`).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from itertools import compress, count
from typing import Final

from nimsnats.jetstream.batch import BadBatch, Batch
from nimsnats.jetstream.blocks import Block, BlockCache, BlockList, Loaded
from nimsnats.jetstream.index import SubjectIndex

LAST_SEQUENCE: Final = 2**64 - 2
"""Nothing is stored above: the next sequence must still fit into 64 bits. A purge or `first_seq` can get there."""
_FREED: Final = 4096
"""Subjects that are freed in one step."""
_BLOCKS_FREED: Final = 16
_store_ids: Final = count(1)


class MessageStore:
    """Live messages of one stream. Stored sizes follow nats-server: 30 bytes of overhead in a file, 16 in memory."""

    def __init__(self, *, file: bool, cache: BlockCache) -> None:
        self._first_seq = 0
        self._first_moved = False
        self.last_seq = 0
        self.messages = 0
        self.bytes = 0
        self.last_time = 0
        self.index = SubjectIndex()
        self.blocks = BlockList()
        self.dropped: list[int] = []
        """Log indexes of blocks without a live message, to be named in the next snapshot."""
        self.lost: list[int] = []
        """Sequences that damage has taken."""
        self.lost_bytes = 0
        """Their stored size, as far as it is known."""
        self.withheld: list[int] = []
        """Log indexes of blocks without a live message that snapshots under way still read."""
        self.struck: dict[int, bytes] | None = None
        """Subjects of the messages that have been removed, by sequence, until somebody takes note of them; None while
        nobody wants to know."""
        self._holders: list[set[int]] = []
        self.id = next(_store_ids)
        """Tells this store's blocks apart in the node's cache."""
        self._overhead = 30 if file else 16
        self._header_overhead = 4 if file else 0
        self._cache = cache
        self._open: tuple[Block, Batch, array[int]] | None = None

    @property
    def first_seq(self) -> int:
        """The lowest live sequence; last_seq + 1 when there is none, 0 in a new store."""
        if self._first_moved:
            self._first_moved = False
            self.advance()
        return self._first_seq

    @first_seq.setter
    def first_seq(self, seq: int) -> None:
        self._first_seq = seq
        self._first_moved = False

    # Storing

    def stored_size(self, subject: bytes, headers: bytes, payload: int) -> int:
        """What one message counts toward `max_bytes`."""
        return self._overhead + len(subject) + payload + (len(headers) + self._header_overhead if headers else 0)

    def _sizes(self, batch: Batch) -> int | array[int]:
        sizes = batch.sizes
        if batch.numbers is None and batch.headers is None:
            add = self._overhead + len(batch.table[0])
            if sizes.count(sizes[0]) == len(sizes):
                return sizes[0] + add
            return array("I", [size + add for size in sizes])
        subjects = map(len, batch.subjects)
        if batch.headers is None:
            add = self._overhead
            return array("I", [a + b + add for a, b in zip(subjects, sizes, strict=True)])
        size = self.stored_size
        columns = zip(batch.subjects, batch.headers, sizes, strict=True)
        return array("I", [size(subject, headers, payload) for subject, headers, payload in columns])

    def append_run(self, index: int, batch: Batch, *, cache: bool) -> int:
        """Store a whole batch under consecutive sequences; returns the first. `cache` keeps its payloads in memory."""
        block = self._new_block(index, batch)
        length = len(batch)
        first = block.first
        block.numbers = batch.numbers
        block.sizes = sizes = self._sizes(batch)
        block.count = block.live = length
        block.stored = sizes * length if isinstance(sizes, int) else sum(sizes)
        self.blocks.append(block)
        if batch.numbers is None:
            self.index.add_run(batch.table[0], first, first + length - 1)
        else:
            self.index.add_each(batch.subjects, range(first, first + length))
        if not self.messages:
            self.first_seq = first
        self.messages += length
        self.bytes += block.stored
        self.last_seq = first + length - 1
        self.last_time = batch.time
        if cache:
            self.keep(block, batch)
        return first

    def begin(self, index: int, batch: Batch) -> None:
        """Start to store a batch message by message; `finish` ends it."""
        assert self._open is None
        block = self._new_block(index, batch)
        block.numbers = None if batch.numbers is None else array("I")
        sizes = self._sizes(batch)
        if isinstance(sizes, int):
            sizes = array("I", (sizes,)) * len(batch)
        block.sizes = array("I")
        self._open = (block, batch, sizes)

    def add(self, at: int) -> int:
        """Store message `at` of the open batch; returns its sequence."""
        assert self._open is not None
        block, batch, sizes = self._open
        seq = self.last_seq + 1
        number = 0
        if block.numbers is not None:
            assert batch.numbers is not None
            number = batch.numbers[at]
            block.numbers.append(number)
        size = sizes[at]
        assert not isinstance(block.sizes, int)
        block.sizes.append(size)
        if not block.count:
            self.blocks.append(block)
        block.count += 1
        block.live += 1
        block.stored += size
        if block.dead is not None:
            block.dead.append(0)
        self.index.add(batch.table[number], seq)
        if not self.messages:
            self.first_seq = seq
        self.messages += 1
        self.bytes += size
        self.last_seq = seq
        self.last_time = batch.time
        return seq

    def lose_run(self, length: int) -> None:
        """Use up sequences whose messages damage has taken."""
        length = max(0, min(length, LAST_SEQUENCE - self.last_seq))
        self.lost.extend(range(self.last_seq + 1, self.last_seq + 1 + length))
        self.last_seq += length
        if not self.messages:
            self.first_seq = self.last_seq + 1

    def lose_tail(self, kept: int, last: int, most: int) -> list[int]:
        """Give up everything above `kept`, where other messages may have stood, and go on behind `last`. At most `most`
        of the sequences between were used for messages; if there are more, a purge has skipped the lower ones. Returns
        the messages given up, ascending."""
        gone = [
            seq
            for block in list(self.blocks.ascending(kept + 1))
            for seq in map(block.seq_at, block.live_positions())
            if seq > kept
        ]
        for seq in gone:
            self.remove(seq)
        self.lost = [seq for seq in self.lost if seq <= kept]
        self.last_seq = max(kept, last - most)
        self.lose_run(last - self.last_seq)
        return gone

    def lose(self, seqs: Iterable[int]) -> list[int]:
        """Give up damaged messages; returns those that were live, ascending."""
        gone: list[int] = []
        before = self.bytes
        for seq in seqs:
            if self.remove(seq):
                gone.append(seq)
        self.lost.extend(gone)
        self.lost_bytes += before - self.bytes
        return gone

    def finish(self, rejected: list[int], *, cache: bool) -> None:
        """Close the open batch. `rejected` are the positions that were not added, ascending."""
        assert self._open is not None
        block, batch, _ = self._open
        self._open = None
        if not block.count:
            self.dropped.append(block.index)
            return
        if rejected:
            block.rejected = array("I", rejected)
        if not block.live:
            self._take_out(block)
        elif cache:
            self.keep(block, batch)

    def restore_block(
        self, index: int, first: int, live: Iterable[int], rejected: array[int] | None, batch: Batch
    ) -> None:
        """Take back a block of a snapshot; blocks come in ascending order. Messages not in `live` are dead. Raises
        BadBatch when live ones are not in the batch."""
        alive = set(live)
        block = Block(index, first, batch.time, batch.table)
        if batch.offsets is not None:
            seqs = array("Q", [first + offset for offset in batch.offsets])
            self._fill(block, batch, seqs, list(map(alive.__contains__, seqs)))
        else:
            block.rejected = rejected
            refused = set(rejected or ())
            self._fill(block, batch, None, [at not in refused for at in range(len(batch))])
            taken = list(map(alive.__contains__, range(first, first + block.count)))
            block.live = sum(taken)
            if block.live < block.count:
                block.dead = bytearray(not here for here in taken)
                block.stored = sum(map(block.size_at, block.live_positions()))
        block.changed = False
        if block.live != len(alive):
            raise BadBatch(f"holds {block.live} of the {len(alive)} messages that are said to be in it")
        if not block.live:
            self.dropped.append(index)
            return
        if block.numbers is None and block.seqs is None and block.dead is None:
            self.index.add_run(block.table[0], first, block.last)
        else:
            for at in block.live_positions():
                self.index.add(block.subject_at(at), block.seq_at(at))
        self.blocks.append(block)
        self.messages += block.live
        self.bytes += block.stored

    def _fill(self, block: Block, batch: Batch, seqs: array[int] | None, keep: list[bool]) -> None:
        """Give a block the columns of a batch, without the positions that are not kept; all of them live."""
        sizes = self._sizes(batch)
        each = array("I", (sizes,)) * len(batch) if isinstance(sizes, int) else sizes
        block.table = batch.table
        block.sizes = kept = array("I", compress(each, keep))
        block.numbers = None if batch.numbers is None else array("I", compress(batch.numbers, keep))
        block.times = None if batch.times is None else array("Q", compress(batch.times, keep))
        block.seqs = None if seqs is None else array("Q", compress(seqs, keep))
        block.dead = None
        block.count = block.live = len(kept)
        block.stored = sum(kept)
        if kept and min(kept) == max(kept):
            block.sizes = kept[0]

    def append_sparse(self, index: int, batch: Batch) -> list[int]:
        """Store a batch out of an archive, which says itself which sequences and times it has; returns the
        sequences."""
        assert batch.base > self.last_seq and batch.offsets is not None
        block = Block(index, batch.base, batch.time, batch.table)
        seqs = [batch.base + offset for offset in batch.offsets]
        self._fill(block, batch, array("Q", seqs), [True] * len(seqs))
        for subject, seq in zip(batch.subjects, seqs, strict=True):
            self.index.add(subject, seq)
        self.blocks.append(block)
        if not self.messages:
            self.first_seq = seqs[0]
        self.messages += block.live
        self.bytes += block.stored
        self.last_seq = seqs[-1]
        self.last_time = batch.time
        return seqs

    # Snapshots under way: blocks that they read are neither dropped nor rewritten

    def hold(self, indexes: set[int]) -> None:
        """Keep these blocks as they are; taking indexes out of the set lets them go one by one (`release`)."""
        self._holders.append(indexes)

    def held(self, index: int) -> bool:
        """Whether a snapshot under way reads this block."""
        return any(index in holder for holder in self._holders)

    def release(self, indexes: set[int]) -> None:
        """What is no longer in a set that was held may go; an empty set is held no more."""
        if not indexes:
            self._holders = [holder for holder in self._holders if holder is not indexes]
        if not self.withheld:
            return
        still = [index for index in self.withheld if self.held(index)]
        self.dropped.extend(sorted(set(self.withheld).difference(still)))
        self.withheld = still

    def take_dropped(self) -> list[int]:
        """Blocks that the next snapshot of the group may drop; the others stay in `withheld`."""
        dropped, self.dropped = self.dropped, []
        if self._holders:
            self.withheld += filter(self.held, dropped)
            dropped = [index for index in dropped if not self.held(index)]
        return dropped

    # Compaction: other blocks for the same messages (see `compaction.py`)

    def absorbed(self, block: Block) -> None:
        """The messages of this block are about to be in another one (`replace`)."""
        self._take_out(block)

    def replace(self, block: Block, batch: Batch, seqs: array[int], keep: list[bool]) -> None:
        """A block's bytes are now this batch; `keep` says which of its messages are live."""
        self._fill(block, batch, seqs, keep)
        block.rejected = None
        block.changed = True
        self.keep(block, batch)

    def _new_block(self, index: int, batch: Batch) -> Block:
        return Block(index, self.last_seq + 1, batch.time, batch.table)

    def keep(self, block: Block, batch: Batch) -> Loaded:
        """Put a block's messages into the cache."""
        loaded = Loaded(block.first, batch, block.rejected)
        self._cache.put((self.id, block.index), loaded)
        return loaded

    def cached(self, block: Block) -> Loaded | None:
        """A block's messages, if they are in memory."""
        return self._cache.get((self.id, block.index))

    # Removing

    def remove(self, seq: int) -> bool:
        """Remove one message; False when it is not there."""
        block = self.blocks.find(seq)
        at = -1 if block is None else block.position(seq)
        if block is None or at < 0:
            return False
        self._kill(block, at, seq)
        if not block.live:
            self._forget(block)
        if seq <= self._first_seq:
            self._first_moved = True
        return True

    def _kill(self, block: Block, at: int, seq: int) -> None:
        subject = block.subject_at(at)
        self.index.remove(subject, seq)
        if self.struck is not None:
            self.struck[seq] = subject
        self.messages -= 1
        self.bytes -= block.size_at(at)
        block.kill(at)

    def _forget(self, block: Block) -> None:
        """Give up a block without live messages, unless it is still being filled."""
        if not self._filling(block):
            self._take_out(block)

    def _take_out(self, block: Block) -> None:
        self.blocks.remove(block)
        self._cache.drop((self.id, block.index))
        self.dropped.append(block.index)
        block.retire()

    def _filling(self, block: Block) -> bool:
        return self._open is not None and self._open[0] is block

    def advance(self) -> None:
        """Find the first live sequence again."""
        if self.messages:
            for block in self.blocks:
                at = block.next_live(0)
                if at >= 0:
                    self.first_seq = block.seq_at(at)
                    return
        self.first_seq = self.last_seq + 1

    def remove_below(self, end: int, keep: Container[int] = ()) -> list[int]:
        """Remove all messages with sequences < `end` that are not in `keep`; returns the removed ones, ascending."""
        return [seq for removed in self.removing_below(end, keep) for seq in removed]

    def removing_below(self, end: int, keep: Container[int] = (), start: int = 0) -> Iterator[list[int]]:
        """The same in steps of one block; each yields what it has removed. Below `start` is nothing but what is to be
        kept."""
        for block in self.blocks.below(end, start):
            removed: list[int] = []
            if block.last < end and not keep and block is self.blocks.first() and not self._filling(block):
                self._drop_front(block, removed)
            else:
                for at in block.live_positions():
                    seq = block.seq_at(at)
                    if seq >= end:
                        break
                    if seq not in keep:
                        self._kill(block, at, seq)
                        removed.append(seq)
                if not block.live:
                    self._forget(block)
            if removed:
                self._first_moved = True
                yield removed

    def remove_fronts(self, fronts: Iterable[tuple[bytes, int]]) -> list[int]:
        """Remove the lowest messages of subjects, so many of each as are named beside it; returns them, ascending."""
        removed: list[int] = []
        for subject, excess in fronts:
            removed += self.index.lowest(subject, excess)
            self.index.remove_front(subject, excess)
        removed.sort()
        block: Block | None = None
        for seq in removed:
            if block is None or seq > block.last:
                if block is not None and not block.live:
                    self._forget(block)
                block = self.blocks.find(seq)
                assert block is not None
            at = block.position(seq)
            if self.struck is not None:
                self.struck[seq] = block.subject_at(at)
            self.messages -= 1
            self.bytes -= block.size_at(at)
            block.kill(at)
        if block is not None and not block.live:
            self._forget(block)
        if removed and removed[0] <= self._first_seq:
            self._first_moved = True
        return removed

    def _drop_front(self, block: Block, removed: list[int]) -> None:
        """Drop a block whose messages are the lowest of their subjects: work per subject, not per message."""
        positions = block.live_positions()
        removed.extend(block.live_seqs())
        if self.struck is not None:
            self.struck.update((block.seq_at(at), block.subject_at(at)) for at in positions)
        if block.numbers is None:
            self.index.remove_front(block.table[0], block.live)
        else:
            numbers = block.numbers if block.dead is None else [block.numbers[at] for at in positions]
            for number, how_many in Counter(numbers).items():
                self.index.remove_front(block.table[number], how_many)
        self.messages -= block.live
        self.bytes -= block.stored
        self._forget(block)

    def clear(self) -> Iterator[None]:
        """Remove every message. Never while a batch is open. What was there is gone when this returns; what it gives
        back frees the memory in steps."""
        assert self._open is None
        blocks, index = self.blocks, self.index
        for block in blocks:
            self.dropped.append(block.index)
            block.retire()
        self.blocks, self.index = BlockList(), SubjectIndex()
        self._cache.drop_store(self.id)
        self.messages = 0
        self.bytes = 0
        self.first_seq = self.last_seq + 1
        return _freeing(blocks, index)

    def close(self) -> None:
        """Free the cache."""
        self._cache.drop_store(self.id)


def _freeing(blocks: BlockList, index: SubjectIndex) -> Iterator[None]:
    """Let go of these a part at a time: what a million objects take to be freed would stop everything else."""
    for at, block in enumerate(blocks):
        block.table, block.numbers, block.sizes = [], None, 0
        if at % _BLOCKS_FREED == 0:
            yield
    while index.shrink(_FREED):
        yield
