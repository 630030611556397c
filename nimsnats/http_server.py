"""An HTTP listener for ports that strangers reach: deadlines, limits by source, and headers that every answer carries.

Owns: the life of connections below aiohttp's applications. A request must arrive whole within `READ_TIMEOUT` of its
first byte (nats-server: 5 s), an answer must be taken, an idle connection ends. One source holds a share of the
connections at most, and where there are too many the one goes that waits longest for nothing, of the source that has
most: a node that asks for health or for its registration is never turned away because somebody holds sockets open.
It knows no path and no answer's content. A malformed request is its sender's mistake and no line in our log.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from typing import Final, cast

from aiohttp import StreamReader, web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

from nimsnats.source import source_of

READ_TIMEOUT: Final = 5.0
"""Seconds from a request's first byte, or from the connection, until headers and body are here."""
WRITE_TIMEOUT: Final = 15.0
"""Seconds that a peer may take nothing of what was written to it."""
IDLE_TIMEOUT: Final = 75.0
"""Seconds between two requests of a connection."""
MAX_CONNECTIONS: Final = 1024
MAX_PER_SOURCE: Final = 256
_SWEEP: Final = 1.0
_LINGER: Final = 2.0
"""Seconds for which the rest of a refused body is read, so that the refusal reaches its sender."""
_READS: Final = ("GET", "HEAD", "OPTIONS")
_log: Final = logging.getLogger("nimsnats.http")

SAFE_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
"""What every answer carries, unless it says something else itself."""


def is_from_page(request: web.BaseRequest) -> bool:
    """Whether a web page in a browser has sent this: browsers say so, and pages cannot make them keep silent."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    return "Origin" in request.headers or site != "none"


def is_from_foreign_page(request: web.BaseRequest) -> bool:
    """Whether a web page that another host has served has sent this, as far as the browser says so."""
    origin = request.headers.get("Origin", "")
    foreign = origin and origin.partition("://")[2].lower() != request.host.lower()
    return bool(foreign) or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")


@web.middleware
async def refuse_early(request: web.Request, handler: Handler) -> web.StreamResponse:
    """No web page, foreign or our own, changes anything here (forms, no-cors requests, rebound names); and nobody has
    us unpack what grows."""
    if request.method not in _READS and is_from_page(request):
        return web.json_response({"error": "web pages may not send this (Origin or Sec-Fetch-Site is set)"}, status=403)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return web.json_response({"error": "compressed bodies are not taken"}, status=415)
    return await handler(request)


async def _add_safe_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """aiohttp's own Server header goes: nats-server sends none."""
    del request
    for name, value in SAFE_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.popall("Server", None)


