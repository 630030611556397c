"""How nodes become one JetStream, and how they leave it: no first node, no configuration.

Owns the membership of the meta group. Every node starts as a cluster of one. Nodes that have a route ask each other who
they are; `formation.py` decides what follows, and this module does it: give a cluster up, move to another, ask for a
place. The member that leads keeps the list of who is to be there (`roster.py`), and placement follows. What is
registered and who is connected is the business of `nimsnats.cluster`; this module sees only names of connected nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.body import Nonsense, fields
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.formation import (
    Decision,
    Hello,
    Situation,
    Step,
    cluster_id,
    conflicts,
    decide,
    given_up,
    recovered,
)
from nimsnats.jetstream.mail import Mail, Unreachable
from nimsnats.jetstream.meta import Key, StreamRecord
from nimsnats.jetstream.peers import named
from nimsnats.jetstream.replicas import Replicas
from nimsnats.jetstream.roster import Roster
from nimsnats.raft.machine import NotLeader
from nimsnats.raft.transport import node_of
from nimsnats.storage import StorageError

if TYPE_CHECKING:
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.raft.machine import Group

_BUSY: Final = 0.1
_CALM: Final = 1.0
"""Seconds between two looks, while something is to be done and otherwise."""
_PATIENCE: Final = 0.5
"""Seconds to wait for another node's answer."""
_BEGINNING: Final = 1.0
"""Seconds that a node which leaves gives itself to begin what it has just been given."""
_WAIT: Final = 3.0
"""Seconds without any member of the cluster that this node wants to join until it looks for another one."""


