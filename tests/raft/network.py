"""Members of one group in one thread: an in-memory network and in-memory disks, driven by hand or by a seed.

After every step the safety properties of figure 3.2 are checked over all members: election safety, log
matching, leader completeness, state machine safety; and that nobody forgets what a leader counts on.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from nimsnats.raft.core import MEMBERSHIP, NOOP, Core, HardState, Role, Settings
from nimsnats.raft.leader import Leadership
from nimsnats.raft.log import RaftLog
from nimsnats.raft.machine import Entry
from nimsnats.raft.membership import Membership
from nimsnats.raft.message import Kind, Message


@dataclass
class Disk:
    """What survives a crash of one member."""

    state: HardState
    members: Membership
    snapshot: int = 0
    snapshot_term: int = 0
    entries: list[Entry] = field(default_factory=list[Entry])

    def write(self, state: HardState, cut: int, entries: list[Entry]) -> None:
        self.state = state
        if cut:
            self.entries = [entry for entry in self.entries if entry.index < cut]
        for entry in entries:
            assert entry.index == self.snapshot + len(self.entries) + 1
            self.entries.append(copy.copy(entry))


@dataclass
class Write:
    """A write under way: what, and the messages that wait for it."""

    state: HardState
    cut: int
    entries: list[Entry]
    last: tuple[int, int]
    messages: list[Message]


class Member:
    """A core with its disk and its applied entries."""

    def __init__(self, name: str, members: Membership, source: random.Random, settings: Settings) -> None:
        self.name = name
        self.disk = Disk(HardState(), members)
        self.applied: dict[int, tuple[int, bytes]] = {}
        self.writes: list[Write] = []
        self._source = source
        self._settings = settings
        self.core = self._boot()

    def _boot(self) -> Core:
        disk = self.disk
        log = RaftLog(disk.snapshot, disk.snapshot_term)
        core = Core(self.name, log, disk.members, self._source, copy.copy(disk.state), self._settings)
        for entry in disk.entries:
            core.recover(Entry(entry.index, entry.term, entry.kind, entry.data))
        return core

    def crash(self) -> None:
        """Lose everything but the disk, and start again."""
        self.writes.clear()
        self.core = self._boot()

    def begin_write(self) -> None:
        """Hand new state to the disk, without waiting."""
        core = self.core
        cut, _ = core.take_removed()
        entries = [copy.copy(entry) for entry in core.log.unflushed()]
        core.log.flushed = core.log.last
        core.hard_state_changed = False
        last = (core.log.last, core.log.last_term)
        self.writes.append(Write(HardState(core.term, core.vote), cut, entries, last, core.take_durable()))

    def end_write(self) -> list[Message]:
        """The oldest write reaches the disk; returns the messages it held back."""
        write = self.writes.pop(0)
        self.disk.write(write.state, write.cut, write.entries)
        self.core.persisted(*write.last)
        return write.messages

    def apply(self) -> list[Entry]:
        """Apply what is committed."""
        entries = list(self.core.log.unapplied())
        for entry in entries:
            self.applied[entry.index] = (entry.term, entry.data)
        self.core.applied_to(self.core.log.committed)
        return entries

    def compact(self) -> None:
        """Snapshot at the last applied index, as far as the disk has it."""
        log = self.core.log
        index = min(log.applied, log.durable)
        if index <= log.snapshot or index < log.first - 1:
            return
        term = log.term(index)
        self.core.compacted(index, term)
        self.disk.entries = [entry for entry in self.disk.entries if entry.index > index]
        self.disk.snapshot, self.disk.snapshot_term = index, term
        self.disk.members = self.core.membership_at(index)
        log.trim(index + 1)


class Network:
    """N members and the messages between them."""

    def __init__(self, names: list[str], seed: int = 1, settings: Settings | None = None, voters: int = 0) -> None:
        self.source = random.Random(seed)
        settings = settings or Settings(10, 3, max_message_bytes=64, max_inflight_messages=4)
        members = Membership(frozenset(names[: voters or len(names)]))
        self.members = {name: Member(name, members, self.source, settings) for name in names}
        self.wire: list[Message] = []
        self.cut: set[tuple[str, str]] = set()
        self.slow_installs = False
        """Snapshots take a while to come: what was under way is written and answered before, and more may be heard."""
        self.leaders: dict[int, str] = {}
        self.chosen: dict[int, tuple[int, bytes]] = {}
        self.chosen_in: dict[int, int] = {}
        """The term in which an entry was first seen committed: a stale leader of an earlier term need not
        have it."""
        self.trace: Callable[[str], None] = lambda line: None

    def send(self, messages: list[Message]) -> None:
        for message in messages:
            if (message.sender, message.to) not in self.cut and message.to in self.members:
                # What a transport does: the receiver gets its own copies.
                self.wire.append(copy.copy(message))

    def deliver(self, message: Message) -> None:
        """Give a message to its receiver."""
        self.trace(str(message))
        message.entries = [Entry(entry.index, entry.term, entry.kind, entry.data) for entry in message.entries]
        self.members[message.to].core.step(message)
        self.pump(self.members[message.to])

    def pump(self, member: Member) -> None:
        """Everything a driver does except waiting for the disk."""
        core = member.core
        core.flush()
        self._supply(member, core.leading)
        if not self.slow_installs:
            self._install(member)
        self.send(core.take_urgent())
        if core.hard_state_changed or core.durable or core.log.unflushed() or core.truncated_at:
            member.begin_write()
        member.apply()
        self.check(member)

    def finish_write(self, member: Member) -> None:
        if member.writes:
            self.send(member.end_write())
            self.pump(member)
        elif self.slow_installs and member.core.install is not None:
            self._install(member)
            self.pump(member)

    def _supply(self, member: Member, leading: Leadership | None) -> None:
        """Read older entries back from the disk."""
        while leading is not None and leading.reads:
            name, index = leading.reads.pop()
            disk = member.disk
            entries = [entry for entry in disk.entries if entry.index >= index][:3]
            before = [entry.term for entry in disk.entries if entry.index == index - 1]
            leading.supply(name, before[0] if before else disk.snapshot_term, entries)

    def _install(self, member: Member) -> None:
        """Fetch an offered snapshot; the bytes are what the sender has applied."""
        offer = member.core.install
        if offer is None:
            return
        if member.core.overtakes(offer):
            member.core.install = None
            return
        origin = self.members[offer.sender]
        member.applied = {index: origin.applied[index] for index in origin.applied if index <= offer.index}
        member.writes.clear()
        members = Membership.decode(offer.members)
        state = HardState(member.core.term, member.core.vote)
        member.disk = Disk(state, members, offer.index, offer.log_term)
        member.core.installed(offer)

    def check(self, member: Member) -> None:
        """Figure 3.2, for what this member has just done."""
        core = member.core
        if core.role is Role.LEADER:
            assert self.leaders.setdefault(core.term, core.name) == core.name, "two leaders in a term"
            for index, (term, data) in self.chosen.items():
                if index >= core.log.first and core.term >= self.chosen_in[index]:
                    entry = core.log.entries[index - core.log.first]
                    assert (entry.term, entry.data) == (term, data), "a leader lacks a committed entry"
            assert core.leading is not None
            for name, progress in core.leading.members.items():
                other = self.members[name]
                kept = other.disk.snapshot + len(other.disk.entries)
                assert progress.match <= kept or other.core.term != core.term, "a member forgets what it acknowledged"
        for index in range(max(core.log.committed - 8, 1), core.log.committed + 1):
            found = member.applied[index]
            self.chosen_in.setdefault(index, core.term)
            assert self.chosen.setdefault(index, found) == found, "two entries chosen for one index"

    def check_logs(self) -> None:
        """Log matching: equal index and term mean equal logs up to there."""
        logs = [member.core.log for member in self.members.values()]
        for one in logs:
            for two in logs:
                agreed = False
                for index in range(min(one.last, two.last), max(one.first, two.first) - 1, -1):
                    left, right = one.entries[index - one.first], two.entries[index - two.first]
                    same = (left.term, left.data) == (right.term, right.data)
                    assert same or not agreed, "logs differ below an agreement"
                    assert same or left.term != right.term, "one term wrote two entries at an index"
                    agreed = agreed or same

    def stabilize(self) -> None:
        """Deliver and write until nothing is left to do."""
        for member in self.members.values():
            self.pump(member)
        delivered = 0
        while self.wire or any(member.writes or member.core.install for member in self.members.values()):
            delivered += 1
            assert delivered < 100_000, "members talk without end"
            for member in self.members.values():
                self.finish_write(member)
            if self.wire:
                self.deliver(self.wire.pop(0))

    def leader(self) -> Member | None:
        """The leader of the highest term, if it is one."""
        leading = [member for member in self.members.values() if member.core.role is Role.LEADER]
        return max(leading, key=lambda member: member.core.term, default=None)


__all__ = ["MEMBERSHIP", "NOOP", "Kind", "Member", "Network"]
