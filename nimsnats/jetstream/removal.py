"""What a stream gives up in bulk: by limits, by age, by purges.

Owns the steps in which that is done, each of a few milliseconds: an iterator here removes a part of the messages at
each step and yields which they were, ascending. Between two steps the store holds what is left, and nothing but the
iterator may change it: the steps are those of one entry of the log (`raft/machine.py`). What is to be removed depends
on the replicated state alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nimsnats.jetstream import search
from nimsnats.jetstream.expiry import Expiry
from nimsnats.jetstream.source import Filters
from nimsnats.jetstream.store import MessageStore

_SUBJECTS: Final = 512
"""Subjects that are looked at in one step."""
_MESSAGES: Final = 512
"""Messages that are removed or looked at in one step, where they are found one by one."""
_SORTED: Final = 8192
"""Sequences that are sorted in one step."""

Removed = Iterator[list[int]]


def below(store: MessageStore, end: int) -> Removed:
    """Everything with sequences < `end`."""
    return _together(store.removing_below(end))


def _together(removing: Removed) -> Removed:
    """Small steps made one."""
    held: list[int] = []
    for removed in removing:
        held += removed
        if len(held) >= _MESSAGES:
            yield held
            held = []
    if held:
        yield held


def over_subject_limit(store: MessageStore, keep: int) -> Removed:
    """The oldest messages of every subject that has more than `keep`."""
    index = store.index
    for subjects in index.parts((), _SUBJECTS):
        excess = [(subject, count - keep) for subject in subjects if (count := index.count(subject)) > keep]
        for part in _portions(excess):
            yield store.remove_fronts(part)
        if not excess:
            yield []


def _portions(fronts: list[tuple[bytes, int]]) -> Iterator[list[tuple[bytes, int]]]:
    """The same, in parts that a step can do."""
    portion: list[tuple[bytes, int]] = []
    room = _MESSAGES
    for subject, count in fronts:
        while count:
            part = min(count, room)
            portion.append((subject, part))
            count -= part
            room -= part
            if not room:
                yield portion
                portion, room = [], _MESSAGES
    if portion:
        yield portion


def of_subjects(store: MessageStore, wanted: Filters, seq: int, keep: int) -> Removed:
    """What matches, but for sequences >= `seq` (0 for none), and for the newest `keep` of the rest."""
    index = store.index
    end = seq or store.last_seq + 1
    for _ in iter(index.order.settle, False):  # else some could be counted twice: where they wait, and where they go
        yield []
    if keep:
        for place in _newest(store, wanted, end, keep):
            if place is None:
                yield []
            else:
                end = place
    for subjects in index.parts(wanted, _SUBJECTS):
        fronts = [(subject, index.count(subject) - index.count_from(subject, end)) for subject in subjects]
        for part in _portions(fronts):
            yield store.remove_fronts(part)
        yield []


def _newest(store: MessageStore, wanted: Filters, end: int, keep: int) -> search.Steps[int]:
    """The sequence of the `keep`-th newest match below `end`, 0 when there are not more than that."""
    index = store.index
    total = 0
    for subjects in index.parts(wanted, _SUBJECTS):
        total += sum(index.count(subject) - index.count_from(subject, end) for subject in subjects)
        yield None
    if total <= keep:
        yield 0
        return
    if total <= _SORTED:
        found = sorted(seq for subject in index.find(wanted) for seq in index.seqs(subject) if seq < end)
        yield found[-keep]
        return
    looked = 0
    while keep:
        end, looked = search.previous_live(store, end - 1), looked + 1
        held = search.describe(store, end)
        assert held is not None
        keep -= search.selects(wanted, held[0])
        if looked % _MESSAGES == 0:
            yield None
    yield end


def expired(store: MessageStore, expiry: Expiry, now: int, max_age: int, start: int) -> Removed:
    """What has run out at `now`: messages with a TTL of their own, and with a `max_age` those that are older. Below
    `start` there is nothing but what never runs out."""
    while due := expiry.take_due(now, _MESSAGES):
        yield [seq for seq in sorted(due) if store.remove(seq)]
    if max_age:
        end = search.seq_at_time(store, now - max_age + 1)
        yield from _together(store.removing_below(end, expiry.never, start))
