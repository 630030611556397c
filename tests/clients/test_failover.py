"""A client that knows one node of a mesh goes on at another when that one dies: it was told where."""

from __future__ import annotations

import asyncio

import nats

from nimsnats.broker.route_table import RouteTable
from tests.broker.peer import until
from tests.broker.route_stand import meshed, routed


def cut(table: RouteTable) -> None:
    """What is left of a server that is killed: nothing listens, every connection is reset, nobody is told."""
    for server in (table.broker._server, table._server):  # pyright: ignore[reportPrivateUsage]
        assert server is not None
        server.close()
    for connection in (*table.open, *table.broker.clients.values()):
        if connection.transport is not None:
            connection.transport.abort()


async def test_a_client_finds_a_node_that_joined_after_it_connected() -> None:
    moved = asyncio.Event()

    async def reconnected() -> None:
        moved.set()

    async with routed("a") as a:
        client = await nats.connect(
            f"nats://127.0.0.1:{a.broker.port}", reconnect_time_wait=0.01, reconnected_cb=reconnected
        )
        sub = await client.subscribe("foo")
        assert not client.discovered_servers
        async with routed("b", a) as b, routed("c", a) as c:
            await meshed(a, b, c)
            await until(lambda: len(client.discovered_servers) == 2)
            await c.stop()
            await c.broker.stop()
            await until(lambda: len(a.routes) == 1)
            cut(a)
            await moved.wait()
            assert client.connected_url is not None and client.connected_url.port == b.broker.port
            await client.publish("foo", b"still there")
            assert (await sub.next_msg(5)).data == b"still there"
            await client.close()