class Connection(RequestHandler):
    """aiohttp's connection, and since when its peer owes us something."""

    __slots__ = ("_begun", "_body", "_listener", "_stalled", "_unsent", "source")

    def __init__(self, listener: Listener, manager: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(manager, loop=loop, access_log=None, keepalive_timeout=IDLE_TIMEOUT, lingering_time=_LINGER)  # pyright: ignore[reportArgumentType]
        self.source = ""
        self._listener = listener
        self._begun: float | None = None
        """When the first byte came of a request that is not whole; before the first request, when the peer came."""
        self._body: StreamReader | None = None
        """Of the latest request whose header is here."""
        self._stalled: float | None = None
        """Since when the peer has taken nothing of what is unsent."""
        self._unsent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer: object = transport.get_extra_info("peername")
        self.source = source_of(str(cast("tuple[object, ...]", peer)[0])) if isinstance(peer, tuple) and peer else ""
        self._begun = self._loop.time()
        self._listener.admit(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._begun is None:
            self._begun, self._body = self._loop.time(), None
        before = self._request_count
        super().data_received(data)
        if self._request_count != before and self._messages and (self._body is None or self._body.is_eof()):
            # of a body that turns out to be malformed the handler hears nothing: it stays the one that is waited for
            self._body = self._messages[-1][1]

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What the peer wrote wrongly is its mistake; what is ours is logged, and answered, by aiohttp."""
        if isinstance(exc, web.RequestPayloadError):
            status = 400
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        _log.debug("Malformed request from %s: %s", self.source, " ".join((message or str(exc)).split())[:200])
        response = web.Response(status=status, text=f"{status} Bad Request\n", headers=SAFE_HEADERS)
        response.force_close()
        return response

    def log_exception(self, *args: object, **kw: object) -> None:
        """Not what a body was like that nobody could read."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self._current_request is None and not self._messages

    def abort(self) -> None:
        """End the connection now, whatever is unsent."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def is_overdue(self, now: float) -> bool:
        """Whether the peer has had its time, to send or to take. Called once in a while with the loop's clock."""
        if self._body is not None and self._body.is_eof():
            self._begun = self._body = None
        if self._begun is not None and now - self._begun > self._listener.read_timeout:
            return True
        unsent = self.transport.get_write_buffer_size() if self.transport is not None else 0
        if not unsent or unsent < self._unsent:
            self._stalled = None
        elif self._stalled is None:
            self._stalled = now
        self._unsent = unsent
        return self._stalled is not None and now - self._stalled > self._listener.write_timeout


class Listener:
    """One application on one port. `start`, then `stop`.

    Times in seconds. `max_connections` in all, `max_per_source` of one address (of one /64, where it is IPv6).
    """

    def __init__(
        self,
        app: web.Application,
        loop: asyncio.AbstractEventLoop,
        *,
        shutdown_timeout: float = 1.0,
        read_timeout: float = READ_TIMEOUT,
        write_timeout: float = WRITE_TIMEOUT,
        max_connections: int = MAX_CONNECTIONS,
        max_per_source: int = MAX_PER_SOURCE,
    ) -> None:
        self.read_timeout = read_timeout
        self.write_timeout = write_timeout
        self._loop = loop
        self._max_connections = max_connections
        self._max_per_source = max_per_source
        app.middlewares.insert(0, refuse_early)
        app.on_response_prepare.append(_add_safe_headers)
        # a handler whose peer has gone is cancelled: it must not hold a watcher's place
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=shutdown_timeout
        )
        self._server: asyncio.Server | None = None
        self._connections: dict[Connection, None] = {}
        """The oldest first."""
        self._sources: Counter[str] = Counter()
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen (port 0: any free one, host "": everywhere) and return the port. Raises OSError."""
        await self._runner.setup()
        loop, manager = self._loop, self._runner.server
        assert manager is not None
        self._server = await loop.create_server(
            lambda: Connection(self, manager, loop), host or None, port, ssl=tls, backlog=128
        )
        self._arm()
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, let what is being answered end, close every connection. Idempotent."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._runner.cleanup()

    def admit(self, connection: Connection) -> None:
        """Count a new connection; where there are too many, an idle one ends, or this one if none is idle."""
        self._connections[connection] = None
        self._sources[connection.source] += 1
        if self._sources[connection.source] > self._max_per_source:
            self._make_room(connection, connection.source)
        elif len(self._connections) > self._max_connections:
            self._make_room(connection, self._sources.most_common(1)[0][0])

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        if connection in self._connections:
            del self._connections[connection]
            self._sources[connection.source] -= 1
            if not self._sources[connection.source]:
                del self._sources[connection.source]

    def _make_room(self, newcomer: Connection, source: str) -> None:
        idle = (held for held in self._connections if held.source == source and held.is_idle and held is not newcomer)
        leaving = next(idle, newcomer)
        self.forget(leaving)
        leaving.abort()

    def _arm(self) -> None:
        self._sweeping = self._loop.call_later(min(_SWEEP, self.read_timeout / 4), self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in [held for held in self._connections if held.is_overdue(now)]:
            _log.debug("Connection of %s ended: it was too slow", connection.source)
            connection.abort()
        self._arm()
