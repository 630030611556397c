"""Clients of a Go server without JetStream use ours through the mesh: streams, consumers, key-value."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest_asyncio
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from nimsnats.config.settings import ClusterSettings
from nimsnats.server import Server, embedded_settings
from tests.broker.peer import until
from tests.broker.route_stand import CLUSTER
from tests.conformance.go_mesh import joined


@pytest_asyncio.fixture
async def remote(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of the Go server, while ours has JetStream."""
    settings = embedded_settings("127.0.0.1", -1, tmp_path / "data", jetstream=True, monitor_port=0, name="ours")
    settings.cluster = ClusterSettings(name=CLUSTER, host="127.0.0.1", port=-1)
    async with Server(settings) as server:
        assert server.routes is not None
        with joined(tmp_path / "go", server.routes) as go:
            await until(lambda: server.routes is not None and server.routes.routes)
            client = await nats.connect(go.url)
            yield client
            await client.close()


async def test_publish_fetch_and_acknowledge(remote: Client) -> None:
    js = remote.jetstream(timeout=2)
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    acks = [await js.publish(f"orders.{n}", b"%d" % n, headers={"N": str(n)}) for n in range(5)]
    assert [ack.seq for ack in acks] == [1, 2, 3, 4, 5]
    consumer = await js.pull_subscribe("orders.>", durable="worker")
    messages = await consumer.fetch(5, timeout=2)
    assert [(message.subject, message.data) for message in messages] == [(f"orders.{n}", b"%d" % n) for n in range(5)]
    assert messages[3].headers == {"N": "3"}
    for message in messages:
        await message.ack_sync(timeout=2)
    assert (await consumer.consumer_info()).num_ack_pending == 0


async def test_push_and_ordered_consumers(remote: Client) -> None:
    js = remote.jetstream(timeout=2)
    await js.add_stream(name="S", subjects=["s.*"])
    pushed = await js.subscribe("s.*", durable="d", config=ConsumerConfig(flow_control=True, idle_heartbeat=5))
    ordered = await js.subscribe("s.*", ordered_consumer=True)
    for n in range(3):
        await js.publish("s.x", b"%d" % n)
    for subscription in (pushed, ordered):
        assert [(await subscription.next_msg(2)).data for _ in range(3)] == [b"0", b"1", b"2"]


async def test_key_value(remote: Client) -> None:
    js = remote.jetstream(timeout=2)
    bucket = await js.create_key_value(bucket="B", history=3)
    watcher = await bucket.watch("k.*")
    first = await bucket.put("k.a", b"1")
    await bucket.update("k.a", b"2", last=first)
    entry = await bucket.get("k.a")
    assert (entry.value, entry.revision) == (b"2", 2)
    await bucket.delete("k.a")
    seen: list[int | None] = []
    while len(seen) < 3:
        update = await watcher.updates(timeout=2)
        if update is not None:
            seen.append(update.revision)
    assert seen == [1, 2, 3]