class Cluster:
    """This node's part in the cluster's membership."""

    def __init__(self, engine: JetStream, mail: Mail) -> None:
        self.engine = engine
        self.mail = mail
        self.me = mail.member
        self.conflicts: dict[str, str] = {}
        """Connected nodes whose cluster holds data as ours does: name -> their cluster."""
        self.gone: Callable[[str], bool] = lambda name: False
        """Whether a node, by name, has neither a registration nor a route (set by the node)."""
        self.replaceable: Callable[[Key, Sequence[str]], bool] = lambda key, consumers: False
        """Whether this node makes a stream with these consumers anew wherever it is (set by the node): as long as it
        has never held a message, it is no reason to keep a cluster of one."""
        self.on_moved: Callable[[], None] = lambda: None
        """Called when this node has left its cluster, with every stream, and belongs to another one (set by the
        node)."""
        self.stopping = False
        """This node leaves: what it holds stays on its disk, for when it comes back."""
        self._connected: Callable[[], Mapping[str, str]] = dict
        self._replicas: Replicas | None = None
        self._roster = Roster(self.me, engine.runtime, engine.host.is_lost, self._is_gone)
        self._hellos: dict[str, Hello] = {}
        """What connected nodes have said, by name."""
        self._given_up: frozenset[str] = frozenset()
        self._sought = 0.0
        """When a member of the cluster that we want to join was last seen, or we began to want it."""
        self._waiting = False
        self._announced = False
        self._balanced: object = None
        """The situation in which every stream has the members that it should have."""
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
        return self._roster.staying(self.group.members)

    @property
    def joining(self) -> bool:
        """Whether this node is not a member of its cluster: not yet, or not any more."""
        return self.me not in self.group.members

    @property
    def several(self) -> bool:
        """Whether other nodes have a part in this cluster."""
        return self.joining or len(self.group.members) > 1

    def _is_gone(self, name: str) -> bool:
        return self.gone(name)

    def has_others(self) -> bool:
        """`several`, as a function to hand out."""
        return self.several

    # Life

    def opened(self) -> None:
        """The meta group is open (again)."""
        engine = self.engine
        self._replicas = Replicas(self.group, lambda: self._roster.wanted(self.group), engine.runtime, engine.log)
        engine.meta.on_given_up = self._wake.set
        self._roster.forget()
        self._hellos.clear()
        self._sought = engine.runtime.monotonic()
        self._waiting = self.joining

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
        if self.joining or not self.group.leader or self.engine.meta.given_up is not None:
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
            except StorageError as error:
                self.engine.log.warning("The cluster's membership has to wait: %s", error)
            except Exception as error:
                self.engine.runtime.fence.caught(self._look, error)
            pause = _CALM if self._settled() and not self._roster.restless else _BUSY
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _look(self) -> None:
        if self.stopping:
            if self.group.leading:
                await self._keep_up()
            return
        own = self.hello()
        others = await self._ask_around(own)
        self._given_up = given_up(own, others.values())
        self._note_conflicts(own, others.values())
        decision = decide(self._situation(own, others.values()), others.values())
        if decision.step is not Step.STAY:
            await self._follow(decision)
            return
        self._note_place()
        if self.several != self._announced:
            self._announced = self.several
            for account in self.engine.accounts.values():
                for served in account.streams.values():
                    served.announce()
        if self.joining or not self.group.leader or any(map(self._has_no_place, others.values())):
            # an election; or the others have let us go while we were away, and nobody else has told us
            await self._ask_for_place(others)
        if self.group.leading:
            await self._keep_up()
        else:
            self._roster.forget()
        await self.engine.tidy()

    def hello(self) -> Hello:
        """What this node tells of its cluster."""
        members = tuple(self.group.members)
        return Hello(
            self.me, self.group.name, not self.joining, self._holds_data(), members, self.group.leader, self._given_up
        )

    def _holds_data(self) -> bool:
        """Whether the cluster holds, as far as this node can tell, what must not be thrown away: any stream."""
        meta = self.engine.meta
        if meta.incomplete or self.group.impaired:
            return True
        alone = self.group.members == (self.me,)
        for record in meta.streams.values():
            if not (alone and self._never_used(record)):
                return True
        return bool(self.engine.strays())

    def _never_used(self, record: StreamRecord) -> bool:
        """Whether a stream here has never held anything and is made anew wherever this node is."""
        served = self.engine.served(record)
        if served is None or served.stream.store.last_seq:
            return False
        return self.replaceable(record.key, served.stream.consumers.names())

    async def _ask_around(self, own: Hello) -> dict[str, Hello]:
        """Ask the connected nodes who they are; members of our own cluster only once, as long as it has a leader."""
        connected = list(self._connected())
        self._hellos = {name: hello for name, hello in self._hellos.items() if name in connected}
        settled = own.joined and own.leader
        known = {
            name
            for name, hello in self._hellos.items()
            if hello.joined and hello.cluster == own.cluster and not self._has_no_place(hello)
        }
        asked = [name for name in connected if not (settled and name in known)]
        await asyncio.gather(*(self._ask_who(name, own) for name in asked))
        return {name: self._hellos[name] for name in connected if name in self._hellos}

    async def _ask_who(self, name: str, own: Hello) -> None:
        self._hellos.pop(name, None)  # what it said before may not be true any more
        try:
            answer = await self.mail.ask(name, "hello", own.pack(), _PATIENCE)
            self._hellos[name] = Hello.unpack(answer)
        except (Unreachable, ApiError):
            return
        except Nonsense:
            self.mail.refused += 1

    def _on_hello(self, sender: str, body: Any) -> list[Any]:
        theirs = Hello.unpack(body)
        self._meet(sender)
        apart = theirs.cluster != self.group.name or self._has_no_place(theirs)
        # two that stay apart ask each other again and again: who is told nothing new does not ask back at once
        if apart and self._hellos.get(node_of(sender)) != theirs:
            self._hellos.pop(node_of(sender), None)
            self._wake.set()
        return self.hello().pack()

    def _has_no_place(self, theirs: Hello) -> bool:
        """Whether a member of our cluster that has a leader does not count us among its members."""
        same = theirs.joined and theirs.cluster == self.group.name and self.me in self.group.members
        return same and bool(theirs.leader) and self.me not in theirs.members

    def _meet(self, member: str) -> None:
        """A member speaks: what its node has said with another disk is of no account any more."""
        known = self._hellos.get(node_of(member))
        if known is not None and known.member != member:
            del self._hellos[node_of(member)]

    def _situation(self, own: Hello, others: Iterable[Hello]) -> Situation:
        now = self.engine.runtime.monotonic()
        if own.joined or any(other.joined and other.cluster == own.cluster for other in others):
            self._sought = now
        return Situation(
            own,
            leading=self.group.leading,
            bound=self.group.term > 0,
            waited=now - self._sought > _WAIT,
            released=self.engine.meta.given_up is not None,
            guarded=bool(self.engine.strays()),
        )

    def _note_conflicts(self, own: Hello, others: Collection[Hello]) -> None:
        """A conflict is over when the other node says so, or is gone for good. That it does not answer for once proves
        nothing."""
        apart = conflicts(own, others)
        without_us = {node_of(other.member) for other in others if other.member in apart and recovered(own, other)}
        found = {node_of(member): cluster for member, cluster in apart.items()}
        if own.joined:
            silent = self.conflicts.keys() - {node_of(other.member) for other in others}
            found |= {name: self.conflicts[name] for name in sorted(silent) if not self._is_gone(name)}
        for name in sorted(found.keys() - self.conflicts.keys()):
            if name in without_us:
                self.engine.log.error(
                    "Node %s was a member of this cluster and has gone on without it, with other data: this node is "
                    "refused there until its data directory is emptied (`nimsnats export` saves what only it holds)",
                    name,
                )
            else:
                self.engine.log.error(
                    "Node %s belongs to another cluster and both hold data: they stay apart until one gives way. Save "
                    "what only one of them has (`nimsnats backup`), stop it, move its data directory away, start it "
                    "again, and restore",
                    name,
                )
        for name in sorted(self.conflicts.keys() - found.keys()):
            self.engine.log.info("Node %s and this one need not stay apart any more", name)
        self.conflicts = found

    def _note_place(self) -> None:
        """Say when this node has got a place that it waited for."""
        if self._waiting and not self.joining:
            self.engine.log.info("Joined the cluster: %s", ", ".join(map(node_of, self.group.members)))
            self.on_moved()
        self._waiting = self.joining

    # Moving from one cluster to another

    async def _follow(self, decision: Decision) -> None:
        target = decision.target
        if decision.step is Step.GIVE_UP:
            assert target is not None
            await self._give_up(target)
        else:
            await self._move(target)
        self._wake.set()

    async def _give_up(self, target: Hello) -> None:
        """Propose to give up this cluster, which holds nothing. Its members move once they have applied that."""
        engine = self.engine
        records = list(engine.meta.streams.values())
        if records and not await engine.emptied(records, self._never_used):
            return
        try:
            await engine.meta.give_up(target.cluster, target.members, [record.group for record in records])
        finally:
            if engine.meta.given_up is None:
                engine.resume(records)
        if engine.meta.given_up is not None:
            engine.log.info("Giving up this cluster for that of %s", ", ".join(map(node_of, target.members)))

    async def _move(self, target: Hello | None) -> None:
        """Leave this cluster, of which nothing is left to keep, for the target's or for a new one."""
        engine = self.engine
        before = self.group.name
        if self._replicas is not None:
            await self._replicas.close()
        if engine.meta.given_up is not None:
            self._given_up |= {before}  # for those who have missed it
        await engine.give_up()
        if target is None:
            engine.log.info("Beginning a new cluster")
            instance = self.me.rpartition("@")[2]
            await engine.open_meta(cluster_id(instance, engine.runtime.time_ns()), None)
            self.on_moved()
        else:
            engine.log.info("Joining the cluster of %s", ", ".join(map(node_of, target.members)))
            await engine.open_meta(target.cluster, [name for name in target.members if name != self.me] or ["-"])

    async def _ask_for_place(self, others: Mapping[str, Hello]) -> None:
        """Ask the cluster's leader, through anyone who may know it. Who has a place keeps it."""
        same = {name: hello for name, hello in others.items() if hello.cluster == self.group.name}
        leaders = [self.group.leader, *(hello.leader for hello in same.values())]
        for name in dict.fromkeys([*leaders, *(name for name, hello in same.items() if hello.joined)]):
            if name in ("", node_of(self.me)):
                continue
            try:
                answer = await self.mail.ask(name, "join", [self.group.name, self.me], _PATIENCE)
            except (Unreachable, ApiError):
                continue
            if answer:
                return

    async def _on_join(self, sender: str, body: Any) -> bool:
        cluster, member = fields(body, str, str)
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
        self._meet(member)
        if member in self.group.members:
            self.group.wake()  # it has not heard from us, and may not even know its peers any more
        self._roster.comes(member, self.group)
        self._wake.set()
        return True

    # The leader's work

    async def _keep_up(self) -> None:
        """Bring members and streams to what they should be."""
        for hello in self._hellos.values():
            if hello.joined and hello.cluster == self.group.name:
                self._roster.speaks(hello.member, self.group)
        for member in self._roster.review(self.group):
            self.engine.log.warning("Node %s is gone: it leaves the cluster", node_of(member))
        assert self._replicas is not None
        self._replicas.review()
        await self._rebalance()

    # Leaving

    async def leave(self, patience: float) -> None:
        """Before this node stops: hand over what it leads, and leave the groups that are safer without it."""
        engine = self.engine
        if not self.several or self.joining:
            return
        self.stopping = True
        deadline = engine.runtime.monotonic() + patience
        leaves = not await self._may_halt()
        await self._take(self._begun, min(deadline, engine.runtime.monotonic() + _BEGINNING))
        if leaves or any(self._needs_us(record.members) for record in engine.meta.streams.values()):
            await self._take(self._streams_left, deadline)
        if leaves:
            await self._take(self._catalogue_left, deadline)
        await engine.hand_over()

    async def _take(self, step: Callable[[], Awaitable[bool]], deadline: float) -> None:
        """One step of leaving, as often as it takes."""
        runtime = self.engine.runtime
        while self.several and runtime.monotonic() < deadline and not await step():
            await runtime.sleep(_BUSY / 4)

    async def _begun(self) -> bool:
        """Whether every replica that is to be here is. Founders count in their groups before they have begun: one that
        leaves earlier has agreed to nothing, cannot be replaced by the rest, and is missed."""
        engine = self.engine
        records = [record for record in engine.meta.streams.values() if record.account in engine.accounts]
        return self.group.current and all(engine.served(record) for record in records if engine.holds(record))

    async def _may_halt(self) -> bool:
        """Whether this node can stop and stay a member; the catalogue's leader knows who else does."""
        with suppress(Unreachable, ApiError):
            return await self._tell_leader("halt")
        return False

    def _needs_us(self, members: Sequence[str]) -> bool:
        """Whether a stream has no majority without this node: others have gone before, and are still counted."""
        connected = self._connected()
        others = [member for member in members if member != self.me and node_of(member) in connected]
        return self.me in members and members != [self.me] and len(others) <= len(members) // 2

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

    async def _on_leave(self, sender: str, body: Any) -> bool:
        """A member stops ("halt"), prepares to leave ("evade"), or leaves. Answers whether it may stop now."""
        step, member = fields(body, str, str)
        if not self.group.leading:
            raise errors.CLUSTER_NOT_LEADER()
        if step == "halt":
            return self._roster.halts(member, self.group)
        goes = self._roster.evades if step == "evade" else self._roster.leaves
        if goes(member, self.group):
            await self._rebalance()
        self._wake.set()
        return member not in (*self.group.members, *self.group.learners)

    # Placement follows

    async def _rebalance(self) -> None:
        """Give every stream the members that it should have now; nothing to do while what decides that is the same."""
        engine = self.engine
        situation = self._placement_situation()
        if situation == self._balanced:
            return
        undecided = False
        for record in list(engine.meta.streams.values()):
            config = StreamConfig.from_stored(record.config)
            held = record
            if not set(record.members).intersection(self.nodes):
                # the catalogue may have gone on without those that stopped, while their group could not follow it
                members = await engine.leaders.survivors(record)
                undecided |= not members and config.num_replicas > 1
                held = replace(record, members=members or record.members)
            members = engine.placement.replace(held, config)
            if members != record.members and engine.meta.streams.get(record.key) is record:
                await engine.meta.update(record.key, record.config, members)
        self._balanced = None if undecided else situation

    def _placement_situation(self) -> object:
        """All that the members of streams depend on: the catalogue, and the nodes with their tags."""
        host, tags, nodes = self.engine.host, self.engine.tags, self.nodes
        return self.group.term, self.group.applied, [(node, host.is_lost(node), tags.of(node)) for node in nodes]

    async def remove(self, name: str) -> None:
        """Remove a node by its name or peer id (an operator's wish). Raises ApiError 10044."""
        found = [member for member in self.group.members if named(member, name) and member != self.me]
        if not found:
            raise errors.CLUSTER_SERVER_NOT_MEMBER()
        self._roster.removes(found)
        self._wake.set()
