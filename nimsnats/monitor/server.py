"""The HTTP server of a node: monitoring endpoints, health, metrics, and what other parts of the node add.

Owns the listener and the answers' HTTP side (status, headers, request counts). What is in the answers is made by the
modules beside it. This module and the status page's are the only ones of the monitor that import aiohttp, which takes
a good part of a node's start-up time: import it when a node has a monitor port, not before.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from aiohttp import web

from nimsnats.http_server import MAX_CONNECTIONS, Listener
from nimsnats.monitor.endpoints import ENDPOINTS, Endpoint
from nimsnats.monitor.page.site import StatusPage
from nimsnats.monitor.query import ParameterError, boolean, read_all
from nimsnats.monitor.rendering import pretty_in_slices
from nimsnats.monitor.view import NodeView
from nimsnats.runtime import StartError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Install = Callable[[web.Application], Any]

_STOP_TIMEOUT: Final = 1.0
_MAX_BODY: Final = 4 * 1024 * 1024
_ANY_ORIGIN: Final = {"Access-Control-Allow-Origin": "*", "Content-Type": "application/json"}


class MonitorError(StartError):
    """The HTTP port cannot be opened; the text is the line for the log."""


class Slot:
    """A route whose handler comes when the part of the node behind it is up; until then it answers 503."""

    def __init__(self) -> None:
        self.handler: Handler | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on."""
        if self.handler is not None:
            return await self.handler(request)
        return web.Response(status=503, text="not ready yet, try again\n", headers={"Retry-After": "1"})


class MonitorServer:
    """Serves one node over HTTP. A `port` of -1 means any free port; after `start`, `port` is the actual one."""

    def __init__(
        self, view: NodeView, host: str, port: int, *, base_path: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self.view = view
        self.host = host
        self.port = port
        self.base_path = "/" + base_path.strip("/") if base_path.strip("/") else ""
        self._tls = tls
        self._installs: list[Install] = []
        self._listener: Listener | None = None
        self._page: StatusPage | None = None

    def add_routes(self, install: Install) -> None:
        """Have `install` put its routes into the application when the server starts. Call before `start`."""
        assert self._listener is None, "routes are fixed once the server runs"
        self._installs.append(install)

    def slot(self, method: str, path: str) -> Slot:
        """A route for a part of the node that starts later than this server. Call before `start`."""
        slot = Slot()
        self.add_routes(lambda app: app.router.add_route(method, path, slot.answer))
        return slot

    async def start(self) -> None:
        """Listen. Raises MonitorError."""
        app = web.Application(client_max_size=_MAX_BODY)
        for endpoint in ENDPOINTS:
            for path in endpoint.paths:
                app.router.add_route("*", self.base_path + path, partial(self._answer, endpoint))
        self._page = StatusPage(self.view)
        self._page.add_routes(app, self.base_path)
        app.router.add_get(self.base_path + "/metrics", self._metrics)
        for install in self._installs:
            install(app)
        app.router.add_route("*", "/{path:.*}", _not_found)
        broker = self.view.broker
        most = min(MAX_CONNECTIONS, broker.descriptors.http)
        self._listener = Listener(app, broker.runtime.loop, shutdown_timeout=_STOP_TIMEOUT, max_connections=most)
        try:
            self.port = await self._listener.start(self.host, max(self.port, 0), self._tls)
        except OSError as error:
            await self.stop()
            raise MonitorError(
                f"can't listen to the monitor port: listen tcp {self.host}:{self.port}: {_reason(error)}"
            ) from None
        self.view.http_host, self.view.http_port, self.view.http_base_path = self.host, self.port, self.base_path

    async def stop(self) -> None:
        """Close the listener and the connections. Idempotent."""
        if self._page is not None:
            self._page.close()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.stop()

    async def _answer(self, endpoint: Endpoint, request: web.Request) -> web.StreamResponse:
        self.view.http_requests[endpoint.paths[0]] += 1
        await self.view.broker.slices.rest()  # however many ask, a few pages are built in a turn
        try:
            data = endpoint.build(self.view, **read_all(request.query, endpoint.readers))
        except ParameterError as error:
            return web.Response(status=400, text=str(error))
        if data is None:
            return web.Response(status=404, text=endpoint.missing)
        status = data.pop("status_code", 200)
        body = await pretty_in_slices(self.view.broker.slices, data, endpoint.indent)
        return web.Response(status=status, body=body, headers=_ANY_ORIGIN)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        from nimsnats.monitor.metrics import (
            expose,
        )  # the first scrape pays for loading prometheus-client, not the start

        self.view.http_requests["/metrics"] += 1
        try:
            asked = read_all(request.query, {"raft": boolean("raft"), "streams": boolean("streams")})
        except ParameterError as error:
            return web.Response(status=400, text=str(error))
        body, content_type = await expose(self.view, request.headers.get("Accept", ""), **asked)
        return web.Response(body=body, headers={"Content-Type": content_type})


async def _not_found(request: web.Request) -> web.StreamResponse:
    return web.Response(status=404, text="404 page not found\n")


def _reason(error: OSError) -> str:
    """The operating system's words as Go puts them."""
    return f"bind: {os.strerror(error.errno).lower()}" if error.errno else str(error)
