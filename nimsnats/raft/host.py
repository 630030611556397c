"""Drives many Raft groups on one loop: one disk sync a tick for all of them, one timer.

Owns the groups and the order in which things happen: propose, make durable, commit, apply. What Raft decides
is `core`'s, what one group keeps is `group.py`'s, how bytes reach the disk is `storage`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal

from nimsnats.raft.core import HardState, Settings
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.home import MEMORY_MARK, PROVISIONAL_MARK, STAGED_MARK, Durable, Memory
from nimsnats.raft.machine import Group, StateMachine
from nimsnats.raft.membership import Membership
from nimsnats.raft.message import Kind, Message
from nimsnats.raft.peers import Peers
from nimsnats.raft.recovery import bring_back, forget
from nimsnats.raft.transport import Transport, member_name, node_of
from nimsnats.raft.wire import Frame, Item, Malformed, WrongVersion, decode
from nimsnats.runtime import Runtime
from nimsnats.storage.interface import Storage

Mark = tuple[HostedGroup, int, int, Sequence[Message]]
"""A group, the index and term up to which its log has been handed to storage, and the messages that wait for
it."""
_NONE: Final[Sequence[Message]] = ()
_GREET_TICKS: Final = 2
_ACQUAINTANCES_TICKS: Final = 20

_STOP_PATIENCE: Final = 4.0
_EARLY_VOTES: Final = 8
"""Frames with requests for votes that wait until a group is open; a founder may ask before another one is ready."""


class Host:
    """All groups of a node."""

    def __init__(
        self,
        storage: Storage,
        runtime: Runtime,
        node_name: str,
        log: logging.Logger | None = None,
        *,
        instance: str = "",
        tick_seconds: float = 0.1,
        settings: Settings | None = None,
    ) -> None:
        self.node_name = node_name
        self.member = member_name(node_name, instance)
        """What groups call this node: `node@instance`."""
        self.transport: Transport | None = None
        """Set by the owner before the first group of several members is opened."""
        self.runtime = runtime
        self.storage = storage
        self.log = log or logging.getLogger("nimsnats.raft")
        self.tick_seconds = tick_seconds
        self.settings = settings or Settings()
        self.peers = Peers(self.member, runtime, self.log, lambda: self.transport)
        self.lost_peers: set[str] = set()
        """Peers that have been silent for longer than an election takes."""
        self.counts: Counter[str] = Counter()
        """How often groups of several asked for votes, were led and left here, lost entries and got them back, and
        snapshots were taken and received."""
        self._ticking: dict[HostedGroup, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._acquaintances: list[str] = []
        self._groups: dict[str, HostedGroup] = {}
        self._opening: dict[str, list[tuple[str, list[Item]]]] = {}
        """Groups that are being opened, and who asked them for a vote meanwhile."""
        self._dirty: dict[HostedGroup, None] = {}
        self._due: deque[HostedGroup] = deque()
        self._flushing = False
        self._stopped = False

    def recorded_groups(self) -> list[str]:
        """Names of the file groups that storage knows, in order of creation."""
        marks = {MEMORY_MARK, STAGED_MARK, PROVISIONAL_MARK}
        return [name for name in self.storage.group_names() if name[0] not in marks]

    async def clear_provisional(self) -> None:
        """Destroy what was being filled when the last process ended. Raises StorageFull, StorageFailed."""
        for name in self.storage.group_names():
            if name.startswith(PROVISIONAL_MARK):
                await self._clear(name)

    async def rename_group(self, name: str, new: str) -> None:
        """Give an open group of one its final name, durably. Raises StorageFull, StorageFailed."""
        group = self._groups[name]
        assert group.alone and new not in self._groups
        if isinstance(group.home, Durable):
            self.storage.rename_group(group.home.number, new)
            await self.synced()
        del self._groups[name]
        self._groups[new] = group.rename(new)

    @property
    def stopping(self) -> bool:
        """Whether this node answers nobody any more."""
        return self._stopped

    def groups(self) -> list[HostedGroup]:
        """The groups that are open now."""
        return list(self._groups.values())

    def group(self, name: str) -> HostedGroup | None:
        """The open group of this name."""
        return self._groups.get(name)

    async def open_group(
        self,
        name: str,
        machine: StateMachine,
        *,
        storage: Literal["file", "memory"] = "file",
        members: Sequence[str] | None = None,
    ) -> Group:
        """Create a group or recover it: `restore`, `apply` for every entry of the log, `damaged` where some
        are lost.

        `members` are the *founders* (`node@instance`), the same on every member and for ever: they only count
        where nothing is recorded yet. None means this node alone. A node that is not among them joins: it
        waits, without a vote, for the leader to feed it after `Group.change_members`.

        A member of a group of one leads when this returns, and everything recorded is applied. Otherwise the
        leader's word decides what of the record is committed: `apply` and `leadership` come later.
        Raises StorageFull, StorageFailed, Corrupt.
        """
        assert not self._stopped and name not in self._groups and name not in self._opening
        self._opening[name] = []
        try:
            founders = frozenset(members) if members is not None else frozenset({self.member})
            assert founders
            opener = self._open_memory if storage == "memory" else self._open_recorded
            group = await opener(name, machine, founders)
        finally:
            early = self._opening.pop(name)
        self._groups[name] = group
        if not group.alone:
            self.tick_on(group)
            group.replica.after()
            for sender, votes in early:
                self._step(group, sender, votes)
        return group

    async def _open_recorded(self, name: str, machine: StateMachine, founders: frozenset[str]) -> HostedGroup:
        """A file group, new or recovered."""
        storage = self.storage
        await self._clear(STAGED_MARK + name)
        stored = await storage.load_group(name)
        if stored is None:
            number = storage.create_group(name, *self._beginning(founders))
            await self.synced()
            return self._found(HostedGroup(name, machine, self, Durable(storage, number)), founders)
        group = HostedGroup(name, machine, self, Durable(storage, stored.id))
        await bring_back(group, stored, founders)
        return group

    async def _open_memory(self, name: str, machine: StateMachine, founders: frozenset[str]) -> HostedGroup:
        """A memory group. Its log has gone with the last process; what is recorded tells that there was one."""
        storage, record = self.storage, MEMORY_MARK + name
        group = HostedGroup(name, machine, self, Memory(storage))
        stored = await storage.load_group(record)
        if stored is not None and self._alone(founders):
            await self._clear(record)
        elif stored is not None:
            group.home.number = stored.id
            forget(group, stored)
            group.follow(impaired=True, pledge=None)
            return group
        elif not self._alone(founders):
            group.home.number = storage.create_group(record, *self._beginning(founders))
            await self.synced()
        return self._found(group, founders)

    def _alone(self, founders: frozenset[str]) -> bool:
        return len(founders) == 1 and self.member in founders

    def _beginning(self, founders: frozenset[str]) -> tuple[int, str, bytes]:
        """Term, vote and membership of a new group; a member that joins knows nobody yet."""
        if self._alone(founders):
            return 1, self.member, Membership(founders).encode()
        return 0, "", Membership(founders if self.member in founders else frozenset()).encode()

    def _found(self, group: HostedGroup, founders: frozenset[str]) -> HostedGroup:
        """A new group stands at nothing."""
        term, vote, members = self._beginning(founders)
        group.membership = Membership.decode(members)
        group.position(HardState(term, vote), 0, 0, 0)
        if self._alone(founders):
            group.lead()
        else:
            group.follow(impaired=False, pledge=None)
        return group

    async def _clear(self, name: str) -> None:
        """Remove what is stored under a name of our own."""
        if name in self.storage.group_names():
            stored = await self.storage.load_group(name)
            if stored is not None:
                self.storage.remove_group(stored.id)

    def enlist(self, group: HostedGroup) -> None:
        """A memory group of one gets company: from now on its votes are recorded."""
        if isinstance(group.home, Memory) and not group.home.number:
            term, vote = group.hard_state()
            group.home.number = self.storage.create_group(MEMORY_MARK + group.name, term, vote, b"")

    async def remove_group(self, name: str) -> None:
        """End a group and destroy what it stored. Raises StorageFull, StorageFailed."""
        group = self._groups.pop(name, None)
        if group is not None:
            group.stop("the group was removed")
            await ended(group.replica.tasks())
        for each in (name, MEMORY_MARK + name, STAGED_MARK + name):
            await self._clear(each)
        await self.synced()

    async def stop(self) -> None:
        """Let what is proposed become durable, store snapshots so that the next start is short, end all
        groups."""
        self._stopped = True
        deadline = self.runtime.monotonic() + _STOP_PATIENCE
        self._flush()
        try:
            await self.synced()
            for group in self._groups.values():
                if self.runtime.monotonic() < deadline:
                    self._compact(group)
                    await asyncio.sleep(0)
            await self.synced()
        except Exception as error:
            self.log.warning("Stopping without a last snapshot: %s", error)
        if self._timer is not None:
            self._timer.cancel()
        for group in self._groups.values():
            group.stop("the node is stopping")
            await ended(group.replica.tasks())
        self._groups.clear()

    def abandon(self) -> None:
        """End at once and write nothing more, as a crash would. For simulations."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for group in self._groups.values():
            group.stopped = True
            group.replica.stop()
        self._dirty.clear()
        self._groups.clear()

    # Hearing --------------------------------------------------------------------------------------

    def receive(self, peer: str, frame: bytes) -> None:
        """A frame has come from another node. `peer` is the node's name as the transport knows it ("" when it
        does not). Never raises; what is not right is refused, counted (`peers.refused`), and logged once a
        peer and reason."""
        if self._stopped:
            return
        try:
            found = decode(frame)
        except WrongVersion as error:
            self.peers.refuse(peer, "frame of another version", str(error))
            return
        except Malformed as error:
            self.peers.refuse(peer, "malformed frame", str(error))
            return
        sender = found.sender
        if found.receiver != self.member:
            self.peers.refuse(sender, "frame for another instance", found.receiver[:64])
        elif sender == self.member or (peer and node_of(sender) != peer):
            self.peers.refuse(peer or sender, "frame under a wrong name", sender[:64])
        else:
            self._hear(sender, found)

    def _hear(self, sender: str, frame: Frame) -> None:
        news = self.peers.heard(sender, frame.incarnation)
        if news is None:
            self.peers.refuse(sender, "frame of an earlier process")
            return
        if news:
            self.lost_peers.discard(sender)
            self._tell_groups({sender}, lost=False)
        for name, items in frame.groups:
            group = self._groups.get(name)
            if group is not None:
                self._step(group, sender, items)
            elif name not in self._opening:
                self.peers.refuse_unknown(sender, name)
            elif len(self._opening[name]) < _EARLY_VOTES:
                self._opening[name].append((sender, [item for item in items if _asks(item)]))

    def _step(self, group: HostedGroup, sender: str, items: Sequence[Item]) -> None:
        try:
            group.replica.step(sender, items)
        except Exception as error:
            # Whatever it said, it must not end what is none of its business.
            self.runtime.fence.caught(group.replica.step, error)
            self.peers.refuse(sender, "message that made an error", f"group {group.name}")

    # Time -----------------------------------------------------------------------------------------

    def tick_on(self, group: HostedGroup) -> None:
        """The group wants to be ticked."""
        self._ticking[group] = None
        if self._timer is None and not self._stopped:
            self._timer = self.runtime.call_later(self.tick_seconds, self._tick)

    def rest(self, group: HostedGroup) -> None:
        """The group needs no ticks."""
        self._ticking.pop(group, None)

    def _tick(self) -> None:
        self._timer = self.runtime.call_later(self.tick_seconds, self._tick)
        self._ticks += 1
        if self._ticks % _GREET_TICKS == 0:
            if self._ticks % _ACQUAINTANCES_TICKS == 0:
                self._acquaintances = sorted(self._all_members())
            try:
                self.peers.greet(self._acquaintances)
            except Exception as error:
                self.runtime.fence.caught(self.peers.greet, error)
        ticks = self.settings.election_ticks
        lost = self.peers.silent(self.tick_seconds * ticks, self.tick_seconds * (_GREET_TICKS + 1))
        if lost:
            self.lost_peers.update(lost)
            self._tell_groups(set(lost), lost=True)
        for group in list(self._ticking):
            try:
                group.replica.tick()
            except Exception as error:
                self.runtime.fence.caught(group.replica.tick, error)

    def _all_members(self) -> set[str]:
        """Who shares a group with this node."""
        everyone: set[str] = set()
        for group in self._groups.values():
            if not group.alone:
                everyone |= group.core.membership.everyone
        return everyone - {self.member}

    def _tell_groups(self, names: set[str], lost: bool) -> None:
        for group in list(self._groups.values()):
            if not group.alone:
                try:
                    group.replica.peer_news(names, lost)
                except Exception as error:
                    self.runtime.fence.caught(group.replica.peer_news, error)

    def suspect(self, node: str) -> None:
        """The transport has lost its way to a node. If it is not heard of at once, over another one, it counts as
        lost: what it led elects a new leader without waiting for as long as silence alone would take."""
        self.peers.suspect(node)

    def is_lost(self, name: str) -> bool:
        """Whether a peer is not heard of: for longer than an election takes, or since the way there broke."""
        return name in self.lost_peers

    # Driving --------------------------------------------------------------------------------------

    def mark(self, group: HostedGroup) -> None:
        """A group has something to write; all groups marked in one turn of the loop go to disk together."""
        self._dirty[group] = None
        if not self._flushing:
            self._flushing = True
            self.runtime.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self._dirty:
            return
        groups, self._dirty = self._dirty, {}
        marks: list[Mark] = []
        for group in groups:
            try:
                if group.alone:
                    index, term = group.flush()
                    messages, durable = _NONE, group.durable
                elif group.stopped or group.replica.frozen:
                    continue
                else:
                    index, term, messages, durable = group.replica.flush()
                if durable:
                    marks.append((group, index, term, messages))
                else:
                    group.stored(index, term, messages)
            except Exception as error:
                self._give_up(group, group.flush, error)
        if marks:
            self.storage.sync(partial(self._stored, marks))

    def _stored(self, marks: list[Mark], error: Exception | None) -> None:
        for group, index, term, messages in marks:
            try:
                if error is None:
                    group.stored(index, term, messages)
                else:
                    group.not_stored(error)
            except Exception as bug:
                self._give_up(group, group.stored, bug)

    def _give_up(self, group: HostedGroup, place: Callable[..., object], error: Exception) -> None:
        """An error of ours in the middle of writing: what this group's log holds is not known any more, so the group
        stops, as one does that cannot apply an entry. The others of this node go on."""
        self.runtime.fence.caught(place, error)
        self.runtime.fence.run(group.fail, "its log cannot be written")

    def compact_soon(self, group: HostedGroup) -> None:
        """A snapshot of the group is due; one group a turn of the loop, so that nobody waits for all of
        them."""
        self._due.append(group)
        if len(self._due) == 1:
            self.runtime.call_later(0, self._compact_next)

    def _compact_next(self) -> None:
        group = self._due.popleft()
        if group.applying and group.serving:
            self._due.append(group)
        elif group.serving:
            self._compact(group)
        if self._due:
            self.runtime.call_later(0, self._compact_next)

    def _compact(self, group: HostedGroup) -> None:
        """Take a snapshot; where that is not possible, the log grows until the next one is due."""
        try:
            group.compact()
        except Exception as error:
            self.runtime.fence.caught(group.compact, error)

    async def synced(self) -> None:
        """Wait until everything queued is durable. Raises StorageFull, StorageFailed."""
        waiting: asyncio.Future[None] = self.runtime.loop.create_future()
        self.storage.sync(partial(_settle, waiting))
        await waiting


def _asks(item: Item) -> bool:
    """Whether this asks for a vote."""
    return isinstance(item, Message) and item.kind in {Kind.VOTE, Kind.PRE_VOTE}


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    """Wait for cancelled tasks."""
    await asyncio.gather(*tasks, return_exceptions=True)


def _settle(waiting: asyncio.Future[None], error: Exception | None) -> None:
    if waiting.done():
        return
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)
