"""Receives an archive from a client and has a stream made of it.

Owns one upload: its subject, the queue of chunks, their acknowledgements, and the end, which is one answer and either a
whole stream or nothing. Five seconds without a chunk end it. What comes is decoded at once and never kept whole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from nimsnats.identity import nuid
from nimsnats.jetstream.api.decode import JsonObject, encode
from nimsnats.jetstream.errors import STREAM_RESTORE, ApiError
from nimsnats.jetstream.snapshot.loader import BadItem, Loader
from nimsnats.protocol.archive import ArchivedState, ArchiveReader, BadArchive
from nimsnats.protocol.s2 import BadStream, S2Reader
from nimsnats.storage import StorageError

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection

_TYPE: Final = "io.nats.jetstream.api.v1.stream_create_response"
_PATIENCE: Final = 5.0
"""Seconds without a chunk that end an upload."""
_WAITING: Final = 32 << 20
"""Bytes of chunks that may wait; a client that waits for its answers never has that many."""


class Stalled(Exception):
    """The client has gone silent."""


class Inflow:
    """One upload. `room` raises ApiError when a stream of that many bytes has no place; `enter` makes the loaded stream
    known and returns its information. Raises nothing: what became of it is in `failure`."""

    def __init__(
        self,
        account: Account,
        loader: Loader,
        *,
        max_payload: int,
        room: Callable[[int], None],
        enter: Callable[[Loader], Awaitable[JsonObject]],
    ) -> None:
        self.received = 0
        """Bytes of the archive so far, as they are on the wire."""
        self.failure = ""
        self._account = account
        self._loader = loader
        self._runtime = loader.stream.runtime
        self._log = loader.stream.log
        self._room = room
        self._enter = enter
        self._s2 = S2Reader()
        self._archive = ArchiveReader(max_payload)
        self._chunks: deque[tuple[bytes, bytes]] = deque()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._reply = b""
        drawn = nuid(self._runtime.random)
        self.subject = f"$JS.SNAPSHOT.RESTORE.{loader.config.name}.{drawn}"
        """Where the chunks are to go."""
        self._subscription = account.subscribe(self.subject.encode(), self._take, routed=True)

    def _take(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> None:
        del subject, headers, origin
        if self._waiting <= _WAITING:
            self._chunks.append((reply, payload))
            self._waiting += len(payload)
            self._wake.set()

    async def run(self) -> None:
        """Receive until the end, and answer."""
        try:
            await self._receive()
            self._answer(await self._enter(self._loader))
        except asyncio.CancelledError:
            self.failure = "the server stops"
            raise
        except (BadStream, BadArchive, BadItem, ApiError, StorageError) as error:
            self._fail(f"error adding stream: {_told(error)}" if isinstance(error, ApiError) else str(error))
        except Stalled:
            self.failure = "no data came any more"
        except Exception:
            self._log.exception("Restore of stream %s failed", self._loader.config.name)
            self._fail("internal error")
        finally:
            self._account.unsubscribe(self._subscription)
            if not self._loader.entered:
                await self._loader.abandon()

    async def _receive(self) -> None:
        await self._loader.begin()
        while True:
            self._reply, chunk = await self._next()
            if not chunk:
                break
            self.received += len(chunk)
            for piece in self._s2.feed(chunk):
                for item in self._archive.feed(piece):
                    if isinstance(item, ArchivedState):
                        self._room(item.fields.get("bytes", 0))
                    await self._loader.take(item)
                self._room(self._loader.taken)
                await self._runtime.sleep(0)  # others have work, too
            if self._reply:
                self._account.publish(self._reply)
        self._s2.finish()
        self._archive.finish()
        await self._loader.finish()

    async def _next(self) -> tuple[bytes, bytes]:
        if self._waiting > _WAITING:
            raise BadItem("more chunks at once than this server takes")
        if not self._chunks:
            self._wake.clear()
            timer = self._runtime.call_later(_PATIENCE, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            if not self._chunks:
                raise Stalled
        reply, chunk = self._chunks.popleft()
        self._waiting -= len(chunk)
        return reply, chunk

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._answer({"error": STREAM_RESTORE(err=reason).body()})

    def _answer(self, body: JsonObject) -> None:
        if self._reply:
            self._account.publish(self._reply, encode({"type": _TYPE, **body}))


def _told(error: ApiError) -> str:
    return f"{error.description} ({error.err_code})"
