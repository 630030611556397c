"""Consumers of a replicated stream go on when another node leads it: nothing confirmed comes again, nobody notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import nats.errors
import pytest
import pytest_asyncio
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from tests.broker.peer import until
from tests.jetstream.trio import Trio, trio

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trio]:
    """Three nodes for all tests of this module."""
    async with trio(tmp_path_factory.mktemp("trio")) as running:
        yield running


async def stream(cluster: Trio, name: str) -> None:
    """A stream of three replicas."""
    body = {"name": name, "subjects": [f"{name}.>"], "num_replicas": 3}
    assert "error" not in await cluster.ask(0, f"STREAM.CREATE.{name}", body)


async def step_down(cluster: Trio, name: str) -> None:
    """Have another node lead a stream, and wait until it does."""
    before = await cluster.led(name)
    answer = await cluster.ask(1, f"STREAM.LEADER.STEPDOWN.{name}")
    assert answer.get("success"), answer
    assert await cluster.led(name) != before


async def test_what_was_confirmed_never_comes_again(cluster: Trio) -> None:
    await stream(cluster, "A")
    js = cluster.clients[2].jetstream()
    pull = await js.pull_subscribe("A.>", durable="D", config=ConsumerConfig(ack_wait=1.0, max_deliver=3))
    for number in range(60):
        await cluster.clients[0].request("A.x", b"%d" % number, timeout=5)
    confirmed: set[int] = set()
    delivered: dict[int, int] = {}

    async def work() -> None:
        while len(confirmed) < 60:
            with suppress(nats.errors.Error):
                for message in await pull.fetch(5, timeout=1):
                    seq = message.metadata.sequence.stream
                    assert seq not in confirmed, f"{seq} came again"
                    assert delivered.get(seq, 0) < message.metadata.num_delivered <= 3
                    delivered[seq] = message.metadata.num_delivered
                    await message.ack_sync(timeout=1)
                    confirmed.add(seq)

    working = asyncio.create_task(work())
    for goal in (10, 25, 40):
        await until(lambda goal=goal: len(confirmed) >= goal or working.done())
        await step_down(cluster, "A")
    await asyncio.wait_for(working, 20)
    info = await cluster.ask(1, "CONSUMER.INFO.A.D")
    assert info["ack_floor"]["stream_seq"] == 60 and info["num_ack_pending"] == 0
    assert set(delivered) == set(range(1, 61))


async def test_an_open_request_is_told_that_the_leader_changes(cluster: Trio) -> None:
    await stream(cluster, "B")
    config = {"durable_name": "D", "name": "D", "ack_policy": "explicit"}
    await cluster.ask(0, "CONSUMER.CREATE.B.D", {"stream_name": "B", "config": config})
    client = cluster.clients[1]
    inbox = client.new_inbox()
    heard = await client.subscribe(inbox)
    body = {"batch": 1, "expires": 10_000_000_000, "idle_heartbeat": 200_000_000}
    await client.publish("$JS.API.CONSUMER.MSG.NEXT.B.D", json.dumps(body).encode(), reply=inbox)
    first = await heard.next_msg(timeout=20)
    assert first.headers is not None and first.headers["Status"] == "100"
    await cluster.ask(0, "CONSUMER.LEADER.STEPDOWN.B.D")
    statuses: list[str] = []
    while "409" not in statuses:
        message = await heard.next_msg(timeout=20)
        assert message.headers is not None
        statuses.append(message.headers["Status"])
        description = message.headers.get("Description", "")
    assert description == "Leadership Change"


async def test_push_consumers_and_watchers_go_on(cluster: Trio) -> None:
    await stream(cluster, "C")
    js = cluster.clients[0].jetstream()
    got: asyncio.Queue[Msg] = asyncio.Queue()
    ordered: asyncio.Queue[Msg] = asyncio.Queue()
    await js.subscribe("C.>", durable="P", cb=got.put, manual_ack=True)
    await js.subscribe("C.>", ordered_consumer=True, cb=ordered.put)
    bucket = await js.create_key_value(bucket="BUCKET", replicas=3)
    watcher = await bucket.watchall()
    assert await watcher.updates(2) is None
    last: dict[str, Any] = {}
    for turn in range(3):
        for number in range(5):
            await cluster.clients[1].request(f"C.{turn}", b"%d" % number, timeout=5)
            await bucket.put(f"key.{turn}.{number}", b"x")
        for number in range(5):
            message = await asyncio.wait_for(got.get(), 5)
            assert (message.subject, message.data) == (f"C.{turn}", b"%d" % number)
            await message.ack_sync(timeout=2)
            message = await asyncio.wait_for(ordered.get(), 5)
            assert (message.subject, message.data) == (f"C.{turn}", b"%d" % number)
            update = await watcher.updates(5)
            assert update is not None and update.key == f"key.{turn}.{number}"
            last[update.key] = update.revision
        for name in ("C", "KV_BUCKET"):
            await step_down(cluster, name)
    assert sorted(last.values()) == list(range(1, 16))
    info = await cluster.ask(2, "CONSUMER.INFO.C.P")
    assert info["ack_floor"]["stream_seq"] == 15 and info["num_redelivered"] == 0
    await watcher.stop()
