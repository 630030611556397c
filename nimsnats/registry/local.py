"""A registry client on a directory in the same process: how a node uses the registry that it embeds itself.

Owns: nothing but the adapter. The requests are method calls, so a node without `REGISTRY_URL` depends on no port and no
loopback connection to find itself, while other nodes reach the same directory over HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable

from nimsnats.registry.backoff import Backoff
from nimsnats.registry.directory import Directory
from nimsnats.registry.errors import RegistryError
from nimsnats.registry.member import FIRST_RETRY, Grant, Listed, RegistryMember
from nimsnats.registry.node import NodeInfo
from nimsnats.registry.peers import PeerSet
from nimsnats.registry.registry import PeerEvent


class LocalRegistry(RegistryMember):
    """One node's access to a `Directory`. `url` is what health pages and the log show."""

    def __init__(
        self,
        directory: Directory,
        service: str = "nimsforest",
        *,
        url: str = "local:",
        owner: str = "",
        heartbeat_interval: float = 10.0,
        log: logging.Logger | None = None,
    ) -> None:
        super().__init__(url, service, directory.runtime, heartbeat_interval=heartbeat_interval, log=log)
        self._directory = directory
        self._owner = owner

    async def _send_register(self, info: NodeInfo) -> Grant:
        await self._directory.register(self.service, info, owner=self._owner)
        return Grant(self._directory.granted)

    async def _send_heartbeat(self, info: NodeInfo) -> Grant:
        self._directory.heartbeat(self.service, info.name, info.instance, self._owner)
        return Grant(self._directory.granted)

    async def _send_deregister(self, info: NodeInfo) -> None:
        await self._directory.deregister(self.service, info.name, info.instance, self._owner)

    async def _send_list(self) -> Listed:
        return Listed(*await self._directory.listing(self.service))

    async def watch_peers(self, known: Iterable[NodeInfo] = ()) -> AsyncGenerator[PeerEvent]:
        peers = PeerSet(known)
        backoff = Backoff(self.runtime.random, FIRST_RETRY, self._interval)
        self.status.watch = "local"
        while not self._directory.closed:
            try:
                listing = await self.list_nodes()
            except RegistryError:
                # Whatever ends the trouble also wakes the waiters; the time-out is for what does not.
                await self._directory.changed(self.service, self._directory.index(self.service), backoff.delay())
                continue
            backoff.reset()
            for event in peers.listed(listing.nodes, self.name):
                yield event
            await self._directory.changed(self.service, listing.index or 0)
