"""A raw client for tests, and brokers to talk to. Every wait ends with an event on the wire, never with a sleep."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.runtime import Runtime

QUIET = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1}\r\n'


class Peer:
    """One connection to a broker on loopback."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.info: dict[str, Any] = {}

    @classmethod
    async def connect(cls, port: int, connect: bytes = QUIET, *, receive_buffer: int = 0) -> Peer:
        """Connect, read INFO, send `connect` and wait for the PONG to a PING unless it is empty."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        peer = cls(*await asyncio.open_connection(sock=sock, limit=4096 if receive_buffer else 2**20))
        peer.info = json.loads((await peer.line())[5:])
        if connect:
            await peer.sync(connect)
        if b'"protocol":1' in connect:
            assert (await peer.line()).startswith(b"INFO ")
        return peer

    async def line(self) -> bytes:
        """The next line, without CRLF; b"" at the end."""
        return (await self.reader.readline()).rstrip(b"\r\n")

    async def sync(self, data: bytes = b"") -> list[bytes]:
        """Send `data` and a PING; the lines that came before its PONG. PINGs, which come by the clock, are answered."""
        self.send(data + b"PING\r\n")
        lines: list[bytes] = []
        while (line := await self.reader.readline()) != b"PONG\r\n":
            assert line.endswith(b"\n"), lines
            if line == b"PING\r\n":
                self.send(b"PONG\r\n")
            else:
                lines.append(line.removesuffix(b"\r\n"))
        return lines

    def send(self, data: bytes) -> None:
        """Send without waiting."""
        self.writer.write(data)

    async def rest(self) -> bytes:
        """Everything until the server hangs up."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Hang up."""
        self.writer.close()


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Broker]:
    """A broker with these options on an ephemeral loopback port."""
    broker = Broker(BrokerOptions(host="127.0.0.1", port=-1, **options), Runtime.real())
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


async def until(condition: Any, patience: float = 120.0) -> None:
    """Let the loop turn until `condition()` holds. Raises TimeoutError after `patience` seconds: sooner than the
    test's own timeout, which tears the loop from under a fixture and leaves its nodes running."""
    async with asyncio.timeout(patience):
        while not condition():  # noqa: ASYNC110 - any state of the broker may be waited for
            await asyncio.sleep(0.001)
