"""Finding messages of a stream by subject, sequence and time, in memory only.

Owns the strategies: a literal filter asks the subject index, a filter that covers the whole stream asks the blocks, few
matching subjects are asked one by one, and many are found by walking the blocks, because then the next match is near.
Where fewer messages than subjects are in question, the messages are tested, not the subjects of the stream.
`subjects` are always the subjects that the stream can hold (its configuration), so that a filter as wide is recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from nimsnats.jetstream.index import covers_all
from nimsnats.jetstream.source import Filters
from nimsnats.jetstream.store import MessageStore
from nimsnats.protocol.subject import any_matcher

_FEW: Final = 8
_TESTS: Final = 4096
"""Sets of filters whose tests are kept."""


def live(store: MessageStore, seq: int) -> bool:
    """Whether the stream still holds this sequence."""
    block = store.blocks.find(seq)
    return block is not None and block.position(seq) >= 0


def describe(store: MessageStore, seq: int) -> tuple[bytes, int, int] | None:
    """(subject, store time in ns, stored size) of a live message, without its payload."""
    block = store.blocks.find(seq)
    at = -1 if block is None else block.position(seq)
    if block is None or at < 0:
        return None
    return block.subject_at(at), block.time_at(at), block.size_at(at)


def next_live(store: MessageStore, start: int) -> int:
    """Lowest live sequence >= `start`, or 0."""
    if start <= store.first_seq:
        return store.first_seq if store.messages else 0
    for block in store.blocks.ascending(start):
        at = block.next_live(start)
        if at >= 0:
            return block.seq_at(at)
    return 0


def previous_live(store: MessageStore, end: int) -> int:
    """Highest live sequence <= `end`, or 0."""
    for block in store.blocks.descending(end):
        at = block.previous_live(end)
        if at >= 0:
            return block.seq_at(at)
    return 0


def next_match(store: MessageStore, filters: Filters, start: int, subjects: Iterable[bytes]) -> int:
    """Lowest live sequence >= `start` that matches, or 0."""
    if start > store.last_seq or not store.messages:
        return 0
    index = store.index
    if covers_all(filters, subjects):
        return next_live(store, start)
    ahead = store.last_seq - start
    if ahead < _FEW:
        return _step(store, _test(filters), start)
    if ahead < len(index) and not index.knows(filters):
        return _walk(store, _test(filters), start)
    matched = index.subjects(filters)
    if len(matched) == len(index):
        return next_live(store, start)
    if len(matched) <= _FEW:
        return min(filter(None, [index.next(subject, start) for subject in matched]), default=0)
    return _walk(store, matched.__contains__, start)


@lru_cache(maxsize=_TESTS)
def _test(filters: Filters) -> Callable[[bytes], bool]:
    return any_matcher(filters)


def _step(store: MessageStore, test: Callable[[bytes], bool], start: int) -> int:
    """Look at the few messages from `start` on: the way of consumers that wait for new ones, of whom there are many."""
    for seq in range(max(start, 1), store.last_seq + 1):
        block = store.blocks.find(seq)
        at = -1 if block is None else block.position(seq)
        if block is not None and at >= 0 and test(block.subject_at(at)):
            return seq
    return 0


def _walk(store: MessageStore, test: Callable[[bytes], bool], start: int) -> int:
    for block in store.blocks.ascending(start):
        numbers = block.numbers
        wanted = [test(subject) for subject in block.table]
        if not any(wanted):
            continue
        at = block.next_live(start)
        while at >= 0:
            if wanted[0 if numbers is None else numbers[at]]:
                return block.seq_at(at)
            at = block.next_live(block.seq_at(at) + 1)
    return 0


def last_match(store: MessageStore, filters: Filters, subjects: Iterable[bytes]) -> int:
    """Highest live sequence that matches, or 0."""
    if covers_all(filters, subjects):
        return previous_live(store, store.last_seq)
    return max(map(store.index.last, store.index.subjects(filters)), default=0)


def last_per_subject(store: MessageStore, filters: Filters) -> list[int]:
    """The newest live sequence of every matching subject, ascending."""
    return sorted(map(store.index.last, store.index.subjects(filters)))


def count_match(store: MessageStore, filters: Filters, start: int, subjects: Iterable[bytes]) -> int:
    """How many live messages at or after `start` match."""
    index = store.index
    if covers_all(filters, subjects):
        if start <= store.first_seq:
            return store.messages
        return sum(block.live_from(start) for block in store.blocks.ascending(start))
    if start <= store.first_seq:
        return sum(map(index.count, index.subjects(filters)))
    return sum(index.count_from(subject, start) for subject in index.subjects(filters))


def seq_at_time(store: MessageStore, time_ns: int) -> int:
    """Lowest live sequence stored at or after `time_ns`; last_seq + 1 when there is none."""
    if not store.messages or time_ns > store.last_time:
        return store.last_seq + 1
    for block in store.blocks:
        if (block.time if block.times is None else block.times[-1]) < time_ns:
            continue
        at = block.next_live(0)
        while at >= 0 and block.time_at(at) < time_ns:
            at = block.next_live(block.seq_at(at) + 1)
        if at >= 0:
            return block.seq_at(at)
    return store.last_seq + 1


def front(store: MessageStore, messages: int, size: int) -> int:
    """The lowest sequence to keep so that `messages` messages and `size` stored bytes in front of it are gone."""
    for block in store.blocks:
        if messages <= 0 and size <= 0:
            return block.first
        if block.live <= messages or (messages <= 0 and block.stored <= size):
            messages -= block.live
            size -= block.stored
            continue
        for at in block.live_positions():
            if messages <= 0 and size <= 0:
                return block.seq_at(at)
            messages -= 1
            size -= block.size_at(at)
    return store.last_seq + 1


def missing(store: MessageStore) -> list[int]:
    """Deleted sequences between the first live and the last one."""
    gone: list[int] = []
    expected = max(store.first_seq, 1)
    for block in store.blocks:
        for at in block.live_positions():
            seq = block.seq_at(at)
            gone.extend(range(expected, seq))
            expected = seq + 1
    gone.extend(range(expected, store.last_seq + 1))
    return gone
