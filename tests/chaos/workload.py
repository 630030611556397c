"""Clients that load a node while it dies, remember what it promised them, and check the promises afterwards.

Everything goes through unmodified nats-py. `Ledger` holds what was acknowledged; `check_stream`, `check_steady` and
`check_charges` compare it with what the node holds in the end.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

STREAM = "ORDERS"
CONSUMER = "clerk"


@dataclass
class Ledger:
    """What the node has acknowledged to its clients."""

    published: dict[int, str] = field(default_factory=dict)
    """Stream sequence -> message id, as told by PubAcks."""
    settled: set[int] = field(default_factory=set)
    """Stream sequences whose ack was confirmed (double ack)."""
    horizon: dict[int, int] = field(default_factory=dict)
    """Settled stream sequence -> the consumer's last delivery when that was known; later ones cannot be its."""
    redelivered_after_settling: list[tuple[int, int]] = field(default_factory=list)
    """Stream sequences that came again, and in which delivery, though their ack had been confirmed before it."""
    charges: set[str] = field(default_factory=set)
    """Charge ids whose webhook event the River acknowledged."""
    reused: list[tuple[int, str, str]] = field(default_factory=list)
    acks: list[tuple[float, str]] = field(default_factory=list)
    """When (on the loop's clock) an ack came, and to which worker."""
    _progress: asyncio.Event = field(default_factory=asyncio.Event)

    def publish_acknowledged(self, seq: int, message_id: str) -> None:
        other = self.published.setdefault(seq, message_id)
        if other != message_id:
            self.reused.append((seq, other, message_id))
        self._progress.set()

    async def published_more(self, count: int) -> None:
        """Wait for `count` more acknowledged publishes."""
        target = len(self.published) + count
        while len(self.published) < target:
            self._progress.clear()
            await self._progress.wait()


async def quiet(_: Exception) -> None:
    """The server dies on purpose: nats-py's connection errors are expected."""


async def connect(*urls: str) -> Client:
    return await nats.connect(
        list(urls),
        error_cb=quiet,
        reconnect_time_wait=0.05,
        max_reconnect_attempts=-1,
        connect_timeout=2,
        ping_interval=1,
        max_outstanding_pings=2,
        dont_randomize=True,
        allow_reconnect=True,
    )


async def publish_orders(
    js: JetStreamContext, ledger: Ledger, worker: int, stop: asyncio.Event, pause: float = 0
) -> None:
    """Publish with acks, 16 at a time, each message once; a publish without an answer is simply unknown. `pause`:
    seconds between two times."""

    async def one(message_id: str) -> None:
        try:
            ack = await js.publish(f"orders.{worker}", message_id.encode().ljust(200, b"."), timeout=1)
        except (NatsError, TimeoutError, OSError):
            return
        ledger.publish_acknowledged(ack.seq, message_id)

    number = 0
    while not stop.is_set():
        batch = [one(f"{worker}-{number + offset}") for offset in range(16)]
        number += len(batch)
        await asyncio.gather(*batch)
        await asyncio.sleep(pause)


@dataclass
class Home:
    """Where a publisher is connected, which may be changed while it works."""

    client: Client

    @property
    def js(self) -> JetStreamContext:
        return self.client.jetstream()


async def publish_steadily(home: Home, ledger: Ledger, worker: str, stop: asyncio.Event, pace: float = 0.0) -> None:
    """Publish one message after the other, each under one id until it is acknowledged; `pace` in seconds between."""
    loop = asyncio.get_running_loop()
    number = 0
    while not stop.is_set():
        message_id = f"{worker}-{number}"
        number += 1
        while not stop.is_set():
            try:
                ack = await home.js.publish(
                    f"orders.{worker}",
                    message_id.encode().ljust(200, b"."),
                    timeout=1,
                    headers={"Nats-Msg-Id": message_id},
                )
            except (NatsError, TimeoutError, OSError, APIError):
                await asyncio.sleep(0.02)
                continue
            ledger.publish_acknowledged(ack.seq, message_id)
            ledger.acks.append((loop.time(), worker))
            break
        if pace:
            await asyncio.sleep(pace)


async def settle_orders(js: JetStreamContext, ledger: Ledger, stop: asyncio.Event) -> None:
    """Fetch, double-ack, and note every delivery of a message whose ack had been confirmed before."""
    consumer = await js.pull_subscribe_bind(CONSUMER, STREAM)
    while not stop.is_set():
        try:
            messages = await consumer.fetch(20, timeout=0.5)
        except (NatsError, TimeoutError, OSError, APIError):
            await asyncio.sleep(0.02)
            continue
        fresh: list[int] = []
        for message in messages:
            seq, delivery = message.metadata.sequence.stream, message.metadata.sequence.consumer
            if delivery > ledger.horizon.get(seq, delivery):
                ledger.redelivered_after_settling.append((seq, delivery))
            try:
                await message.ack_sync(timeout=1)
            except (NatsError, TimeoutError, OSError):
                break
            if seq not in ledger.settled:
                ledger.settled.add(seq)
                fresh.append(seq)
        try:
            delivered = (await consumer.consumer_info()).delivered
        except (NatsError, TimeoutError, OSError, APIError):
            continue  # copies of these may be on their way, sent before they were settled
        assert delivered is not None
        ledger.horizon.update(dict.fromkeys(fresh, delivered.consumer_seq))


