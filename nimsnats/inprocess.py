"""A real nats-py client whose transport is memory: no socket, the same bytes.

Owns the transport that joins nats-py's `Client` to a `Broker` of the same event loop. Reconnection, subscriptions and
JetStream are all nats-py's own; the broker treats the connection like any other.
"""

from __future__ import annotations

import ssl
from asyncio import StreamReader
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import ParseResult

from nats.aio.client import Client
from nats.aio.transport import Transport

from nimsnats.broker.auth import Identity
from nimsnats.broker.local import LocalConnection
from nimsnats.broker.server import Broker


class MemoryTransport(Transport):
    """nats-py's transport interface over a `LocalConnection`; connects as often as the client asks."""

    def __init__(self, broker: Broker, trusted: Identity | None = None) -> None:
        self._broker = broker
        self._trusted = trusted
        self._reader = StreamReader()
        self._connection: LocalConnection | None = None

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Open a new connection; the address is not looked at. Raises ConnectionError when the broker is stopped."""
        reader = StreamReader(limit=buffer_size)
        self._reader = reader
        self._connection = self._broker.connect_local(reader.feed_data, reader.feed_eof, trusted=self._trusted)

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """There is nothing to encrypt between two objects of one process."""
        raise NotImplementedError("an in-process connection has no TLS")

    def write(self, payload: bytes) -> None:
        """Hand bytes to the broker, which takes them in the turns of the loop that follow."""
        if self._connection is not None:
            self._connection.write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Hand over several pieces as one."""
        self.write(b"".join(payload))

    async def read(self, buffer_size: int) -> bytes:
        """What the broker has sent; empty at the end."""
        return await self._reader.read(buffer_size)

    async def readline(self) -> bytes:
        """One protocol line, as the handshake reads it."""
        return await self._reader.readline()

    async def drain(self) -> None:
        """Wait while the broker is far behind with what was written."""
        if self._connection is not None:
            await self._connection.drain()

    async def wait_closed(self) -> None:
        """Closing is immediate."""

    def close(self) -> None:
        """End the connection; the broker forgets its subscriptions."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def at_eof(self) -> bool:
        """Whether the broker has closed and all it sent was read."""
        return self._reader.at_eof()

    def __bool__(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - nats-py annotates none
        """nats-py asks whether it has a transport: it has."""
        return True


async def connect(broker: Broker, *, trusted: Identity | None = None, **options: Any) -> Client:
    """A connected nats-py client. `options` are those of `nats.connect` (name, user, token, callbacks…).

    `trusted`: as whom the program itself connects, where strangers need credentials.
    """
    client = Client()
    client._transport = MemoryTransport(broker, trusted)  # pyright: ignore[reportPrivateUsage] - nats-py offers no public way
    dial = cast("Callable[..., Any]", client.connect)
    await dial(servers=["nats://in-process:4222"], **options)
    return client
