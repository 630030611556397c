"""Sends a snapshot to a client: chunks, their acknowledgements, and the message that ends it.

Owns one transfer from its first chunk to its end. What is sent comes from `view.py`; what it means is the business of
whoever listens. Flow control is nats-server's: so many full chunks may be unacknowledged, each acknowledgement lets one
more go, and five seconds without one end the transfer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nimsnats.identity import nuid
from nimsnats.jetstream.snapshot.view import SnapshotView, Unreadable
from nimsnats.protocol.archive import END, consumer_entry, message_entry, state_entry
from nimsnats.protocol.headers import status_block
from nimsnats.protocol.s2 import FRAME_BYTES, STREAM_IDENTIFIER, frame

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection
    from nimsnats.runtime import Runtime

_CHUNK: Final = 128 * 1024
_WINDOW: Final = 8 << 20
_SMALLEST: Final = 1024
_LARGEST_CHUNK: Final = 1 << 20
_LARGEST_WINDOW: Final = 32 << 20
_PATIENCE: Final = 5.0
"""Seconds without an acknowledgement that end a transfer."""
_INTEREST: Final = 2.0
"""Seconds that a receiver may take to be there."""
_AGAIN: Final = 0.01
_DONE: Final = b"NATS/1.0 204\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes of a chunk, and how many full chunks may be unacknowledged."""

    chunk: int
    window: int

    @classmethod
    def asked(cls, chunk: int, window: int) -> Flow:
        """What a client wishes, within bounds; 0 is no wish."""
        size = min(max(chunk, _SMALLEST), _LARGEST_CHUNK) if chunk else _CHUNK
        total = min(max(window, _SMALLEST), _LARGEST_WINDOW) if window else _WINDOW
        return cls(size, max(total, size) // size)


class Broken(Exception):
    """The receiver does not take it: `status` for it, the text for everybody else."""

    def __init__(self, status: bytes, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Outflow:
    """One transfer of `view` to the subject `to`."""

    def __init__(
        self, account: Account, runtime: Runtime, stream: str, view: SnapshotView, to: bytes, flow: Flow
    ) -> None:
        self.sent = 0
        """Bytes of the archive sent so far, as they are on the wire."""
        self._account = account
        self._runtime = runtime
        self._view = view
        self._to = to
        self._flow = flow
        self._ack = b"$JS.SNAPSHOT.ACK.%b.%b" % (stream.encode(), nuid(runtime.random).encode())
        self._full = self._acknowledged = 0
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Send everything. Raises Broken, Unreadable, and whatever storage raises; the receiver has been told."""
        listening = self._account.subscribe(self._ack + b".*.*", self._acknowledge, routed=True)
        try:
            await self._await_receiver()
            await self._send_all()
            self._account.publish(self._to, headers=_DONE if self._full else b"")
        except Broken as broken:
            self._account.publish(self._to, headers=broken.status)
            raise
        except Exception as error:
            text = str(error) if isinstance(error, Unreadable) else "internal error"
            self._account.publish(self._to, headers=status_block(500, text.replace("\n", " ")))
            raise
        finally:
            self._account.unsubscribe(listening)

    def _acknowledge(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> None:
        del subject, reply, headers, payload, origin
        self._acknowledged = min(self._acknowledged + 1, self._full)
        self._wake.set()

    async def _await_receiver(self) -> None:
        """Whoever asks may subscribe after asking. The `nats` CLI does, and names a subject below its inbox: until it
        has subscribed, only the wildcard of its requests is interested, and would throw the chunks away."""
        account, begun = self._account, self._runtime.monotonic()
        while account.interest.is_plain((self._to,)):
            waited = self._runtime.monotonic() - begun
            if waited > _INTEREST:
                raise Broken(status_block(408, "No Interest"), "no interest")
            if waited > _INTEREST / 2 and account.has_interest(self._to):
                return
            await self._runtime.sleep(_AGAIN)

    async def _send_all(self) -> None:
        held = bytearray(STREAM_IDENTIFIER)
        size = self._flow.chunk
        async for piece in self._frames():
            held += piece
            while len(held) >= size:
                await self._send_full(bytes(held[:size]))
                del held[:size]
            await self._runtime.sleep(0)  # others have work, too
        if held:
            self._publish(bytes(held), b"")

    async def _frames(self) -> AsyncIterator[bytes]:
        held = bytearray()
        async for entries in self._entries():
            held += entries
            while len(held) >= FRAME_BYTES:
                yield frame(bytes(held[:FRAME_BYTES]))
                del held[:FRAME_BYTES]
        yield frame(bytes(held + END))

    async def _entries(self) -> AsyncIterator[bytes]:
        """The archive, some entries at a time."""
        view = self._view
        yield state_entry(view.time, view.archived_state())
        for name, fields in view.consumers:
            yield consumer_entry(view.time, name, fields)
        while (messages := await view.next_block()) is not None:
            for at in range(0, len(messages), 256):
                yield b"".join(map(message_entry, messages[at : at + 256]))

    async def _send_full(self, chunk: bytes) -> None:
        while self._full - self._acknowledged >= self._flow.window:
            self._wake.clear()
            timer = self._runtime.call_later(_PATIENCE, self._wake.set)
            before = self._acknowledged
            await self._wake.wait()
            timer.cancel()
            if self._acknowledged == before:
                raise Broken(status_block(408, "No Flow Response"), "no flow response")
        self._full += 1
        self._publish(chunk, b"%b.%d.%d" % (self._ack, len(chunk), self._full))

    def _publish(self, chunk: bytes, reply: bytes) -> None:
        if not self._account.publish(self._to, chunk, reply=reply):
            raise Broken(status_block(408, "No Interest"), "no interest")
        self.sent += len(chunk)