def charge_event(charge: str) -> bytes:
    """The part of a Stripe `charge.succeeded` event that matters to the forest."""
    body = {
        "id": f"evt_{charge}",
        "object": "event",
        "type": "charge.succeeded",
        "created": 1_700_000_000,
        "data": {
            "object": {
                "id": charge,
                "object": "charge",
                "amount": 15000,
                "currency": "usd",
                "customer": "cus_1",
                "status": "succeeded",
                "paid": True,
                "metadata": {"item_id": "item-1"},
            }
        },
    }
    return json.dumps(body).encode()


async def publish_charges(js: JetStreamContext, ledger: Ledger, stop: asyncio.Event) -> None:
    """Send one charge after the other, each until the River has acknowledged it (a webhook sender retries, too)."""
    number = 0
    while not stop.is_set():
        number += 1
        charge = f"ch_{number:06d}"
        while True:
            try:
                await js.publish("river.stripe.webhook", charge_event(charge), timeout=1)
            except (NatsError, TimeoutError, OSError):
                if stop.is_set():
                    return
                await asyncio.sleep(0.02)
                continue
            ledger.charges.add(charge)
            break
        await asyncio.sleep(0.01)


async def make_order_stream(js: JetStreamContext, replicas: int = 1) -> None:
    await js.add_stream(StreamConfig(name=STREAM, subjects=["orders.>"], num_replicas=replicas))
    await js.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy="explicit", ack_wait=2))


async def read_stream(js: JetStreamContext, stream: str) -> dict[int, bytes]:
    """Every message of a stream by sequence, read one by one (no consumer state involved)."""
    info = await js.stream_info(stream)
    found: dict[int, bytes] = {}
    for seq in range(info.state.first_seq, info.state.last_seq + 1):
        try:
            message = await js.get_msg(stream, seq)
        except NotFoundError:
            continue
        found[seq] = message.data or b""
    return found


async def check_stream(js: JetStreamContext, ledger: Ledger, lost: frozenset[int] = frozenset()) -> None:
    """Everything acknowledged is there, under its sequence; sequences are dense but for what is reported as `lost`."""
    stored = await read_stream(js, STREAM)
    assert not ledger.reused, f"sequences acknowledged twice: {ledger.reused[:5]}"
    missing = [seq for seq in ledger.published if seq not in stored and seq not in lost]
    assert not missing, f"{len(missing)} acknowledged messages are gone, first {sorted(missing)[:5]}"
    for seq, message_id in ledger.published.items():
        if seq in stored:
            assert stored[seq].rstrip(b".") == message_id.encode(), f"sequence {seq} holds another message"
    gaps = set(range(1, max(stored, default=0) + 1)) - stored.keys() - lost
    assert not gaps, f"sequences without a message: {sorted(gaps)[:5]}"
    assert not ledger.redelivered_after_settling, "a confirmed ack was forgotten"


async def read_all(js: JetStreamContext, stream: str) -> dict[int, bytes]:
    """Every message of a stream by sequence, through an ordered consumer of the stream's leader."""
    last = (await js.stream_info(stream)).state.last_seq
    found: dict[int, bytes] = {}
    sub = await js.subscribe("", stream=stream, ordered_consumer=True)
    while not found or max(found) < last:
        message = await sub.next_msg(10)
        found[message.metadata.sequence.stream] = message.data
    await sub.unsubscribe()
    return found


def check_steady(ledger: Ledger, stored: dict[int, bytes]) -> None:
    """Nothing acknowledged is gone, nothing is there twice, every worker's messages are in the order of sending."""
    ids = {seq: data.rstrip(b".").decode() for seq, data in stored.items()}
    assert not ledger.reused, f"sequences acknowledged twice: {ledger.reused[:5]}"
    wrong = [(seq, name, ids.get(seq)) for seq, name in ledger.published.items() if ids.get(seq) != name]
    assert not wrong, f"{len(wrong)} acknowledged messages are gone or others, first {wrong[:5]}"
    assert sorted(ids) == list(range(1, len(ids) + 1)), "sequences without a message"
    assert len(set(ids.values())) == len(ids), "a message is there twice"
    last: dict[str, int] = {}
    for seq in sorted(ids):
        worker, _, number = ids[seq].rpartition("-")
        if worker.startswith("steady"):
            assert int(number) == last.get(worker, -1) + 1, f"{ids[seq]} comes after {last.get(worker)}"
            last[worker] = int(number)
    assert not ledger.redelivered_after_settling, "a confirmed ack was forgotten"


async def check_charges(js: JetStreamContext, ledger: Ledger, deadline: float = 30.0) -> None:
    """Exactly one task per acknowledged charge, once the forest has worked off what it was given."""
    soil = await js.key_value("SOIL")
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while True:
        keys = await soil.keys()
        tasks = [key for key in keys if any(key.endswith(charge) for charge in ledger.charges)]
        if len(tasks) >= len(ledger.charges) or loop.time() > end:
            break
        await asyncio.sleep(0.1)
    for charge in sorted(ledger.charges):
        own = [key for key in tasks if key.endswith(charge)]
        assert len(own) == 1, f"charge {charge} has {len(own)} tasks: {own}"
    composted: dict[str, int] = {}
    for data in (await read_stream(js, "HUMUS")).values():
        for charge in ledger.charges:
            if charge.encode() in data:
                composted[charge] = composted.get(charge, 0) + 1
    assert composted.keys() >= ledger.charges
