"""The HTTP side of the status page: `/` for browsers, its files and events below `/-/`, and `/statusz` for programs.

Owns headers and caching. Tools that ask for `/` without wanting HTML get the plain list of endpoints as before.
"""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from importlib.resources import files
from typing import Final

from aiohttp import web

from nimsnats.monitor import index
from nimsnats.monitor.format import pretty
from nimsnats.monitor.page import html
from nimsnats.monitor.page.collect import Collector
from nimsnats.monitor.page.live import Viewers
from nimsnats.monitor.view import NodeView
from nimsnats.version import __version__

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PLAIN_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_SAFE: Final = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_PAGE: Final = {**_SAFE, "Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
_FILES: Final = {
    "status.css": "text/css; charset=utf-8",
    "status.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class StatusPage:
    """One node's page. `close` before the HTTP server stops, so that its events end."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._collector = Collector(view)
        self.viewers = Viewers(self._collector, view.broker.runtime)

    def add_routes(self, app: web.Application, base: str) -> None:
        """Serve the page below `base` ("" or a path without a slash at its end)."""
        app.router.add_route("*", base + "/", self._page)
        app.router.add_get(base + "/statusz", self._statusz)
        app.router.add_get(base + "/-/events", self.viewers.serve)
        folder = files("nimsnats.monitor.page") / "static"
        for name, kind in _FILES.items():
            content = (folder / name).read_bytes()
            app.router.add_get(f"{base}/-/{name}", partial(_file, content, kind))

    def close(self) -> None:
        """Send every browser away. Idempotent."""
        self.viewers.close()
        self._collector.close()

    async def _page(self, request: web.Request) -> web.StreamResponse:
        self._view.http_requests["/"] += 1
        name = self._view.broker.server_name
        if "text/html" not in request.headers.get("Accept", "") or request.method not in ("GET", "HEAD"):
            plain = {**_SAFE, "Content-Security-Policy": _PLAIN_POLICY}
            return web.Response(text=index.page(name, __version__), content_type="text/html", headers=plain)
        cells = html.page(await self._collector.overview())
        return web.Response(
            body=html.render(name, __version__, cells, index.LINKS).encode("utf-8", "replace"),
            headers={"Content-Type": "text/html; charset=utf-8", **_PAGE},
        )

    async def _statusz(self, request: web.Request) -> web.StreamResponse:
        self._view.http_requests["/statusz"] += 1
        body = pretty(await self._collector.overview())
        return web.Response(body=body, headers={"Content-Type": "application/json", **_SAFE})


async def _file(content: bytes, kind: str, request: web.Request) -> web.StreamResponse:
    tag = f'"{sha256(content).hexdigest()[:20]}"'
    headers = {**_SAFE, "ETag": tag, "Cache-Control": "no-cache"}
    if tag in (known.strip() for known in request.headers.get("If-None-Match", "").split(",")):
        return web.Response(status=304, headers=headers)
    return web.Response(body=content, headers={**headers, "Content-Type": kind})
