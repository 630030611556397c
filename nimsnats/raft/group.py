"""One hosted Raft group: its log position, its proposals, its state machine.

Owns the way of an entry through this node: proposed, stored, committed, applied, compacted. It does not
decide when the disk is synced (`host.py`) nor how (`storage`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

from nimsnats.raft.machine import BLOCK, Entry, LogDamage, NotLeader, ProposalDropped, StateMachine
from nimsnats.storage.interface import CompactionPoint, Storage

if TYPE_CHECKING:
    from nimsnats.raft.host import Host

_COMPACT_ENTRIES: Final = 8192
_COMPACT_BYTES: Final = 32 * 1024 * 1024


class Durable:
    """Where a file group keeps its log."""

    def __init__(self, storage: Storage, number: int) -> None:
        self.storage = storage
        self.number = number


class Memory:
    """Where a memory group keeps its blocks: nowhere but here."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}


class HostedGroup:
    """Implements `Group`. All methods run on the loop."""

    def __init__(self, name: str, machine: StateMachine, host: Host, home: Durable | Memory) -> None:
        self._name = name
        self.machine = machine
        self._host = host
        self._home = home
        self.durable = isinstance(home, Durable)
        self.term_now = 1
        self.last = 0
        self.total = 0
        self.applied_index = 0
        self.applied_term = 1
        self.applied_total = 0
        self.snapshot_index: int = 0
        self.serving = False
        self._queue: deque[Entry] = deque()
        self._unflushed: list[Entry] = []
        self._blocks_since: list[int] = []
        self._lost: list[int] = []
        self._entries_since = 0
        self._bytes_since = 0
        self._damaged = False

    # The face towards the state machine -----------------------------------------------------------

    @property
    def name(self) -> str:
        """The group's name."""
        return self._name

    @property
    def leading(self) -> bool:
        """Whether this member leads and serves."""
        return self.serving

    @property
    def leader(self) -> str:
        """Name of the leading node, empty when unknown."""
        return self._host.node_name if self.serving else ""

    @property
    def term(self) -> int:
        """The current term."""
        return self.term_now

    @property
    def applied(self) -> int:
        """Index of the last applied entry."""
        return self.applied_index

    @property
    def committed(self) -> int:
        """Index of the last committed entry."""
        return self.applied_index

    def propose(self, kind: int, data: bytes, context: object | None = None, messages: int = 0) -> None:
        """Queue an entry. Raises NotLeader."""
        if not self.serving:
            raise NotLeader(self.leader)
        self.last += 1
        entry = Entry(self.last, self.term_now, kind, data, context, messages)
        self._unflushed.append(entry)
        self._host.mark(self)

    def read_block(self, index: int) -> Awaitable[bytes]:
        """The bytes of a block, checksummed. Raises Corrupt."""
        if isinstance(self._home, Durable):
            return self._home.storage.read_block(self._home.number, index)
        return _ready(self._home.blocks[index])

    def rewrite_block(self, index: int, data: bytes) -> None:
        """Replace a compacted block's bytes."""
        if isinstance(self._home, Durable):
            self._home.storage.rewrite(self._home.number, index, data)
        else:
            self._home.blocks[index] = data

    # Recovery -------------------------------------------------------------------------------------

    def position(self, term: int, index: int, index_term: int, total: int) -> None:
        """Stand at a snapshot."""
        self.term_now, self.applied_term = term, index_term
        self.last = self.applied_index = self.snapshot_index = index
        self.total = self.applied_total = total

    def replay(self, entry: Entry, total: int) -> None:
        """Apply a recorded entry."""
        self.apply(entry)
        self.last = entry.index
        self.total = self.applied_total = total

    def damaged(self, damage: LogDamage) -> None:
        """Tell the machine what is lost, and pass over it: those indexes are never used again."""
        self._damaged = True
        self.machine.damaged(damage)
        if damage.entries:
            self._skip(max(damage.entries), sum(damage.entries.values()))

    def _skip(self, index: int, messages: int) -> None:
        self._lost.extend(range(self.last + 1, index + 1))
        self.last = self.applied_index = index
        self.total = self.applied_total = self.total + messages

    # Driven by the host ---------------------------------------------------------------------------

    def lead(self) -> None:
        """Begin to serve."""
        self.serving = True
        self.machine.leadership(True, self.term_now)

    def stop(self, reason: str) -> None:
        """End: refuse what is still under way."""
        was_serving, self.serving = self.serving, False
        self._refuse_all(ProposalDropped(reason))
        if was_serving:
            self.machine.leadership(False, self.term_now)

    def flush(self) -> int:
        """Hand new entries to storage; returns the index up to which this is done."""
        entries = self._unflushed
        if isinstance(self._home, Durable):
            storage, number = self._home.storage, self._home.number
            for entry in entries:
                self.total += entry.messages
                storage.append(number, entry.index, entry.term, entry.kind, entry.messages, self.total, entry.data)
        self._queue.extend(entries)
        self._unflushed = []
        return self._queue[-1].index if self._queue else self.last

    def stored(self, index: int) -> None:
        """Entries up to `index` are durable; in a group of one that commits them. Apply them."""
        queue = self._queue
        while queue and queue[0].index <= index:
            self.apply(queue.popleft())
        if self._entries_since >= _COMPACT_ENTRIES or self._bytes_since >= _COMPACT_BYTES:
            self.compact()

    def not_stored(self, error: Exception) -> None:
        """The disk refused: what is not applied never happened."""
        self._refuse_all(error)

    def _refuse_all(self, error: Exception) -> None:
        refused = [*self._queue, *self._unflushed]
        self._queue.clear()
        self._unflushed.clear()
        self.last, self.total = self.applied_index, self.applied_total
        for entry in refused:
            if entry.context is not None:
                self.machine.refuse(entry.context, error)

    def apply(self, entry: Entry) -> None:
        """Apply one committed entry and count towards the next compaction."""
        self.applied_index, self.applied_term = entry.index, entry.term
        self.applied_total += entry.messages
        self._entries_since += 1
        self._bytes_since += len(entry.data)
        if entry.kind & BLOCK:
            self._blocks_since.append(entry.index)
            if isinstance(self._home, Memory):
                self._home.blocks[entry.index] = entry.data
        self.machine.apply(entry)

    def compact(self) -> None:
        """Take a snapshot and cut the log there."""
        if self.applied_index == self.snapshot_index and not self._damaged:
            return
        snapshot = self.machine.snapshot()
        if isinstance(self._home, Memory):
            for index in snapshot.dropped:
                self._home.blocks.pop(index, None)
        else:
            notes = {record.index: record.note for record in snapshot.blocks}
            dropped = {*snapshot.dropped, *self._lost}
            for index in self._blocks_since:
                if index not in notes and index not in dropped:
                    notes[index] = b""
            point = CompactionPoint(
                self.applied_index,
                self.applied_term,
                self.applied_total,
                b"",
                snapshot.state,
                list(notes.items()),
                list(dropped),
            )
            self._home.storage.compact(self._home.number, point)
            self._home.storage.sync(_ignore)
        self.snapshot_index = self.applied_index
        self._blocks_since, self._lost, self._damaged = [], [], False
        self._entries_since = self._bytes_since = 0


async def _ready(data: bytes) -> bytes:
    return data


def _ignore(error: Exception | None) -> None:
    del error
