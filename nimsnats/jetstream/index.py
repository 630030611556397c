"""Which live sequences each subject of a stream has.

Owns the per-subject sequence lists and the answers to "next, last, how many" for one subject, and with `order.py` which
subjects a set of filters selects. It holds no message bytes and never looks at the disk. A subject with one message,
the usual case in a key-value bucket, costs one integer; longer lists are `SeqList`s of eight bytes a message.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final

from nimsnats.jetstream.order import PORTION, SubjectOrder
from nimsnats.jetstream.source import Filters
from nimsnats.protocol.subject import any_matcher, has_wildcard, is_subset

_CACHED_FILTERS: Final = 64
_TRIM: Final = 1024


class SeqList:
    """Ascending sequences that mostly grow at the end and shrink at the front."""

    __slots__ = ("head", "items")

    def __init__(self, items: Iterable[int] = ()) -> None:
        self.items: array[int] = array("Q", items)
        self.head = 0

    def __len__(self) -> int:
        return len(self.items) - self.head

    def at(self, start: int) -> int:
        """Position (absolute in `items`) of the first sequence >= `start`."""
        return bisect_left(self.items, start, self.head)

    def remove(self, seq: int) -> None:
        """Take out one sequence that is there, moving the shorter side."""
        items, head = self.items, self.head
        at = head if items[head] == seq else bisect_left(items, seq, head)
        assert at < len(items) and items[at] == seq
        if at - head <= len(items) - at:
            if at > head:
                items[head + 1 : at + 1] = items[head:at]
            self.drop_front(1)
        else:
            del items[at]

    def drop_front(self, count: int) -> None:
        """Take out the `count` lowest sequences."""
        self.head += count
        if self.head >= _TRIM and self.head * 2 >= len(self.items):
            del self.items[: self.head]
            self.head = 0


class _Matched:
    """The subjects that one set of filters selects, kept up to date while it is cached."""

    __slots__ = ("subjects", "test")

    def __init__(self, test: Callable[[bytes], bool], subjects: dict[bytes, None]) -> None:
        self.test = test
        self.subjects = subjects


class SubjectIndex:
    """Live sequences by subject. Callers keep it equal to the stream's content."""

    def __init__(self) -> None:
        self._lists: dict[bytes, int | SeqList] = {}
        self._cache: dict[Filters, _Matched] = {}
        self.order = SubjectOrder()
        """The subjects, for whoever looks for those that match."""

    def __len__(self) -> int:
        return len(self._lists)

    def __contains__(self, subject: bytes) -> bool:
        return subject in self._lists

    def clear(self) -> None:
        """Forget everything."""
        self._lists.clear()
        self._cache.clear()
        self.order.clear()

    def shrink(self, subjects: int) -> bool:
        """Forget so many subjects of an index that nobody needs any more. False when none is left."""
        if self.order.shrink(subjects):
            return True
        for _ in range(min(subjects, len(self._lists))):
            self._lists.popitem()
        return bool(self._lists)

    def add(self, subject: bytes, seq: int) -> None:
        """Add one sequence, higher than all of its subject."""
        held = self._lists.get(subject)
        if held is None:
            self._lists[subject] = seq
            self._appeared(subject)
        elif isinstance(held, int):
            self._lists[subject] = SeqList((held, seq))
        else:
            held.items.append(seq)

    def add_run(self, subject: bytes, first: int, last: int) -> None:
        """Add the dense run `first`..`last` to one subject."""
        if first == last:
            self.add(subject, first)
            return
        held = self._lists.get(subject)
        if held is None:
            self._lists[subject] = SeqList(range(first, last + 1))
            self._appeared(subject)
            return
        if isinstance(held, int):
            held = self._lists[subject] = SeqList((held,))
        held.items.extend(range(first, last + 1))

    def add_each(self, subjects: Sequence[bytes], seqs: Iterable[int]) -> None:
        """Add one sequence to each subject in turn; the loop of every mixed batch."""
        lists = self._lists
        get = lists.get
        appeared = self._appeared if self._cache else self.order.add
        for subject, seq in zip(subjects, seqs, strict=False):
            held = get(subject)
            if held is None:
                lists[subject] = seq
                appeared(subject)
            elif isinstance(held, int):
                lists[subject] = SeqList((held, seq))
            else:
                held.items.append(seq)

    def remove(self, subject: bytes, seq: int) -> None:
        """Remove a sequence that the subject has."""
        held = self._lists[subject]
        if isinstance(held, int):
            assert held == seq
            self._vanished(subject)
        else:
            held.remove(seq)
            if len(held) == 1:
                self._lists[subject] = held.items[held.head]

    def remove_front(self, subject: bytes, count: int) -> None:
        """Remove the `count` lowest sequences of a subject that has at least as many."""
        held = self._lists[subject]
        if isinstance(held, int):
            assert count == 1
            self._vanished(subject)
            return
        left = len(held) - count
        assert left >= 0
        if left == 0:
            self._vanished(subject)
        elif left == 1:
            self._lists[subject] = held.items[-1]
        else:
            held.drop_front(count)

    def _appeared(self, subject: bytes) -> None:
        self.order.add(subject)
        for matched in self._cache.values():
            if matched.test(subject):
                matched.subjects[subject] = None

    def _vanished(self, subject: bytes) -> None:
        del self._lists[subject]
        if self._lists:
            self.order.remove(subject)
        else:
            self.order.clear()
        for matched in self._cache.values():
            matched.subjects.pop(subject, None)

    def subjects(self, filters: Filters = ()) -> Collection[bytes]:
        """The subjects that have messages and match; a live view, not to be kept. For filters that will be asked for
        again: the answer is kept up to date for a while."""
        if not filters:
            return self._lists.keys()
        if len(filters) == 1 and not has_wildcard(filters[0]):
            return filters if filters[0] in self._lists else ()
        matched = self._cache.get(filters)
        if matched is None:
            if any(f == b">" for f in filters):
                return self._lists.keys()
            matched = self.keep(filters, self.find(filters))
        return matched.subjects

    def keep(self, filters: Filters, subjects: Iterable[bytes]) -> _Matched:
        """Have these at hand, which are all that the filters select now."""
        if len(self._cache) >= _CACHED_FILTERS:
            del self._cache[next(iter(self._cache))]
        matched = self._cache[filters] = _Matched(any_matcher(filters), dict.fromkeys(subjects))
        return matched

    def find(self, filters: Filters) -> Collection[bytes]:
        """The same for filters that are asked for once. Literal ones are looked up."""
        if not filters or b">" in filters:
            return self._lists.keys()
        lists = self._lists
        found = [subject for subject in filters if subject in lists and not has_wildcard(subject)]
        wild = tuple(filter(has_wildcard, filters))
        for part in self.order.parts(wild, 0):
            found += part
        return found if len(filters) == 1 else dict.fromkeys(found)

    def parts(self, filters: Filters, looks: int) -> Iterator[list[bytes]]:
        """The same a part at a time, each subject once: each part takes about `looks` looks at subjects, so that others
        may have their turn between two of them. What comes or goes meanwhile may or may not be among them. Of a single
        filter they come in ascending order."""
        filters = filters or (b">",)
        found = [subject for subject in dict.fromkeys(filters) if not has_wildcard(subject) and subject in self._lists]
        wild = tuple(filter(has_wildcard, filters))
        if found or not wild:
            yield found
        seen = set(found)
        for part in self.order.parts(wild, looks):
            if len(filters) > 1:
                part = [subject for subject in part if subject not in seen]
                seen.update(part)
            yield part

    def at_most(self, filters: Filters) -> int:
        """A number that no fewer subjects match, roughly, at the price of a look-up for each filter."""
        if 0 < self.order.unsorted <= PORTION:
            self.order.settle()
        return sum(self.order.among(f) if has_wildcard(f) else 1 for f in filters) if filters else len(self._lists)

    def knows(self, filters: Filters) -> bool:
        """Whether `subjects` has its answer for these filters at hand, without testing every subject."""
        return filters in self._cache or (len(filters) == 1 and not has_wildcard(filters[0]))

    def seqs(self, subject: bytes) -> Sequence[int]:
        """All sequences of a subject, ascending (a copy)."""
        held = self._lists.get(subject)
        if held is None:
            return ()
        return (held,) if isinstance(held, int) else held.items[held.head :]

    def lowest(self, subject: bytes, count: int) -> Sequence[int]:
        """The `count` lowest sequences of a subject that has at least as many, ascending (a copy)."""
        held = self._lists[subject]
        return (held,)[:count] if isinstance(held, int) else held.items[held.head : held.head + count]

    def first(self, subject: bytes) -> int:
        """The lowest sequence of a subject, 0 when it has none."""
        held = self._lists.get(subject, 0)
        return held if isinstance(held, int) else held.items[held.head]

    def last(self, subject: bytes) -> int:
        """The highest sequence of a subject, 0 when it has none."""
        held = self._lists.get(subject, 0)
        return held if isinstance(held, int) else held.items[-1]

    def count(self, subject: bytes) -> int:
        """How many messages a subject has."""
        held = self._lists.get(subject)
        return 0 if held is None else 1 if isinstance(held, int) else len(held)

    def count_from(self, subject: bytes, start: int) -> int:
        """How many messages a subject has at or after `start`."""
        held = self._lists.get(subject)
        if held is None:
            return 0
        if isinstance(held, int):
            return int(held >= start)
        return len(held.items) - held.at(start)

    def within(self, subject: bytes, start: int, end: int) -> Sequence[int]:
        """The sequences of a subject from `start` on and below `end`, ascending (a copy)."""
        held = self._lists.get(subject, 0)
        if isinstance(held, int):
            return (held,) if start <= held < end else ()
        return held.items[held.at(start) : held.at(end)]

    def next(self, subject: bytes, start: int) -> int:
        """The lowest sequence >= `start` of a subject, 0 when there is none."""
        held = self._lists.get(subject, 0)
        if isinstance(held, int):
            return held if held >= start else 0
        at = held.at(start)
        return held.items[at] if at < len(held.items) else 0

    def before(self, subject: bytes, end: int) -> int:
        """The highest sequence < `end` of a subject, 0 when there is none."""
        held = self._lists.get(subject, 0)
        if isinstance(held, int):
            return held if held < end else 0
        at = held.at(end)
        return held.items[at - 1] if at > held.head else 0

    def counts(self, filters: Filters) -> Iterator[tuple[bytes, int]]:
        """(subject, number of messages) of every matching subject."""
        for subject in self.subjects(filters):
            yield subject, self.count(subject)


def covers_all(filters: Filters, subjects: Iterable[bytes]) -> bool:
    """Whether the filters select everything that a stream with these subjects can hold."""
    return not filters or all(any(is_subset(subject, f) for f in filters) for subject in subjects)
