"""A registry that misbehaves in whatever way a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Zoo:
    """One animal at a time: every request goes to `handler`; `requests` remembers (method, path with query)."""

    def __init__(self) -> None:
        self.handler: Handler | None = None
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        self.headers.append(dict(request.headers))
        assert self.handler is not None
        return await self.handler(request)

    def seen(self, method: str) -> int:
        return sum(1 for verb, _ in self.requests if verb == method)


@asynccontextmanager
async def zoo(handler: Handler | None = None) -> AsyncIterator[Zoo]:
    animal = Zoo()
    animal.handler = handler
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", animal.serve)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    animal.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield animal
    finally:
        await runner.cleanup()
