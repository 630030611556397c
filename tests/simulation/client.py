"""A small NATS client for the workload: one connection at a time, fail-over, requests, subscriptions.

Owns the client's side of the protocol, as far as the workload needs it. It trusts nothing: what a server says that no
server may say is a violation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

from tests.simulation.loop import Process
from tests.simulation.world import CLIENT_PORT, World

Received = Callable[[bytes, bytes, bytes, bytes], None]
"""(subject, reply, headers, payload)"""


class Disconnected(Exception):
    """The connection has ended, or there is none."""


class NoResponders(Exception):
    """Nobody answers that subject."""


class Client(asyncio.Protocol):
    """One client on a host of its own. `connection` sees to it that there is one, somewhere."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.random = Random(world.random.getrandbits(64))
        self.process = Process(world.loop, name, f"host-{name}")
        world.processes.append(self.process)
        self.node = ""
        self.lives = 0
        """Connections so far."""
        self._connecting = asyncio.Lock()
        self._transport: Any = None
        self._buffer = b""
        self._ready: asyncio.Future[None] | None = None
        self._numbers = 0
        self._waiting: dict[bytes, asyncio.Future[tuple[bytes, bytes]]] = {}
        self._subscriptions: dict[int, tuple[bytes, Received]] = {}
        self._inbox = b"_INBOX.%b" % name.encode()

    # The connection

    @property
    def connected(self) -> bool:
        """Whether there is a connection that the server has greeted."""
        return self._transport is not None and self._ready is not None and self._ready.done()

    async def connect(self) -> None:
        """Have a connection, to any node that is there, in the end. Any number of tasks may ask for it."""
        async with self._connecting:
            await self._connect()

    async def _connect(self) -> None:
        while not self.connected:
            machines = self.world.used
            machine = self.random.choice(machines)
            try:
                async with asyncio.timeout(2.0):
                    self._ready = asyncio.get_running_loop().create_future()
                    await self.world.loop.create_connection(lambda: self, machine.host, CLIENT_PORT)
                    self._send(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nPING\r\n')
                    await self._ready
                self._send(b"SUB %b.* 1\r\n" % self._inbox)
                for number, (subject, _) in self._subscriptions.items():
                    self._send(b"SUB %b %d\r\n" % (subject, number))
            except (OSError, TimeoutError, Disconnected):
                self.close()
                await asyncio.sleep(0.05 + self.random.random() * 0.3)
                continue
            self.node = machine.name
            self.lives += 1

    def close(self) -> None:
        """Hang up."""
        transport, self._transport = self._transport, None
        self._buffer = b""
        if transport is not None:
            transport.abort()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(Disconnected())
            self._ready.exception()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Disconnected())
                future.exception()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._transport is not None and self._transport.gone:
            self.close()

    def eof_received(self) -> bool:
        return False

    def _send(self, data: bytes) -> None:
        if self._transport is None:
            raise Disconnected
        self._transport.write(data)

    # What is asked of it

    def publish(self, subject: bytes, payload: bytes, reply: bytes = b"", headers: bytes = b"") -> None:
        """Publish. Raises Disconnected."""
        if headers:
            head = b"HPUB %b %b %d %d\r\n" % (subject, reply, len(headers), len(headers) + len(payload))
        else:
            head = b"PUB %b %b %d\r\n" % (subject, reply, len(payload))
        self._send(b"%b%b%b\r\n" % (head, headers, payload))

    async def request(
        self, subject: bytes, payload: bytes = b"", headers: bytes = b"", patience: float = 3.0
    ) -> tuple[bytes, bytes]:
        """(headers, payload) of the answer. Raises Disconnected, TimeoutError, NoResponders."""
        self._numbers += 1
        reply = b"%b.%d" % (self._inbox, self._numbers)
        future = self._waiting[reply] = asyncio.get_running_loop().create_future()
        try:
            self.publish(subject, payload, reply, headers)
            async with asyncio.timeout(patience):
                answer = await future
        finally:
            self._waiting.pop(reply, None)
        if answer[0].startswith(b"NATS/1.0 503"):
            raise NoResponders
        return answer

    def subscribe(self, subject: bytes, received: Received) -> int:
        """Subscribe, now and on every later connection."""
        self._numbers += 1
        number = self._numbers + 1
        self._subscriptions[number] = (subject, received)
        if self.connected:
            self._send(b"SUB %b %d\r\n" % (subject, number))
        return number

    def unsubscribe(self, number: int) -> None:
        """The opposite."""
        del self._subscriptions[number]
        if self.connected:
            self._send(b"UNSUB %d\r\n" % number)

    # What comes

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        start = 0
        while (end := data.find(b"\r\n", start)) >= 0:
            line = data[start:end]
            verb = line[:4].upper()
            if verb in (b"MSG ", b"HMSG"):
                parts = line.split(b" ")
                size = int(parts[-1])
                after = end + 2 + size
                if len(data) < after + 2:
                    break
                head = int(parts[-2]) if verb == b"HMSG" else 0
                body = data[end + 2 : after]
                assert data[after : after + 2] == b"\r\n", data[start:]
                start = after + 2
                reply = parts[3] if len(parts) == (6 if head else 5) else b""
                self._message(int(parts[2]), parts[1], reply, body[:head], body[head:])
            else:
                start = end + 2
                self._control(line)
        self._buffer = data[start:]

    def _control(self, line: bytes) -> None:
        if line == b"PING" and self._transport is not None:
            self._send(b"PONG\r\n")
        elif line == b"PONG":
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
        elif line.startswith(b"-ERR"):
            self.world.trace(self.name, "is told", line)

    def _message(self, number: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        if number == 1:
            future = self._waiting.get(subject)
            if future is not None and not future.done():
                future.set_result((headers, payload))
        elif number in self._subscriptions:
            self._subscriptions[number][1](subject, reply, headers, payload)
