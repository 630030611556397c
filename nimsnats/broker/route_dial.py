"""Dialling one peer, and dialling it again.

Owns one address: the attempts, their pauses, and when to give up. Configured and registered peers are dialled for ever,
those that another peer told us of (`explicit` is False) a few times. What is said on the connection is in `route`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from nimsnats.broker.reasons import Reason
from nimsnats.broker.route import RouteConnection, Stage
from nimsnats.broker.route_options import secret_of

if TYPE_CHECKING:
    from nimsnats.broker.route_table import RouteTable

_JITTER: Final = 0.1
"""Most seconds added to a pause, so that two servers that dial each other do not stay in step."""


class Solicitation:
    """One address that is dialled until a route to it is up, and again when that ends."""

    def __init__(
        self, table: RouteTable, host: str, port: int, *, user: str, password: str, explicit: bool, gossip_mode: int = 0
    ) -> None:
        self.host = host
        self.port = port
        self.user = user
        """Written into the URL by the operator, as is `password`: nobody else's address is told either."""
        self.password = password
        self.explicit = explicit
        self.gossip_mode = gossip_mode
        """What the peer that told us of this address wants to be passed on; see `route_gossip`."""
        self.connection: RouteConnection | None = None
        self._table = table
        self._wanted = True
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def secret(self) -> str:
        """What is proven to a server of our kind, and must be proven by it; empty: everybody is taken."""
        return secret_of(self.user, self.password) or self._table.options.secret

    @property
    def address(self) -> str:
        """`host:port`, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def tls_name(self) -> str:
        """Whom the peer's certificate must name: the host, or for a bare address the name that was configured.

        Peers that are told of by others come as addresses, and certificates mostly hold names; nats-server does alike.
        """
        if not _is_address(self.host):
            return self.host
        hosts = (parse_route(url)[0] for url in self._table.options.routes)
        return next((host for host in hosts if not _is_address(host)), self.host)

    def start(self) -> None:
        """Dial until `stop` or `withdraw`."""
        self._task = self._table.broker.runtime.spawn(self._run(), f"route to {self.address}")

    async def stop(self) -> None:
        """End at once; a connection that is up stays, the table closes it."""
        self._wanted = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def withdraw(self) -> None:
        """Dial no more; a route that is up stays until it ends by itself."""
        self._wanted = False
        connection = self.connection
        if connection is not None and connection.stage is not Stage.UP:
            connection.close(Reason.ROUTE_REMOVED)
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        runtime = self._table.broker.runtime
        try:
            while self._wanted:
                began = runtime.monotonic()
                try:
                    connection = self.connection = await self._connect()
                except Exception as error:  # an error of ours is no reason never to try again
                    runtime.fence.caught(self._connect, error)
                    connection = self.connection = None
                if connection is not None:
                    await connection.gone.wait()
                    self.connection = None
                pause = await self._pause(connection)
                if pause is None:
                    return
                if connection is None:  # an attempt without an answer has been a pause already
                    pause = max(0.0, pause - (runtime.monotonic() - began))
                await runtime.sleep(pause + runtime.random.random() * _JITTER)
        finally:
            self._table.dialled(self)

    async def _connect(self) -> RouteConnection | None:
        """One attempt; None when nobody answers."""
        table = self._table
        try:
            async with asyncio.timeout(table.options.dial_timeout):
                return await self._open()
        except (OSError, UnicodeError) as error:  # a TimeoutError is an OSError; the other comes from absurd names
            level = logging.DEBUG if self._failures else logging.WARNING
            reason = str(error) or "no answer in time"
            table.broker.log.log(level, "Error trying to connect to route at %s: %s", self.address, reason)
            return None

    async def _open(self) -> RouteConnection:
        """A connection that has been opened and given up in the same turn, because the time ran out, ends here: uvloop
        closes its transport and tells it nothing."""
        made: list[RouteConnection] = []

        def begin() -> RouteConnection:
            made.append(RouteConnection(self._table, self))
            return made[-1]

        try:
            _, connection = await self._table.broker.runtime.loop.create_connection(begin, self.host, self.port)
        except BaseException:
            for late in made:
                if late.transport is not None:
                    late.close(Reason.WRITE_ERROR)
            raise
        return connection

    async def _pause(self, connection: RouteConnection | None) -> float | None:
        """Seconds until the next attempt, None when there is to be none."""
        options = self._table.options
        if connection is not None and connection.reason is Reason.SELF_ROUTE:
            return None
        if connection is not None and connection.reason is Reason.DUPLICATE_ROUTE and connection.peer is not None:
            if not self.explicit:
                return None
            await self._table.absent(connection.peer.server_id)
            return 0.0
        if connection is not None and connection.stage is Stage.UP:
            self._failures = 0
            return options.redial if self.explicit else 0.0
        self._failures += 1
        if not self.explicit and self._failures > options.connect_retries:
            return None
        if connection is None or connection.reason is Reason.DUPLICATE_NAME:
            return options.redial
        return min(options.redial * 2 ** min(self._failures - 1, 8), options.redial_refused)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def parse_route(url: str) -> tuple[str, int, str, str]:
    """Host, port, user and password of `[scheme://][user[:password]@]host:port[/]`. Raises ValueError."""
    parts = urlsplit(url if "://" in url else f"nats-route://{url}")
    if not parts.hostname or not parts.port:
        raise ValueError(f"no route can be dialled at {url!r}")
    return parts.hostname, parts.port, unquote(parts.username or ""), unquote(parts.password or "")
