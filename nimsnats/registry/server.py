"""The registry server: a directory, its HTTP API, and, stand-alone, the listener around them.

Owns: their lifetime. `python -m nimsnats registry` runs `serve`; a node embeds a `RegistryServer` in its own HTTP port:
`open`, `add_routes`, `stop`, without a listener of its own.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from nimsnats.http_server import Listener
from nimsnats.notify import Notify
from nimsnats.registry.address import is_loopback
from nimsnats.registry.api import RegistryApi, answer, error_answer
from nimsnats.registry.directory import Directory
from nimsnats.registry.errors import RegistryConfigError, RegistryListenError
from nimsnats.registry.guard import Guard
from nimsnats.runtime import Runtime

DATABASE: Final = "registry.db"
DEFAULT_TTL: Final = 30.0


class RegistryServer:
    """One registry. `ttl` in seconds; with `data_dir` registrations survive a restart.

    Only who has the `token`, or proves the cluster's `secret`, is let in; everybody, where neither is set.

    Stand-alone: `start`, `stop`. Embedded: `open`, `add_routes` before the application starts, `stop`.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        ttl: float = DEFAULT_TTL,
        data_dir: Path | None = None,
        token: str = "",
        secret: str = "",
        tls: ssl.SSLContext | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        if not 0.001 <= ttl <= 86_400:
            raise RegistryConfigError(f"the registry's TTL must be between 1ms and 24h, got {ttl:g}s")
        self._log = log or logging.getLogger(__name__)
        path = data_dir / DATABASE if data_dir is not None else None
        self.directory = Directory(runtime, ttl=ttl, path=path, log=self._log)
        self._guard = Guard(runtime, token=token, secret=secret)
        self._api = RegistryApi(self.directory, self._guard)
        self._tls = tls
        self._listener: Listener | None = None
        self._host = ""
        self.port = 0
        """The listening port after `start`."""

    @property
    def url(self) -> str:
        """Where clients of this machine reach a stand-alone server."""
        return self._at({"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host))

    @property
    def listening(self) -> str:
        """Where a stand-alone server listens, as it was asked to."""
        return self._at(self._host or "0.0.0.0")

    def _at(self, host: str) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    async def open(self) -> None:
        """Load what an earlier run has left. Raises `RegistryStoreError`."""
        await self.directory.open()

    def add_routes(self, app: web.Application) -> None:
        """Serve the API in an application; its shutdown releases whoever is watching."""
        self._api.add_routes(app)

        async def release(_: web.Application) -> None:
            self.directory.release()

        app.on_shutdown.append(release)

    async def start(self, listen: str = "127.0.0.1:8500") -> None:
        """Open and listen on `host:port` (port 0: any free one).

        Raises `RegistryConfigError`, `RegistryStoreError`, or `RegistryListenError` in one clear line.
        """
        self._host, port = parse_listen(listen)
        await self.open()
        app = web.Application(middlewares=[_json_errors])
        self.add_routes(app)
        app.router.add_get("/health", self._health)
        self._listener = Listener(app, self.directory.runtime.loop, shutdown_timeout=2.0)
        try:
            self.port = await self._listener.start(self._host, port, self._tls)
        except OSError as error:
            await self.stop()
            reason = error.strerror or str(error)
            raise RegistryListenError(f"registry cannot listen on {listen}: {reason}") from error
        kept = "on disk" if self.directory.persistent else "in memory"
        self._log.info("Registry listening on %s (ttl %gs, nodes kept %s)", self.listening, self.directory.ttl, kept)
        if self._guard.is_open and not is_loopback(self._host):
            self._log.warning(
                "Whoever reaches %s can register nodes: set NATS_CLUSTER_SECRET as on the nodes, or REGISTRY_TOKEN",
                self.listening,
            )

    async def stop(self) -> None:
        """Release watchers, stop listening, close the database. Idempotent."""
        self.directory.release()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.stop()
        await self.directory.close()

    async def _health(self, _: web.Request) -> web.StreamResponse:
        trouble = self.directory.trouble
        body: dict[str, object] = {
            "status": "degraded" if trouble else "healthy",
            "services": len(self.directory.services()),
            "ttl": self.directory.ttl,
            "persistent": self.directory.persistent,
        }
        if trouble:
            body["error"] = f"the disk refuses what is registered: {trouble}"
        return answer(body)


async def serve(
    listen: str,
    *,
    ttl: float = DEFAULT_TTL,
    data_dir: Path | None = None,
    token: str = "",
    secret: str = "",
    tls: ssl.SSLContext | None = None,
    log: logging.Logger | None = None,
    stop: asyncio.Event | None = None,
    notify: Notify | None = None,
) -> None:
    """Run a registry until `stop` is set or the task is cancelled. Raises what `RegistryServer.start` raises.

    `notify` is told when it listens and when it stops.
    """
    notify = notify or Notify()
    server = RegistryServer(Runtime.real(), ttl=ttl, data_dir=data_dir, token=token, secret=secret, tls=tls, log=log)
    try:
        await server.start(listen)
        notify.ready(f"Listening on {server.listening}")
        await (stop or asyncio.Event()).wait()
    finally:
        notify.stopping("Stopping")
        await server.stop()
        notify.close()


def parse_listen(listen: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`, `:port` or `port`. Raises `RegistryConfigError`."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not port.isascii() or not port.isdigit() or int(port[:6]) > 65535 or (":" in host and "[" not in listen):
        raise RegistryConfigError(f"listen address {listen!r} must look like 127.0.0.1:8500 or [::1]:8500")
    return host, int(port)


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what aiohttp itself refuses (unknown paths) as the API answers, in JSON."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return error_answer(error.status, f"{error.reason}: {request.path[:200]}")
