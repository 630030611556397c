"""Three nodes are one JetStream: streams on all of them, reached through any of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from nimsnats.raft.transport import node_of
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.jetstream.nodes import HubNode


async def publish(js: JetStreamContext, subject: str, data: bytes) -> int:
    """Publish until it is acknowledged, as a client does that retries: under an id, since a time-out tells nothing."""
    headers = {"Nats-Msg-Id": f"{subject} {data.hex()}"}
    async with asyncio.timeout(15):
        while True:
            try:
                return (await js.publish(subject, data, timeout=1, headers=headers)).seq
            except (nats.errors.Error, nats.js.errors.Error):
                await asyncio.sleep(0.05)


async def test_a_replicated_stream_outlives_its_leader(tmp_path: Path) -> None:
    hub = MemoryHub(Runtime.real())
    async with AsyncExitStack() as stack:
        nodes: list[HubNode] = []
        for name in ("n1", "n2", "n3"):
            nodes.append(await stack.enter_async_context(HubNode(tmp_path, name, hub)))
        for node in nodes:
            assert sorted(map(node_of, node.engine.meta.group.members)) == ["n1", "n2", "n3"]
        clients = [await node.connect() for node in nodes]
        for client in clients:
            stack.push_async_callback(client.close)
        contexts = [client.jetstream() for client in clients]
        info = await contexts[2].add_stream(name="S", subjects=["s.>"], num_replicas=3)
        assert info.cluster is not None and info.cluster.replicas is not None
        assert len(info.cluster.replicas) == 2
        await until(lambda: all(node.served("S") for node in nodes))
        for number, js in enumerate(contexts * 3):
            assert await publish(js, f"s.{number}", b"%d" % number) == number + 1
        pull = await contexts[0].pull_subscribe("s.>", durable="D")
        got = await pull.fetch(9, timeout=5)
        for message in got[:5]:
            await message.ack_sync()
        assert [message.data for message in got] == [b"%d" % number for number in range(9)]
        leader = next(node for node in nodes if node.leads("S"))
        others = [node for node in nodes if node is not leader]
        await leader.kill()
        js = contexts[nodes.index(others[0])]
        assert await publish(js, "s.after", b"9") == 10
        await until(lambda: any(node.leads("S") for node in others))
        assert (await js.stream_info("S")).state.messages == 10
        again = HubNode(tmp_path, leader.settings.node_name, hub)
        await stack.enter_async_context(again)
        await until(lambda: (served := again.served("S")) is not None and served.stream.store.messages == 10)
