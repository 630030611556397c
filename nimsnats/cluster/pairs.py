"""Groups of two on this node: keeps the facts that the witness rule needs, asks the rule, and acts on its answer.

Owns: since when the route to each other node is lost, which groups are known to be in sync with their other member, the
questions about that, and the step by which a member goes on alone. The rule is `witness`'s, the step itself Raft's
(`Core.partner` tells which groups can take it, `Core.seize` is it). Streams and placement follow their groups by
themselves: the catalogue's group is one of them.

Every group of exactly two voters is treated alike: the catalogue of two nodes, their streams, and a stream of two
replicas in a larger cluster. There the catalogue has a majority, and could name a survivor too. But a group must not
have two witnesses: the catalogue would name one member while the registry shows the other one alone. So it is the
registry for all of them, and without one such a stream waits for its other replica.

What a member may do on its own is forgotten with the process, on purpose: nothing here is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from nimsnats.cluster.routes import Routes
from nimsnats.cluster.witness import Facts, Standing, obstacles, shortcoming, standing
from nimsnats.jetstream.body import fields, listed
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.mail import Unreachable
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.host import Host
from nimsnats.raft.transport import member_name, node_of
from nimsnats.registry import Listing, NodeInfo, Registry, RegistryError
from nimsnats.runtime import Runtime

QUESTION: Final = "in sync"
_PAUSE: Final = 1.0
"""Seconds between two looks; with a short TTL a tenth of that."""
_AT_ONCE: Final = 500
"""Groups in one question."""
_NOT_IN_SYNC: Final = -1


class Mailbox(Protocol):
    """What this module needs of `nimsnats.jetstream.mail.Mail`."""

    def listen(self, what: str, listener: Callable[[str, Any], Any]) -> None:
        """Answer questions of one kind."""
        ...

    def ask(self, to: str, what: str, body: Any, patience: float) -> Awaitable[Any]:
        """Ask a member, and wait `patience` seconds. Raises Unreachable."""
        ...


@dataclass(slots=True)
class _Peer:
    """Another member, in this process's own knowledge."""

    info: NodeInfo
    route: bool = False
    changes: int = 0
    """How often its route has come or gone."""
    lost_ns: int | None = None
    sync: dict[HostedGroup, Standing] = field(default_factory=dict[HostedGroup, Standing])


