"""Many acknowledgements in one write: each counts once, and whoever listens to them sees every one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from nimsnats import Server

COUNT = 200


@asynccontextmanager
async def consumer(tmp_path: Path, **config: object) -> AsyncIterator[tuple[Server, Client, JetStreamContext]]:
    """A stream S of COUNT messages with the durable pull consumer C."""
    async with Server(store_dir=tmp_path) as server:
        client = await nats.connect(server.url)
        js = client.jetstream()
        await js.add_stream(name="S", subjects=["s"])
        await asyncio.gather(*(js.publish("s", b"%d" % number) for number in range(COUNT)))
        await js.add_consumer("S", ConsumerConfig(durable_name="C", max_ack_pending=COUNT, **config))  # type: ignore[arg-type]
        yield server, client, js
        await client.close()


async def acknowledge(server: Server, messages: list[Msg]) -> None:
    """All at once, on a connection of its own."""
    host, port = server.url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    acks = b"".join(b"PUB %b 4\r\n+ACK\r\n" % message.reply.encode() for message in messages)
    writer.write(b'CONNECT {"verbose":false,"pedantic":false}\r\n' + acks + b"PING\r\n")
    async for line in reader:
        if line == b"PONG\r\n":
            break
    else:
        raise AssertionError("the server hung up")
    writer.close()
    await writer.wait_closed()


async def settled(js: JetStreamContext, floor: int, pending: int) -> None:
    """Wait until the consumer's acknowledgement floor and open deliveries are these."""
    async with asyncio.timeout(120):
        while True:
            info = await js.consumer_info("S", "C")
            assert info.ack_floor is not None and info.num_ack_pending is not None
            if (info.ack_floor.stream_seq, info.num_ack_pending) == (floor, pending):
                return
            assert info.ack_floor.stream_seq <= floor


@pytest.mark.parametrize("listeners", [(), ("$JS.ACK.>",), ("$JS.ACK.S.C.1.9.>",), ("literal",)])
async def test_each_acknowledgement_counts_once_and_is_seen_by_listeners(
    tmp_path: Path, listeners: tuple[str, ...]
) -> None:
    async with consumer(tmp_path) as (server, client, js):
        messages = await (await js.pull_subscribe_bind("C", "S")).fetch(COUNT)
        assert len(messages) == COUNT
        seen: list[str] = []

        async def note(message: Msg) -> None:
            seen.append(message.subject)

        for subject in listeners:
            await client.subscribe(messages[99].reply if subject == "literal" else subject, cb=note)
        await client.flush()
        await acknowledge(server, [*messages[:50], *messages[:100], *messages[101:]])
        await settled(js, 100, 1)
        await acknowledge(server, [messages[100], messages[100]])
        await settled(js, COUNT, 0)
        await client.flush()
        expected = {(): 0, ("$JS.ACK.>",): COUNT + 51, ("$JS.ACK.S.C.1.9.>",): 2, ("literal",): 1}[listeners]
        while len(seen) < expected:  # noqa: ASYNC110 - what has arrived is still on its way to the callback
            await asyncio.sleep(0)
        assert len(seen) == expected


async def test_redelivered_and_exhausted_messages_are_acknowledged_in_a_row(tmp_path: Path) -> None:
    async with consumer(tmp_path, ack_wait=2, max_deliver=2) as (server, _, js):
        pull = await js.pull_subscribe_bind("C", "S")
        first = await pull.fetch(COUNT)
        assert {message.metadata.num_delivered for message in first} == {1} and len(first) == COUNT
        again: list[Msg] = []
        while len(again) < COUNT:
            again += await pull.fetch(COUNT - len(again))
        assert {message.metadata.num_delivered for message in again} == {2}
        await acknowledge(server, first[:150])
        await settled(js, 150, 50)
        await acknowledge(server, again)
        await settled(js, COUNT, 0)


async def test_other_policies_are_served_one_by_one(tmp_path: Path) -> None:
    async with consumer(tmp_path, ack_policy=AckPolicy.ALL) as (server, _, js):
        messages = await (await js.pull_subscribe_bind("C", "S")).fetch(COUNT)
        await acknowledge(server, messages[20:150])
        await settled(js, 150, 50)
