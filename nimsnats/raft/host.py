"""Drives many Raft groups on one loop: one disk sync a tick for all of them, one timer.

Owns the groups and the order in which things happen: propose, make durable, commit, apply. What Raft decides
is `core`'s, what one group keeps is `group.py`'s, how bytes reach the disk is `storage`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

from nimsnats.raft.group import Durable, HostedGroup, Memory
from nimsnats.raft.machine import Group, StateMachine
from nimsnats.raft.membership import Membership
from nimsnats.raft.recovery import recover
from nimsnats.raft.transport import Transport, member_name
from nimsnats.runtime import Runtime
from nimsnats.storage.interface import Storage

Mark = tuple[HostedGroup, int, int]
"""A group, and the index and term up to which its log has been handed to storage."""

_STOP_PATIENCE: Final = 4.0


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
    ) -> None:
        self.node_name = node_name
        self.member = member_name(node_name, instance)
        """What groups call this node: `node@instance`."""
        self.transport: Transport | None = None
        """Set by the owner before the first group of several members is opened."""
        self.runtime = runtime
        self.storage = storage
        self.log = log or logging.getLogger("nimsnats.raft")
        self._groups: dict[str, HostedGroup] = {}
        self._opening: set[str] = set()
        self._dirty: dict[HostedGroup, None] = {}
        self._due: deque[HostedGroup] = deque()
        self._flushing = False
        self._stopped = False

    def recorded_groups(self) -> list[str]:
        """Names of the file groups that storage knows, in order of creation."""
        return self.storage.group_names()

    def groups(self) -> list[HostedGroup]:
        """The groups that are open now."""
        return list(self._groups.values())

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
        self._opening.add(name)
        try:
            if storage == "memory":
                group = HostedGroup(name, machine, self, Memory())
            else:
                group = await self._open_file(name, machine)
        finally:
            self._opening.discard(name)
        self._groups[name] = group
        group.lead()
        return group

    async def _open_file(self, name: str, machine: StateMachine) -> HostedGroup:
        stored = await self.storage.load_group(name)
        if stored is None:
            members = Membership(frozenset({self.node_name})).encode()
            number = self.storage.create_group(name, 1, self.node_name, members)
            await self.synced()
            return HostedGroup(name, machine, self, Durable(self.storage, number))
        group = HostedGroup(name, machine, self, Durable(self.storage, stored.id))
        if await recover(group, stored, self.storage, self.log):
            group.compact()  # so that the loss becomes part of the state, and is told once
            await self.synced()
        return group

    async def remove_group(self, name: str) -> None:
        """End a group and destroy what it stored. Raises StorageFull, StorageFailed."""
        group = self._groups.pop(name, None)
        if group is not None:
            group.stop("the group was removed")
            if not group.durable:
                return
        stored = await self.storage.load_group(name)
        if stored is not None:
            self.storage.remove_group(stored.id)
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
                    group.compact()
                    await asyncio.sleep(0)
            await self.synced()
        except Exception as error:
            self.log.warning("Stopping without a last snapshot: %s", error)
        for group in self._groups.values():
            group.stop("the node is stopping")
        self._groups.clear()

    def receive(self, peer: str, frame: bytes) -> None:
        """A frame has come from another node. `peer` is the node's name as the transport knows it ("" when it
        does not). Never raises; what is not right is refused, counted, and logged once a peer."""

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
            index, term = group.flush()
            if group.durable:
                marks.append((group, index, term))
            else:
                group.stored(index, term)
        if marks:
            self.storage.sync(partial(self._stored, marks))

    def _stored(self, marks: list[Mark], error: Exception | None) -> None:
        for group, index, term in marks:
            if error is None:
                group.stored(index, term)
            else:
                group.not_stored(error)

    def compact_soon(self, group: HostedGroup) -> None:
        """A snapshot of the group is due; one group a turn of the loop, so that nobody waits for all of
        them."""
        self._due.append(group)
        if len(self._due) == 1:
            self.runtime.call_later(0, self._compact_next)

    def _compact_next(self) -> None:
        group = self._due.popleft()
        if group.serving:
            group.compact()
        if self._due:
            self.runtime.call_later(0, self._compact_next)

    async def synced(self) -> None:
        """Wait until everything queued is durable. Raises StorageFull, StorageFailed."""
        waiting: asyncio.Future[None] = self.runtime.loop.create_future()
        self.storage.sync(partial(_settle, waiting))
        await waiting


def _settle(waiting: asyncio.Future[None], error: Exception | None) -> None:
    if waiting.done():
        return
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)
