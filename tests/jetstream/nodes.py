"""Nodes in this process that know nothing but a registry, and form a cluster over routes on loopback."""

from __future__ import annotations

from pathlib import Path

import nats
from nats.aio.client import Client

from nimsnats.config.settings import for_node
from nimsnats.jetstream.engine import JetStream
from nimsnats.jetstream.serving import ServedStream
from nimsnats.node import Node
from nimsnats.registry import NodeInfo, Registry
from nimsnats.registry.memory import MemoryHub


class HubNode(Node):
    """A node whose registry is shared memory."""

    def __init__(self, directory: Path, name: str, hub: MemoryHub) -> None:
        settings = for_node()
        settings.node_name = settings.broker.server_name = name
        settings.data_dir = settings.jetstream.store_dir = directory / name
        settings.broker.host = settings.cluster.host = settings.monitor.host = "127.0.0.1"
        settings.broker.port = settings.cluster.port = -1
        settings.monitor.port = 0
        settings.broker.cluster_name = settings.cluster.name
        settings.cluster.advertise = "127.0.0.1"
        settings.forest.enabled = False
        super().__init__(settings)
        self._hub = hub

    async def _open_registry(self, info: NodeInfo) -> Registry:
        return self._hub.registry()

    @property
    def engine(self) -> JetStream:
        """The node's JetStream."""
        assert self.server.jetstream is not None
        return self.server.jetstream

    def served(self, stream: str) -> ServedStream | None:
        """The node's replica of a stream."""
        return self.engine.accounts["$G"].streams.get(stream)

    def leads(self, stream: str) -> bool:
        """Whether the node leads a stream."""
        served = self.served(stream)
        return served is not None and served.stream.leading

    async def connect(self) -> Client:
        """A client over TCP."""
        return await nats.connect(self.url, allow_reconnect=False)

    async def kill(self) -> None:
        """Stop as a crash does: nobody is told, nothing more is written."""
        server = self.server
        assert server.routes is not None and server._host is not None
        server._host.abandon()
        if self.pairs is not None:
            await self.pairs.stop()
            self.pairs = None
        if self.cluster is not None:
            await self.cluster._discovery.stop()
            if self.cluster._unwatch is not None:
                self.cluster._unwatch()
            self.cluster = None
        if self.registry is not None:
            await self.registry.close()
            self.registry = None
        if server.jetstream is not None and server.jetstream.cluster is not None:
            await server.jetstream.cluster.close()
            server.jetstream.cluster.leave = _nothing  # type: ignore[method-assign]
        await self.stop()


async def _nothing(patience: float) -> None:
    """A killed node leaves nothing in order."""