class Pairs:
    """See the module. `me` tells as what this node is registered; `waiting`, by node, why groups wait for it."""

    def __init__(
        self,
        me: Callable[[], NodeInfo],
        registry: Registry,
        routes: Routes,
        host: Host,
        mail: Mailbox,
        runtime: Runtime,
        log: logging.Logger,
    ) -> None:
        self.waiting: dict[str, tuple[str, ...]] = {}
        self._me = me
        self._registry = registry
        self._routes = routes
        self._host = host
        self._mail = mail
        self._runtime = runtime
        self._log = log
        self._peers: dict[str, _Peer] = {}
        self._connected: dict[str, _Peer] = {}
        self._listing: Listing | None = None
        self._shortcoming = ""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unwatch: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to watch, to ask and to answer."""
        self._unwatch = self._routes.watch(self._on_route)
        for name, address in self._routes.connected().items():
            self._on_route(name, address, True)
        self._mail.listen(QUESTION, self._answer)
        self._task = self._runtime.spawn(self._run(), "pairs")

    async def stop(self) -> None:
        """Go on alone with nothing more, and answer nobody. Idempotent."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        self._connected.clear()
        self._peers.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # -- routes -------------------------------------------------------------------------------------------------------

    def _on_route(self, name: str, address: str, up: bool) -> None:
        del address
        before = self._connected.pop(name, None)
        if before is not None:
            before.route, before.lost_ns = False, self._runtime.boot_time_ns()
            before.changes += 1
        if up:
            peer = self._connected[name] = self._peer(member_name(name, self._routes.instance(name)))
            peer.route = True
            peer.changes += 1
        self._wake.set()

    def _peer(self, member: str) -> _Peer:
        peer = self._peers.get(member)
        if peer is None:
            instance = member.rpartition("@")[2] if "@" in member else ""
            peer = self._peers[member] = _Peer(NodeInfo(node_of(member), "", 0, instance=instance))
        return peer

    # -- one look after the other -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look()
            except Exception as error:
                self._runtime.fence.caught(self._look, error)
            ttl = self._registry.lease.ttl_ns / 1e9
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_PAUSE, ttl / 10) if ttl else _PAUSE):
                    await self._wake.wait()

    async def _look(self) -> None:
        pairs = self._pairs()
        self._forget(pairs)
        for member, groups in pairs.items():
            peer = self._peer(member)
            if peer.route:
                await self._ask(member, peer, groups)
        if any(not self._peer(member).route for member in pairs):
            await self._list()
        # From here on nothing is awaited: each decision and its deed are one step of the loop.
        waiting: dict[str, tuple[str, ...]] = {}
        for member, groups in self._pairs().items():
            peer = self._peer(member)
            if not peer.route:
                reasons = self._judge(peer, groups)
                if reasons:
                    waiting[peer.info.name] = reasons
        self._report(waiting)

    def _pairs(self) -> dict[str, list[HostedGroup]]:
        """The groups that this node could go on with alone, by their other member."""
        pairs: dict[str, list[HostedGroup]] = {}
        for group in self._host.groups():
            if member := group.partner():
                pairs.setdefault(member, []).append(group)
        return pairs

    def _forget(self, pairs: dict[str, list[HostedGroup]]) -> None:
        """Keep nothing about groups and members that are no longer pairs."""
        for member, peer in list(self._peers.items()):
            groups = pairs.get(member, ())
            peer.sync = {group: peer.sync[group] for group in groups if group in peer.sync}
            if not groups and not peer.route:
                del self._peers[member]

    async def _list(self) -> None:
        """Ask the registry now; what it said last is kept when it does not answer."""
        with suppress(RegistryError):  # reported where it happened
            self._listing = await self._registry.list_nodes()

    # -- in sync ------------------------------------------------------------------------------------------------------

    def _standing(self, peer: _Peer, group: HostedGroup) -> Standing | None:
        number = group.core.membership.number
        now = self._runtime.boot_time_ns()
        return standing(self._me(), peer.info, number, self._registry.lease, self._listing, now)

    def _unsynced(self, peer: _Peer, groups: Iterable[HostedGroup]) -> list[HostedGroup]:
        return [g for g in groups if (now := self._standing(peer, g)) is None or peer.sync.get(g) != now]

    async def _ask(self, member: str, peer: _Peer, groups: list[HostedGroup]) -> None:
        """Ask the peer about all groups whose sync is not known under the present registration, a question for many."""
        lease, listing = self._registry.lease, self._listing
        old = listing is None or listing.requested_ns < max(lease.since_ns, self._runtime.boot_time_ns() - lease.ttl_ns)
        if old or self._unsynced(peer, groups):
            await self._list()
        if self._is_no_witness():
            return
        unsynced = self._unsynced(peer, groups)
        for first in range(0, len(unsynced), _AT_ONCE):
            changes = peer.changes
            asked: list[tuple[HostedGroup, Standing]] = []
            question: list[list[Any]] = []
            for group in unsynced[first : first + _AT_ONCE]:
                if (now := self._standing(peer, group)) is not None and group.partner() == member:
                    asked.append((group, now))
                    question.append([group.name, group.core.membership.number, group.committed])
            if not asked:
                return
            try:
                answer: list[int] = await self._mail.ask(member, QUESTION, question, _PAUSE)
            except (Unreachable, ApiError):
                return
            if peer.changes != changes or len(answer) != len(asked):
                return
            for (group, then), committed in zip(asked, answer, strict=True):
                if _NOT_IN_SYNC < committed <= group.core.log.durable:
                    peer.sync[group] = then

    def _answer(self, sender: str, question: Any) -> list[int]:
        """What is committed here, by group, or -1 for one that this node does not know to be in sync.

        Only with a route to the sender: from its end on, and only with a listing requested after it, may this node go
        alone; and no more once it has, for then the membership is another.
        """
        asked = [fields(each, str, int, int) for each in listed(question)]
        peer = self._peers.get(sender)
        connected = peer is not None and peer.route
        return [
            self._committed(sender, name, number, theirs) if connected else _NOT_IN_SYNC
            for name, number, theirs in asked
        ]

    def _committed(self, sender: str, name: str, number: int, theirs: int) -> int:
        group = self._host.group(name)
        if group is None or group.partner() != sender or group.leaving:
            return _NOT_IN_SYNC
        log = group.core.log
        same = group.core.membership.number == number and log.durable >= theirs
        return log.committed if same else _NOT_IN_SYNC

    def _is_no_witness(self) -> bool:
        """Whether nothing that this registry says can prove anything; the log hears of it once."""
        why = shortcoming(self._me(), self._registry.lease, self._listing)
        if why and why != self._shortcoming:
            self._log.warning("The registry is no witness: %s. Of two nodes neither goes on without the other", why)
        self._shortcoming = why
        return bool(why)

    # -- going on alone -----------------------------------------------------------------------------------------------

    def _judge(self, peer: _Peer, groups: list[HostedGroup]) -> tuple[str, ...]:
        """Go on alone with every group that may; returns what is in the way of the others."""
        reasons: dict[str, None] = {}
        seized: list[str] = []
        for group in sorted(groups, key=lambda group: group.name):
            why = obstacles(
                Facts(
                    now_ns=self._runtime.boot_time_ns(),
                    member=self._me(),
                    peer=peer.info,
                    membership=group.core.membership.number,
                    lease=self._registry.lease,
                    sync=peer.sync.get(group),
                    lost_ns=peer.lost_ns,
                    route=peer.route,
                    listing=self._listing,
                )
            )
            if why:
                reasons.update(dict.fromkeys(why))
            else:
                group.seize()
                seized.append(group.name)
        if seized:
            self._log.warning(
                "Node %s has expired: the registry lists this node without it, and no route leads there. This node "
                "goes on alone, with everything that was acknowledged, in %d of the %d groups that both held: %s",
                peer.info.name, len(seized), len(groups), _some(seized),
            )  # fmt: skip
        return tuple(reasons)

    def _report(self, waiting: dict[str, tuple[str, ...]]) -> None:
        """Say why groups wait, once for each change of the reasons."""
        for name, reasons in waiting.items():
            if self.waiting.get(name) != reasons:
                self._log.warning("Node %s is away, this node does not go on alone yet: %s", name, "; ".join(reasons))
        self.waiting = waiting


def _some(names: list[str]) -> str:
    """A few names and how many more."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
