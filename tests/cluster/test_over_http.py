"""Nodes that know only a URL: managers with HTTP clients on a registry that one of the nodes embeds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from nimsnats.cluster import ClusterManager
from nimsnats.registry import NodeInfo
from nimsnats.registry.local import LocalRegistry
from nimsnats.registry.morpheus import MorpheusRegistry
from nimsnats.registry.server import RegistryServer
from nimsnats.runtime import Runtime
from tests.registry.watching import until


@asynccontextmanager
async def embedding_node(runtime: Runtime) -> AsyncIterator[tuple[ClusterManager, str]]:
    """A node whose HTTP port carries the registry that it uses itself."""
    server = RegistryServer(runtime)
    await server.open()
    app = web.Application()
    server.add_routes(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with LocalRegistry(server.directory, url=url) as registry:
        manager = ClusterManager(NodeInfo("node-1", "127.0.0.1", 6222), registry, runtime)
        await manager.start()
        yield manager, url
        await manager.stop()
    await runner.cleanup()
    await server.stop()


def names(manager: ClusterManager) -> list[str]:
    return [peer.name for peer in manager.known_peers]


async def test_nodes_find_each_other_through_one_of_them() -> None:
    runtime = Runtime.real()
    async with embedding_node(runtime) as (first, url), AsyncExitStack() as stack:
        others: list[ClusterManager] = []
        for number in (2, 3):
            registry = await stack.enter_async_context(MorpheusRegistry(url, runtime=runtime))
            info = NodeInfo(f"node-{number}", "127.0.0.1", 6300 + number)
            manager = ClusterManager(info, registry, runtime)
            await manager.start()
            others.append(manager)
        second, third = others
        await until(lambda: names(first) == ["node-2", "node-3"])
        await until(lambda: names(second) == ["node-1", "node-3"])
        assert names(third) == ["node-1", "node-2"]
        await second.stop()
        await until(lambda: names(first) == ["node-3"] and names(third) == ["node-1"])
        await third.stop()
    assert not runtime.tasks
