"""What a member of a group of several does besides: hear, tick, answer, fall silent, change members.

Owns the group's talk with its other members. Decisions are `core`'s; snapshots on their way are
`transfer.py`'s; frames and peers are `peers.py`'s.

A group in which nothing happens falls silent: its leader says so with the last heartbeat (`force`), and nobody
ticks it until there is a message, a proposal, or news of a node: the host notices when one is lost or back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from nimsnats.raft import quorum
from nimsnats.raft.core import Core
from nimsnats.raft.home import Durable
from nimsnats.raft.leader import Leadership
from nimsnats.raft.machine import Entry, NotLeader, TransferFailed
from nimsnats.raft.membership import Membership
from nimsnats.raft.message import Kind, Message
from nimsnats.raft.progress import Flow
from nimsnats.raft.transfer import Download, Source
from nimsnats.raft.transport import node_of
from nimsnats.raft.wire import Fetch, Item, Piece
from nimsnats.storage.errors import StorageError

if TYPE_CHECKING:
    from nimsnats.raft.group import HostedGroup

_FROM_LEADER: Final = {Kind.APPEND, Kind.HEARTBEAT, Kind.INSTALL, Kind.TIMEOUT_NOW}
_IDLE_TICKS: Final = 20
_KEEP_ENTRIES: Final = 128
"""Applied entries that a leader keeps in memory for members that lag a little."""
_CAUGHT_UP: Final = 256
"""Entries that a learner may lack when it becomes a voter."""
_RETRY_SECONDS: Final = 1.0


class Replica:
    """The talking half of a hosted group."""

    def __init__(self, group: HostedGroup) -> None:
        self.group = group
        self.quiet = False
        self.installing = False
        """A snapshot is taking this member's place."""
        self.removed: set[str] = set()
        """Former members. They are not listened to, unless they come back."""
        self.source = Source(self)
        self.download = Download(self)
        self._leader = ""
        self._idle = 0
        self._retrying = False
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def core(self) -> Core:
        """The group's core."""
        return self.group.core

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Start a task that ends with the group."""
        task = self.group.host.runtime.spawn(work, f"raft {what} {self.group.name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.group.host.log.error("Group %s: %s failed", self.group.name, task.get_name())
            if isinstance(error, Exception):
                self.group.host.runtime.fence.caught(self.spawn, error)

    def stop(self) -> None:
        """End everything under way; whoever waits is told that this member does not lead."""
        self.group.host.rest(self.group)
        for task in self._tasks:
            task.cancel()
        self._notify()

    def tasks(self) -> list[asyncio.Task[Any]]:
        """What is still under way, for the host to wait for."""
        return list(self._tasks)

    @property
    def frozen(self) -> bool:
        """Whether nothing is heard, ticked or written: a snapshot comes, or the disk has refused."""
        return self.installing or self._retrying

    def holding(self) -> bool:
        """Whether the snapshot must stay as it is for now."""
        return self.frozen or (self.source.busy() and not self.group.host.stopping)

    # Hearing --------------------------------------------------------------------------------------

    def step(self, sender: str, items: Iterable[Item]) -> None:
        """Take what another member says. What cannot be right is refused and counted."""
        group = self.group
        for item in items:
            if group.stopped or self.frozen:
                return
            if isinstance(item, Piece):
                self.download.take(sender, item)
            elif isinstance(item, Fetch):
                self.source.ask(sender, item)
            elif (objection := self._objection(item)) is not None:
                group.host.peers.refuse(sender, objection, f"group {group.name}, {item.kind.name}")
            else:
                self._take(item)
        if not group.stopped:
            self.after()

    def _take(self, message: Message) -> None:
        if self.quiet and message.kind is Kind.HEARTBEAT_REPLY:
            return
        self.wake()
        core, log = self.core, self.core.log
        core.step(message)
        if message.kind is Kind.HEARTBEAT and message.force and core.leader == message.sender:
            settled = message.commit == log.last == log.committed == log.durable == log.applied
            busy = core.impaired or core.install or core.hard_state_changed or core.durable or len(core.urgent) > 1
            if settled and not busy:
                core.urgent.clear()  # the answer: it would wake the leader
                self._fall_silent()

    def _objection(self, message: Message) -> str | None:
        """Why a well-formed message cannot be right here."""
        core = self.core
        if self.group.alone:
            return "message for a group of one"
        if message.sender in self.removed and not self._may_be_back(message):
            return "message from a removed member"
        if message.kind in _FROM_LEADER and message.term == core.term and core.leader not in {"", message.sender}:
            return "message from a second leader"
        if message.kind is Kind.INSTALL and not message.members:
            return "snapshot without members"
        if message.kind is Kind.APPEND_REPLY and not message.reject and message.term == core.term:
            return "acknowledgement of what is not there" if message.index > core.log.last else None
        return None

    def _may_be_back(self, message: Message) -> bool:
        """Whether a member whose removal is applied here may have been added again since, in entries that are not here
        or not committed. Who leads, or has at least our log, is listened to whatever we know of the members (4.1)."""
        core, log = self.core, self.core.log
        if message.sender in core.membership.everyone:
            return True
        if message.kind in {Kind.VOTE, Kind.PRE_VOTE}:
            return (message.log_term, message.index) >= (log.last_term, log.last)
        return message.kind in _FROM_LEADER and message.term >= core.term

    # Time -----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A unit of time has passed."""
        if self.frozen:
            return
        core = self.core
        if core.leading is not None:
            self._idle = self._idle + 1 if self._at_rest(core.leading) else 0
            if self._idle >= _IDLE_TICKS and not self._has_work():
                self._say_goodnight(core.leading)
                return
        core.tick()
        self.after()

    def _at_rest(self, leading: Leadership) -> bool:
        """Whether everybody who is there has everything, and they are a majority: a leader that has lost that is to
        notice it."""
        log = self.core.log
        if not log.last == log.committed == log.applied == log.durable or self._waiting or leading.transferring:
            return False
        lost, voters = self.group.host.lost_peers, self.core.membership.voters
        if quorum.majority(len(voters)) > len(voters - lost):
            return False
        return all(known.match == log.last or name in lost for name, known in leading.members.items())

    def _say_goodnight(self, leading: Leadership) -> None:
        core = self.core
        for name, known in leading.members.items():
            if known.match == core.log.last:  # who is away may have something else there: it must not be committed
                message = Message(Kind.HEARTBEAT, name, core.name, core.term, commit=core.log.last, force=True)
                self._send([message])
        self._fall_silent()

    def _fall_silent(self) -> None:
        self.quiet = True
        self.group.host.rest(self.group)

    def wake(self, leader_lost: bool = False) -> None:
        """Tick again."""
        if self.quiet:
            self.quiet, self._idle = False, 0
            self.core.awake()
            self.group.host.tick_on(self.group)
        if leader_lost:
            self.core.leader_lost(crc32(self.group.name.encode()))

    def tell(self) -> None:
        """As leader, send a heartbeat, and what is committed with it, now."""
        self.wake()
        if self.core.leading is not None:
            self.core.leading.call_out()
            self.after()

    def peer_news(self, names: Iterable[str], lost: bool) -> None:
        """Nodes are gone, or back."""
        leaderless = lost and self.core.leader in names
        if leaderless or (self.quiet and not self.core.membership.everyone.isdisjoint(names)):
            self.wake(leader_lost=leaderless)

    # Writing and answering ------------------------------------------------------------------------

    def flush(self) -> tuple[int, int, Sequence[Message], bool]:
        """Send what may be sent and hand over what must be durable first. Returns index and term up to which
        the log goes to storage now, the messages that wait for it, and whether storage has anything to do."""
        group, core = self.group, self.core
        self.wake()
        core.flush()
        self._send(core.take_urgent())
        cut, removed = core.take_removed()
        if cut:
            if isinstance(group.home, Durable):
                group.home.storage.truncate(group.home.number, cut)
            group.recount()
            group.refuse_all(removed, "another leader wrote something else")
        changed = core.hard_state_changed
        group.keep_hard_state()
        index, term = group.flush()
        return index, term, core.take_durable(), changed or group.durable

    def stored(self, messages: Sequence[Message]) -> None:
        """What these messages answer for is durable."""
        if not self.group.stopped:
            self._send(messages)
            self.after()

    def _send(self, messages: Iterable[Message]) -> None:
        peers, name = self.group.host.peers, self.group.name
        for message in messages:
            peers.post(message.to, name, message)

    def post(self, to: str, item: Item) -> None:
        """Send something that is not the core's."""
        self.group.host.peers.post(to, self.group.name, item)

    def not_stored(self, error: Exception) -> None:
        """The disk refused. What was refused is written again after a while: others may have it, and commit
        it. Meanwhile somebody with a disk should lead."""
        group, core = self.group, self.core
        core.log.flushed = core.log.durable
        core.hard_state_changed = True
        group.recount()
        group.step_down(str(error))
        if core.leading is not None:
            core.become_follower(core.term, "")
        if not self._retrying:
            self._retrying = True
            group.host.runtime.call_later(_RETRY_SECONDS, self._write_again)

    def _write_again(self) -> None:
        group = self.group
        if self.installing:  # what comes replaces the log: nothing of it may be cut meanwhile
            group.host.runtime.call_later(_RETRY_SECONDS, self._write_again)
            return
        self._retrying = False
        if group.stopped:
            return
        if isinstance(group.home, Durable):
            group.home.storage.truncate(group.home.number, self.core.log.durable + 1)
        group.host.mark(group)

    def after(self) -> None:
        """Everything that may follow from a change of the core."""
        group, core = self.group, self.core
        if group.serving and (core.leading is None or group.serving_term != core.term):
            group.step_down("leadership was lost")
        if core.leader != self._leader:
            self._leader = core.leader
            if group.on_leader is not None:
                group.on_leader()
        if not self.installing and group.apply_ready():
            self.trim()
        if group.stopped or self.frozen:
            return
        leading, log = core.leading, core.log
        if leading is not None:
            if not group.serving and log.applied >= leading.first:
                group.lead_on()
            while leading.reads:
                self.spawn(self._read(leading, *leading.reads.pop()), "read")
        if core.install is not None:
            self.download.begin(core.install)
        if self._has_work():
            group.host.mark(group)
        elif leading is not None and not leading.members and log.committed == log.last == log.applied:
            group.alone = True
            group.host.rest(group)
        self._notify()

    def _has_work(self) -> bool:
        """Whether there is something to send or to write."""
        core = self.core
        if core.urgent or core.durable or core.truncated_at or core.hard_state_changed:
            return True
        return core.log.flushed < core.log.last or (core.leading is not None and core.leading.pending)

    def trim(self) -> None:
        """Forget entries that nobody is likely to want soon; storage has them."""
        core, log = self.core, self.core.log
        if self.group.alone:
            log.trim(log.applied + 1)
        elif not self.group.durable:
            log.trim(log.snapshot + 1)
        else:
            keep = log.applied + 1
            if core.leading is not None:
                behind = [known.match + 1 for known in core.leading.members.values() if known.flow is Flow.REPLICATE]
                keep = max(min([keep, *behind]), keep - _KEEP_ENTRIES)
            log.trim(keep)

    async def _read(self, leading: Leadership, name: str, index: int) -> None:
        """Read entries back from disk for a member that lags; what the disk cannot give goes as a snapshot."""
        group, core, log = self.group, self.core, self.core.log
        entries: list[Entry] = []
        previous = log.snapshot_term
        home = group.home
        if isinstance(home, Durable):
            start = max(index - 1, log.snapshot + 1)
            size = core.settings.max_message_bytes
            for found in await home.storage.read_log(home.number, start, log.first - 1, size):
                if found.data is None or found.index != start:
                    break
                start += 1
                if found.index < index:
                    previous = found.term
                else:
                    entries.append(Entry(found.index, found.term, found.kind, found.data, None, found.messages))
        if not entries and group.applying:  # a snapshot would take all steps that are left at once
            with suppress(NotLeader):
                await self._until(lambda: not group.applying)
        if not entries and core.leading is leading and index > log.snapshot and index < log.first:
            group.compact()
            with suppress(StorageError):  # a disk that is full now may have room at the next try
                await group.host.synced()
            if index > log.snapshot:
                await group.host.runtime.sleep(_RETRY_SECONDS)
        if core.leading is leading and not group.stopped:
            leading.supply(name, previous, entries)
            self.after()

    # Members --------------------------------------------------------------------------------------

    def membership_applied(self, entry: Entry) -> None:
        """A membership is committed: remember who left, and store it soon, so that it is found in two
        places."""
        before = self.core.membership_at(entry.index - 1)
        after = Membership.decode(entry.data)
        self.removed = (self.removed | before.everyone) - after.everyone
        self.group.compact_soon()

    def membership_committed(self) -> bool:
        """Whether no change is under way."""
        return self.core.membership_index() <= self.core.log.committed

    async def change_members(self, members: Sequence[str]) -> None:
        """Bring the group to exactly these voters. Raises NotLeader, ValueError."""
        target = frozenset(members)
        if not target:
            raise ValueError("a group keeps at least one member")
        while True:
            self._must_lead()
            core = self.core
            after = self._next(target)
            if after is None and core.membership.voters == target and not core.membership.learners:
                await self._until(self.membership_committed)
                return
            if after is None:
                await self._next_step_ready(target)
                continue
            if core.name not in target and core.name not in after.voters:
                try:
                    hint = await self.transfer()
                except TransferFailed:
                    continue  # nobody else is well enough to lead; it has waited, and asks again
                raise NotLeader(hint)
            await self._change(after)

    async def _change(self, after: Membership) -> None:
        await self._until(self.membership_committed)
        self._must_lead()
        core = self.core
        if after.voters != core.membership.voters:
            await self._hear_from_majority(after.voters)
        try:
            self.group.host.enlist(self.group)
            core.change_membership(after)
        except ValueError:
            last = core.log.last
            await self._until(lambda: core.log.committed >= last)
            return
        self.group.alone = False
        self.wake()
        self.group.host.tick_on(self.group)
        self.group.host.mark(self.group)
        await self._until(self.membership_committed)

    async def _hear_from_majority(self, voters: frozenset[str]) -> None:
        """Wait until a majority of these has answered in this group just now, not counting who may not vote for
        having lost entries. New voters count from the moment they are in the log (4.1): should the only ones left
        be gone, or without a vote, nobody could commit the change, nor lead without it. Raises NotLeader."""
        core = self.core
        leading = core.leading
        if leading is None:
            raise NotLeader
        members = leading.members
        for known in members.values():
            known.sound = False

        def heard() -> bool:
            alive = {name: True for name in voters if name == core.name or (name in members and members[name].sound)}
            return quorum.election(voters, alive) is quorum.Verdict.WON

        if heard():
            return
        self.tell()
        await self._until(lambda: not self.group.serving or heard())
        self._must_lead()

    def _next(self, target: frozenset[str]) -> Membership | None:
        """The membership that comes next on the way; None when there is none, or a learner must catch up."""
        core = self.core
        now = core.membership
        for name in sorted(now.learners - target):
            return now.without(name)
        for name in sorted(target - now.everyone):
            return now.with_learner(name)
        for name in sorted(now.learners):
            if self._caught_up(name):
                return now.with_voter(name)
        if now.learners:
            return None
        # those who are away go first: the others may be needed to agree to that
        is_lost = self.group.host.is_lost
        leaving = sorted(now.voters - target, key=lambda name: (name == core.name, not is_lost(name), name))
        if not leaving:
            return now.with_leaving(frozenset()) if now.leaving else None
        if len(now.voters) == 2 and leaving[0] not in now.leaving:
            return now.with_leaving(frozenset(leaving[:1]))
        return now.without(leaving[0])

    def _caught_up(self, name: str) -> bool:
        core = self.core
        known = core.leading.members.get(name) if core.leading is not None else None
        return known is not None and known.flow is Flow.REPLICATE and known.match + _CAUGHT_UP >= core.log.last

    async def _next_step_ready(self, target: frozenset[str]) -> None:
        await self._until(lambda: not self.group.serving or self._next(target) is not None)

    async def transfer(self, to: str = "") -> str:
        """Hand leadership to a voter. Raises NotLeader, TransferFailed."""
        self._must_lead()
        core = self.core
        assert core.leading is not None
        others = [
            (not self.group.host.is_lost(name), known.match, name)
            for name, known in core.leading.members.items()
            if name in core.membership.voters
        ]
        name = to or (max(others)[2] if others else "")
        if name == core.name:
            return node_of(name)
        self.wake()
        if not core.leading.transfer(name):
            raise TransferFailed(f"{name or 'nobody else'} is no voter of group {self.group.name}")
        term = core.term
        self.after()
        patience = self.group.host.tick_seconds * core.settings.election_ticks * 2
        try:
            await self._until(lambda: core.term > term and core.leader not in {"", core.name}, patience)
        except TimeoutError:
            raise TransferFailed(f"{name} did not take over group {self.group.name}") from None
        return node_of(core.leader)

    def seize(self) -> None:
        """Become the only member of a group of two. See `Core.seize`."""
        assert not self.frozen and not self.group.stopped
        self.wake()
        self.core.seize()
        self.after()

    def _must_lead(self) -> None:
        if not self.group.serving:
            raise NotLeader(self.group.leader)

    async def _until(self, condition: Callable[[], bool], patience: float | None = None) -> None:
        """Wait for a change of this group after which `condition` holds. Raises NotLeader when the group ends,
        or (without `patience`) stops leading; TimeoutError."""
        runtime = self.group.host.runtime

        def over() -> bool:
            return condition() or self.group.stopped or (patience is None and not self.group.serving)

        deadline = None if patience is None else runtime.monotonic() + patience
        while not over():  # what was so when this was woken may have passed before its turn came
            waiting: asyncio.Future[None] = runtime.loop.create_future()
            timer = None
            if deadline is not None:
                timer = runtime.call_later(max(0.0, deadline - runtime.monotonic()), _time_out, waiting)
            self._waiting.append((over, waiting))
            try:
                await waiting
            finally:
                self._waiting = [pair for pair in self._waiting if pair[1] is not waiting]
                if timer is not None:
                    timer.cancel()
        if not condition():
            raise NotLeader(self.group.leader)

    def _notify(self) -> None:
        for over, waiting in self._waiting:
            if not waiting.done() and over():
                waiting.set_result(None)


def _time_out(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())
