"""Clients of a Go server without JetStream use ours through the mesh: one node's, and that of a cluster of three."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.api import ConsumerConfig, KeyValueConfig

from nimsnats.broker.route_table import RouteTable
from nimsnats.config.settings import ClusterSettings
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from nimsnats.server import Server, embedded_settings
from tests.broker.peer import until
from tests.broker.route_stand import CLUSTER, settled
from tests.conformance.go_mesh import joined
from tests.jetstream.nodes import HubNode


class Mesh:
    """A Go server with nodes of ours: `remote` is its client, `local` are ours, one a node."""

    def __init__(self, remote: Client, local: list[Client], tables: list[RouteTable]) -> None:
        self.remote = remote
        self.local = local
        self.tables = tables

    @property
    def replicas(self) -> int:
        """How many hold a stream."""
        return len(self.local)


async def _one(stack: AsyncExitStack, directory: Path) -> list[Server]:
    settings = embedded_settings("127.0.0.1", -1, directory / "data", jetstream=True, monitor_port=0, name="ours")
    settings.cluster = ClusterSettings(name=CLUSTER, host="127.0.0.1", port=-1)
    return [await stack.enter_async_context(Server(settings))]


async def _three(stack: AsyncExitStack, directory: Path) -> list[Server]:
    hub = MemoryHub(Runtime.real())
    names = ("n1", "n2", "n3")
    nodes = [await stack.enter_async_context(HubNode(directory, name, hub)) for name in names]
    await until(lambda: all(node.engine.meta.group.leader for node in nodes))
    return [node.server for node in nodes]


@pytest_asyncio.fixture(params=[_one, _three], ids=["one node", "three nodes"])
async def mesh(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    """The Go server dials the first node and hears of the others by gossip."""
    async with AsyncExitStack() as stack:
        servers: list[Server] = await request.param(stack, tmp_path)
        tables = [server.routes for server in servers if server.routes is not None]
        go = stack.enter_context(joined(tmp_path / "go", tables[0], cluster=tables[0].options.name))
        await until(lambda: all(len(table.routes) == len(tables) for table in tables))
        clients = [await nats.connect(url) for url in (go.url, *(server.url for server in servers))]
        for client in clients:
            stack.push_async_callback(client.close)
        yield Mesh(clients[0], clients[1:], tables)


async def test_publish_fetch_and_acknowledge(mesh: Mesh) -> None:
    js = mesh.remote.jetstream(timeout=5)
    info = await js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=mesh.replicas)
    assert mesh.replicas == 1 or (info.cluster is not None and len(info.cluster.replicas or ()) == mesh.replicas - 1)
    acks = [await js.publish(f"orders.{n}", b"%d" % n, headers={"N": str(n)}) for n in range(5)]
    assert [ack.seq for ack in acks] == [1, 2, 3, 4, 5]
    consumer = await js.pull_subscribe("orders.>", durable="worker")
    messages = await consumer.fetch(5, timeout=5)
    assert [(message.subject, message.data) for message in messages] == [(f"orders.{n}", b"%d" % n) for n in range(5)]
    assert messages[3].headers == {"N": "3"}
    for message in messages:
        await message.ack_sync(timeout=5)
    assert (await consumer.consumer_info()).num_ack_pending == 0
    for client in mesh.local:
        assert (await client.jetstream().get_msg("ORDERS", 4)).data == b"3"


async def test_push_and_ordered_consumers(mesh: Mesh) -> None:
    js = mesh.remote.jetstream(timeout=5)
    await js.add_stream(name="S", subjects=["s.*"], num_replicas=mesh.replicas)
    pushed = await js.subscribe("s.*", durable="d", config=ConsumerConfig(flow_control=True, idle_heartbeat=5))
    ordered = await js.subscribe("s.*", ordered_consumer=True)
    for n in range(3):
        await js.publish("s.x", b"%d" % n)
    for subscription in (pushed, ordered):
        assert [(await subscription.next_msg(5)).data for _ in range(3)] == [b"0", b"1", b"2"]


async def test_key_value(mesh: Mesh) -> None:
    js = mesh.remote.jetstream(timeout=5)
    bucket = await js.create_key_value(KeyValueConfig(bucket="B", history=3, replicas=mesh.replicas))
    watcher = await bucket.watch("k.*")
    first = await bucket.put("k.a", b"1")
    await bucket.update("k.a", b"2", last=first)
    entry = await bucket.get("k.a")
    assert (entry.value, entry.revision) == (b"2", 2)
    here = await mesh.local[-1].jetstream().key_value("B")
    assert (await here.get("k.a")).value == b"2"
    await here.delete("k.a")
    seen: list[int | None] = []
    while len(seen) < 3:
        update = await watcher.updates(timeout=5)
        if update is not None:
            seen.append(update.revision)
    assert seen == [1, 2, 3]


async def test_core_messages_between_the_go_server_and_each_node(mesh: Mesh) -> None:
    """Plain, wildcard and queue subscribers, requests, headers, nobody there: in both directions."""

    async def answer(message: Msg) -> None:
        await message.respond(b"re:" + message.data)

    for here in mesh.local:
        for asking, answering in ((here, mesh.remote), (mesh.remote, here)):
            wild = await answering.subscribe("t.*.>")
            queue = [await answering.subscribe("t.a.b", queue="g") for _ in range(2)]
            service = await answering.subscribe("svc", queue="workers", cb=answer)
            await answering.flush()
            await settled(*mesh.tables)
            await asking.flush()
            for number in range(10):
                await asking.publish("t.a.b", b"%d" % number, headers={"N": str(number)})
            got = [await wild.next_msg(5) for _ in range(10)]
            assert [(msg.data, msg.headers) for msg in got] == [(b"%d" % n, {"N": str(n)}) for n in range(10)]
            assert [(await asking.request("svc", b"%d" % n, timeout=5)).data for n in range(5)] == [
                b"re:%d" % n for n in range(5)
            ]
            assert sum(sub.pending_msgs for sub in queue) == 10, "each once, whichever member"
            for sub in (wild, service, *queue):
                await sub.unsubscribe()
            await answering.flush()
            await settled(*mesh.tables)
            await asking.flush()
            with pytest.raises(NoRespondersError):
                await asking.request("svc", b"", timeout=5)
