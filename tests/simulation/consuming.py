"""Pull consumers with double acks, and what must be true of what they were given.

Owns the records of deliveries and acknowledgements. A message whose acknowledgement was confirmed is not delivered in
answer to any request that was sent afterwards; everything that was published is delivered at least once; a sequence is
always the same message; a work queue keeps a message until it is acknowledged. Where deliveries are limited, no message
comes more often than that, and no two deliveries of it have the same number.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from random import Random

from tests.simulation.client import Client, Disconnected, NoResponders
from tests.simulation.publishing import Stream
from tests.simulation.world import Violation, World

_EXPIRES = 1.0
_PATIENCE = 2.0


@dataclass(slots=True)
class Consumer:
    """A durable consumer, and everything that happened to it. Times are virtual seconds."""

    stream: Stream
    name: str
    ack_wait: float
    max_deliver: int = 0
    """0: no limit."""
    counts: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    """The numbers of its deliveries by stream sequence, where they are limited."""
    delivered: dict[int, bytes] = field(default_factory=dict[int, bytes])
    """Payload by stream sequence."""
    tried: set[int] = field(default_factory=set[int])
    """Sequences that somebody wanted to acknowledge."""
    confirmed: dict[int, float] = field(default_factory=dict[int, float])
    """When an acknowledgement was confirmed."""
    deliveries: int = 0

    def config(self) -> dict[str, object]:
        """As the API wants it."""
        limit = {"max_deliver": self.max_deliver} if self.max_deliver else {}
        return limit | {
            "durable_name": self.name,
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait * 1e9),
            "max_ack_pending": 50,
        }

    def drained(self) -> bool:
        """Whether everything that was acknowledged to publishers has been delivered, and somebody has tried to
        acknowledge it: whether that was heard, or has to be tried again, is nobody's promise. With limited deliveries
        all of a message's may be lost on the way."""
        return self.max_deliver > 0 or all(
            publish.acked in self.tried for publish in self.stream.publishes if publish.acked
        )


@dataclass(slots=True)
class _Pull:
    """One request for messages, and what came of it."""

    sent: float
    wanted: int
    messages: list[tuple[bytes, int]] = field(default_factory=list[tuple[bytes, int]])
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Puller:
    """One client that works on a consumer until `stopping`."""

    def __init__(self, world: World, consumer: Consumer, number: int) -> None:
        self.world = world
        self.consumer = consumer
        self.client = Client(world, f"c{number}")
        self.random = Random(world.random.getrandbits(64))
        self.stopping = False
        self.careless = True
        """Now and then it loses a message, sends it back, or does not wait for the confirmation."""
        self._pulls = 0

    async def run(self) -> None:
        """Pull and acknowledge."""
        while not self.stopping:
            await self.client.connect()
            try:
                messages = await self._pull(self.random.choice([1, 5, 20]))
                await asyncio.gather(*(self._work(reply, seq) for reply, seq in messages))
            except Disconnected:
                continue
            await asyncio.sleep(self.random.random() * 0.1)

    async def _pull(self, batch: int) -> list[tuple[bytes, int]]:
        consumer, client = self.consumer, self.client
        self._pulls += 1
        pull = _Pull(self.world.loop.now, batch)
        inbox = b"_PULL.%b.%d" % (client.name.encode(), self._pulls)
        number = client.subscribe(inbox, lambda *message: self._received(pull, *message))
        try:
            body = json.dumps({"batch": batch, "expires": int(_EXPIRES * 1e9)}).encode()
            client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream.name}.{consumer.name}".encode(), body, inbox)
            try:
                async with asyncio.timeout(_PATIENCE):
                    await pull.over.wait()
            except TimeoutError:
                if not pull.messages and self.random.random() < 0.2:
                    client.close()
        finally:
            client.unsubscribe(number)
        return pull.messages

    def _received(self, pull: _Pull, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        if not reply.startswith(b"$JS.ACK."):
            pull.over.set()  # a status: nothing there, expired, no leader
            return
        consumer = self.consumer
        tokens = reply.split(b".")
        count, seq = int(tokens[-5]), int(tokens[-4])
        consumer.deliveries += 1
        self.world.trace(self.client.name, "gets", f"{consumer.stream.name}:{seq} {payload.decode()} ({count})")
        if consumer.delivered.setdefault(seq, payload) != payload:
            raise Violation(f"{consumer.stream.name}:{seq} was {consumer.delivered[seq]!r}, and now is {payload!r}")
        if consumer.max_deliver:
            counts = consumer.counts.setdefault(seq, set())
            if count in counts or count > consumer.max_deliver:
                raise Violation(
                    f"{consumer.stream.name}:{seq} is delivered (by {self.client.node}) as number {count} of at most"
                    f" {consumer.max_deliver}, after {sorted(counts)}"
                )
            counts.add(count)
        confirmed = consumer.confirmed.get(seq)
        if confirmed is not None and confirmed < pull.sent:
            raise Violation(
                f"{consumer.stream.name}:{seq} is delivered again (by {self.client.node}, delivery {count}): its ack"
                f" was confirmed at {confirmed:.6f}, the request sent at {pull.sent:.6f}"
            )
        pull.messages.append((reply, seq))
        if len(pull.messages) >= pull.wanted:
            pull.over.set()

    async def _work(self, reply: bytes, seq: int) -> None:
        dice = self.random.random() if self.careless else 0.5
        await asyncio.sleep(self.random.random() * 0.05)
        consumer = self.consumer
        if consumer.max_deliver and self.random.random() < 0.3:
            return
        if dice < 0.03:
            return
        if dice < 0.08:
            self.client.publish(reply, b"-NAK")
            return
        consumer.tried.add(seq)
        if dice < 0.12:
            self.client.publish(reply, b"+ACK")
            return
        try:
            await self.client.request(reply, b"+ACK", patience=_PATIENCE)
        except (TimeoutError, NoResponders):
            return
        consumer.confirmed.setdefault(seq, self.world.loop.now)
        self.world.trace(self.client.name, "acked", f"{consumer.stream.name}:{seq}")


def check_deliveries(consumer: Consumer, held: dict[int, tuple[bytes, bytes]]) -> None:
    """`held` is the stream at the end. Raises Violation."""
    name = consumer.stream.name
    for publish in consumer.stream.publishes if not consumer.max_deliver else ():
        if publish.acked and consumer.delivered.get(publish.acked) != publish.payload:
            raise Violation(f"{name}: {publish} was delivered as {consumer.delivered.get(publish.acked)!r}")
    for seq, (_, payload) in held.items():
        if consumer.delivered.get(seq, payload) != payload:
            raise Violation(f"{name}:{seq} was delivered as {consumer.delivered[seq]!r} and is {payload!r}")


def check_queue(consumer: Consumer, held: dict[int, tuple[bytes, bytes]], last: int) -> None:
    """A work queue at the end: what is gone was acknowledged by somebody, what was confirmed is gone. Raises
    Violation."""
    name = consumer.stream.name
    early = [seq for seq in range(1, last + 1) if seq not in held and seq not in consumer.tried]
    if early:
        raise Violation(f"{name}: {early[:10]} are gone, and nobody has acknowledged them")
    late = sorted(held.keys() & consumer.confirmed.keys())
    if late:
        raise Violation(f"{name}: {late[:10]} are still there, and their acks were confirmed")
