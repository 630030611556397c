"""A client that sends what no client should, into a stream of its own and past everybody else's.

Owns the bad values and the demands: once nothing is wrong with the cluster any more, whatever it asks is answered, and
its stream takes messages. What an older version, or a member that does not check, has let into a log is played by
proposing raw entries on the leader. That the replicas agree afterwards is `inspection`'s to see.
"""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any, Final

from nimsnats.jetstream import kinds
from nimsnats.jetstream.packing import pack
from nimsnats.raft.machine import NotLeader
from tests.simulation import inspection
from tests.simulation.client import Client, Disconnected, NoResponders
from tests.simulation.world import World

STREAM: Final = "H"
_HUGE: Final = b"9" * 30
_TIMES: Final = ("2023-02-30T00:00:00Z", "2023-04-31T12:00:00+01:00", "0000-00-00T00:00:00Z", "soon", 7, [])
_DEEP: Final = b"[" * 2000
_ACKS: Final = (
    (b"1.%b.%b.1.0" % (_HUGE, _HUGE), b"+ACK"),
    (b"%b.1.%b.1.0" % (_HUGE, _HUGE), b""),
    (b"1.1.%b.1.0" % _HUGE, b"+TERM"),
    (b"1.1.1.1.0", b'-NAK {"delay":' + _DEEP),
    (b"1.1.1.1.0", b'-NAK {"delay":%b}' % _HUGE),
    (b"1.1.1.1.0", b"-NAK %bh" % _HUGE),
    (b"1.1.1.1.0", b'+NXT {"batch":' + _DEEP),
)
_HEADERS: Final = (
    b"Nats-TTL: %b" % _HUGE,
    b"Nats-TTL: -1h",
    b"Nats-Expected-Last-Sequence: %b" % _HUGE,
    b"Nats-Expected-Last-Subject-Sequence: x",
    b"Nats-Rollup: \x01",
    b"Nats-Msg-Id: \x01\xff",
)


def _created(**config: object) -> bytes:
    settled = {"durable_name": "X", "deliver_policy": "all", "ack_policy": "explicit", "replay_policy": "instant"}
    body = {"name": "X", "config": {**settled, **config}, "created": 1, "generated": False, "action": ""}
    return pack(body)


_RAW: Final = (
    (kinds.CONSUMER_CREATE, _created(deliver_policy="by_start_time", opt_start_time="2023-02-30T00:00:00Z")),
    (kinds.CONSUMER_CREATE, _created(pause_until="never")),
    (kinds.CONSUMER_CREATE, _created(backoff=["long"])),
    (kinds.CONSUMER_RESET, pack({"name": "G", "start": None})),
    (kinds.CONSUMER_ACKS, pack([[1, 1, [1], None, []]])),
    (kinds.STREAM_PURGE, b"\x91" * 900 + b"\xc0"),
    (kinds.STREAM_CONFIG, pack({"config": {"name": STREAM, "subjects": 7}})),
    (111, b"of no kind"),
)


class Stranger:
    """One of them, until `stopping`."""

    def __init__(self, world: World, seed: int, replicas: int) -> None:
        self.world = world
        self.replicas = replicas
        self.client = Client(world, "stranger")
        self.random = Random(seed)
        self.stopping = False
        self.answered = self.let_in = 0
        self._numbers = 0

    def config(self) -> dict[str, Any]:
        """Of its stream."""
        config = {"name": STREAM, "subjects": [f"{STREAM}.>"], "num_replicas": self.replicas}
        return config | {"allow_msg_ttl": True, "allow_rollup_hdrs": True}

    async def run(self) -> None:
        """Send one thing after the other."""
        moves = (self._ask, self._ask, self._acknowledge, self._publish, self._let_in)
        while not self.stopping:
            await self.client.connect()
            try:
                await self.random.choice(moves)()
            except (Disconnected, NoResponders, TimeoutError):
                pass  # a fault of the world's, or nobody leads: it goes on, as everybody does
            await asyncio.sleep(0.05 + self.random.random() * 0.2)

    async def _ask(self) -> None:
        """A request of the API that cannot be granted."""
        self._numbers += 1
        name = f"B{self._numbers}"
        time = self.random.choice(_TIMES)
        start = {"durable_name": name, "deliver_policy": "by_start_time", "opt_start_time": time}
        pause = {"durable_name": name, "ack_policy": "explicit", "pause_until": time}
        subject = f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{name}"
        body = json.dumps({"stream_name": STREAM, "config": self.random.choice([start, pause])}).encode()
        if self.random.random() < 0.3:
            body = self.random.choice([_DEEP, b'{"config":' + b'{"a":' * 900, b'{"config":{"ack_wait":%b}}' % _HUGE])
        answer = json.loads((await self.client.request(subject.encode(), body))[1])
        assert "error" in answer, answer
        self.answered += 1

    async def _acknowledge(self) -> None:
        """To consumers of its own and, with numbers that no message has, to others."""
        numbers, payload = self.random.choice(_ACKS)
        self.client.publish(b"$JS.ACK.H.G.%b" % numbers, payload)
        self.client.publish(b"$JS.ACK.S.C.1.%b.%b.1.0" % (_HUGE, _HUGE), payload)

    async def _publish(self) -> None:
        """A message with something odd about it."""
        subject = self.random.choice([b"H.a", b"H.\x01", b"H.\x7f.b"])
        headers = b"NATS/1.0\r\n%b\r\n\r\n" % self.random.choice(_HEADERS) if self.random.random() < 0.7 else b""
        await self.client.request(subject, b"%d" % self.answered, headers)
        self.answered += 1

    async def _let_in(self) -> None:
        """An entry that the leader should not have proposed."""
        for name, served in inspection.holders(self.world, STREAM).items():
            process = self.world.machine(name).process
            if served.stream.leading and process is not None:
                kind, data = self.random.choice(_RAW)
                try:
                    served.stream.group.propose(kind, data)
                except NotLeader:
                    return
                self.let_in += 1
                return
