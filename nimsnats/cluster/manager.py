"""Who is in the cluster, how large it is, and how many replicas that allows.

Owns: membership as this node sees it, the log lines about it, and the registration of this node. The registry says who
should be there and where; a route says who is. It never touches streams: whoever depends on the size subscribes.

A peer is a member from the moment its route is up. A route that drops may be a blink, so the peer counts for another
`grace` seconds; one that has left the registry too is gone at once. The registry alone never removes a connected
member: a registry that has lost its memory must not shrink a cluster that works.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nimsnats.cluster.discovery import Discovery
from nimsnats.cluster.routes import Routes
from nimsnats.registry import NodeInfo, Registry, RegistryError
from nimsnats.runtime import Runtime

MAX_REPLICAS: Final = 3


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The cluster at one moment: `size` counts this node, `peers` are the others' names in order."""

    size: int
    replication_factor: int
    peers: tuple[str, ...]


Listener = Callable[[ClusterState], None]


class ClusterManager:
    """Membership of one node's cluster.

    `info` is what the node registers as. `grace`: seconds a member without a route still counts. `settle`: seconds that
    `start` waits for the routes to the peers it found. Without `routes` the node stays a cluster of one and says so.
    """

    def __init__(
        self,
        info: NodeInfo,
        registry: Registry,
        runtime: Runtime,
        *,
        routes: Routes | None = None,
        grace: float = 3.0,
        settle: float = 3.0,
        log: logging.Logger | None = None,
    ) -> None:
        self.info = info
        self.registry = registry
        self._runtime = runtime
        self._routes = routes
        self._grace = grace
        self._settle = settle
        self._log = log or logging.getLogger(__name__)
        self._discovery = Discovery(
            registry, runtime, self.on_peer_discovered, self.on_peer_lost, lambda: self.known_peers, self._log
        )
        self._known: dict[str, NodeInfo] = {}
        self._members: dict[str, str] = {}
        self._leaving: dict[str, asyncio.TimerHandle] = {}
        self._listeners: list[Listener] = []
        self._unwatch: Callable[[], None] | None = None
        self._moved = asyncio.Event()
        self._starting = False
        self._ignored: set[tuple[str, str]] = set()
        self._warned_alone = False

    # -- what others ask ----------------------------------------------------------------------------------------------

    @property
    def cluster_size(self) -> int:
        """Members, this node included."""
        return 1 + len(self._members)

    @property
    def replication_factor(self) -> int:
        """Replicas that a stream should have: `min(cluster_size, 3)`."""
        return min(self.cluster_size, MAX_REPLICAS)

    @property
    def state(self) -> ClusterState:
        """Size, factor and peers, taken together."""
        return ClusterState(self.cluster_size, self.replication_factor, tuple(sorted(self._members)))

    @property
    def members(self) -> dict[str, str]:
        """The other members: name -> cluster address of their route."""
        return dict(self._members)

    @property
    def known_peers(self) -> list[NodeInfo]:
        """Peers that the registry lists, members or not, by name."""
        return [self._known[name] for name in sorted(self._known)]

    def is_connected(self, name: str) -> bool:
        """Whether a route to that peer is up right now (a member in its grace period has none)."""
        return self._routes is not None and name in self._routes.connected()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after every change of membership; returns what ends that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    # -- lifetime -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register, find peers, connect to them, and go on watching. A registry in trouble only costs the peers."""
        self._starting = True
        self._log.info("Starting as cluster node %s", self.info.name)
        if self._routes is not None:
            self._unwatch = self._routes.watch(self._on_route)
            for name, address in self._routes.connected().items():
                self._on_route(name, address, True)
        try:
            await self.registry.register(self.info)
            peers = await self._discovery.query()
        except RegistryError:
            peers = None
        for peer in peers or ():
            self.on_peer_discovered(peer)
        await self._settle_down(answered=peers is not None)
        self._starting = False
        self._discovery.watch()

    async def stop(self) -> None:
        """Stop watching and deregister: peers need not wait for an expiry. Idempotent. Routes are not closed."""
        await self._discovery.stop()
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()
        try:
            await self.registry.deregister()
        except RegistryError as error:
            self._log.warning("Could not deregister, the entry will expire by itself: %s", error)

    async def move(self, info: NodeInfo) -> None:
        """This node is to be dialled elsewhere from now on: tell the registry, now or as soon as it answers."""
        self.info = info
        with suppress(RegistryError):
            await self.registry.register(info)

    def jetstream_initialized(self) -> None:
        """Say what JetStream starts with; the node calls it when its streams are there."""
        self._log.info("JetStream initialized with replication factor %d", self.replication_factor)

    async def _settle_down(self, *, answered: bool) -> None:
        """Wait for the routes to the peers found at start, and say what the node starts as."""
        if not self._known:
            if not self._members:
                why = "No existing peers found" if answered else "Registry not available yet"
                self._log.info("%s - starting as cluster of 1", why)
                return
        elif len(self._known) > 1:
            self._log.info("Discovered peers: %s", ", ".join(sorted(self._known)))
        else:
            only = next(iter(self._known.values()))
            self._log.info("Discovered peer: %s at %s", only.name, only.cluster_addr)
        if self._routes is None:
            return
        try:
            async with asyncio.timeout(self._settle):
                while not self._known.keys() <= self._members.keys():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            missing = ", ".join(sorted(self._known.keys() - self._members.keys()))
            self._log.warning("No route yet to %s, still trying", missing)
        if len(self._members) == 1:
            self._log.info("Connected to peer %s", next(iter(self._members)))
        elif self._members:
            self._log.info("Connected to %d peers", len(self._members))
        self._log_size()

    # -- what the registry says ---------------------------------------------------------------------------------------

    def on_peer_discovered(self, peer: NodeInfo) -> None:
        """The registry lists a peer: connect to it. Repeated or pointless news is ignored."""
        if not self._is_plausible(peer):
            return
        known = self._known.get(peer.name)
        if known is not None and known.same_endpoint(peer):
            return
        self._known[peer.name] = peer
        self._log.info("Discovered peer %s at %s", peer.name, peer.cluster_addr)
        if self._routes is None:
            self._warn_alone()
            return
        if known is not None and known.cluster_addr != peer.cluster_addr:
            self._routes.remove_route(known.cluster_addr)
        self._routes.add_route(peer.cluster_addr)

    def on_peer_lost(self, peer: NodeInfo) -> None:
        """The registry lists a peer no longer. A member whose route is up stays until that ends."""
        known = self._known.pop(peer.name, None)
        self._moved.set()
        if known is None:
            return
        if self._routes is None:
            self._log.info("Peer %s is no longer registered", known.name)
            return
        self._routes.remove_route(known.cluster_addr)
        if known.name in self._leaving:
            self._left(known.name)

    def _is_plausible(self, peer: NodeInfo) -> bool:
        """Not ourselves, and not a stranger at our own address: an old name of ours, or a registry that lies."""
        if peer.name == self.info.name:
            return False
        if peer.cluster_addr != self.info.cluster_addr:
            return True
        if (peer.name, peer.cluster_addr) not in self._ignored and len(self._ignored) < 256:
            self._ignored.add((peer.name, peer.cluster_addr))
            self._log.warning("Peer %s is registered at our own address %s: ignored", peer.name, peer.cluster_addr)
        return False

    def _warn_alone(self) -> None:
        if not self._warned_alone:
            self._warned_alone = True
            self._log.warning(
                "Clustering between nodes is not available in this version yet: this node stays a cluster of 1"
            )

    # -- what the routes say ------------------------------------------------------------------------------------------

    def _on_route(self, name: str, address: str, up: bool) -> None:
        if name == self.info.name:
            return
        timer = self._leaving.pop(name, None)
        if timer is not None:
            timer.cancel()
        if up:
            joined = name not in self._members
            self._members[name] = address
            if joined:
                self._joined(name)
        elif name in self._members:
            if name in self._known and self._grace > 0:
                self._leaving[name] = self._runtime.call_later(self._grace, self._left, name)
            else:
                self._left(name)

    def _joined(self, name: str) -> None:
        self._moved.set()
        if not self._starting:
            self._log.info("Peer %s joined cluster (size now %d)", name, self.cluster_size)
        self._changed(self.cluster_size - 1)

    def _left(self, name: str) -> None:
        timer = self._leaving.pop(name, None)
        if timer is not None:
            timer.cancel()
        del self._members[name]
        self._log.info("Peer %s left cluster (size now %d)", name, self.cluster_size)
        self._changed(self.cluster_size + 1)

    def _changed(self, size_before: int) -> None:
        if not self._starting:
            if self.replication_factor != min(size_before, MAX_REPLICAS):
                self._log.info("Replication factor adjusted to %d", self.replication_factor)
            self._log_size()
        state = self.state
        for listener in list(self._listeners):
            try:
                listener(state)
            except Exception as error:
                self._runtime.fence.caught(listener, error)

    def _log_size(self) -> None:
        self._log.info("Cluster size: %d, replication factor: %d", self.cluster_size, self.replication_factor)
