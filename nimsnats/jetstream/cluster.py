"""How nodes become one JetStream, and how they leave it: no first node, no configuration.

Owns the membership of the meta group. Every node starts as a cluster of one. Nodes that have a route ask each other who
they are; a cluster without data gives itself up, one node after the other, and joins one that has some, or an older
one. Two clusters that both hold data never merge: both say so. What is registered and who is connected is the business
of `nimsnats.cluster`; this module sees only names of connected nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.mail import Mail, Unreachable
from nimsnats.jetstream.meta import META_PREFIX
from nimsnats.jetstream.peers import named
from nimsnats.jetstream.replicas import Replicas
from nimsnats.raft.machine import NotLeader
from nimsnats.raft.transport import node_of

if TYPE_CHECKING:
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.raft.machine import Group

_BUSY: Final = 0.1
_CALM: Final = 1.0
"""Seconds between two looks, while something is to be done and otherwise."""
_ABSENT: Final = 5.0
"""Seconds that a member must be lost to registry and routes before the others remove it."""
SAFE_SIZE: Final = 3
"""Up to this size a node that stops leaves its groups: the rest could not go on without it, or lose another one."""

Hello = dict[str, Any]


def founded(cluster: str) -> int:
    """When a cluster began, in nanoseconds, out of its meta group's name."""
    tail = cluster.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0


