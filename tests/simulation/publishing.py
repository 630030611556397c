"""Publishers, and what must be true of what they published.

Owns the records of every publish and the rules of the stream: what was acknowledged is there under its sequence, once,
in the order in which it was acknowledged; sequences are dense and never used twice.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from random import Random

from tests.simulation.client import Client, Disconnected, NoResponders
from tests.simulation.world import Violation, World


@dataclass(slots=True)
class Publish:
    """One payload and everything that was ever said about it. `acked` is its sequence; times are virtual seconds."""

    payload: bytes
    sent: float
    attempts: int = 0
    acked: int = 0
    duplicate: bool = False
    done: float = 0.0


@dataclass(slots=True)
class Stream:
    """A stream of the workload, and what was published into it."""

    name: str
    replicas: int
    publishes: list[Publish] = field(default_factory=list[Publish])


class Publisher:
    """Publishes numbered payloads, `window` at a time. With `named`, each has a Nats-Msg-Id and is repeated until it is
    acknowledged; without, it is repeated or given up by the dice."""

    def __init__(self, world: World, stream: Stream, number: int) -> None:
        self.world = world
        self.stream = stream
        self.client = Client(world, f"p{number}")
        self.random = Random(world.random.getrandbits(64))
        self.named = self.random.random() < 0.6
        self.window = self.random.choice([1, 1, 2, 4])
        self.pause = self.random.choice([0.1, 0.3, 1.0])
        self.subject = b"%b.p%d" % (stream.name.encode(), number)
        self.stopping = False
        self.acknowledged = 0
        self._number = 0

    async def run(self) -> None:
        """Publish until `stopping`."""
        await asyncio.gather(*(self._publish_on() for _ in range(self.window)))

    async def _publish_on(self) -> None:
        while not self.stopping:
            self._number += 1
            publish = Publish(b"%b-%d" % (self.client.name.encode(), self._number), self.world.loop.now)
            self.stream.publishes.append(publish)
            await self._publish(publish)
            await asyncio.sleep(self.pause * self.random.expovariate(1.0))

    async def _publish(self, publish: Publish) -> None:
        name = self.client.name
        headers = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % publish.payload if self.named else b""
        while True:
            await self.client.connect()
            publish.attempts += 1
            try:
                _, answer = await self.client.request(self.subject, publish.payload, headers, 2.0)
            except (Disconnected, TimeoutError, NoResponders) as error:
                self.world.trace(name, "no ack", f"{publish.payload.decode()} {type(error).__name__}")
                if isinstance(error, TimeoutError) and self.random.random() < 0.3:
                    self.client.close()  # what an impatient client does: another node may do better
            else:
                body = json.loads(answer)
                if "error" not in body:
                    publish.acked, publish.done = body["seq"], self.world.loop.now
                    publish.duplicate = bool(body.get("duplicate"))
                    self.acknowledged += 1
                    self.world.trace(name, "ack", f"{publish.payload.decode()} {self.stream.name}:{publish.acked}")
                    return
                self.world.trace(name, "refused", f"{publish.payload.decode()} {body['error'].get('description')}")
            if not self.named and (self.stopping or self.random.random() < 0.3):
                return
            await asyncio.sleep(0.1 + self.random.random() * 0.4)


def check_publishes(stream: Stream, held: dict[int, tuple[bytes, bytes]], last: int) -> None:
    """`held` is all that the stream has ever held, as far as anybody knows: (subject, payload) by sequence, up to
    `last`. Raises Violation."""
    where: dict[bytes, list[int]] = {}
    for seq, (_, payload) in held.items():
        where.setdefault(payload, []).append(seq)
    if len(held) != last:
        missing = sorted(set(range(1, last + 1)) - held.keys())
        raise Violation(f"{stream.name}: {last} sequences, {missing[:10]} are not there")
    known = {publish.payload: publish for publish in stream.publishes}
    for publish in stream.publishes:
        seqs = where.get(publish.payload, [])
        if publish.acked and publish.acked not in seqs:
            there = held.get(publish.acked)
            raise Violation(f"{stream.name}: {publish} is not there under its sequence, but at {seqs}; there: {there}")
        if len(seqs) > publish.attempts:
            raise Violation(f"{stream.name}: {publish} is there more often than it was sent: {seqs}")
    unknown = where.keys() - known.keys()
    if unknown:
        raise Violation(f"{stream.name}: nobody published {sorted(unknown)[:5]}")
    _check_order(stream)


def check_named(stream: Stream, publishers: list[Publisher], held: dict[int, tuple[bytes, bytes]]) -> None:
    """What has a message id is there at most once."""
    named = tuple(b"%b-" % each.client.name.encode() for each in publishers if each.named)
    seen: dict[bytes, int] = {}
    for seq, (_, payload) in sorted(held.items()):
        if named and payload.startswith(named) and seen.setdefault(payload, seq) != seq:
            raise Violation(f"{stream.name}: {payload!r} has a message id and is there twice: {seen[payload]}, {seq}")


def _check_order(stream: Stream) -> None:
    """A publish that began after another one was acknowledged has the higher sequence. (A repeated one may have been
    stored long before its acknowledgement; it counts only as the later one.)"""
    acked = sorted((p for p in stream.publishes if p.acked), key=lambda p: p.done)
    latest: list[tuple[float, int]] = []
    highest = 0
    for publish in acked:
        highest = max(highest, publish.acked)
        latest.append((publish.done, highest))
    at, before = 0, 0
    for publish in sorted(acked, key=lambda p: p.sent):
        while at < len(latest) and latest[at][0] < publish.sent:
            before = latest[at][1]
            at += 1
        if publish.acked <= before:
            raise Violation(f"{stream.name}: {publish} began after sequence {before} was acknowledged")
