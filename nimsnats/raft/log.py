"""The log as Raft sees it: which entries there are, which are durable, committed, applied.

Owns positions and the entries that are kept in memory: everything not yet applied, and a tail of older ones
for members that lag a little. Entries further back are on disk only (`first` tells); the host reads them when
asked.

    snapshot < first <= ... applied <= committed <= last,   durable <= last
"""

from __future__ import annotations

from collections.abc import Sequence

from nimsnats.raft.machine import Entry


class Unavailable(Exception):
    """The entries are not in memory: on disk (index > snapshot), or compacted (index <= snapshot)."""


class RaftLog:
    """Positions and recent entries of one group's log."""

    __slots__ = (
        "applied",
        "committed",
        "durable",
        "entries",
        "first",
        "first_term",
        "flushed",
        "snapshot",
        "snapshot_term",
    )

    def __init__(self, snapshot: int = 0, snapshot_term: int = 0, last: int | None = None, last_term: int = 0) -> None:
        end = snapshot if last is None else last
        self.snapshot = snapshot
        self.snapshot_term = snapshot_term
        self.first = end + 1
        """Index of `entries[0]`."""
        self.first_term = snapshot_term if last is None else last_term
        """Term of the entry before `first`."""
        self.entries: list[Entry] = []
        self.committed = self.applied = snapshot
        self.durable = self.flushed = end
        """`flushed`: handed to storage; `durable`: storage has confirmed."""

    @property
    def last(self) -> int:
        """Index of the last entry."""
        return self.first + len(self.entries) - 1

    @property
    def last_term(self) -> int:
        """Term of the last entry."""
        return self.entries[-1].term if self.entries else self.first_term

    def term(self, index: int) -> int:
        """Term of an entry. Raises Unavailable."""
        if self.first <= index <= self.last:
            return self.entries[index - self.first].term
        if index == self.first - 1:
            return self.first_term
        if index == self.snapshot:
            return self.snapshot_term
        raise Unavailable(index)

    def matches(self, index: int, term: int) -> bool:
        """Whether the log has this entry. What is committed and out of memory matches by definition of
        committed."""
        if index > self.last:
            return False
        try:
            return self.term(index) == term
        except Unavailable:
            return index <= self.committed

    def append(self, entry: Entry) -> None:
        """Add the next entry."""
        assert entry.index == self.last + 1
        self.entries.append(entry)

    def truncate(self, index: int) -> list[Entry]:
        """Remove entries from `index` on and return them. Committed ones never go (Leader Completeness)."""
        assert index > self.committed
        removed = self.entries[index - self.first :]
        del self.entries[index - self.first :]
        self.flushed = min(self.flushed, index - 1)
        self.durable = min(self.durable, index - 1)
        return removed

    def slice(self, index: int, max_bytes: int, end: int | None = None) -> Sequence[Entry]:
        """Entries from `index` on: at least one, then up to about `max_bytes`. Raises Unavailable."""
        if index < self.first:
            raise Unavailable(index)
        start = index - self.first
        stop = len(self.entries) if end is None else end - self.first + 1
        size = 0
        for position in range(start, stop):
            size += len(self.entries[position].data)
            if size > max_bytes and position > start:
                stop = position
                break
        return self.entries[start:stop]

    def unflushed(self) -> Sequence[Entry]:
        """Entries that storage has not been given yet."""
        return self.entries[self.flushed + 1 - self.first :]

    def confirm(self, index: int, term: int) -> bool:
        """Storage has `index` of `term`. False when it has been replaced since, so the news is old."""
        if index <= self.durable or index > self.last or self.matches(index, term) is False:
            return False
        self.durable = index
        return True

    def unapplied(self) -> Sequence[Entry]:
        """Committed entries that the machine has not seen."""
        return self.entries[self.applied + 1 - self.first : self.committed + 1 - self.first]

    def trim(self, keep: int) -> None:
        """Forget applied and durable entries below `keep`; storage still has them."""
        end = min(keep, self.applied + 1, self.durable + 1)
        count = end - self.first
        if count > 0:
            self.first_term = self.entries[count - 1].term
            del self.entries[:count]
            self.first = end

    def compacted(self, index: int, term: int) -> None:
        """Storage has a snapshot at `index`."""
        assert index <= self.applied
        self.snapshot, self.snapshot_term = index, term

    def reset(self, index: int, term: int) -> None:
        """Become the log of an installed snapshot: nothing but its position."""
        self.entries.clear()
        self.first, self.first_term = index + 1, term
        self.snapshot, self.snapshot_term = index, term
        self.committed = self.applied = self.durable = self.flushed = index
