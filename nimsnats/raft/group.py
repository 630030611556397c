"""One hosted Raft group: its core, its proposals, its state machine.

Owns the way of an entry through this node: proposed, stored, committed, applied, compacted. What is decided
is decided by `core`; what only groups of several members need is in `replica.py`; when the disk is synced is
the host's business (`host.py`), and how, storage's.

A group of one is `alone` and takes the short way: no messages, no ticks, no hard state to write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from nimsnats.raft.core import MEMBERSHIP, NOOP, Core, HardState, Role
from nimsnats.raft.home import Durable, Memory
from nimsnats.raft.log import RaftLog
from nimsnats.raft.machine import (
    BLOCK,
    BadEntry,
    Entry,
    EntryRefused,
    LogDamage,
    MemberProgress,
    NotLeader,
    ProposalDropped,
    StateMachine,
    StoredBlock,
)
from nimsnats.raft.membership import Membership
from nimsnats.raft.message import Message
from nimsnats.raft.refusals import OF_THIS_NODE, refused
from nimsnats.raft.replica import Replica
from nimsnats.raft.transport import node_of
from nimsnats.storage.interface import CompactionPoint

if TYPE_CHECKING:
    from nimsnats.raft.host import Host

COMPACT_ENTRIES: Final = 8192
COMPACT_BYTES: Final = 32 * 1024 * 1024
"""A snapshot is due after so many entries or bytes of them: what a start has to apply again is bounded by
this."""


class HostedGroup:
    """Implements `Group`. All methods run on the loop."""

    def __init__(self, name: str, machine: StateMachine, host: Host, home: Durable | Memory) -> None:
        self._name = name
        self.machine = machine
        self.host = host
        self.home = home
        self.durable = isinstance(home, Durable)
        self.serving = False
        self.alone = True
        self.on_leader: Callable[[], None] | None = None
        self.stopped = False
        self.failure = ""
        """Why this member can serve the group no more; empty while it can."""
        self.total = 0
        """Messages of the log up to the last flushed entry."""
        self.membership = Membership(frozenset({host.member}))
        """At the snapshot; the core knows newer ones."""
        self._applied = self._applied_term = self._applied_total = 0
        self._snapshot = self._snapshot_term = 0
        self.state = HardState(1, host.member)
        self.core = self._new_core()
        self.replica = Replica(self)
        self.serving_term = 0
        self._entries_since = self._bytes_since = 0
        self._new_blocks: list[int] = []
        self._unsaved: dict[int, bytes] = {}
        """Block notes whose snapshot the disk refused."""
        self._dropped: set[int] = set()
        """Blocks to drop with the next snapshot: lost ones, and those whose snapshot the disk refused."""
        self._damaged = self._compacting = False
        self._rest: tuple[Entry, Iterator[None]] | None = None
        """The entry that is being applied, and the steps that are left of that."""
        self._going_on = False

    def _new_core(self) -> Core:
        """A core at the applied position: everything up to there is committed."""
        log = RaftLog(self._snapshot, self._snapshot_term, self._applied, self._applied_term)
        log.committed = log.applied = self._applied
        return Core(self.host.member, log, self.membership, self.host.runtime.random, self.state, self.host.settings)

    # The face towards the state machine -----------------------------------------------------------

    @property
    def name(self) -> str:
        """The group's name."""
        return self._name

    def rename(self, name: str) -> HostedGroup:
        """Be called otherwise from now on; storage and host know it already."""
        self._name = name
        return self

    @property
    def leading(self) -> bool:
        """Whether this member leads and serves."""
        return self.serving

    @property
    def accepting(self) -> bool:
        """Whether this member leads, serves and is not handing over."""
        leading = self.core.leading
        return self.serving and leading is not None and not leading.transferring

    @property
    def leader(self) -> str:
        """Name of the leading node, empty when unknown."""
        return node_of(self.core.leader) if not self.stopped else ""

    @property
    def members(self) -> tuple[str, ...]:
        """The voters, sorted."""
        return tuple(sorted(self.core.membership.voters))

    @property
    def learners(self) -> tuple[str, ...]:
        """Members that do not count yet, sorted."""
        return tuple(sorted(self.core.membership.learners))

    @property
    def attached(self) -> tuple[str, ...]:
        """Everybody who may still be needed; see `machine.Group`."""
        core = self.core
        return tuple(sorted(core.membership.everyone | core.membership_at(core.log.committed).everyone))

    @property
    def leaving(self) -> tuple[str, ...]:
        """Voters that are about to be removed, sorted."""
        return tuple(sorted(self.core.membership.leaving))

    @property
    def current(self) -> bool:
        """Whether everything that this member's log holds is decided and applied."""
        log = self.core.log
        return self.serving or (bool(self.core.leader) and log.applied == log.last)

    @property
    def impaired(self) -> bool:
        """Whether this member has lost entries and is being repaired by the others; what its machine shows is
        old."""
        return bool(self.core.impaired)

    @property
    def term(self) -> int:
        """The current term."""
        return self.core.term

    @property
    def applied(self) -> int:
        """Index of the last applied entry."""
        return self._applied

    @property
    def committed(self) -> int:
        """Index of the last committed entry."""
        return self.core.log.committed

    @property
    def announced(self) -> int:
        """Highest index that a leader has told this member to be committed."""
        return self.core.announced

    @property
    def since_snapshot(self) -> tuple[int, int]:
        """Entries and bytes applied since the last snapshot was asked for."""
        return self._entries_since, self._bytes_since

    def progress(self) -> list[MemberProgress]:
        """Every other member, sorted by name; empty unless this one leads."""
        core = self.core
        if core.leading is None:
            return []
        return [
            MemberProgress(
                member=name,
                match=known.match,
                current=known.match >= core.log.committed,
                active=self.host.peers.silence(name),
                lag=max(0, core.log.last - known.match),
                learner=name in core.membership.learners,
            )
            for name, known in core.leading.members.items()
        ]

    def propose(self, kind: int, data: bytes, context: object | None = None, messages: int = 0) -> None:
        """Queue an entry. Raises NotLeader."""
        if not self.serving:
            raise NotLeader(self.leader)
        self.core.propose(kind, data, context, messages)
        self.host.mark(self)

    def read_block(self, index: int) -> Awaitable[bytes]:
        """The bytes of a block, checksummed. Raises Corrupt."""
        if isinstance(self.home, Durable):
            return self.home.storage.read_block(self.home.number, index)
        return self.home.read(index, self._name)

    async def rewrite_block(self, index: int, data: bytes) -> None:
        """Replace a compacted block's bytes; done once the new ones are on disk. Raises StorageError."""
        if isinstance(self.home, Durable):
            self.home.storage.rewrite(self.home.number, index, data)
            await self.host.synced()
        else:
            block = self.home.blocks[index]
            self.home.blocks[index] = (*block[:5], data)

    async def change_members(self, members: Sequence[str]) -> None:
        """Bring the group to exactly these voters. Raises NotLeader, ValueError."""
        await self.replica.change_members(members)

    async def transfer(self, to: str = "") -> str:
        """Hand leadership to a voter; returns the new leader's node. Raises NotLeader, TransferFailed."""
        return await self.replica.transfer(to)

    def partner(self) -> str:
        """The other voter of a group of two which this member could go on without; see `Core.partner`."""
        return "" if self.alone or self.stopped or self.replica.frozen else self.core.partner()

    def wake(self) -> None:
        """Have a leader that has fallen silent speak to everybody."""
        if not self.alone and not self.stopped:
            self.replica.wake()

    def campaign(self) -> None:
        """Ask for votes at once."""
        if not self.alone and not self.stopped:
            self.core.campaign()
            self.replica.after()

    def tell(self) -> None:
        """Have the others hear of what is committed."""
        if not self.alone and self.serving:
            self.replica.tell()

    def seize(self) -> None:
        """Make this member of two the only one; it needs a `partner`. See `Core.seize` for who may."""
        self.replica.seize()

    # Recovery -------------------------------------------------------------------------------------

    def position(self, state: HardState, index: int, index_term: int, total: int) -> None:
        """Stand at a snapshot."""
        self.state = state
        self._applied = self._snapshot = index
        self._applied_term = self._snapshot_term = index_term
        self.total = self._applied_total = total

    def replay(self, entry: Entry, total: int) -> None:
        """Apply a recorded entry."""
        self._apply(entry)
        self._take_all_steps()
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
        """Recovery of a group of one is over: begin to serve."""
        self.core = self._new_core()
        self.resume()

    def resume(self) -> None:
        """Lead a group of one, whose whole log is committed."""
        core = self.core
        core.resume_alone()
        self.keep_hard_state()
        while self._apply_to(core.log.committed) and self._rest is not None and self.conclude():
            pass
        self.alone = True
        self.lead_on()

    def follow(self, impaired: bool, pledge: tuple[int, int] | None) -> Core:
        """Recovery of a group of several has brought the snapshot: its log comes next, entry by entry, to the
        core."""
        self.core = self._new_core()
        self.alone = False
        if impaired:
            self.host.counts["impaired"] += 1
            self.core.impaired = self.host.runtime.random.getrandbits(56) | 1
            self.core.pledge = pledge
        return self.core

    def lead_on(self) -> None:
        """Serve, if not yet doing so in this term."""
        if not self.serving or self.serving_term != self.core.term:
            self.serving, self.serving_term = True, self.core.term
            self.host.counts["led"] += not self.alone
            self.machine.leadership(True, self.core.term)

    def step_down(self, reason: str) -> None:
        """Serve no more: proposals that are not committed are refused. They may yet be committed by the next
        leader."""
        if not self.serving:
            return
        self.serving = False
        self.host.counts["deposed"] += 1
        log = self.core.log
        error = ProposalDropped(reason)
        for entry in log.entries[max(0, log.committed + 1 - log.first) :]:
            self._refuse(entry, error)
        self.machine.leadership(False, self.core.term)

    # Driven by the host ---------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """End: refuse what is still under way."""
        self.stopped = True
        was_serving, self.serving = self.serving, False
        self._abandon(ProposalDropped(reason))
        self.replica.stop()
        self.refuse_pending(ProposalDropped(reason))
        if was_serving:
            self.machine.leadership(False, self.core.term)

    def keep_hard_state(self) -> None:
        """Queue term and vote if they have changed."""
        core = self.core
        if core.hard_state_changed:
            core.hard_state_changed = False
            self.host.counts["campaigns"] += core.role is Role.CANDIDATE
            if self.home.number:
                self.home.storage.set_hard_state(self.home.number, *self.hard_state())

    def hard_state(self) -> tuple[int, str]:
        """Term and vote as storage has them: a loss that is not made good yet is noted in front of the vote."""
        core = self.core
        if not core.impaired:
            return core.term, core.vote
        pledge = f"{core.pledge[0]},{core.pledge[1]}" if core.pledge is not None else ""
        return core.term, f"!{pledge}!{core.vote}"

    def flush(self) -> tuple[int, int]:
        """Hand new entries to storage; returns index and term up to which this is done."""
        log = self.core.log
        total = self.total
        if isinstance(self.home, Durable):
            append, number = self.home.storage.append, self.home.number
            for entry in log.unflushed():
                total += entry.messages
                append(number, entry.index, entry.term, entry.kind, entry.messages, total, entry.data)
        else:
            for entry in log.unflushed():
                total += entry.messages
        self.total = total
        log.flushed = log.last
        return log.last, log.last_term

    def stored(self, index: int, term: int, messages: Sequence[Message]) -> None:
        """Entries up to `index` are durable: commit and apply what that allows."""
        core = self.core
        core.persisted(index, term)
        if not self.alone:
            self.replica.stored(messages)
            return
        log = core.log
        if log.committed == log.applied:
            return
        if self._apply_to(log.committed):
            log.trim(log.applied + 1)

    def _apply_to(self, index: int) -> bool:
        """Apply what is committed up to `index`, or up to an entry that takes several turns. False when the machine has
        failed."""
        if self._rest is not None:
            return True
        core = self.core
        log = core.log
        try:
            for entry in log.entries[log.applied + 1 - log.first : index + 1 - log.first]:
                self._apply(entry)
                if self._rest is not None:
                    index = entry.index - 1
                    self._go_on_soon()
                    break
        except OF_THIS_NODE as error:
            return self._fail_to_apply(error)
        core.applied_to(index)
        if self._entries_since >= COMPACT_ENTRIES or self._bytes_since >= COMPACT_BYTES:
            self.compact_soon()
        return True

    def _fail_to_apply(self, error: BaseException) -> bool:
        """What is not the entry's fault others do not see: this member stops, and they go on."""
        self.fail(f"entry {self._applied} cannot be applied here ({type(error).__name__})")
        self.core.applied_to(self.core.log.committed)
        return False

    @property
    def applying(self) -> bool:
        """Whether an entry is being applied step by step."""
        return self._rest is not None

    def _go_on_soon(self) -> None:
        if not self._going_on:
            self._going_on = True
            self.host.runtime.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Take the next step of an entry, or what comes after the last one."""
        self._going_on = False
        if self.stopped:
            return
        try:
            if self._rest is not None and self._step():
                self._go_on_soon()
                return
        except OF_THIS_NODE as error:
            self._fail_to_apply(error)
            return
        if not self.alone:
            self.replica.after()
        elif self._apply_to(self.core.log.committed):
            self.core.log.trim(self.core.log.applied + 1)

    def _step(self) -> bool:
        """Take the next step. False when there is none: then the entry is applied."""
        assert self._rest is not None
        entry, rest = self._rest
        try:
            next(rest)
            return True
        except StopIteration:
            pass
        except OF_THIS_NODE:
            raise
        except Exception as error:
            self._refuse_applied(entry, error)
        self._rest = None
        if self.core.log.applied < entry.index:
            self.core.applied_to(entry.index)
        return False

    def _take_all_steps(self) -> None:
        while self._rest is not None and self._step():
            pass

    def conclude(self) -> bool:
        """Take all steps that are left of an entry, at once. False when the machine has failed."""
        try:
            self._take_all_steps()
        except OF_THIS_NODE as error:
            return self._fail_to_apply(error)
        return True

    def _abandon(self, error: Exception) -> None:
        """Whatever an entry had still to change is not needed any more, nor those that waited behind it: here nobody
        will hear what becomes of them."""
        if self._rest is not None:
            entry, rest = self._rest
            self._rest = None
            cast("Generator[None, None, None]", rest).close()
            self._refuse(entry, error)
        log = self.core.log
        start = max(log.applied + 1, self._applied)  # one that could not be applied is not counted as that yet
        for entry in log.entries[max(0, start - log.first) : max(0, log.committed + 1 - log.first)]:
            self._refuse(entry, error)

    def apply_ready(self) -> bool:
        """Apply what is committed *and* durable here: the machine may want to read it back. False when there
        was nothing."""
        log = self.core.log
        end = min(log.committed, log.durable)
        return end > log.applied and self._apply_to(end)

    def compact_soon(self) -> None:
        """Have the host take a snapshot when it gets to it."""
        self._entries_since = self._bytes_since = 0
        self.host.compact_soon(self)

    def not_stored(self, error: Exception) -> None:
        """The disk refused: what is not applied never happened. Members that are not alone try again."""
        if self.alone:
            self.refuse_pending(error)
        else:
            self.replica.not_stored(error)

    def refuse_pending(self, error: Exception) -> None:
        """Take back what is not committed."""
        core = self.core
        if core.log.last > core.log.committed:
            core.cut(core.log.committed + 1)
        _, refused = core.take_removed()
        self.recount()
        for entry in refused:
            self._refuse(entry, error)

    def recount(self) -> None:
        """Count the messages again after the log was cut."""
        log = self.core.log
        flushed = log.entries[max(0, log.applied + 1 - log.first) : max(0, log.flushed + 1 - log.first)]
        self.total = self._applied_total + sum(entry.messages for entry in flushed)

    def refuse_all(self, entries: Sequence[Entry], reason: str) -> None:
        """Tell the proposers of entries that will not be."""
        for entry in entries:
            self._refuse(entry, ProposalDropped(reason))

    def _refuse(self, entry: Entry, error: Exception) -> None:
        context, entry.context = entry.context, None
        if context is not None:
            self.machine.refuse(context, error)

    def _apply(self, entry: Entry) -> None:
        """Apply one committed entry and count towards the next snapshot."""
        kind, index = entry.kind, entry.index
        self._applied, self._applied_term = index, entry.term
        self._applied_total += entry.messages
        self._entries_since += 1
        self._bytes_since += len(entry.data)
        if kind & BLOCK:
            self._new_blocks.append(index)
            if isinstance(self.home, Memory):
                self.home.blocks[index] = (index, entry.term, kind, entry.messages, self._applied_total, entry.data)
        if kind > MEMBERSHIP:
            try:
                rest = self.machine.apply(entry)
            except OF_THIS_NODE:
                raise
            except Exception as error:
                self._refuse_applied(entry, error)
            else:
                if rest is not None:
                    self._rest = (entry, rest)
        elif kind == NOOP:
            if entry.data and entry.data == b"%d" % self.core.impaired:
                self.host.log.info("Group %s: everything that was lost here is back", self._name)
                self.host.counts["repaired"] += 1
                self.core.restored()
        elif not self.alone:
            self.replica.membership_applied(entry)

    def _refuse_applied(self, entry: Entry, error: Exception) -> None:
        """The machine cannot apply an entry: no member's can, so it is passed over here as everywhere, and on replay.
        Where an error of our own has ended a change in the middle, it has done so at the same place everywhere."""
        refusal = refused(self.machine, entry, error)
        understood = isinstance(error, BadEntry)
        self.host.log.error(
            "Group %s: entry %d of kind %d is refused: %s",
            *(self._name, refusal.index, refusal.kind, refusal.reason),
            exc_info=None if understood else error,
        )
        self.host.counts["entries refused"] += 1
        if understood and entry.kind & BLOCK:
            self._dropped.add(entry.index)  # the machine has nothing of it, and will not ask to drop it
        reason = EntryRefused(f"entry {refusal.index} is refused: {refusal.reason}")
        self.host.runtime.fence.run(self._refuse, entry, reason)

    def fail(self, why: str) -> None:
        """Serve the group no more, because of the error that is being handled; the other groups of this node are not
        concerned."""
        self.host.log.exception("Group %s stops: %s", self._name, why)
        self.failure = why
        self.stop(f"the group has failed: {why}")

    # Snapshots ------------------------------------------------------------------------------------

    def compact(self) -> None:
        """Take a snapshot and cut the log there."""
        if self._compacting or (self._applied == self._snapshot and not self._damaged):
            return
        if self.stopped or self.replica.holding():
            return
        if not self.conclude():
            return
        snapshot = self.machine.snapshot()
        dropped = self._dropped.union(snapshot.dropped)
        notes = {**dict.fromkeys(self._new_blocks, b""), **self._unsaved}
        notes.update((record.index, record.note) for record in snapshot.blocks)
        for index in dropped:
            notes.pop(index, None)
        members = self.core.membership_at(self._applied).encode()
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
        if isinstance(self.home, Memory):
            self.home.compact(point)
            self._compacted(point, None)
            return
        try:
            self.home.storage.compact(self.home.number, point)
            self.home.storage.sync(partial(self._compacted, point))
        except Exception as error:
            self._compacted(point, error)
            raise

    def _compacted(self, point: CompactionPoint, error: Exception | None) -> None:
        self._compacting = False
        if error is None:
            self._snapshot, self._snapshot_term = point.index, point.term
            self.host.counts["snapshots taken"] += 1
            if self.core.log.snapshot < point.index <= self.core.log.applied:
                self.core.compacted(point.index, point.term)
                self.replica.trim()
        else:
            self._unsaved = {**dict(point.notes), **self._unsaved}
            self._dropped.update(point.dropped)

    @property
    def compacting(self) -> bool:
        """Whether a snapshot is on its way to the disk."""
        return self._compacting

    async def restore(self, state: bytes, blocks: Sequence[StoredBlock]) -> None:
        """Have the machine become a snapshot that came from the leader."""
        self._abandon(ProposalDropped("a snapshot of the leader takes the place of what is here"))
        try:
            await self.machine.restore(state, blocks)
        except Exception as error:
            self.fail(f"a snapshot of the leader cannot be restored ({type(error).__name__})")

    def installed(self, index: int, term: int, total: int) -> None:
        """The machine has become a snapshot that came from the leader."""
        self.host.counts["snapshots received"] += 1
        self._applied = self._snapshot = index
        self._applied_term = self._snapshot_term = term
        self.total = self._applied_total = total
        self._new_blocks, self._unsaved, self._dropped = [], {}, set()
        self._entries_since = self._bytes_since = 0
        self._damaged = False
