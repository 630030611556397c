"""A client connection without a socket: the very same `ClientConnection`, over memory.

Owns the two ends of the pipe. Bytes cross in the next loop turn, in both directions, so that neither side is ever
called from inside its own call; of what the client has written, no more in a turn than of any other connection
(`turns`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nimsnats.broker.client import ClientConnection
    from nimsnats.runtime import Runtime

_ROOM: Final = 1024 * 1024
"""Bytes that the server has not taken yet from which on a client that drains waits."""


class LocalConnection:
    """The client's end: `write` and `close`; what the server says comes to `received`, its end to `closed`."""

    def __init__(
        self,
        runtime: Runtime,
        client: ClientConnection,
        received: Callable[[bytes], None],
        closed: Callable[[], None] | None,
    ) -> None:
        self.client = client
        self._transport = _MemoryTransport(runtime, client, received, closed)
        client.connection_made(self._transport)

    @property
    def closing(self) -> bool:
        """Whether either side has ended the connection."""
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send bytes to the server. Ignored once the connection is closed."""
        self._transport.push(bytes(data))

    async def drain(self) -> None:
        """Wait until the server has taken most of what was written, or the connection is closed."""
        await self._transport.drained()

    def close(self) -> None:
        """End the connection from the client's side."""
        self._transport.hang_up()


class _MemoryTransport(asyncio.Transport):
    """The server's end, as an asyncio transport."""

    def __init__(
        self,
        runtime: Runtime,
        client: ClientConnection,
        received: Callable[[bytes], None],
        closed: Callable[[], None] | None,
    ) -> None:
        super().__init__({"peername": ("127.0.0.1", 0)})
        self._runtime = runtime
        self._client = client
        self._received = received
        self._closed = closed
        self._inbound: deque[memoryview] = deque()
        self._unread = 0
        """Bytes in `_inbound`."""
        self._pumping = False
        self._draining: list[asyncio.Future[None]] = []
        self._outbound: list[bytes] = []
        self._held = False
        self._closing = False
        self._hung_up = False

    # -- from the client ----------------------------------------------------------------------------------------

    def push(self, data: bytes) -> None:
        if self._closing or self._hung_up:
            return
        self._inbound.append(memoryview(data))
        self._unread += len(data)
        self._pump_soon()

    def hang_up(self) -> None:
        if not self._closing and not self._hung_up:
            self._hung_up = True
            self._pump_soon()

    async def drained(self) -> None:
        if self._unread > _ROOM and not self._closing:
            waiting: asyncio.Future[None] = self._runtime.loop.create_future()
            self._draining.append(waiting)
            await waiting

    def _pump_soon(self) -> None:
        if not self._pumping and not self._held:
            self._pumping = True
            self._runtime.call_soon(self._pump_in)

    def _pump_in(self) -> None:
        self._pumping = False
        if self._closing or self._held:
            return
        if self._inbound:
            size = self._fill(self._client.get_buffer(-1))
            self._client.buffer_updated(size)
            if self._unread <= _ROOM:
                self._let_go()
        if self._inbound:
            self._pump_soon()
        elif self._hung_up and not self._held:
            self._client.eof_received()

    def _fill(self, buffer: memoryview) -> int:
        """Move what was written into a buffer, as much as fits in; how much."""
        inbound, size, room = self._inbound, 0, len(buffer)
        while inbound and size < room:
            piece = inbound.popleft()
            if len(piece) > room - size:
                inbound.appendleft(piece[room - size :])
                piece = piece[: room - size]
            buffer[size : size + len(piece)] = piece
            size += len(piece)
        self._unread -= size
        return size

    def _let_go(self) -> None:
        waiting, self._draining = self._draining, []
        for drained in waiting:
            if not drained.done():
                drained.set_result(None)

    # -- to the client ------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._outbound:
            self._runtime.call_soon(self._pump_out)
        self._outbound.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        for data in list_of_data:
            self.write(data)

    def _pump_out(self) -> None:
        data = b"".join(self._outbound)
        self._outbound.clear()
        if data:
            try:
                self._received(data)
            except Exception as error:  # of the program at the other end, which has lost what it was told
                self._runtime.fence.caught(self._received, error)
                self.abort()

    # -- the rest of what a transport is ------------------------------------------------------------------------

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._held = True

    def resume_reading(self) -> None:
        self._held = False
        if self._inbound or self._hung_up:
            self._pump_soon()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._let_go()
            self._runtime.call_soon(self._end)

    def abort(self) -> None:
        self._outbound.clear()
        self.close()

    def _end(self) -> None:
        self._pump_out()
        self._inbound.clear()
        self._client.connection_lost(None)
        if self._closed is not None:
            self._closed()
