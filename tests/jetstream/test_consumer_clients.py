"""Consumers as nats-py and natsio use them, against a real server, through restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy
from nats.js.errors import NotFoundError

from nimsnats.server import Server


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with Server(store_dir=tmp_path) as server:
        connection = await nats.connect(f"nats://127.0.0.1:{server.port}")
        yield connection
        await connection.close()


async def test_fetch_acknowledge_and_fetch_again(client: Client) -> None:
    js = client.jetstream()
    await js.add_stream(name="S", subjects=["s.>"])
    for number in range(10):
        await js.publish("s.a", str(number).encode())
    sub = await js.pull_subscribe("s.a", "worker")
    first = await sub.fetch(4)
    await asyncio.gather(*(message.ack_sync() for message in first))
    rest = await sub.fetch(6, timeout=20)
    assert [message.data for message in first + rest] == [str(number).encode() for number in range(10)]
    info = await sub.consumer_info()
    assert info.ack_floor is not None
    assert (info.ack_floor.stream_seq, info.num_ack_pending, info.num_pending) == (4, 6, 0)
    with pytest.raises(nats.errors.TimeoutError):
        await sub.fetch(1, timeout=0.1)


async def test_a_queue_of_push_subscribers_shares_the_messages(client: Client) -> None:
    js = client.jetstream()
    await js.add_stream(name="S", subjects=["s.>"])
    seen: list[bytes] = []
    done = asyncio.Event()

    async def take(message: nats.aio.msg.Msg) -> None:
        seen.append(message.data)
        await message.ack()
        if len(seen) == 20:
            done.set()

    for _ in range(2):
        await js.subscribe("s.a", queue="workers", durable="workers", cb=take, manual_ack=True)
    for number in range(20):
        await js.publish("s.a", str(number).encode())
    await asyncio.wait_for(done.wait(), 5)
    assert sorted(seen) == sorted(str(number).encode() for number in range(20))


async def test_an_ordered_consumer_reads_a_long_backlog_with_flow_control(client: Client) -> None:
    js = client.jetstream()
    await js.add_stream(name="S", subjects=["s.>"])
    for _ in range(40):
        await asyncio.gather(*(js.publish("s.a", b"x" * 10_000) for _ in range(25)))
    sub = await js.subscribe("s.a", ordered_consumer=True)
    got = [await sub.next_msg(timeout=5) for _ in range(1000)]
    assert [message.metadata.sequence.stream for message in got] == list(range(1, 1001))
    assert got[-1].metadata.num_pending == 0


async def test_a_consumer_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with Server(store_dir=tmp_path) as server:
        connection = await nats.connect(f"nats://127.0.0.1:{server.port}")
        js = connection.jetstream()
        await js.add_stream(name="S", subjects=["s.>"])
        for number in range(6):
            await js.publish("s.a", str(number).encode())
        config = ConsumerConfig(durable_name="worker", ack_wait=60, filter_subject="s.a")
        sub = await js.pull_subscribe("s.a", "worker", config=config)
        messages = await sub.fetch(4)
        await messages[0].ack_sync()
        await messages[2].ack_sync()
        await messages[3].nak()
        before = await sub.consumer_info()
        await connection.close()
    async with Server(store_dir=tmp_path) as server:
        connection = await nats.connect(f"nats://127.0.0.1:{server.port}")
        js = connection.jetstream()
        after = await js.consumer_info("S", "worker")
        assert after.config == before.config
        assert after.created == before.created
        assert after.delivered.consumer_seq == 4
        assert after.ack_floor.stream_seq == 1
        assert (after.num_ack_pending, after.num_pending) == (2, 2)
        sub = await js.pull_subscribe("s.a", "worker")
        assert [message.data for message in await sub.fetch(2)] == [b"4", b"5"]
        await connection.close()


async def test_a_work_queue_survives_a_restart_without_what_was_acknowledged(tmp_path: Path) -> None:
    async with Server(store_dir=tmp_path) as server:
        connection = await nats.connect(f"nats://127.0.0.1:{server.port}")
        js = connection.jetstream()
        await js.add_stream(name="Q", subjects=["q.>"], retention=RetentionPolicy.WORK_QUEUE)
        for number in range(3):
            await js.publish("q.a", str(number).encode())
        sub = await js.pull_subscribe("q.>", "worker")
        await (await sub.fetch(1))[0].ack_sync()
        await connection.close()
    async with Server(store_dir=tmp_path) as server:
        connection = await nats.connect(f"nats://127.0.0.1:{server.port}")
        js = connection.jetstream()
        info = await js.stream_info("Q")
        assert (info.state.messages, info.state.first_seq) == (2, 2)
        await js.delete_consumer("Q", "worker")
        with pytest.raises(NotFoundError):
            await js.consumer_info("Q", "worker")
        await connection.close()


async def test_many_consumers_of_one_stream(client: Client) -> None:
    js = client.jetstream()
    await js.add_stream(name="S", subjects=["s.>"])
    for number in range(200):
        await js.add_consumer(
            "S",
            durable_name=f"c{number}",
            filter_subject=f"s.{number % 20}",
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
        )
    assert len(await js.consumers_info("S")) == 200
    subs = [await js.pull_subscribe_bind("c" + str(number), "S") for number in range(200)]
    waiting = [asyncio.create_task(sub.fetch(1, timeout=5)) for sub in subs]
    await asyncio.sleep(0)
    for number in range(20):
        await js.publish(f"s.{number}", b"x")
    got = await asyncio.gather(*waiting)
    assert {message.subject for messages in got for message in messages} == {f"s.{number}" for number in range(20)}
