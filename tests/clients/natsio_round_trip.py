"""natsio 1.x (Python 3.13 and newer): one round trip of core NATS, request/reply, JetStream pull and KV.

Run by `test_natsio.py` with an interpreter that natsio supports; prints a line for each step.
"""

import asyncio
import sys

import natsio
from natsio.jetstream.entities import ConsumerConfig, StreamConfig
from natsio.jetstream.errors import APIError
from natsio.kv.entities import KeyValueConfig


def expect(name: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise SystemExit(f"{name}: got {got!r}, wanted {wanted!r}")
    print("ok", name, flush=True)


async def core(client: natsio.Client) -> None:
    async with client.subscribe("greet.*") as greetings:
        await client.publish("greet.ann", b"hello", headers={"Colour": "green"})
        async for message in greetings:
            expect("core", (message.subject, message.data), ("greet.ann", b"hello"))
            break

    async def echo(message: natsio.Msg) -> None:
        await message.respond(b"echo " + message.data)

    async with client.subscribe("svc.echo", queue="workers", cb=echo):
        await client.flush()
        expect("request", (await client.request("svc.echo", b"hi", timeout=5)).data, b"echo hi")
    try:
        await client.request("svc.nobody", b"", timeout=5)
    except natsio.NoRespondersError:
        expect("no responders", True, True)


async def jetstream(client: natsio.Client) -> None:
    js = client.jetstream()
    stream = await js.create_stream(StreamConfig(name="EVENTS", subjects=["events.>"]))
    acks = [await js.publish("events.a", f"{n}", msg_id=str(n)) for n in range(5)]
    expect("publish", [ack.seq for ack in acks], [1, 2, 3, 4, 5])
    expect("duplicate", (await js.publish("events.a", "4", msg_id="4")).duplicate, True)
    futures = [await js.publish_async("events.b", f"{n}") for n in range(50)]
    expect("publish async", [(await future).seq for future in futures], list(range(6, 56)))
    try:
        await js.publish("events.a", "", expected_last_seq=3)
    except APIError as error:
        expect("wrong last sequence", error.err_code, 10071)
    consumer = await stream.create_consumer(ConsumerConfig(durable_name="puller", filter_subject="events.a"))
    messages = await consumer.fetch(5, timeout=5)
    expect("fetch", [message.data for message in messages], [b"0", b"1", b"2", b"3", b"4"])
    for message in messages:
        await message.ack_sync()
    expect("settled", (await consumer.info()).num_ack_pending, 0)
    seen = []
    async with stream.ordered_consumer() as ordered:
        async for message in ordered.messages():
            seen.append(message.data)
            if len(seen) == 55:
                break
    expect("ordered", len(seen), 55)
    expect("get", (await stream.get_msg(1)).payload, b"0")


async def key_value(client: natsio.Client) -> None:
    js = client.jetstream()
    bucket = await js.create_key_value(KeyValueConfig(bucket="settings", history=5))
    revision = await bucket.put("colour", b"red")
    expect("kv update", await bucket.update("colour", b"blue", last=revision), revision + 1)
    try:
        await bucket.update("colour", b"black", last=revision)
    except natsio.NATSError:
        expect("kv conflict", True, True)
    expect("kv get", (await bucket.get("colour")).value, b"blue")
    await bucket.create("shape", b"round")
    expect("kv keys", sorted(await bucket.keys()), ["colour", "shape"])
    expect("kv history", [entry.value for entry in await bucket.history("colour")], [b"red", b"blue"])
    await bucket.delete("colour")
    await bucket.purge("shape")
    expect("kv gone", await bucket.keys(), [])


async def main() -> None:
    async with await natsio.connect(sys.argv[1]) as client:
        await core(client)
        await jetstream(client)
        await key_value(client)
    print("all done")


asyncio.run(main())
