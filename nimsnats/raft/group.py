"""One hosted Raft group: its core, its proposals, its state machine.

Owns the way of an entry through this node: proposed, stored, committed, applied, compacted. What is decided
is decided by `core`; when the disk is synced is the host's business (`host.py`), and how, storage's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from nimsnats.raft.core import MEMBERSHIP, Core, HardState
from nimsnats.raft.log import RaftLog
from nimsnats.raft.machine import BLOCK, Entry, LogDamage, MemberProgress, NotLeader, ProposalDropped, StateMachine
from nimsnats.raft.membership import Membership
from nimsnats.storage.errors import Corrupt
from nimsnats.storage.interface import CompactionPoint, Storage

if TYPE_CHECKING:
    from nimsnats.raft.host import Host

COMPACT_ENTRIES: Final = 8192
COMPACT_BYTES: Final = 32 * 1024 * 1024
"""A snapshot is due after so many entries or bytes of them: what a start has to apply again is bounded by
this."""


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
        self.serving = False
        self.total = 0
        """Messages of the log up to the last flushed entry."""
        self._applied = self._applied_term = self._applied_total = 0
        self._snapshot = self._snapshot_term = 0
        self._state = HardState(1, host.node_name)
        self._core = self._new_core()
        self._entries_since = self._bytes_since = 0
        self._new_blocks: list[int] = []
        self._unsaved: dict[int, bytes] = {}
        """Block notes whose snapshot the disk refused."""
        self._dropped: set[int] = set()
        """Blocks to drop with the next snapshot: lost ones, and those whose snapshot the disk refused."""
        self._damaged = self._compacting = False

    def _new_core(self) -> Core:
        """A core at the applied position. Only groups of one are hosted so far: everything recorded is
        committed."""
        log = RaftLog(self._snapshot, self._snapshot_term, self._applied, self._applied_term)
        log.committed = log.applied = self._applied
        members = Membership(frozenset({self._host.node_name}))
        return Core(self._host.node_name, log, members, self._host.runtime.random, self._state)

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
        return self._core.leader if self.serving else ""

    @property
    def members(self) -> tuple[str, ...]:
        """The voters, sorted."""
        return tuple(sorted(self._core.membership.voters))

    @property
    def learners(self) -> tuple[str, ...]:
        """Members that do not count yet, sorted."""
        return tuple(sorted(self._core.membership.learners))

    def progress(self) -> list[MemberProgress]:
        """Every other member, sorted by name; empty unless this one leads."""
        return []

    async def change_members(self, members: Sequence[str]) -> None:
        """Bring the group to exactly these voters. Raises NotLeader, ValueError."""
        raise NotImplementedError

    async def transfer(self, to: str = "") -> str:
        """Hand leadership to a voter. Raises NotLeader, TransferFailed."""
        raise NotImplementedError

    @property
    def term(self) -> int:
        """The current term."""
        return self._core.term

    @property
    def applied(self) -> int:
        """Index of the last applied entry."""
        return self._applied

    @property
    def committed(self) -> int:
        """Index of the last committed entry."""
        return self._core.log.committed

    def propose(self, kind: int, data: bytes, context: object | None = None, messages: int = 0) -> None:
        """Queue an entry. Raises NotLeader."""
        if not self.serving:
            raise NotLeader(self.leader)
        self._core.propose(kind, data, context, messages)
        self._host.mark(self)

    def read_block(self, index: int) -> Awaitable[bytes]:
        """The bytes of a block, checksummed. Raises Corrupt."""
        if isinstance(self._home, Durable):
            return self._home.storage.read_block(self._home.number, index)
        return _from_memory(self._home.blocks, index, self._name)

    def rewrite_block(self, index: int, data: bytes) -> None:
        """Replace a compacted block's bytes."""
        if isinstance(self._home, Durable):
            self._home.storage.rewrite(self._home.number, index, data)
            self._home.storage.sync(_forget)
        else:
            self._home.blocks[index] = data

    # Recovery -------------------------------------------------------------------------------------

    def position(self, state: HardState, index: int, index_term: int, total: int) -> None:
        """Stand at a snapshot."""
        self._state = state
        self._applied = self._snapshot = index
        self._applied_term = self._snapshot_term = index_term
        self.total = self._applied_total = total

    def replay(self, entry: Entry, total: int) -> None:
        """Apply a recorded entry."""
        self._apply(entry)
        self.total = self._applied_total = total

    def damaged(self, damage: LogDamage) -> None:
        """Tell the machine what is lost, and pass over it: those indexes are never used again."""
        self._damaged = True
        self.machine.damaged(damage)
        if damage.entries:
            self._dropped.update(damage.entries)
            self._applied = max(damage.entries)
            self.total += sum(damage.entries.values())
            self._applied_total = self.total

    def lead(self) -> None:
        """Recovery is over: begin to serve."""
        self._core = self._new_core()
        self._core.resume_alone()
        self.serving = True
        self.machine.leadership(True, self._core.term)

    # Driven by the host ---------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """End: refuse what is still under way."""
        was_serving, self.serving = self.serving, False
        self._refuse_pending(ProposalDropped(reason))
        if was_serving:
            self.machine.leadership(False, self._core.term)

    def flush(self) -> tuple[int, int]:
        """Hand new entries to storage; returns index and term up to which this is done."""
        log = self._core.log
        total = self.total
        if isinstance(self._home, Durable):
            append, number = self._home.storage.append, self._home.number
            for entry in log.unflushed():
                total += entry.messages
                append(number, entry.index, entry.term, entry.kind, entry.messages, total, entry.data)
        self.total = total
        log.flushed = log.last
        return log.last, log.last_term

    def stored(self, index: int, term: int) -> None:
        """Entries up to `index` are durable: commit and apply what that allows."""
        core = self._core
        core.persisted(index, term)
        log = core.log
        if log.committed == log.applied:
            return
        try:
            for entry in log.unapplied():
                self._apply(entry)
        except Exception:
            # A machine that cannot apply an entry is broken; the other groups of this node are not.
            self._host.log.exception("Group %s stops: entry %d cannot be applied", self._name, self._applied)
            core.applied_to(log.committed)
            self.stop("the group has failed")
            return
        core.applied_to(log.committed)
        log.trim(log.applied + 1)
        if self._entries_since >= COMPACT_ENTRIES or self._bytes_since >= COMPACT_BYTES:
            self._entries_since = self._bytes_since = 0
            self._host.compact_soon(self)

    def not_stored(self, error: Exception) -> None:
        """The disk refused: what is not applied never happened."""
        self._refuse_pending(error)

    def _refuse_pending(self, error: Exception) -> None:
        core = self._core
        if core.log.last > core.log.committed:
            core.cut(core.log.committed + 1)
        _, refused = core.take_removed()
        self.total = self._applied_total
        for entry in refused:
            if entry.context is not None:
                self.machine.refuse(entry.context, error)

    def _apply(self, entry: Entry) -> None:
        """Apply one committed entry and count towards the next snapshot."""
        kind, index = entry.kind, entry.index
        self._applied, self._applied_term = index, entry.term
        self._applied_total += entry.messages
        self._entries_since += 1
        self._bytes_since += len(entry.data)
        if kind & BLOCK:
            self._new_blocks.append(index)
            if isinstance(self._home, Memory):
                self._home.blocks[index] = entry.data
        if kind > MEMBERSHIP:
            self.machine.apply(entry)

    def compact(self) -> None:
        """Take a snapshot and cut the log there."""
        if self._compacting or (self._applied == self._snapshot and not self._damaged):
            return
        snapshot = self.machine.snapshot()
        if isinstance(self._home, Memory):
            for index in snapshot.dropped:
                self._home.blocks.pop(index, None)
            self._snapshot = self._applied
            self._new_blocks = []
            return
        dropped = self._dropped.union(snapshot.dropped)
        notes = {**dict.fromkeys(self._new_blocks, b""), **self._unsaved}
        notes.update((record.index, record.note) for record in snapshot.blocks)
        for index in dropped:
            notes.pop(index, None)
        members = self._core.membership.encode()
        point = CompactionPoint(
            self._applied,
            self._applied_term,
            self._applied_total,
            members,
            snapshot.state,
            sorted(notes.items()),
            sorted(dropped),
        )
        self._new_blocks, self._unsaved, self._dropped = [], {}, set()
        self._compacting, self._damaged = True, False
        self._home.storage.compact(self._home.number, point)
        self._home.storage.sync(partial(self._compacted, point))

    def _compacted(self, point: CompactionPoint, error: Exception | None) -> None:
        self._compacting = False
        if error is None:
            self._snapshot, self._snapshot_term = point.index, point.term
            if self._core.log.applied >= point.index:
                self._core.compacted(point.index, point.term)
        else:
            self._unsaved = {**dict(point.notes), **self._unsaved}
            self._dropped.update(point.dropped)


async def _from_memory(blocks: dict[int, bytes], index: int, name: str) -> bytes:
    data = blocks.get(index)
    if data is None:
        raise Corrupt(f"block {index} of group {name} is missing")
    return data


def _forget(error: Exception | None) -> None:
    """A refused rewrite changes nothing: the old bytes say the same."""
    del error
