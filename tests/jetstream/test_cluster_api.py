"""Whatever node a client is connected to, it finds the whole JetStream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from pytest_asyncio import fixture

from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.jetstream.nodes import HubNode
from tests.jetstream.test_cluster import publish


@dataclass
class Trio:
    """Three nodes and a client on each."""

    nodes: list[HubNode]
    clients: list[Client]
    contexts: list[JetStreamContext]

    async def ask(self, at: int, subject: str, body: object = None) -> dict[str, Any]:
        """A request of the JetStream API through one of the clients."""
        answer = await self.clients[at].request(subject, json.dumps(body or {}).encode(), timeout=5)
        found: dict[str, Any] = json.loads(answer.data)
        return found

    def leader(self, stream: str) -> HubNode:
        """Who leads a stream."""
        return next(node for node in self.nodes if node.leads(stream))


@fixture
async def trio(tmp_path: Path) -> AsyncIterator[Trio]:
    hub = MemoryHub(Runtime.real())
    async with AsyncExitStack() as stack:
        names = ("n1", "n2", "n3")
        nodes = [await stack.enter_async_context(HubNode(tmp_path, name, hub)) for name in names]
        clients = [await node.connect() for node in nodes]
        for client in clients:
            stack.push_async_callback(client.close)
        yield Trio(nodes, clients, [client.jetstream() for client in clients])


async def test_streams_and_consumers_are_managed_through_any_node(trio: Trio) -> None:
    one, two, three = trio.contexts
    await one.add_stream(name="ONE", subjects=["one.*"], num_replicas=1)
    await two.add_stream(name="TWO", subjects=["two.*"], num_replicas=2)
    await three.add_stream(name="SIX", subjects=["six.*"], num_replicas=3)
    for js in trio.contexts:
        assert [info.config.name for info in await js.streams_info()] == ["ONE", "SIX", "TWO"]
        for stream in ("ONE", "TWO", "SIX"):
            info = await js.stream_info(stream)
            assert info.cluster is not None and info.cluster.leader == trio.leader(stream).settings.node_name
            assert len(info.cluster.replicas or ()) == info.config.num_replicas - 1
    await three.pull_subscribe("one.*", durable="D")
    assert (await two.consumer_info("ONE", "D")).name == "D"
    for number, js in enumerate(trio.contexts):
        assert (await js.publish("one.x", b"%d" % number)).seq == number + 1
    assert (await three.get_msg("ONE", 2)).data == b"1"
    assert await two.purge_stream("ONE")
    assert (await one.stream_info("ONE")).state.messages == 0
    await three.delete_stream("ONE")
    with pytest.raises(NotFoundError):
        await one.stream_info("ONE")
    refused = await trio.ask(2, "$JS.API.STREAM.CREATE.X", {"name": "X", "subjects": ["six.>"]})
    assert refused["error"]["err_code"] == 10065


async def test_push_consumers_and_key_values_work_across_nodes(trio: Trio) -> None:
    bucket = await trio.contexts[0].create_key_value(bucket="B", replicas=3)
    watcher = await (await trio.contexts[2].key_value("B")).watchall()
    assert await watcher.updates(2) is None
    for number in range(3):
        await bucket.put("key", b"%d" % number)
    for number in range(3):
        update = await watcher.updates(2)
        assert update is not None and update.value == b"%d" % number
    assert (await (await trio.contexts[1].key_value("B")).get("key")).value == b"2"
    await watcher.stop()
    got: asyncio.Queue[Msg] = asyncio.Queue()
    await trio.contexts[0].add_stream(name="S", subjects=["s.*"], num_replicas=3)
    await trio.contexts[1].subscribe("s.*", durable="P", cb=got.put, manual_ack=True)
    for number in range(5):
        await trio.contexts[2].publish("s.x", b"%d" % number)
    for number in range(5):
        message = await asyncio.wait_for(got.get(), 3)
        assert (message.subject, message.data) == ("s.x", b"%d" % number)
        await message.ack_sync()
    await until_acknowledged(trio, "S", "P", 5)


async def until_acknowledged(trio: Trio, stream: str, consumer: str, floor: int) -> None:
    """Wait for a consumer's acknowledgement floor."""
    async with asyncio.timeout(3):
        while (await trio.contexts[0].consumer_info(stream, consumer)).ack_floor.stream_seq != floor:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_leaders_step_down_when_asked(trio: Trio) -> None:
    await trio.contexts[0].add_stream(name="S", subjects=["s"], num_replicas=3)
    await trio.contexts[1].publish("s", b"x")
    before = trio.leader("S")
    assert (await trio.ask(1, "$JS.API.STREAM.LEADER.STEPDOWN.S"))["success"]
    await until(lambda: any(node.leads("S") and node is not before for node in trio.nodes))
    assert (await publish(trio.contexts[0], "s", b"y")) == 2
    info = await trio.leader("S").engine.leaders.info(trio.leader("S").engine.meta.streams["$G", "S"])
    assert info["state"]["messages"] == 2 and info["cluster"]["leader"] != before.settings.node_name
