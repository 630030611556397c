"""Finding messages of a stream by subject, sequence and time, in memory only.

Owns the strategies: a literal filter asks the subject index, a filter that covers the whole stream asks the blocks, few
matching subjects are asked one by one, and many are found by walking the blocks, because then the next match is near.
How many there are is not known beforehand: so two ways are gone in turns (`_race`), one through the messages and one
through the subjects, and the first to arrive has the answer. That takes about twice what the shorter one takes.
`subjects` are always the subjects that the stream can hold (its configuration), so that a filter as wide is recognised.

What may take long is an iterator of steps of about a millisecond: it yields None, then the answer. Between two steps
the stream may change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Final, TypeVar

from nimsnats.jetstream.index import covers_all
from nimsnats.jetstream.source import Filters
from nimsnats.jetstream.store import MessageStore
from nimsnats.protocol.subject import any_matcher, has_wildcard

T = TypeVar("T")
Steps = Iterator[T | None]
"""A search: None after each step, then what it found."""

_FEW: Final = 8
_LOOKS: Final = 512
"""Messages or subjects that a step of a search looks at."""
_KEPT: Final = 4096
"""Subjects that filters may select for the index to keep them at hand."""
_SOON: Final = 8
"""Steps through the newest messages after which it is worth while to remember which subjects match."""
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
    if not index.knows(filters) and (ahead < len(index) or index.at_most(filters) > _KEPT):
        return arrive(_race(_ahead(store, filters, start), _lowest(store, filters, start, [])))
    matched = index.subjects(filters)
    if len(matched) == len(index):
        return next_live(store, start)
    if len(matched) <= _FEW:
        return min(filter(None, [index.next(subject, start) for subject in matched]), default=0)
    return _walk(store, matched.__contains__, start)


def next_in_steps(store: MessageStore, filters: Filters, start: int) -> Steps[int]:
    """`next_match` for filters that will not be asked for again."""
    subject = _single(filters)
    if subject is not None:
        return iter((store.index.next(subject, start),))
    return _race(_ahead(store, filters, start), _lowest(store, filters, start))


def last_in_steps(store: MessageStore, filters: Filters) -> Steps[int]:
    """`last_match` for filters that will not be asked for again."""
    subject = _single(filters)
    if subject is not None:
        return iter((store.index.last(subject),))
    return _race(_back(store, filters), _highest(store, filters))


def arrive(steps: Steps[T]) -> T:
    """The answer of a search, at once."""
    return next(found for found in steps if found is not None)


def _single(filters: Filters) -> bytes | None:
    return filters[0] if len(filters) == 1 and not has_wildcard(filters[0]) else None


def _race(*ways: Steps[T]) -> Steps[T]:
    """Go all ways by turns until one has arrived."""
    while True:
        for way in ways:
            found = next(way)
            if found is not None:
                yield found
                return
        yield None


def _ahead(store: MessageStore, filters: Filters, start: int) -> Steps[int]:
    """Through the messages, from `start` on."""
    test, left = _test(filters), _LOOKS
    while True:
        for block in store.blocks.ascending(start):
            at = block.next_live(start)
            while at >= 0 and left:
                start = block.seq_at(at) + 1
                if test(block.subject_at(at)):
                    yield start - 1
                    return
                left -= 1
                at = block.next_live(start)
            if not left:
                break
        else:
            yield 0
            return
        left = _LOOKS
        yield None


def _back(store: MessageStore, filters: Filters) -> Steps[int]:
    """Through the messages, from the newest on."""
    test, left, end = _test(filters), _LOOKS, store.last_seq
    while True:
        for block in store.blocks.descending(end):
            at = block.previous_live(end)
            while at >= 0 and left:
                end = block.seq_at(at) - 1
                if test(block.subject_at(at)):
                    yield end + 1
                    return
                left -= 1
                at = block.previous_live(end)
            if not left:
                break
        else:
            yield 0
            return
        left = _LOOKS
        yield None


def _lowest(store: MessageStore, filters: Filters, start: int, kept: list[bytes] | None = None) -> Steps[int]:
    """Through the subjects, for the lowest sequence from `start` on. They are added to `kept` unless they are many."""
    index, best = store.index, 0
    for part in index.parts(filters, _LOOKS):
        found = min(filter(None, [index.next(subject, start) for subject in part]), default=0)
        best = min(found, best) if found and best else found or best
        if kept is not None and len(kept) <= _KEPT:
            kept += part
        yield None
    if kept is not None and len(kept) <= _KEPT:
        index.keep(filters, kept)
    yield best


def _highest(store: MessageStore, filters: Filters, kept: list[bytes] | None = None) -> Steps[int]:
    """Through the subjects, for the highest sequence. They are added to `kept` unless they are many."""
    index, best = store.index, 0
    for part in index.parts(filters, _LOOKS):
        best = max(best, max(map(index.last, part), default=0))
        if kept is not None and len(kept) <= _KEPT:
            kept += part
        yield None
    if kept is not None and len(kept) <= _KEPT:
        index.keep(filters, kept)
    yield best


@lru_cache(maxsize=_TESTS)
def _test(filters: Filters) -> Callable[[bytes], bool]:
    return any_matcher(filters)


def selects(filters: Filters, subject: bytes) -> bool:
    """Whether the filters match a subject."""
    return not filters or _test(filters)(subject)


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
    return last_of(store, filters)


def last_of(store: MessageStore, filters: Filters) -> int:
    """The same, without knowing what the stream can hold."""
    return arrive(last_again_in_steps(store, filters))


def last_again_in_steps(store: MessageStore, filters: Filters) -> Steps[int]:
    """`last_match` for filters that will be asked for again: which subjects match is remembered, if these are few and
    the newest messages do not tell."""
    index, subject, kept, rounds = store.index, _single(filters), list[bytes](), 0
    if subject is not None:
        yield index.last(subject)
        return
    if index.knows(filters) and len(matched := index.subjects(filters)) <= _KEPT:
        yield max(map(index.last, matched), default=0)
        return
    back, highest = _back(store, filters), _highest(store, filters, kept)
    while (found := next(back)) is None:
        rounds += 1
        if (best := next(highest)) is not None:
            yield best
            return
        yield None
    if rounds > _SOON:
        for best in highest:
            if best is not None or len(kept) > _KEPT:
                break
            yield None
    yield found


def last_per_subject(store: MessageStore, filters: Filters, subjects: Iterable[bytes]) -> Steps[list[int]]:
    """The newest live sequence of every matching subject, ascending. The store stays as it is meanwhile."""
    index, runs = store.index, list[list[int]]()
    if covers_all(filters, subjects):
        filters = ()
    for part in index.parts(filters, _LOOKS):
        runs.append(sorted(map(index.last, part)))
        yield None
    while len(runs) > 1:  # what is sorted in parts is merged in parts
        merged: list[list[int]] = []
        for at in range(0, len(runs), 2):
            merged.append(sorted(chain.from_iterable(runs[at : at + 2])))
            yield None
        runs = merged
    yield runs[0] if runs else []


def last_of_each_in_steps(store: MessageStore, filters: Filters, end: int, most: int) -> Steps[list[int]]:
    """The newest live sequence <= `end` of every matching subject, in no order; as soon as they are more than `most`,
    only those found so far."""
    if not any(map(has_wildcard, filters)):
        return _each_by_subject(store, filters, end, most)
    return _race(_each_by_message(store, filters, end, most), _each_by_subject(store, filters, end, most))


def _each_by_message(store: MessageStore, filters: Filters, end: int, most: int) -> Steps[list[int]]:
    test = _test(filters)
    seen: dict[bytes, int] = {}
    while len(seen) <= most:
        left = _LOOKS
        for block in store.blocks.descending(end):
            at = block.previous_live(end)
            while at >= 0 and left:
                end = block.seq_at(at) - 1
                subject = block.subject_at(at)
                if subject not in seen and test(subject):
                    seen[subject] = end + 1
                left -= 1
                at = block.previous_live(end)
            if not left:
                break
        else:
            break
        yield None
    yield list(seen.values())


def _each_by_subject(store: MessageStore, filters: Filters, end: int, most: int) -> Steps[list[int]]:
    index = store.index
    seqs: list[int] = []
    for part in index.parts(filters, _LOOKS):
        seqs += filter(None, [index.before(subject, end + 1) for subject in part])
        if len(seqs) > most:
            break
        yield None
    yield seqs


def count_match(store: MessageStore, filters: Filters, start: int, subjects: Iterable[bytes]) -> int:
    """How many live messages at or after `start` match."""
    if covers_all(filters, subjects):
        if start <= store.first_seq:
            return store.messages
        return sum(block.live_from(start) for block in store.blocks.ascending(start))
    return arrive(count_in_steps(store, filters, start))


def count_in_steps(store: MessageStore, filters: Filters, start: int) -> Steps[int]:
    """`count_match` for filters that do not select everything."""
    if store.index.at_most(filters) < store.last_seq - start:
        return _count_by_subject(store, filters, start)
    return _count_by_message(store, filters, start)


def _count_by_subject(store: MessageStore, filters: Filters, start: int) -> Steps[int]:
    index, total = store.index, 0
    for part in (index.subjects(filters),) if index.knows(filters) else index.parts(filters, _LOOKS):
        if start <= store.first_seq:
            total += sum(map(index.count, part))
        else:
            total += sum(index.count_from(subject, start) for subject in part)
        yield None
    yield total


def _count_by_message(store: MessageStore, filters: Filters, start: int) -> Steps[int]:
    test, total, end = _test(filters), 0, store.last_seq
    while True:
        left = _LOOKS
        for block in store.blocks.ascending(start):
            at = block.next_live(start)
            while at >= 0 and left:
                start = block.seq_at(at) + 1
                if start > end + 1:
                    yield total
                    return
                total += test(block.subject_at(at))
                left -= 1
                at = block.next_live(start)
            if not left:
                break
        else:
            yield total
            return
        yield None


def arrivals(store: MessageStore, first: int) -> list[tuple[int, bytes]]:
    """Which subjects were stored from sequence `first` on: each once, with the lowest of its sequences, ascending.
    Messages that are gone again may be among them."""
    found: dict[bytes, int] = {}
    for block in store.blocks.ascending(first):
        if block.last < first:
            continue
        if block.numbers is None:
            found.setdefault(block.table[0], max(first, block.first))
            continue
        start = block.position_from(first)
        numbers = block.numbers[start:]
        numbers.reverse()
        lowest = dict(zip(numbers, range(block.count - 1, -1, -1), strict=False))
        for number, at in lowest.items():
            found.setdefault(block.table[number], block.seq_at(at))
    return sorted((seq, subject) for subject, seq in found.items())


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
        if block.seqs is None and block.dead is None:
            gone.extend(range(expected, block.first))
            expected = block.last + 1
            continue
        for at in block.live_positions():
            seq = block.seq_at(at)
            gone.extend(range(expected, seq))
            expected = seq + 1
    gone.extend(range(expected, store.last_seq + 1))
    return gone
