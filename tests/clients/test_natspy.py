"""nats-py: core, request/reply, JetStream pull and push, KV, all by the client's own idioms."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.api import ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, BadRequestError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError


async def test_core(nats_client: Client) -> None:
    plain = await nats_client.subscribe("greet.*")
    queue = await nats_client.subscribe("greet.>", queue="workers")
    await nats_client.publish("greet.ann", b"hello", headers={"Colour": "green"})
    first, second = await plain.next_msg(timeout=20), await queue.next_msg(timeout=20)
    assert (first.subject, first.data, first.headers) == ("greet.ann", b"hello", {"Colour": "green"})
    assert second.data == b"hello"


async def test_request_reply(nats_client: Client) -> None:
    async def echo(message: Msg) -> None:
        await message.respond(b"echo " + message.data)

    await nats_client.subscribe("svc.echo", cb=echo)
    answers = await asyncio.gather(*(nats_client.request("svc.echo", b"%d" % n, timeout=20) for n in range(50)))
    assert [answer.data for answer in answers] == [b"echo %d" % n for n in range(50)]
    with pytest.raises(NoRespondersError):
        await nats_client.request("svc.nobody", b"", timeout=20)


async def test_jetstream_pull(jetstream: JetStreamContext) -> None:
    await jetstream.add_stream(StreamConfig(name="EVENTS", subjects=["events.>"]))
    acks = [await jetstream.publish("events.a", b"%d" % n, headers={"Nats-Msg-Id": str(n)}) for n in range(5)]
    assert [ack.seq for ack in acks] == [1, 2, 3, 4, 5]
    again = await jetstream.publish("events.a", b"4", headers={"Nats-Msg-Id": "4"})
    assert (again.seq, again.duplicate) == (5, True)
    with pytest.raises(APIError) as wrong:
        await jetstream.publish("events.a", b"", headers={"Nats-Expected-Last-Sequence": "3"})
    assert wrong.value.err_code == 10071
    puller = await jetstream.pull_subscribe("events.>", "puller")
    messages = await puller.fetch(5, timeout=20)
    assert [message.data for message in messages] == [b"0", b"1", b"2", b"3", b"4"]
    for message in messages:
        await message.ack_sync(timeout=20)
    assert (await puller.consumer_info()).num_ack_pending == 0
    assert (await jetstream.stream_info("EVENTS")).state.messages == 5


async def test_jetstream_push_and_ordered(jetstream: JetStreamContext) -> None:
    await jetstream.add_stream(StreamConfig(name="PUSH", subjects=["push.>"]))
    for n in range(10):
        await jetstream.publish("push.x", b"%d" % n)
    durable = await jetstream.subscribe("push.>", durable="pusher", manual_ack=True)
    for n in range(10):
        message = await durable.next_msg(timeout=20)
        assert message.data == b"%d" % n
        await message.ack()
    ordered = await jetstream.subscribe("push.>", ordered_consumer=True)
    assert [(await ordered.next_msg(timeout=20)).data for _ in range(10)] == [b"%d" % n for n in range(10)]
    newest = await jetstream.subscribe("push.>", config=ConsumerConfig(deliver_policy=DeliverPolicy.LAST))
    assert (await newest.next_msg(timeout=20)).data == b"9"


async def test_stream_management(jetstream: JetStreamContext) -> None:
    with pytest.raises(NotFoundError):
        await jetstream.stream_info("NONE")
    await jetstream.add_stream(StreamConfig(name="S", subjects=["s.>"]))
    with pytest.raises(BadRequestError):
        await jetstream.add_stream(StreamConfig(name="T", subjects=["s.x"]))
    for n in range(4):
        await jetstream.publish(f"s.{n % 2}", b"%d" % n)
    assert (await jetstream.get_last_msg("S", "s.1")).seq == 4
    assert await jetstream.delete_msg("S", 2)
    await jetstream.purge_stream("S", subject="s.0")
    state = (await jetstream.stream_info("S")).state
    assert (state.messages, state.first_seq, state.last_seq) == (1, 4, 4)
    await jetstream.update_stream(StreamConfig(name="S", subjects=["s.>", "t.>"], max_msgs=10))
    assert (await jetstream.publish("t.1", b"")).seq == 5
    assert await jetstream.delete_stream("S")


async def test_key_value(jetstream: JetStreamContext) -> None:
    bucket = await jetstream.create_key_value(bucket="settings", history=5)
    revision = await bucket.put("colour", b"red")
    assert await bucket.update("colour", b"blue", last=revision) == revision + 1
    with pytest.raises(KeyWrongLastSequenceError):
        await bucket.update("colour", b"black", last=revision)
    await bucket.create("shape", b"round")
    with pytest.raises(KeyWrongLastSequenceError):
        await bucket.create("shape", b"square")
    assert sorted(await bucket.keys()) == ["colour", "shape"]
    assert [entry.value for entry in await bucket.history("colour")] == [b"red", b"blue"]
    watcher = await bucket.watchall()
    seen = [await watcher.updates(timeout=20) for _ in range(2)]
    assert {entry.key for entry in seen if entry} == {"colour", "shape"}
    await bucket.delete("colour")
    with pytest.raises(KeyNotFoundError):
        await bucket.get("colour")
    await bucket.purge("shape")
    assert (await bucket.status()).bucket == "settings"
