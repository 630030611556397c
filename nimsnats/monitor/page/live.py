"""Server-sent events of the status page: one a second, made once for everybody who looks, while somebody looks.

Owns who looks and how many may. A browser that reads slowly misses events, it does not pile them up: each connection
holds at most one event, and one that takes nothing for a while is closed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from aiohttp import web

from nimsnats.http_server import is_from_foreign_page
from nimsnats.monitor.page.html import page
from nimsnats.source import source_of

if TYPE_CHECKING:
    from nimsnats.monitor.format import JsonObject
    from nimsnats.monitor.page.collect import Collector
    from nimsnats.runtime import Runtime

MOST_VIEWERS: Final = 32
MOST_PER_SOURCE: Final = 8
"""Of one address, so that nobody takes all places."""
_PERIOD: Final = 1.0
_PATIENCE: Final = 15.0
"""Seconds that a browser may take nothing."""
_log: Final = logging.getLogger("nimsnats.monitor")
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


class Viewers:
    """The browsers that look at one node's page."""

    def __init__(self, collector: Collector, runtime: Runtime) -> None:
        self._collector = collector
        self._runtime = runtime
        self._count = 0
        self._sources: Counter[str] = Counter()
        self._number = 0
        self._event = b""
        self._news = asyncio.Event()
        self._source: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def count(self) -> int:
        """How many look now."""
        return self._count

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send events until the browser goes away."""
        if is_from_foreign_page(request):
            return web.Response(status=403, text="pages of other hosts may not look\n")
        source = source_of(request.remote or "")
        if self._count >= MOST_VIEWERS or self._sources[source] >= MOST_PER_SOURCE or self._closed:
            text = "too many look already, try again later\n"
            return web.Response(status=503, text=text, headers={"Retry-After": "5"})
        self._count += 1
        self._sources[source] += 1
        try:
            response = web.StreamResponse(headers=_HEADERS)
            await response.prepare(request)
            if request.method != "HEAD":
                await self._send(response)
            return response
        finally:
            self._count -= 1
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]
            if not self._count and self._source is not None:
                self._source.cancel()
                self._source = None

    def close(self) -> None:
        """Let everybody go. Idempotent."""
        self._closed = True
        if self._source is not None:
            self._source.cancel()
            self._source = None
        self._news.set()

    async def _send(self, response: web.StreamResponse) -> None:
        if self._source is None:
            self._source = self._runtime.spawn(self._make(), "status page events")
        sent = 0
        try:
            while not self._closed:
                if sent == self._number:
                    await self._news.wait()
                    continue
                sent = self._number
                async with asyncio.timeout(_PATIENCE):
                    await response.write(self._event)
        except (ConnectionError, TimeoutError):
            pass  # the browser has gone, or reads nothing

    def _tell(self, cells: JsonObject) -> None:
        self._number += 1
        data = json.dumps(cells, separators=(",", ":"), ensure_ascii=False)
        self._event = f"retry: 2000\nid: {self._number}\ndata: {data}\n\n".encode("utf-8", "replace")
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _make(self) -> None:
        while True:
            begun = self._runtime.monotonic()
            try:
                cells = page(await self._collector.overview())
            except Exception as error:  # our bug costs an event, not all that follow
                self._runtime.fence.caught(self._make, error)
                _log.error("The status page cannot be made")
            else:
                self._tell(cells)
            await self._runtime.sleep(max(0.1, begun + _PERIOD - self._runtime.monotonic()))
