"""A consumer's way through the messages of a stream: how many match, and which comes next.

Owns two ways of finding out. Where filters select few subjects, the index names them and their sequences; where they
select many, the messages are walked, because then the next match is near. Nothing here looks at more than it was
allowed to: who wants to know more asks again, and others have their turn between two questions.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import compress
from typing import Final

from nimsnats.jetstream import search
from nimsnats.jetstream.blocks import Block
from nimsnats.jetstream.index import SubjectIndex
from nimsnats.jetstream.source import Filters
from nimsnats.jetstream.store import MessageStore
from nimsnats.protocol.subject import any_matcher

SUBJECTS: Final = 4096
"""Subjects that may match for the index to be asked about each of them."""
SEQUENCES: Final = 8192
"""Matching messages that are listed at once, about."""
_TESTS: Final = 1024
"""Sets of filters whose tests are kept."""

Test = Callable[[bytes], bool]


@lru_cache(maxsize=_TESTS)
def _test(filters: Filters) -> Test:
    return any_matcher(filters)


def selective(index: SubjectIndex, filters: Filters, messages: int) -> bool:
    """Whether it takes less to ask for the subjects that match than to look at so many messages."""
    return len(filters) * 4 <= messages and index.at_most(filters) <= min(SUBJECTS, messages // 4)


def count(store: MessageStore, filters: Filters, start: int, looks: int) -> tuple[int, int]:
    """How many live messages match from `start` on, and up to which sequence (not with it) they are counted: last_seq
    + 1 unless that would take more than about so many looks. Without filters every message counts, at once."""
    end = store.last_seq + 1
    if start >= end:
        return 0, start
    if not filters:
        if start <= store.first_seq:
            return store.messages, end
        return sum(block.live_from(start) for block in store.blocks.ascending(start)), end
    if selective(store.index, filters, end - start):
        index = store.index
        return sum(index.count_from(subject, start) for subject in index.find(filters)), end
    test, found = _test(filters), 0
    for block in store.blocks.ascending(start):
        at = block.position_from(start)
        if looks <= 0 and at < block.count:
            return found, block.seq_at(at)
        upto = min(block.count, at + max(looks, 1)) if block.numbers is not None else block.count
        found += _count_in(block, test, at, upto)
        looks -= upto - at if block.numbers is not None else 1
        if upto < block.count:
            return found, block.seq_at(upto)
    return found, end


def _count_in(block: Block, test: Test, at: int, upto: int) -> int:
    """Live messages of a part of a block that match."""
    if at >= upto:
        return 0
    dead = block.dead
    if block.numbers is None:
        if not test(block.table[0]):
            return 0
        return upto - at if dead is None else dead.count(0, at, upto)
    numbers = block.numbers[at:upto]
    if dead is not None:
        numbers = list(compress(numbers, [not gone for gone in dead[at:upto]]))
    if len(block.table) <= len(numbers):
        wanted = list(map(bool, map(test, block.table)))
        return sum(map(wanted.__getitem__, numbers))
    return sum(map(bool, map(test, map(block.table.__getitem__, numbers))))


def seek(store: MessageStore, filters: Filters, start: int, looks: int) -> tuple[int, int]:
    """The lowest live sequence from `start` on that matches, and where to go on when none was found (0): behind the end
    when there is none, before it when that would take more than about so many looks."""
    end = store.last_seq + 1
    if start >= end or not store.messages:
        return 0, max(start, end)
    if not filters:
        return search.next_live(store, start), end
    test = _test(filters)
    for block in store.blocks.ascending(start):
        numbers, table = block.numbers, block.table
        at = block.next_live(start)
        if numbers is None:
            looks -= 1
            if at >= 0 and test(table[0]):
                return block.seq_at(at), end
            continue
        while at >= 0:
            if looks <= 0:
                return 0, block.seq_at(at)
            looks -= 1
            if test(table[numbers[at]]):
                return block.seq_at(at), end
            at = at + 1 if block.dead is None else block.dead.find(0, at + 1)
            if at >= block.count:
                break
    return 0, end


def upcoming(store: MessageStore, filters: Filters, start: int) -> tuple[Sequence[int], int] | None:
    """Live sequences from `start` on that match, ascending, and up to which (with it) these are all. None when too
    many subjects match for that to be the shorter way."""
    index, end = store.index, store.last_seq + 1
    if not selective(index, filters, end - start):
        return None
    subjects = index.find(filters)
    total = sum(index.count_from(subject, start) for subject in subjects)
    if total > SEQUENCES:
        end = start + max((end - start) * SEQUENCES // total, 1)
    found: list[int] = []
    for subject in subjects:
        found += index.within(subject, start, end)
    found.sort()
    return array("Q", found), end - 1
