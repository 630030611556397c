"""A cluster of real processes, each on its own host of a `Network`, with a registry on another and the clients here.

Owns the processes and how many of them there are to be. What happens to them is in `faults`, what is measured and
checked in `campaign`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client
from nats.errors import Error as NatsError

from tests.chaos import skewed
from tests.chaos.disks import mount_disk, unmount
from tests.chaos.network import Network
from tests.chaos.process import NodeProcess
from tests.chaos.workload import connect

TTL: Final = 3.0
"""Seconds until the registry forgets a node that sends no heartbeats."""
REGISTRY: Final = "registry"
_CONVERGE: Final = 60.0


class HostedRegistry(NodeProcess):
    """`python -m nimsnats registry` on a host of its own."""

    def __init__(self, network: Network, directory: Path, secret: str = "") -> None:
        super().__init__(directory, ready="Registry listening")
        self.environment["NATS_CLUSTER_SECRET"] = secret
        self.address = network.add(REGISTRY)
        self.enter = network.enter(REGISTRY)

    def _command_line(self) -> list[str]:
        return [sys.executable, "-m", "nimsnats", "registry", "--listen", f"{self.address}:8500", "--ttl", f"{TTL:g}s"]


class HostedNode(NodeProcess):
    """A whole node on a host of its own, on the usual ports; its wall clock can be set wrong."""

    def __init__(self, network: Network, name: str, directory: Path, registry: str) -> None:
        super().__init__(directory / name)
        self.name = name
        self.address = network.add(name)
        self.enter = network.enter(name)
        self.client_port, self.monitor_port = 4222, 8222
        self.clock = directory / f"{name}.clock"
        self.wanted = False
        """Whether it is to run."""
        self.stopped = False
        self._registry = registry
        skewed.make(self.clock)

    def _command_line(self) -> list[str]:
        command = [sys.executable, "-m", "tests.chaos.skewed", str(self.clock)]
        where = ["--node-name", self.name, "--advertise", self.address, "--data-dir", str(self.data_dir)]
        return [*command, *where, "--registry-url", self._registry, "--heartbeat-interval", "1s"]

    @property
    def running(self) -> bool:
        """Whether there is a process that is not stopped."""
        return self.process is not None and not self.stopped

    async def start(self) -> None:
        """Start, and wait until it is ready."""
        self.wanted = True
        await super().start()

    def pause(self) -> None:
        """SIGSTOP: it does nothing until `resume`, and does not know."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def resume(self) -> None:
        """SIGCONT."""
        if self.stopped and self.process is not None:
            self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    async def kill(self) -> None:
        """kill -9."""
        self.resume()
        await super().kill()


MakeNode = Callable[[Network, str, Path, str], HostedNode]
"""Takes the network, a name, the world's directory and the registry's URL."""


class World:
    """The hosts, the registry, the nodes. Nodes are made once and may be started and stopped at will.

    To be made outside of an event loop; see `Network`.
    """

    def __init__(
        self,
        network: Network,
        directory: Path,
        *,
        disk: int = 0,
        make_node: MakeNode = HostedNode,
        secret: str = "",
    ) -> None:
        self._make_node = make_node
        self.network = network
        self.directory = directory
        self.disk = disk
        """Megabytes of the disk in memory that each node gets; 0: they are on the machine's."""
        self.registry = HostedRegistry(network, directory / "registry", secret)
        self.nodes: list[HostedNode] = []

    async def __aenter__(self) -> World:
        await self.registry.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.heal()
        await asyncio.gather(*(node.kill() for node in (*self.nodes, self.registry)))
        for node in self.nodes if self.disk else ():
            unmount(node.data_dir)

    @property
    def members(self) -> list[HostedNode]:
        """Nodes that are to run."""
        return [node for node in self.nodes if node.wanted]

    def urls(self, first: int = 0) -> list[str]:
        """Where clients connect, beginning with one node or another."""
        urls = [node.url for node in self.members]
        first %= len(urls)
        return urls[first:] + urls[:first]

    async def client(self, first: int = 0) -> Client:
        """A client that begins at one node or another and follows what it is told."""
        return await connect(*self.urls(first))

    async def grow(self) -> HostedNode:
        """One node more: one that was there before, else a new one."""
        node = next((node for node in self.nodes if not node.wanted), None)
        if node is None:
            registry = f"http://{self.registry.address}:8500"
            name = f"n{len(self.nodes) + 1}"
            node = await asyncio.to_thread(self._make_node, self.network, name, self.directory, registry)
            if self.disk:
                mount_disk(node.data_dir, self.disk)
            self.nodes.append(node)
        await node.start()
        return node

    async def shrink(self, node: HostedNode) -> None:
        """A node leaves in order and does not come back by itself."""
        node.wanted = False
        assert await node.terminate() == 0, f"{node.name} did not end in order"

    async def cut(self, *lines: tuple[str, str]) -> None:
        """What the first of each two hosts sends to the other vanishes."""
        for sender, receiver in lines:
            await asyncio.to_thread(self.network.cut, sender, receiver)

    async def heal(self) -> None:
        """Every line is whole and fast again."""
        await asyncio.to_thread(self.network.heal)

    async def whole(self) -> None:
        """Wait until every node counts all of them as members, and groups wait for nobody."""
        try:
            async with asyncio.timeout(_CONVERGE):
                while not all([await self._sees_all(node) for node in self.members]):  # noqa: ASYNC110 - processes
                    await asyncio.sleep(0.05)
        except TimeoutError:
            views = [await self._health(node) for node in self.members]
            raise AssertionError(f"the nodes have not come together in {_CONVERGE:g} s: {views}") from None

    async def current(self, stream: str) -> None:
        """Wait until a stream has all the replicas that it can have, and each has everything."""
        wanted = min(3, len(self.members))
        found: dict[str, Any] = {}
        client = await self.client()
        try:
            async with asyncio.timeout(_CONVERGE):
                while True:
                    with suppress(NatsError, TimeoutError, OSError):
                        answer = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=2)
                        found = json.loads(answer.data)
                        replicas = found.get("cluster", {}).get("replicas") or []
                        if len(replicas) == wanted - 1 and all(replica["current"] for replica in replicas):
                            return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{stream} has not got {wanted} current replicas: {found.get('cluster')}") from None
        finally:
            await client.close()

    async def _sees_all(self, node: HostedNode) -> bool:
        health = await self._health(node)
        return health.get("cluster", {}).get("size") == len(self.members) and health.get("status") == "healthy"

    async def _health(self, node: HostedNode) -> dict[str, Any]:
        try:
            async with asyncio.timeout(2):
                found: dict[str, Any] = await node.get("/health/cluster")
                return found
        except (OSError, TimeoutError) as error:
            return {"error": f"{node.name}: {error!r}"}
