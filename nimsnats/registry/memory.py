"""A registry without a server, for tests: several nodes in one process, with events, expiries and outages on demand.

Owns: `MemoryHub`, the shared "registry", and `MemoryRegistry`, one node's client of it. The client is the production
code of `member` on the production `Directory`; only the wire is missing, and the hub can cut that.
"""

from __future__ import annotations

import logging
import math

from nimsnats.registry.directory import Directory
from nimsnats.registry.errors import RegistryUnavailableError
from nimsnats.registry.local import LocalRegistry
from nimsnats.registry.member import Grant, Listed
from nimsnats.registry.node import NodeInfo
from nimsnats.runtime import Runtime


class MemoryHub:
    """The registry that every `MemoryRegistry` built from it shares. `ttl` in seconds."""

    def __init__(self, runtime: Runtime, *, ttl: float = 30.0) -> None:
        self.runtime = runtime
        self.directory = Directory(runtime, ttl=ttl)
        self.outage = ""
        """While not "", every request fails with this text."""

    def registry(
        self, service: str = "nimsforest", *, heartbeat_interval: float = 10.0, log: logging.Logger | None = None
    ) -> MemoryRegistry:
        """A client for one node."""
        return MemoryRegistry(self, service, heartbeat_interval=heartbeat_interval, log=log)

    async def announce(self, node: NodeInfo, service: str = "nimsforest") -> None:
        """A simulated peer appears (or changes) and stays until it is withdrawn or expired."""
        await self.directory.register(service, node, math.inf)

    async def withdraw(self, name: str, service: str = "nimsforest") -> None:
        """A peer deregisters, or is taken for expired: its next heartbeat is answered with 404."""
        await self.directory.deregister(service, name)

    def fail(self, reason: str = "simulated outage") -> None:
        """From now on the registry does not answer."""
        self.outage = reason

    def heal(self, service: str = "nimsforest") -> None:
        """The registry answers again; watchers look at once."""
        self.outage = ""
        self.directory.poke(service)

    async def close(self) -> None:
        """End every watch and the expiry timer."""
        await self.directory.close()


class MemoryRegistry(LocalRegistry):
    """One node's client of a `MemoryHub`."""

    def __init__(
        self,
        hub: MemoryHub,
        service: str = "nimsforest",
        *,
        heartbeat_interval: float = 10.0,
        log: logging.Logger | None = None,
    ) -> None:
        super().__init__(hub.directory, service, url="memory:", heartbeat_interval=heartbeat_interval, log=log)
        self._hub = hub

    async def _send_register(self, info: NodeInfo) -> Grant:
        self._reach()
        return await super()._send_register(info)

    async def _send_heartbeat(self, info: NodeInfo) -> Grant:
        self._reach()
        return await super()._send_heartbeat(info)

    async def _send_deregister(self, info: NodeInfo) -> None:
        self._reach()
        await super()._send_deregister(info)

    async def _send_list(self) -> Listed:
        self._reach()
        return await super()._send_list()

    def _reach(self) -> None:
        if self._hub.outage:
            raise RegistryUnavailableError(self._hub.outage)
