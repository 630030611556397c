"""Brokers with routes between them, on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.route_options import RouteOptions
from nimsnats.broker.route_table import RouteTable
from nimsnats.broker.server import Broker
from nimsnats.runtime import Runtime
from tests.broker.peer import until

CLUSTER = "X"


@asynccontextmanager
async def routed(
    name: str, /, *dialled: RouteTable, broker: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[RouteTable]:
    """A broker with a table of routes that dials `dialled`; a peer of our kind unless `node` says otherwise."""
    made = Broker(BrokerOptions(host="127.0.0.1", port=-1, server_name=name, **(broker or {})), Runtime.real())
    options = {"name": CLUSTER, "node": {"instance": f"i-{name}"}, "redial": 0.02, **options}
    routes = [f"127.0.0.1:{table.port}" for table in dialled] + options.pop("routes", [])
    table = RouteTable(made, RouteOptions(host="127.0.0.1", port=options.pop("port", -1), routes=routes, **options))
    await made.start()
    try:
        await table.start()
        yield table
    finally:
        await table.stop()
        await made.stop()


@asynccontextmanager
async def mesh(*names: str, **options: Any) -> AsyncIterator[list[RouteTable]]:
    """Servers that form a full mesh, though each dials only the first one."""
    async with AsyncExitStack() as stack:
        tables: list[RouteTable] = []
        for name in names:
            tables.append(await stack.enter_async_context(routed(name, *tables[:1], **options)))
        await meshed(*tables)
        yield tables


async def meshed(*tables: RouteTable) -> None:
    """Wait until each has a route to every other one."""
    await until(lambda: all(len(table.routes) == len(tables) - 1 for table in tables))


async def settled(*tables: RouteTable) -> None:
    """Wait until what was sent on all routes has been read: a PING there and back on each."""
    waits = [(route, route.rtt) for table in tables for route in table.routes.values()]
    for route, _ in waits:
        route.rtt = 0.0
        route.timer()
    await until(lambda: all(route.rtt or route.closed for route, _ in waits))
    await asyncio.sleep(0)
