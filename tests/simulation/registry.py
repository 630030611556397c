"""The registry of a simulated cluster, and each node's way to it.

Owns the wire between them: requests take time, get lost with either leg, and fail while the registry is out. The
directory behind it is production code, in a process of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nimsnats.registry.backoff import Backoff
from nimsnats.registry.directory import Directory
from nimsnats.registry.errors import RegistryError, RegistryUnavailableError
from nimsnats.registry.member import FIRST_RETRY, Grant, Listed, RegistryMember
from nimsnats.registry.node import NodeInfo
from nimsnats.registry.peers import PeerSet
from nimsnats.registry.registry import PeerEvent
from nimsnats.runtime import Runtime
from tests.simulation.network import Network

HOST = "registry"
_T = TypeVar("_T")
_PATIENCE = 5.0
_POLL = 10.0


@dataclass(slots=True)
class OwnedRuntime(Runtime):
    """A runtime whose timers belong to one process, whoever sets them."""

    context: Context = field(default_factory=Context)

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Any:
        return self.loop.call_later(delay, callback, *args, context=self.context)  # type: ignore[call-arg]


class Hub:
    """The registry that all nodes share. `ttl` in seconds."""

    def __init__(self, network: Network, runtime: OwnedRuntime, ttl: float) -> None:
        self.network = network
        self.directory = Directory(runtime, ttl=ttl)
        self.out = False

    def forget(self) -> None:
        """The registry loses everything, as one without a database does when it is restarted."""
        runtime, ttl = self.directory.runtime, self.directory.ttl
        self.directory.release()
        self.directory = Directory(runtime, ttl=ttl)


class SimRegistry(RegistryMember):
    """One node's client."""

    def __init__(self, hub: Hub, host: str, runtime: Runtime) -> None:
        super().__init__("sim:", "nimsforest", runtime, heartbeat_interval=min(10.0, hub.directory.ttl / 3))
        self._hub = hub
        self._host = host

    async def _trip(self, request: Callable[[Directory], Awaitable[_T]]) -> _T:
        hub, network = self._hub, self._hub.network
        if network.blocked(self._host, HOST):
            await self._lost()
        await self.runtime.sleep(network.latency(self._host, HOST))
        if hub.out:
            raise RegistryUnavailableError("simulated outage")
        answer: _T | RegistryError
        try:
            answer = await request(hub.directory)
        except RegistryError as error:
            answer = error
        if network.blocked(HOST, self._host):
            await self._lost()
        await self.runtime.sleep(network.latency(HOST, self._host))
        if isinstance(answer, RegistryError):
            raise answer
        return answer

    async def _lost(self) -> None:
        await self.runtime.sleep(_PATIENCE)
        raise RegistryUnavailableError("no answer in time")

    async def _send_register(self, info: NodeInfo) -> Grant:
        await self._trip(lambda directory: directory.register(self.service, info))
        return Grant(self._hub.directory.ttl)

    async def _send_heartbeat(self, info: NodeInfo) -> Grant:
        async def beat(directory: Directory) -> None:
            directory.heartbeat(self.service, info.name, info.instance)

        await self._trip(beat)
        return Grant(self._hub.directory.ttl)

    async def _send_deregister(self, info: NodeInfo) -> None:
        await self._trip(lambda directory: directory.deregister(self.service, info.name, info.instance))

    async def _send_list(self) -> Listed:
        return Listed(*await self._trip(lambda directory: directory.listing(self.service)))

    async def watch_peers(self, known: Iterable[NodeInfo] = ()) -> AsyncGenerator[PeerEvent]:
        peers = PeerSet(known)
        backoff = Backoff(self.runtime.random, FIRST_RETRY, self._interval)
        while True:
            try:
                listing = await self.list_nodes()
            except RegistryError:
                await self.runtime.sleep(backoff.delay())
                continue
            backoff.reset()
            for event in peers.listed(listing.nodes, self.name):
                yield event
            await self._hub.directory.changed(self.service, listing.index or 0, _POLL)
