"""The subjects of a stream in the order of their bytes, so that those which match a wildcard are found without looking
at the others.

Owns `SubjectOrder`: runs of sorted subjects, and the new ones that are not sorted in yet. Which messages a subject has
is the index's business (`index.py`). Sorting in is put off until somebody asks, which in most streams nobody does, and
then done for many of them together, which is several times cheaper. Subjects that have gone are struck out, and taken
out of their run some time later.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Final

from nimsnats.protocol.subject import WILDCARD_ONE, WILDCARD_REST

CHUNK: Final = 2048
"""New subjects that wait together to be sorted in."""
PORTION: Final = 16384
"""Those that are sorted in together: a few milliseconds."""
RUN: Final = 512
"""Subjects of a run that is cut in two when it has twice as many."""
_MERGED: Final = 24
"""From so many new subjects of one run on, sorting it anew is cheaper than putting them in one by one."""
_SEEKS: Final = 8
"""Jumps within a run before all of it is looked at instead."""
_ANY_TOKEN: Final = rb"(?:[^.>][^.]*|>[^.]+)"
"""As with `is_subset`, only `>` matches a token `>`."""
_SWEEP: Final = 256
"""Subjects that go before another run is freed of those that are gone."""


class Pattern:
    """A subject with wildcards, made ready for `SubjectOrder.select`."""

    __slots__ = ("_test", "all_below", "prefix", "tokens")

    def __init__(self, pattern: bytes) -> None:
        tokens = pattern.split(b".")
        self.tokens = tokens
        literal = next((at for at, token in enumerate(tokens) if token in (WILDCARD_ONE, WILDCARD_REST)), len(tokens))
        self.prefix = b"".join(token + b"." for token in tokens[:literal])
        """What every match begins with."""
        self.all_below = tokens[literal:] == [WILDCARD_REST]
        """Whether everything that begins with it matches."""
        self._test: Callable[[bytes], object] | None = None

    @property
    def test(self) -> Callable[[bytes], object]:
        """Whether a subject matches. Made when it is first asked for: mostly nothing begins as it would have to."""
        if self._test is None:
            forms = [_ANY_TOKEN if token == WILDCARD_ONE else re.escape(token) for token in self.tokens]
            if self.tokens[-1] == WILDCARD_REST:
                forms[-1] = b".+"
            self._test = re.compile(rb"\.".join(forms), re.DOTALL).fullmatch
        return self._test

    def beyond(self, subject: bytes) -> bytes:
        """For a subject with the prefix that does not match: a subject above it, below which there is no other match.
        Empty when nothing better is known than the next one."""
        found = subject.split(b".")
        tokens = self.tokens
        for at, wanted in enumerate(tokens):
            if at == len(found):
                return b""  # it is shorter: its continuations come next
            if wanted == WILDCARD_ONE or wanted == found[at]:
                continue
            if wanted == WILDCARD_REST:
                return b""
            head = b"".join(token + b"." for token in found[:at])
            target = head + wanted + (b"." if at + 1 < len(tokens) else b"")
            return target if target > subject else _after(head)
        return _after(b".".join(found[: len(tokens)]) + b".") if len(found) > len(tokens) else b""


def _after(prefix: bytes) -> bytes:
    """What is above everything that begins with this, which ends in a dot."""
    return prefix[:-1] + b"/" if prefix else b""


@lru_cache(maxsize=4096)
def pattern_of(subject: bytes) -> Pattern:
    """A pattern, kept for the next time."""
    return Pattern(subject)


class SubjectOrder:
    """Distinct subjects, ascending. The caller adds only what is not there and removes only what is."""

    def __init__(self) -> None:
        self._runs: list[list[bytes]] = []
        self._firsts: list[bytes] = []
        self._tail: list[bytes] = []
        self._waiting: list[list[bytes]] = []
        """Subjects that are not sorted in yet, the oldest first; the newest are in the tail."""
        self._waits = 0
        """How many, but for the tail."""
        self._gone: set[bytes] = set()
        """Those of both that are removed."""
        self._sorted = 0
        """Subjects in runs, with those that are gone."""
        self._cursor = 0

    def __len__(self) -> int:
        return self._sorted + self._waits + len(self._tail) - len(self._gone)

    @property
    def unsorted(self) -> int:
        """Subjects that are not sorted in yet, with those of them that are gone."""
        return self._waits + len(self._tail)

    def clear(self) -> None:
        """Forget everything."""
        self._runs, self._firsts, self._waiting, self._tail, self._gone = [], [], [], [], set()
        self._sorted = self._waits = self._cursor = 0

    def shrink(self, subjects: int) -> bool:
        """Forget about so many, of an order that nobody needs any more. False when none is left."""
        while self._runs and subjects > 0:
            self._firsts.pop()
            subjects -= len(self._runs.pop())
        while self._waiting and subjects > 0:
            subjects -= len(self._waiting.pop())
        return bool(self._runs or self._waiting)

    def add(self, subject: bytes) -> None:
        """A subject that was not there."""
        if self._gone and subject in self._gone:
            self._gone.remove(subject)
            return
        tail = self._tail
        tail.append(subject)
        if len(tail) >= CHUNK:
            self._waiting.append(tail)
            self._waits += len(tail)
            self._tail = []

    def remove(self, subject: bytes) -> None:
        """A subject that was there."""
        gone = self._gone
        gone.add(subject)
        if len(gone) % _SWEEP == 0 and len(gone) * 4 > self._sorted + self.unsorted:
            self._sweep()

    def _sweep(self) -> None:
        """Take out of one run what is gone; the next time, of the next. Those that wait are runs, too."""
        waiting, runs, gone = self._waiting, self._runs, self._gone
        if self._cursor >= len(waiting) + len(runs):
            self._cursor = 0
        at = self._cursor - len(waiting)
        lists, at = (runs, at) if at >= 0 else (waiting, self._cursor)
        if not lists:
            return
        run = lists[at]
        left = [subject for subject in run if subject not in gone]
        if len(left) < len(run):
            gone.difference_update(run)
        if lists is runs:
            self._sorted -= len(run) - len(left)
            self._firsts[at : at + 1] = left[:1]
        else:
            self._waits -= len(run) - len(left)
        lists[at : at + 1] = [left] if left else []
        self._cursor += bool(left)

    # Sorting in

    def settle(self) -> bool:
        """Sort in a portion of the new ones. False when there are no more."""
        waiting, portion = self._waiting, list[bytes]()
        taken = 0
        while taken < len(waiting) and len(portion) < PORTION:
            portion += waiting[taken]
            taken += 1
        del waiting[:taken]
        self._waits -= len(portion)
        if not waiting and len(portion) < PORTION:
            portion += self._tail
            self._tail = []
        gone = self._gone
        fresh = [subject for subject in portion if subject not in gone] if gone else portion
        if len(fresh) < len(portion):
            gone.difference_update(portion)
        if fresh:
            fresh.sort()
            self._sort_in(fresh)
        return bool(waiting or self._tail)

    def _sort_in(self, fresh: list[bytes]) -> None:
        self._sorted += len(fresh)
        firsts = self._firsts
        if not firsts:
            self._runs, self._firsts = [fresh], [fresh[0]]
            self._cut(0)
            return
        end = len(fresh)
        while end:  # from above, so that runs which are cut on the way do not move those still to come
            at = max(bisect_right(firsts, fresh[end - 1]) - 1, 0)
            start = bisect_left(fresh, firsts[at], 0, end) if at else 0
            self._put(at, fresh[start:end])
            end = start

    def _put(self, at: int, subjects: list[bytes]) -> None:
        """Put these into one run, in which they belong."""
        run = self._runs[at]
        if subjects[0] > run[-1]:
            run += subjects
        elif len(subjects) < _MERGED:
            for subject in subjects:
                insort(run, subject)
        else:
            run += subjects
            run.sort()
        self._firsts[at] = run[0]
        if len(run) > 2 * RUN:
            self._cut(at)

    def _cut(self, at: int) -> None:
        run = self._runs[at]
        parts = [run[start : start + RUN] for start in range(0, len(run), RUN)]
        self._runs[at : at + 1] = parts
        self._firsts[at : at + 1] = [part[0] for part in parts]

    # Finding

    def select(self, pattern: bytes, start: bytes = b"", looks: int = 0) -> tuple[list[bytes], bytes]:
        """Sorted subjects at or above `start` that match a pattern, ascending, and where to go on: empty at the end.
        About `looks` subjects are looked at, 0 for all."""
        wanted = pattern_of(pattern)
        gone = self._gone
        left = looks or self._sorted + 1
        found: list[bytes] = []
        ceiling = _after(wanted.prefix)
        place = self._place(max(start, wanted.prefix))
        while place is not None:
            at, begin = place
            run = self._runs[at]
            end = bisect_left(run, ceiling, begin) if ceiling and ceiling <= run[-1] else len(run)
            if left <= 0:
                return found, run[begin] if begin < end else b""
            if wanted.all_below:
                part = run[begin:end]
                left -= len(part)
                target = b""
            else:
                part, target, looked = self._matching(wanted, run, begin, end)
                left -= looked
            found += [subject for subject in part if subject not in gone] if gone else part
            if target:
                place = self._place(target, at)
            elif end < len(run) or at + 1 == len(self._runs):
                break
            else:
                place = (at + 1, 0)
        return found, b""

    def every(self, pattern: bytes) -> list[bytes]:
        """All subjects that match, ascending; the new ones are sorted in first."""
        while self.settle():
            pass
        return self.select(pattern)[0]

    def _place(self, subject: bytes, above: int = 0) -> tuple[int, int] | None:
        """The run and position of the first subject at or above this one; None when there is none."""
        if not self._firsts:
            return None
        at = max(bisect_right(self._firsts, subject, above) - 1, 0)
        begin = bisect_left(self._runs[at], subject)
        if begin < len(self._runs[at]):
            return at, begin
        return (at + 1, 0) if at + 1 < len(self._runs) else None

    @staticmethod
    def _matching(wanted: Pattern, run: list[bytes], begin: int, end: int) -> tuple[list[bytes], bytes, int]:
        """What matches in a part of a run; where to go on, if that is not behind the part; and how many subjects this
        looked at."""
        found: list[bytes] = []
        looked = 0
        for _ in range(_SEEKS):
            if begin >= end:
                return found, b"", looked + 1
            subject = run[begin]
            looked += 2
            if wanted.test(subject):
                found.append(subject)
                begin += 1
                continue
            target = wanted.beyond(subject)
            if not target:
                begin += 1
            elif target > run[-1]:
                return found, target, looked
            else:
                begin = bisect_left(run, target, begin, end)
        found += filter(wanted.test, run[begin:end])
        return found, b"", looked + end - begin

    def parts(self, patterns: Iterable[bytes], looks: int) -> Iterator[list[bytes]]:
        """What matches each of these patterns in turn, a part at a time; of each pattern in ascending order, unless
        there were many that had yet to be sorted in."""
        self.settle()
        rest, gone = [*chain.from_iterable(self._waiting), *self._tail], self._gone
        told = frozenset(rest)
        for pattern in patterns:
            test = pattern_of(pattern).test
            for at in range(0, len(rest), looks or len(rest) or 1):
                part = rest[at : at + looks] if looks else rest
                yield [subject for subject in part if test(subject) and subject not in gone]
            found, start = self.select(pattern, b"", looks)
            yield found if not told else [subject for subject in found if subject not in told]
            while start:
                found, start = self.select(pattern, start, looks)
                yield found if not told else [subject for subject in found if subject not in told]

    def among(self, pattern: bytes) -> int:
        """About how many subjects begin as a match of the pattern has to: hardly more match."""
        wanted, more = pattern_of(pattern), self.unsorted
        if not wanted.prefix or not self._firsts:
            return len(self)
        low, high = bisect_right(self._firsts, wanted.prefix) - 1, bisect_right(self._firsts, _after(wanted.prefix)) - 1
        if high > low + 1:
            return (high - low) * RUN + more
        runs = self._runs
        before = bisect_left(runs[low], wanted.prefix) if low >= 0 else 0
        below = bisect_left(runs[high], _after(wanted.prefix)) if high >= 0 else 0
        return (len(runs[low]) if high > low >= 0 else 0) - before + below + more
