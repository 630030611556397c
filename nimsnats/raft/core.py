"""Raft as a pure function of what happens: messages and ticks in, messages and log positions out.

No I/O, clock or randomness of its own: time is `tick()`, the random source is an argument. The driver's loop
is:

    1. feed `step(message)`, `tick()`, `propose(entry)` as things happen;
    2. send `urgent` messages at once;
    3. hand hard state (`hard_state_changed`) and `log.unflushed()` to storage, noting the last index and
    term; 4. when storage has them: `persisted(index, term)`, send the messages that waited (`take_durable`);
    5. apply `log.unapplied()`, then `applied_to(index)`.

A message in `durable` answers for something that must survive a crash first (a vote, an acknowledged entry);
`urgent` ones promise nothing about this member's disk. A leader's appends are urgent: it writes its own disk
in parallel (10.2.1).

Followed: D. Ongaro, "Consensus: Bridging Theory and Practice" (2014; section numbers below), and the lessons
of etcd-io/raft. What a leader does with its followers is `leader.py`, what majorities say is `quorum.py`, who
votes is `membership.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from nimsnats.raft import quorum
from nimsnats.raft.leader import Leadership
from nimsnats.raft.log import RaftLog, Unavailable
from nimsnats.raft.machine import Entry, NotLeader
from nimsnats.raft.membership import Membership
from nimsnats.raft.message import Kind, Message
from nimsnats.raft.quorum import Verdict

NOOP: Final = 0
"""Kind of the entry with which a leader begins its term; machines never see it."""
MEMBERSHIP: Final = 1
"""Kind of an entry that carries a new membership; machines never see it."""


class Randomness(Protocol):
    """What elections need of a random source."""

    def randrange(self, start: int, stop: int, /) -> int:
        """An integer in [start, stop)."""
        ...


class Role(Enum):
    """What a member is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in ticks, sizes in bytes."""

    election_ticks: int = 10
    heartbeat_ticks: int = 2
    max_message_bytes: int = 1 << 20
    max_inflight_messages: int = 64
    max_inflight_bytes: int = 16 << 20


@dataclass(slots=True)
class HardState:
    """What must be durable before a member acts on it: Raft's persistent state besides the log (figure
    3.1)."""

    term: int = 0
    vote: str = ""


class Core:
    """One member of one group."""

    def __init__(
        self,
        name: str,
        log: RaftLog,
        membership: Membership,
        random: Randomness,
        state: HardState | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.settings = settings or Settings()
        self.role = Role.FOLLOWER
        self.leader = ""
        self.term = state.term if state else 0
        self.vote = state.vote if state else ""
        self.hard_state_changed = False
        self.urgent: list[Message] = []
        self.durable: list[Message] = []
        self.removed: list[Entry] = []
        """Entries that another leader's log has replaced here; the driver tells their proposers."""
        self.truncated_at = 0
        """Lowest index replaced since the driver last looked; 0 for none."""
        self.install: Message | None = None
        """A snapshot the leader offers and that we want; the driver fetches it and calls `installed`."""
        self.announced = 0
        """Highest index that a leader has told to be committed, whether it is here or not."""
        self.impaired = 0
        """Not 0: this member has lost entries that it may have acknowledged. It does not campaign, votes only
        for who surely has them, and asks its leader to feed it from where its log still is whole. The number
        names this loss: an entry that brings it back, committed, ends it (`restored`)."""
        self.pledge: tuple[int, int] | None = None
        """(term, index) which no entry that was lost is beyond, when that is known."""
        self.leading: Leadership | None = None
        self._random = random
        self._memberships: list[tuple[int, Membership]] = [(log.snapshot, membership)]
        self._elapsed = 0
        self._timeout = 0
        self._votes: dict[str, bool] = {}
        self._draw_timeout()

    # What the driver asks -------------------------------------------------------------------------

    @property
    def membership(self) -> Membership:
        """The newest membership in the log, committed or not: it counts from the moment it is appended
        (4.1)."""
        return self._memberships[-1][1]

    @property
    def sole_voter(self) -> bool:
        """Whether nobody else votes in this group."""
        return self.membership.voters == frozenset((self.name,))

    def membership_at(self, index: int) -> Membership:
        """The membership as of a log index not below the last snapshot."""
        return next(members for at, members in reversed(self._memberships) if at <= index)

    def membership_index(self) -> int:
        """Index of the entry that made the newest membership."""
        return self._memberships[-1][0]

    def take_durable(self) -> list[Message]:
        """Messages that wait for what is being written now; the driver sends them once it is on disk."""
        waiting, self.durable = self.durable, []
        return waiting

    def take_urgent(self) -> list[Message]:
        """Messages to send at once."""
        sending, self.urgent = self.urgent, []
        return sending

    def take_removed(self) -> tuple[int, list[Entry]]:
        """Where the log was cut (0: nowhere) and the entries that were removed, since the last call."""
        cut, removed = self.truncated_at, self.removed
        self.truncated_at, self.removed = 0, []
        return cut, removed

    def __str__(self) -> str:
        log = self.log
        return (
            f"{self.name} {self.role.value} term:{self.term} vote:{self.vote or '-'} leader:{self.leader or '-'} "
            f"log:{log.snapshot}..{log.last} durable:{log.durable} committed:{log.committed} {self.membership}"
        )

    # What happens ---------------------------------------------------------------------------------

    def recover(self, entry: Entry) -> None:
        """Take back an entry that storage has, at start."""
        log = self.log
        log.append(entry)
        log.durable = log.flushed = entry.index
        if entry.kind == MEMBERSHIP:
            self._memberships.append((entry.index, Membership.decode(entry.data)))

    def resume_alone(self) -> None:
        """Lead again, in the same term, when this member is the only one there is: no vote is needed, and no
        other log can hold another entry of this term. Everything in the log is durable here, which is a
        majority of one: committed."""
        assert self.membership.voters == {self.name} and not self.membership.learners and not self.impaired
        if self.term == 0 or self.vote != self.name:
            self.term, self.vote, self.hard_state_changed = self.term + 1, self.name, True
        self.role, self.leader = Role.LEADER, self.name
        self.leading = Leadership(self)
        self.log.committed = self.log.durable

    def propose(self, kind: int, data: bytes, context: object | None = None, messages: int = 0) -> Entry:
        """Append an entry as leader. Raises NotLeader."""
        leading = self.leading
        if leading is None or leading.transferring:
            raise NotLeader(self.leader)
        log = self.log
        entry = Entry(log.last + 1, self.term, kind, data, context, messages)
        log.entries.append(entry)
        if leading.members:
            leading.pending = True
        return entry

    def flush(self) -> None:
        """Send what was proposed since the last call; one message a member, however many proposals."""
        if self.leading is not None and self.leading.pending:
            self.leading.pending = False
            self.leading.broadcast()

    def persisted(self, index: int, term: int) -> None:
        """Storage holds the log up to `index`, whose entry was of `term`."""
        leading = self.leading
        if self.log.confirm(index, term) and leading is not None:
            leading.advance()
            if leading.members and self.sole_voter:
                leading.pending = True  # its learners may have it now

    def applied_to(self, index: int) -> None:
        """The machine has applied everything up to `index`."""
        self.log.applied = index

    def tick(self) -> None:
        """A unit of time has passed."""
        self._elapsed += 1
        if self.leading is not None:
            self.leading.tick()
            if self._elapsed >= self.settings.election_ticks:
                self._elapsed = 0
                self.leading.check_quorum()
        elif self._elapsed >= self._timeout and self.electable():
            self._campaign(Role.PRE_CANDIDATE)
        elif self._elapsed >= self._timeout and self.impaired:
            # the leader of a silent group does not know that it has to say everything again
            self._elapsed = 0
            self.urgent.extend(self._loss(name) for name in sorted(self.membership.everyone - {self.name}))

    def electable(self) -> bool:
        """Whether this member may campaign."""
        return self.name in self.membership.voters and not self.impaired

    def campaign(self) -> None:
        """Ask for votes now: for one of the founders of a new group, so that nobody waits for an election's
        time-out."""
        if self.electable() and not self.leader:
            self._campaign(Role.CANDIDATE)

    def step(self, message: Message) -> None:
        """Take a message from another member."""
        if message.term > self.term:
            if not self._enter(message):
                return
        elif message.term < self.term:
            self._answer_old(message)
            return
        handler = self._HANDLERS.get(message.kind)
        if handler is not None:
            handler(self, message)
        elif self.leading is not None:
            self.leading.step(message)

    def _enter(self, message: Message) -> bool:
        """A message of a later term: usually enter that term. Returns whether to go on with the message.

        A vote request is ignored while a leader is known to live: a member that was cut off must not disturb
        the rest (4.2.3). Pre-votes change nobody's term (9.6).
        """
        asked = message.kind in {Kind.VOTE, Kind.PRE_VOTE} and not message.force
        if asked and self.leader and self._elapsed < self.settings.election_ticks:
            return False
        if message.kind is Kind.PRE_VOTE or (message.kind is Kind.PRE_VOTE_REPLY and not message.reject):
            return True
        from_leader = message.kind in {Kind.APPEND, Kind.HEARTBEAT, Kind.INSTALL}
        self.become_follower(message.term, message.sender if from_leader else "")
        return True

    def _answer_old(self, message: Message) -> None:
        """A message of an earlier term. A stale leader or pre-candidate is told the term, so that it lets
        go."""
        if message.kind in {Kind.APPEND, Kind.HEARTBEAT, Kind.INSTALL}:
            self.urgent.append(Message(Kind.APPEND_REPLY, message.sender, self.name, self.term, reject=True))
        elif message.kind is Kind.PRE_VOTE:
            self.urgent.append(Message(Kind.PRE_VOTE_REPLY, message.sender, self.name, self.term, reject=True))

    # Elections (3.4, 3.6.1, 9.6) ------------------------------------------------------------------

    def _draw_timeout(self) -> None:
        ticks = self.settings.election_ticks
        self._timeout = self._random.randrange(ticks, 2 * ticks)

    def become_follower(self, term: int, leader: str) -> None:
        """Follow `leader` ("" when unknown) in `term`."""
        if term != self.term:
            assert term > self.term
            self.term, self.vote, self.hard_state_changed = term, "", True
        self.role, self.leader, self.leading = Role.FOLLOWER, leader, None
        self._elapsed = 0
        self._votes = {}
        self._draw_timeout()

    def _campaign(self, role: Role, force: bool = False) -> None:
        """Ask for votes; as PRE_CANDIDATE only whether they would be given (9.6)."""
        self.role, self.leader, self.leading = role, "", None
        self._elapsed = 0
        self._draw_timeout()
        term = self.term + 1
        if role is Role.CANDIDATE:
            self.term, self.vote, self.hard_state_changed = term, self.name, True
        self._votes = {self.name: True}
        if quorum.election(self.membership.voters, self._votes) is Verdict.WON:
            self._won()
            return
        kind = Kind.VOTE if role is Role.CANDIDATE else Kind.PRE_VOTE
        for voter in sorted(self.membership.voters - {self.name}):
            self.durable.append(Message(kind, voter, self.name, term, self.log.last, self.log.last_term, force=force))

    def _won(self) -> None:
        if self.role is Role.PRE_CANDIDATE:
            self._campaign(Role.CANDIDATE)
            return
        self.role, self.leader = Role.LEADER, self.name
        self._elapsed = 0
        self.leading = Leadership(self)
        # An entry of its own term lets a leader commit those of earlier terms (3.6.2) and membership changes
        # begin (4.1).
        self.propose(NOOP, b"")
        self.leading.broadcast()

    def _on_vote(self, message: Message) -> None:
        """Grant at most one vote a term (3.4), and none to a log that is behind ours (3.6.1).

        Who has just begun and knows of no membership gives none: nobody counts on it yet, for it is a learner first.
        But it may have been a voter under this name before, and a member that has missed its removal would count it.
        """
        pre = message.kind is Kind.PRE_VOTE
        free = self.vote == message.sender or (not self.vote and not self.leader) or (pre and message.term > self.term)
        current = (message.log_term, message.index) >= (self.log.last_term, self.log.last)
        if self.impaired:
            current = current and self.pledge is not None and (message.log_term, message.index) >= self.pledge
        elif not self.membership.everyone:
            current = False
        granted = free and current
        kind = Kind.PRE_VOTE_REPLY if pre else Kind.VOTE_REPLY
        term = message.term if granted else self.term
        self.durable.append(Message(kind, message.sender, self.name, term, reject=not granted))
        if granted and not pre:
            self._elapsed = 0
            if self.vote != message.sender:
                self.vote, self.hard_state_changed = message.sender, True

    def _on_vote_reply(self, message: Message) -> None:
        expected = Role.PRE_CANDIDATE if message.kind is Kind.PRE_VOTE_REPLY else Role.CANDIDATE
        asked = self.term + 1 if expected is Role.PRE_CANDIDATE else self.term
        if self.role is not expected or (not message.reject and message.term != asked):
            return
        self._votes.setdefault(message.sender, not message.reject)
        verdict = quorum.election(self.membership.voters, self._votes)
        if verdict is Verdict.WON:
            self._won()
        elif verdict is Verdict.LOST:
            self.become_follower(self.term, "")

    def _on_timeout_now(self, message: Message) -> None:
        """The leader hands over: campaign at once, without asking first, past everybody's lease (3.10)."""
        if self.electable() and self.leading is None and message.sender == self.leader:
            self._campaign(Role.CANDIDATE, force=True)

    # Following (3.5) ------------------------------------------------------------------------------

    def _heard_leader(self, message: Message) -> None:
        assert self.leading is None, "two leaders in one term"
        if self.role is not Role.FOLLOWER or self.leader != message.sender:
            self.become_follower(message.term, message.sender)
        self._elapsed = 0

    def _on_append(self, message: Message) -> None:
        self._heard_leader(message)
        log = self.log
        self.announced = max(self.announced, message.commit)
        reply = Message(Kind.APPEND_REPLY, message.sender, self.name, self.term)
        if message.index < log.committed:
            reply.index = log.committed
        elif not log.matches(message.index, message.log_term):
            reply.index, reply.reject = message.index, True
            reply.hint, reply.log_term = self._conflict(min(message.index, log.last), message.log_term)
        else:
            self._take_entries(message.entries)
            reply.index = message.index + len(message.entries)
            log.committed = max(log.committed, min(message.commit, reply.index))
        self.durable.append(reply)

    def _conflict(self, index: int, term: int) -> tuple[int, int]:
        """The highest entry at or below `index` whose term is at most `term`: back up a term at a time
        (3.5)."""
        log = self.log
        while index > log.committed:
            try:
                found = log.term(index)
            except Unavailable:
                break
            if found <= term:
                return index, found
            index -= 1
        return index, 0

    def _take_entries(self, entries: Iterable[Entry]) -> None:
        """Append what is new; entries that contradict the leader go, with all behind them (3.5)."""
        for entry in entries:
            if self.log.matches(entry.index, entry.term):
                continue
            if entry.index <= self.log.last:
                self.cut(entry.index)
            self.log.append(entry)
            if entry.kind == MEMBERSHIP:
                self._memberships.append((entry.index, Membership.decode(entry.data)))

    def cut(self, index: int) -> None:
        """Remove the log from `index` on."""
        self.truncated_at = min(self.truncated_at or index, index)
        self.removed.extend(self.log.truncate(index))
        while self._memberships[-1][0] >= index:
            self._memberships.pop()

    def _on_heartbeat(self, message: Message) -> None:
        """Commit is capped by the leader to what it knows us to have, so it needs no check against the
        log."""
        self._heard_leader(message)
        self.log.committed = max(self.log.committed, min(message.commit, self.log.last))
        self.urgent.append(Message(Kind.HEARTBEAT_REPLY, message.sender, self.name, self.term, hint=self.impaired))
        if self.impaired:
            self.urgent.append(self._loss(message.sender))

    def _loss(self, to: str) -> Message:
        """Where the log ends now, and under which number the loss is to be answered."""
        lost = Message(Kind.APPEND_REPLY, to, self.name, self.term, self.log.last)
        lost.reject, lost.force, lost.hint = True, True, self.impaired
        return lost

    def restored(self) -> None:
        """The leader has heard of our loss, and everything that it had counted on us for is committed here
        again: the entry that says so was proposed after all that."""
        self.impaired, self.pledge, self.hard_state_changed = 0, None, True

    def awake(self) -> None:
        """Time goes on after a silence that all agreed to: nobody was missed meanwhile."""
        self._elapsed = 0
        if self.leading is not None:
            for progress in self.leading.members.values():
                progress.active = True

    def leader_lost(self, salt: int = 0) -> None:
        """The driver knows that the leader's node is gone: no lease protects it, and the wait is shorter. The others
        campaign one after the other, so that votes are not split; `salt`, the same on all members, tells with whom
        they begin, so that not all groups choose the same one."""
        others = sorted(self.membership.voters - {self.leader})
        if self.leading is not None or self.name not in others:
            return
        place = (others.index(self.name) + salt) % len(others)
        self._elapsed = max(self._elapsed, self.settings.election_ticks)
        self._timeout = self._elapsed + 2 * place + self._random.randrange(0, 2)

    def partner(self) -> str:
        """The other voter, as long as this member has all that was ever committed and nothing more can be without
        it: a group of two that both know for one, and no change under way that could leave this one behind (see
        `membership.py`). Empty otherwise."""
        now = self.membership
        if len(now.voters) != 2 or now.learners or self.name not in now.voters - now.leaving:
            return ""
        if self.impaired or self.install or self.membership_at(self.log.committed).number != now.number:
            return ""
        return next(iter(now.voters - {self.name}))

    def seize(self) -> None:
        """Make this member the only one, without asking the other.

        Only for who has a `partner` and holds the right to (DESIGN 4.11): every committed entry is on both, so
        none is lost; that the other does not do the same is the caller's to know.
        """
        assert self.partner()
        self.become_follower(self.term + 1, "")
        self.vote, self.role, self.leader = self.name, Role.LEADER, self.name
        self.leading = Leadership(self)
        after = Membership(frozenset({self.name})).after(self.membership)
        entry = self.propose(MEMBERSHIP, after.encode())
        self._memberships.append((entry.index, after))
        self.leading.members_changed()

    def _on_install(self, message: Message) -> None:
        self._heard_leader(message)
        self.announced = max(self.announced, message.index)
        if self.overtakes(message):
            self.durable.append(Message(Kind.APPEND_REPLY, message.sender, self.name, self.term, self.log.committed))
        elif self.install is None or self.install.index < message.index or self.install.term < message.term:
            self.install = message

    def overtakes(self, message: Message) -> bool:
        """Whether the log holds what an INSTALL offers, which then counts as committed. The log stays, with what this
        member has acknowledged behind that: to give it up would be to forget it (figure 5.3)."""
        held = message.index <= self.log.committed or self.log.matches(message.index, message.log_term)
        if held:
            self.log.committed = max(self.log.committed, message.index)
        return held

    def installed(self, message: Message) -> None:
        """The driver has fetched and stored the snapshot of an INSTALL and given it to the machine."""
        if message.index > self.log.committed:
            self.removed.extend(self.log.entries)
            self.log.reset(message.index, message.log_term)
            self._memberships = [(message.index, Membership.decode(message.members))]
        self.install = None
        self.durable.append(Message(Kind.APPEND_REPLY, message.sender, self.name, self.term, self.log.committed))

    def compacted(self, index: int, term: int) -> None:
        """Storage has a snapshot at `index`; memberships before it are part of it."""
        self.log.compacted(index, term)
        kept = [(at, members) for at, members in self._memberships if at > index]
        self._memberships = [(index, self.membership_at(index)), *kept]

    # Membership (4) -------------------------------------------------------------------------------

    def change_membership(self, after: Membership, context: object | None = None) -> None:
        """Propose the next membership, whose number is counted here. One voter at a time, one change at a time, and
        only once this leader has committed an entry of its own term (4.1, and the correction of 2015). Raises
        NotLeader, ValueError."""
        if self.leading is None:
            raise NotLeader(self.leader)
        if not self.membership.is_step_to(after):
            raise ValueError("a membership changes by one voter at a time, keeps one, and tells both of two first")
        if self._memberships[-1][0] > self.log.committed or not self.leading.settled():
            raise ValueError("a membership change is under way")
        after = after.after(self.membership)
        entry = self.propose(MEMBERSHIP, after.encode(), context)
        self._memberships.append((entry.index, after))
        self.leading.members_changed()

    _HANDLERS: Final[dict[Kind, Callable[[Core, Message], None]]] = {
        Kind.PRE_VOTE: _on_vote,
        Kind.VOTE: _on_vote,
        Kind.PRE_VOTE_REPLY: _on_vote_reply,
        Kind.VOTE_REPLY: _on_vote_reply,
        Kind.APPEND: _on_append,
        Kind.HEARTBEAT: _on_heartbeat,
        Kind.INSTALL: _on_install,
        Kind.TIMEOUT_NOW: _on_timeout_now,
    }