class Cluster:
    """This node's part in the cluster's membership."""

    def __init__(self, engine: JetStream, mail: Mail) -> None:
        self.engine = engine
        self.mail = mail
        self.me = mail.member
        self.joining = False
        """This node has given up its own cluster and is not yet a member of the other one."""
        self.conflicts: dict[str, str] = {}
        """Connected nodes whose cluster holds data as ours does: name -> their cluster."""
        self.gone: Callable[[str], bool] = lambda name: False
        """Whether a node, by name, has neither a registration nor a route (set by the node)."""
        self._connected: Callable[[], Mapping[str, str]] = dict
        self._replicas: Replicas | None = None
        self._coming: set[str] = set()
        self._evading: set[str] = set()
        """Members that hand their streams to others before they leave."""
        self._leaving: set[str] = set()
        self._absent: dict[str, float] = {}
        self._met: set[str] = set()
        self._announced = False
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        mail.listen("hello", self._on_hello)
        mail.listen("join", self._on_join)
        mail.listen("leave", self._on_leave)

    @property
    def group(self) -> Group:
        """The meta group."""
        return self.engine.meta.group

    @property
    def nodes(self) -> tuple[str, ...]:
        """Members that can hold replicas, those about to leave excepted."""
        return tuple(member for member in self.group.members if member not in self._leaving | self._evading)

    @property
    def several(self) -> bool:
        """Whether other nodes have a part in this cluster."""
        return self.joining or len(self.group.members) > 1 or self.me not in self.group.members

    def has_others(self) -> bool:
        """`several`, as a function to hand out."""
        return self.several

    @property
    def empty(self) -> bool:
        """Whether no stream of this cluster has ever held a message, as far as this node can tell."""
        for record in self.engine.meta.streams.values():
            served = self.engine.served(record)
            if served is None or served.stream.store.last_seq:
                return False
        return True

    # Life

    def opened(self) -> None:
        """The meta group is open (again)."""
        engine = self.engine
        self._replicas = Replicas(self.group, self._wanted, engine.runtime, engine.log)
        self.joining = self.me not in self.group.members

    def start(self, connected: Callable[[], Mapping[str, str]]) -> None:
        """Watch the nodes that `connected` names, and become one cluster with them."""
        self._connected = connected
        self._task = self.engine.runtime.spawn(self._run(), "cluster")

    async def close(self) -> None:
        """Change nothing more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._replicas is not None:
            await self._replicas.close()

    async def settle(self, patience: float) -> bool:
        """Wait until this node is a voting member of one cluster with every connected node; False when it takes too
        long, or they cannot be one."""
        deadline = self.engine.runtime.monotonic() + patience
        while not self._settled():
            if self.engine.runtime.monotonic() > deadline:
                return False
            self._wake.set()
            await self.engine.runtime.sleep(0.02)
        return True

    def _settled(self) -> bool:
        if self.joining or self.me not in self.group.members or not self.group.leader:
            return False
        names = {node_of(member) for member in self.group.members}
        return all(name in names or name in self.conflicts for name in self._connected())

    # One look after the other

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look()
            except (ApiError, NotLeader, Unreachable) as error:
                self.engine.log.debug("Cluster: %s", error)
            except Exception:
                self.engine.log.exception("The cluster's membership cannot be kept up")
            pause = _CALM if self._settled() and not self._leaving else _BUSY
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _look(self) -> None:
        names = {node_of(member) for member in (*self.group.members, *self.group.learners)}
        connected = list(self._connected())
        self.conflicts = {name: held for name, held in self.conflicts.items() if name in connected}
        for name in connected:
            if name in names and self.me in self.group.members and name in self._met:
                continue
            try:
                hello: Hello = await self.mail.ask(name, "hello", self._hello(), 0.5)
            except Unreachable:
                continue
            self._met.add(name)
            await self._meet(name, hello)
        self._met.intersection_update(connected)
        if self.several != self._announced:
            self._announced = self.several
            for account in self.engine.accounts.values():
                for served in account.streams.values():
                    served.announce()
        if self.joining:
            await self._ask_in(list(self._connected()))
        elif not self.group.leader:
            # an election; or the others have let us go while we were away, and nobody has told us
            await self._ask_for_place(list(self._connected()))
        elif self.group.leading:
            self._notice_gone()
            assert self._replicas is not None
            self._replicas.review()
            await self._rebalance()
        await self.engine.tidy()

    def _hello(self) -> Hello:
        return {
            "member": self.me,
            "cluster": self.group.name,
            "empty": self.empty,
            "joining": self.joining,
            "members": list(self.group.members),
            "leader": self.group.leader,
        }

    def _on_hello(self, sender: str, hello: Hello) -> Hello:
        if hello.get("cluster") != self.group.name:
            self._wake.set()
        return self._hello()

    async def _meet(self, name: str, theirs: Hello) -> None:
        """A connected node has told of its cluster: is it ours, do we join it, does it join us?"""
        mine = self.group.name
        if theirs["cluster"] == mine or theirs["joining"] or self.joining:
            self.conflicts.pop(name, None)
            return
        if not self.empty and not theirs["empty"]:
            if name not in self.conflicts:
                self.engine.log.error(
                    "Node %s belongs to another cluster and both hold data: they stay apart until the data of one of "
                    "them is removed",
                    name,
                )
            self.conflicts[name] = theirs["cluster"]
            return
        older = (founded(theirs["cluster"]), theirs["cluster"]) < (founded(mine), mine)
        if self.empty and (not theirs["empty"] or older):
            await self._join(theirs)

    # Joining

    async def _join(self, theirs: Hello) -> None:
        """Give up this node's own, empty cluster and wait for a place in the other one."""
        engine = self.engine
        engine.log.info("Joining the cluster of %s", ", ".join(node_of(member) for member in theirs["members"]))
        self.joining = True
        if self._replicas is not None:
            await self._replicas.close()
        await engine.give_up()
        await engine.open_meta(
            theirs["cluster"], [member for member in theirs["members"] if member != self.me] or ["-"]
        )
        self.joining = True
        await self._ask_in([node_of(theirs["member"])])

    async def _ask_in(self, names: list[str]) -> None:
        """Ask for a place until we have it."""
        if self.me in self.group.members:
            self.joining = False
            self.engine.log.info("Joined the cluster: %s", ", ".join(map(node_of, self.group.members)))
            return
        await self._ask_for_place(names)

    async def _ask_for_place(self, names: list[str]) -> None:
        """Ask the cluster's leader, through anyone who may know it. Who has a place keeps it."""
        leader = self.group.leader
        for name in [leader, *names] if leader else names:
            try:
                answer = await self.mail.ask(name, "join", [self.group.name, self.me], 0.5)
            except (Unreachable, ApiError):
                continue
            if answer:
                return

    async def _on_join(self, sender: str, body: list[Any]) -> bool:
        cluster, member = body
        if not isinstance(member, str):
            raise TypeError("a member's name is no text")
        if cluster != self.group.name or self.joining:
            raise errors.CLUSTER_NOT_LEADER()
        if not self.group.leading:
            leader = self.group.leader
            if not leader or leader in (node_of(sender), node_of(self.me)):
                raise errors.CLUSTER_NOT_LEADER()
            try:
                return await self.mail.ask(leader, "join", body, 0.4)
            except Unreachable as error:
                raise errors.CLUSTER_NOT_LEADER() from error
        self._coming.add(member)
        self._leaving.discard(member)
        self._evading.discard(member)
        self._absent.pop(member, None)
        self._wake.set()
        return True

    def _wanted(self) -> list[str]:
        """Who is to be in the meta group. Of two members with one node's name, only the newcomer is alive."""
        present = {*self.group.members, *self.group.learners, *self._coming}
        replaced = {
            member
            for member in present - self._coming
            if any(node_of(member) == node_of(new) for new in self._coming if new != member)
        }
        self._coming -= set(self.group.members)
        return sorted(present - replaced - self._leaving) or [self.me]

    # Leaving

    async def leave(self, patience: float) -> None:
        """Before this node stops: hand over what it leads, and leave the groups that are safer without it."""
        engine = self.engine
        if not self.several or self.joining:
            return
        deadline = engine.runtime.monotonic() + patience
        if len(self.group.members) <= SAFE_SIZE:
            for step in (self._streams_left, self._catalogue_left):
                while engine.runtime.monotonic() < deadline and not await step():
                    await engine.runtime.sleep(_BUSY / 4)
        await engine.hand_over()

    async def _streams_left(self) -> bool:
        """Have the catalogue's leader give our streams to others; whether their groups have let us go."""
        with suppress(Unreachable, ApiError):
            await self._tell_leader("evade")
        for account in list(self.engine.accounts.values()):
            for served in list(account.streams.values()):
                if served.record.members != [self.me] and (
                    self.engine.holds(served.record) or self.me in await self.engine.leaders.members(served.record)
                ):
                    return False
        return True

    async def _catalogue_left(self) -> bool:
        """Have the catalogue's leader let us go, too."""
        with suppress(Unreachable, ApiError):
            return await self._tell_leader("leave")
        return False

    async def _tell_leader(self, step: str) -> bool:
        if self.group.leading:
            return await self._on_leave(self.me, [step, self.me])
        return (
            bool(await self.mail.ask(self.group.leader, "leave", [step, self.me], 1.0)) if self.group.leader else False
        )

    async def _on_leave(self, sender: str, body: list[str]) -> bool:
        """A member prepares to leave ("evade"), or leaves. Answers whether it is out."""
        step, member = body
        if not self.group.leading:
            raise errors.CLUSTER_NOT_LEADER()
        chosen = self._evading if step == "evade" else self._leaving
        if member in self.group.members and member not in chosen:
            # those who are away cannot agree to anything: they leave first, or the rest has no majority
            chosen.update(other for other in self.group.members if self.engine.host.is_lost(other))
            chosen.add(member)
            self._coming.discard(member)
            await self._rebalance()
        self._wake.set()
        return member not in (*self.group.members, *self.group.learners)

    def _notice_gone(self) -> None:
        """Members that registry and routes have lost for long enough leave."""
        now = self.engine.runtime.monotonic()
        self._leaving.intersection_update({*self.group.members, *self.group.learners})
        self._evading.intersection_update(self.group.members)
        for member in self.group.members:
            if member == self.me or not self.gone(node_of(member)):
                self._absent.pop(member, None)
            elif now - self._absent.setdefault(member, now) > _ABSENT and member not in self._leaving:
                self.engine.log.warning("Node %s is gone: it leaves the cluster", node_of(member))
                self._leaving.add(member)

    # Placement follows

    async def _rebalance(self) -> None:
        """Give every stream the members that it should have now."""
        engine = self.engine
        for record in list(engine.meta.streams.values()):
            config = StreamConfig.from_stored(record.config)
            members = engine.placement.replace(record, config)
            if members != record.members and engine.meta.streams.get(record.key) is record:
                await engine.meta.update(record.key, record.config, members)

    async def remove(self, name: str) -> None:
        """Remove a node by its name or peer id (an operator's wish). Raises ApiError 10044."""
        found = [member for member in self.group.members if named(member, name) and member != self.me]
        if not found:
            raise errors.CLUSTER_SERVER_NOT_MEMBER()
        self._leaving.update(found)
        self._wake.set()


def cluster_id(instance: str, now_ns: int) -> str:
    """The name of a new cluster's meta group."""
    return f"{META_PREFIX}-{instance}-{now_ns}"
