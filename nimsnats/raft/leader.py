"""What a leader does: feed its members, count what they have, commit, step down when it has lost them.

Owns the state that exists only while leading; it is thrown away with the role. Part of the pure core: no I/O,
no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nimsnats.raft import quorum
from nimsnats.raft.log import Unavailable
from nimsnats.raft.machine import Entry
from nimsnats.raft.message import Kind, Message
from nimsnats.raft.progress import Flow, Progress

if TYPE_CHECKING:
    from nimsnats.raft.core import Core


class Leadership:
    """A term of leading."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.first = core.log.last + 1
        """Index of the first entry of this term."""
        self._answered: dict[tuple[str, int], int] = {}
        """Losses of members that were answered with an entry, and its index."""
        self._heartbeat = 0
        self._transfer_ticks = 0
        self.transferring = ""
        """Who leadership is being handed to; no proposals meanwhile."""
        self.pending = False
        """Something was proposed and not sent."""
        self.reads: list[tuple[str, int]] = []
        """(member, index): entries to be read from disk and given to `supply`."""
        self.members: dict[str, Progress] = {
            name: Progress(next=core.log.last + 1) for name in sorted(core.membership.everyone - {core.name})
        }

    def settled(self) -> bool:
        """Whether an entry of this term is committed: only then does the leader know what is (3.6.2, 6.4)."""
        return self._core.log.committed >= self.first or (self._core.log.committed == self._core.log.last)

    # Sending --------------------------------------------------------------------------------------

    def broadcast(self) -> None:
        """Send every member what it lacks."""
        for name, progress in self.members.items():
            self._feed(name, progress)

    def _feed(self, name: str, progress: Progress) -> None:
        """Send until the member has all, or may be sent no more for now."""
        settings = self._core.settings
        while not progress.paused(settings.max_inflight_messages, settings.max_inflight_bytes):
            if not self._append(name, progress):
                return
            if progress.next > self.sendable():
                return

    def _append(self, name: str, progress: Progress) -> bool:
        """Send one APPEND, or what must happen first. False when nothing was sent."""
        core, log = self._core, self._core.log
        previous = progress.next - 1
        try:
            term = log.term(previous)
            last = self.sendable()
            entries = log.slice(progress.next, core.settings.max_message_bytes, last) if progress.next <= last else ()
        except Unavailable:
            self._behind(name, progress)
            return False
        if not entries and progress.flow is Flow.REPLICATE:
            return False
        self._send_entries(name, progress, previous, term, entries)
        return True

    def sendable(self) -> int:
        """The last entry that members may be sent. An only voter that restarts goes on in the same term
        (`Core.resume_alone`): so nobody may hold an entry of it that it could have lost."""
        core = self._core
        return core.log.durable if core.sole_voter else core.log.last

    def _send_entries(self, name: str, progress: Progress, previous: int, term: int, entries: Sequence[Entry]) -> None:
        core = self._core
        message = Message(Kind.APPEND, name, core.name, core.term, previous, term, core.log.committed, entries)
        core.urgent.append(message)
        progress.sent(previous + len(entries), sum(len(entry.data) for entry in entries))

    def _behind(self, name: str, progress: Progress) -> None:
        """The member needs entries that are not in memory: from disk if they are still there, else the
        snapshot."""
        if progress.next > self._core.log.snapshot:
            progress.reading = True
            self.reads.append((name, progress.next))
        else:
            self._offer_snapshot(name, progress)

    def _offer_snapshot(self, name: str, progress: Progress) -> None:
        core, log = self._core, self._core.log
        progress.install(log.snapshot)
        members = core.membership_at(log.snapshot).encode()
        core.urgent.append(
            Message(Kind.INSTALL, name, core.name, core.term, log.snapshot, log.snapshot_term, members=members)
        )

    def offer_again(self, name: str) -> None:
        """The member has asked for a snapshot that has been replaced: tell it of the newer one."""
        progress = self.members.get(name)
        if progress is not None and progress.flow is Flow.SNAPSHOT:
            self._offer_snapshot(name, progress)

    def supply(self, name: str, previous_term: int, entries: Sequence[Entry]) -> None:
        """Entries read from disk for a member, in answer to `reads`; `previous_term` is that of the entry
        before them."""
        progress = self.members.get(name)
        if progress is None or not progress.reading:
            return
        progress.reading = False
        if entries and entries[0].index == progress.next and progress.flow is not Flow.SNAPSHOT:
            self._send_entries(name, progress, progress.next - 1, previous_term, entries)
        self._feed(name, progress)

    def tick(self) -> None:
        """A unit of time: heartbeats, and the end of a transfer that takes too long (3.10)."""
        core = self._core
        self._heartbeat += 1
        if self._heartbeat >= core.settings.heartbeat_ticks:
            self.call_out()
        if self.transferring:
            self._transfer_ticks += 1
            if self._transfer_ticks >= core.settings.election_ticks:
                self.transferring = ""

    def call_out(self) -> None:
        """Send every member a heartbeat now; who lives answers."""
        core = self._core
        self._heartbeat = 0
        for name, progress in self.members.items():
            commit = min(progress.match, core.log.committed)
            core.urgent.append(Message(Kind.HEARTBEAT, name, core.name, core.term, commit=commit))

    # Hearing --------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """A member's answer."""
        progress = self.members.get(message.sender)
        if progress is None:
            return
        progress.active = True
        if message.kind is Kind.APPEND_REPLY:
            self._on_append_reply(message, progress)
        elif message.kind is Kind.HEARTBEAT_REPLY:
            progress.probing, progress.sound = False, not message.hint
            if progress.flow is Flow.SNAPSHOT:
                self._offer_snapshot(message.sender, progress)  # the offer or its answer may be lost
            elif progress.match < self._core.log.last:
                self._resend(message.sender, progress)

    def _resend(self, name: str, progress: Progress) -> None:
        """It answers but lacks something: a message may be lost. An empty append behind all that is on its
        way makes it say so, without sending anything twice if it is only slow."""
        core, log = self._core, self._core.log
        if progress.flow is Flow.REPLICATE and progress.inflight:
            end = progress.next - 1
            try:
                core.urgent.append(Message(Kind.APPEND, name, core.name, core.term, end, log.term(end), log.committed))
            except Unavailable:
                progress.probe(progress.match + 1)
        self._feed(name, progress)

    def _on_append_reply(self, message: Message, progress: Progress) -> None:
        name = message.sender
        if message.reject and message.force:
            self._on_loss(message, progress)
            return
        if message.reject:
            if progress.rejected(message.index, self._meeting_point(message.hint, message.log_term)):
                self._feed(name, progress)
            return
        if not progress.acknowledged(message.index) and progress.flow is Flow.REPLICATE:
            self._feed(name, progress)
            return
        if progress.flow is Flow.PROBE or (
            progress.flow is Flow.SNAPSHOT and progress.match >= progress.pending_snapshot
        ):
            progress.replicate()
        self.advance()
        self._feed(name, progress)
        if self.transferring == name and progress.match == self._core.log.last:
            self._hand_over(name)

    def _on_loss(self, message: Message, progress: Progress) -> None:
        """The member has lost what it once acknowledged (its log ends at `index` now): feed it from there, and
        write an entry that names the loss. What this leader had counted on the member for is before that entry,
        so the member is whole again when it holds the entry committed."""
        name, loss = message.sender, message.hint
        progress.sound = False
        if progress.match > message.index:
            progress.match = 0
            progress.probe(message.index + 1)
        answer = self._answered.get((name, loss), 0)
        if answer <= self._core.log.snapshot and not self.transferring:  # a snapshot does not show it to the member
            self._answered[name, loss] = self._core.propose(0, b"%d" % loss).index
        self._feed(name, progress)

    def _meeting_point(self, hint: int, term: int) -> int:
        """The highest index of ours at or below `hint` whose term is at most the member's there (3.5)."""
        log = self._core.log
        index = min(hint, log.last)
        while index > log.snapshot:
            try:
                if log.term(index) <= term:
                    return index
            except Unavailable:
                return index
            index -= 1
        return index

    def advance(self) -> None:
        """Commit what a majority has, if it is of this term: an entry of an earlier term is never committed
        by counting (3.6.2, figure 3.7). Our own disk counts like any other's."""
        core, log = self._core, self._core.log
        voters = core.membership.voters
        if not self.members:
            index = log.durable if core.name in voters else 0
        else:
            index = quorum.committed(
                log.durable if voter == core.name else self.members[voter].match for voter in voters
            )
        if index <= log.committed or log.term(index) != core.term:
            return
        log.committed = index
        if core.name not in core.membership.voters and core.log.committed >= core.membership_index():
            core.become_follower(core.term, "")  # it has led itself out of the group (4.2.2)

    # Keeping and giving up the lead ---------------------------------------------------------------

    def check_quorum(self) -> None:
        """Step down when no majority has been heard from for an election timeout (6.2)."""
        core = self._core
        alive = {name: True for name, progress in self.members.items() if progress.active}
        alive[core.name] = True
        for progress in self.members.values():
            progress.active = False
        if quorum.election(core.membership.voters, alive) is not quorum.Verdict.WON:
            core.become_follower(core.term, "")

    def transfer(self, name: str) -> bool:
        """Hand leadership to a voter: once it has everything, it campaigns at once (3.10). False when it
        cannot be."""
        if name not in self._core.membership.voters or name == self._core.name:
            return False
        self.transferring, self._transfer_ticks = name, 0
        progress = self.members[name]
        if progress.match == self._core.log.last:
            self._hand_over(name)
        else:
            self._feed(name, progress)
        return True

    def _hand_over(self, name: str) -> None:
        self._core.urgent.append(Message(Kind.TIMEOUT_NOW, name, self._core.name, self._core.term))

    def members_changed(self) -> None:
        """The membership has changed: begin or stop feeding, and count again."""
        core = self._core
        wanted = core.membership.everyone - {core.name}
        self.members = {
            name: self.members.get(name) or Progress(next=core.log.last + 1, active=True) for name in sorted(wanted)
        }
        if self.transferring not in core.membership.voters:
            self.transferring = ""
        self.pending = True
        self.advance()
