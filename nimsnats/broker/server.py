"""The broker: listener, connections, accounts. Everything of a node's client side hangs off one `Broker`.

Owns the composition and the life cycle. What a verb does is in `client`, where messages go is in `account`.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from nimsnats import identity
from nimsnats.broker.account import Account
from nimsnats.broker.auth import Authenticator, ConfiguredAuthenticator, Identity
from nimsnats.broker.brake import Brake
from nimsnats.broker.client import ClientConnection
from nimsnats.broker.closed import ClosedClient, ClosedClients
from nimsnats.broker.connection import Connection
from nimsnats.broker.local import LocalConnection
from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.outbox import Outbox
from nimsnats.broker.passwords import Passwords
from nimsnats.broker.reasons import Reason
from nimsnats.broker.stats import BrokerStats
from nimsnats.broker.turns import Turns
from nimsnats.broker.wheel import Wheel
from nimsnats.descriptors import Descriptors
from nimsnats.protocol.info import ServerInfo
from nimsnats.runtime import Runtime
from nimsnats.slices import Slices
from nimsnats.version import API_LEVEL, NATS_VERSION

if TYPE_CHECKING:
    from nimsnats.broker.msgtrace import Tracer
    from nimsnats.broker.route_table import RouteTable
    from nimsnats.broker.tls import TlsOptions

GLOBAL_ACCOUNT: Final = "$G"
SYSTEM_ACCOUNT: Final = "$SYS"

_BACKLOG: Final = 1024
_CLOSE_PATIENCE: Final = 1.0
"""Seconds that a stopping broker waits for its last words to reach the clients."""


class ClientListener(Protocol):
    """Whoever wants to know about clients; called at once. What it raises ends at the fence."""

    def connected(self, client: ClientConnection) -> None:
        """The client's CONNECT was accepted."""
        ...

    def disconnected(self, client: ClientConnection) -> None:
        """A client whose CONNECT had been accepted is gone."""
        ...

    def refused(self, client: ClientConnection) -> None:
        """The client's credentials were not accepted."""
        ...


class ListenError(OSError):
    """The client port cannot be listened on; the text is one clear line."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class Broker:
    """A NATS server for clients, without JetStream and without peers: those are built on top of it."""

    def __init__(
        self,
        options: BrokerOptions,
        runtime: Runtime,
        log: logging.Logger | None = None,
        authenticator: Authenticator | None = None,
    ) -> None:
        self.options = options
        self.runtime = runtime
        self.log = log or logging.getLogger("nimsnats")
        self.descriptors = Descriptors(self.log)
        self.server_id = identity.server_id(runtime.random)
        self.server_name = options.server_name or self.server_id
        self.started = datetime.fromtimestamp(runtime.time_ns() / 1e9, UTC)
        self.port = 0
        self.stats = BrokerStats()
        self.routes: RouteTable | None = None
        """The connections to other servers, while there is a table of them; it sets and clears this."""
        self.account_listeners: list[Callable[[Account], None]] = []
        """Told about every account that comes into being."""
        self.client_listeners: list[ClientListener] = []
        """Told about clients that come, go or are refused."""
        self.tracer: Tracer | None = None
        """Reports the ways of messages that want to be traced."""
        self.accounts: dict[str, Account] = {}
        self.global_account = self.account(GLOBAL_ACCOUNT)
        self.system_account = self.account(options.system_account)
        for user in options.users:  # peers may tell of their interest before anybody connects here
            self.account(user.account)
        self.clients: dict[int, ClientConnection] = {}
        self.closed = ClosedClients(options.max_closed_clients)
        self.passwords = Passwords(runtime)
        self.authenticator = authenticator or ConfiguredAuthenticator(options, self.passwords)
        self.tls = None if options.tls is None else options.tls.accepting(verify=options.tls.verify)
        """What clients' connections change to; StartError of the constructor says what is wrong with the files."""
        self.outbox = Outbox(runtime)
        self.keepalive: Wheel[ClientConnection] = Wheel(runtime, ClientConnection.timer)
        self.deadlines: Wheel[Connection] = Wheel(runtime, lambda connection: connection.write_deadline_passed())
        self.turns = Turns(runtime)
        self.slices = Slices(runtime)
        self.lame_duck = False
        self.info = self._server_info()
        self._last_cid = 0
        self._server: asyncio.Server | None = None

    # -- life cycle ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for clients. Raises ListenError."""
        options = self.options
        port = max(options.port, 0)
        try:
            self._server = await self.runtime.loop.create_server(
                self._accept, options.host or None, port, backlog=_BACKLOG
            )
        except OSError as error:
            reason = error.strerror or str(error)
            where = f"{options.host or '*'}:{options.port}"
            raise ListenError(error.errno, f"cannot listen for clients on {where}: {reason}") from error
        self.port = self._server.sockets[0].getsockname()[1]
        self.info = self._server_info()
        self.log.info("Listening for client connections on %s:%d", options.host, self.port)
        if options.tls is not None:
            self.log.info("TLS required for client connections")

    async def stop(self) -> None:
        """Close the listener and every connection; returns when the clients have been told or after a second."""
        self._stop_listening()
        clients = list(self.clients.values())
        checks = [client.auth_task for client in clients if client.auth_task is not None]
        for client in clients:
            client.close(Reason.SERVER_SHUTDOWN)
        await asyncio.gather(*checks, return_exceptions=True)
        self.passwords.close()
        if any(client.transport is not None for client in clients):
            await self._wait_gone(clients)
        self.keepalive.close()
        for connection in self.deadlines.waiting():  # closed before, with last words that the peer has not taken
            if connection.transport is not None:
                connection.transport.abort()
        self.deadlines.close()

    async def enter_lame_duck(self) -> None:
        """Stop accepting, tell the clients, and close them one by one until none is left, as nats-server's `ldm` does.

        Returns when the last client is gone; the caller stops the broker then.
        """
        if self.lame_duck:
            return
        self.lame_duck = True
        self.log.info("Entering lame duck mode, stop accepting new clients")
        self._stop_listening()
        if self.routes is not None:
            self.routes.lame_duck()
        if not self.clients:
            return
        self.info.lame_duck = True
        for client in list(self.clients.values()):
            client.tell_info()
        options = self.options
        await self._sleep(options.lame_duck_grace_period)
        self.log.info("Closing existing clients")
        clients = list(self.clients.values())
        self.runtime.random.shuffle(clients)
        spread = max(options.lame_duck_duration - options.lame_duck_grace_period, 0.0)
        pause = min(spread / max(len(clients), 1), 1.0)
        for client in clients:
            client.close(Reason.SERVER_SHUTDOWN)
            await self._sleep(pause * (0.5 + self.runtime.random.random() / 2))

    def connect_local(
        self,
        received: Callable[[bytes], None],
        closed: Callable[[], None] | None = None,
        *,
        trusted: Identity | None = None,
    ) -> LocalConnection:
        """A client connection through memory: `received` gets what the server sends, `closed` its end.

        With `trusted` it is that identity and needs no credentials; else it has to prove who it is, like any other.
        """
        client = ClientConnection(self, self._next_cid(), local=True, trusted=trusted)
        return LocalConnection(self.runtime, client, received, closed)

    # -- what connections ask for -------------------------------------------------------------------------------

    def account(self, name: str) -> Account:
        """The account of that name; made when it does not exist."""
        account = self.accounts.get(name)
        if account is None:
            account = Account(name, self.stats, self.runtime.random.getrandbits(31), self.runtime.fence)
            self.accounts[name] = account
            if self.routes is not None:
                self.routes.adopt(account)
            for listener in tuple(self.account_listeners):
                try:
                    listener(account)
                except Exception as error:
                    self.runtime.fence.caught(listener, error)
        return account

    def new_brake(self, account: Account, group: bytes) -> Brake:
        """What slows the publishers of a queue that takes messages as the queue group `group`, here and at peers."""

        def tell(full: bool) -> None:
            if self.routes is not None:
                self.routes.brakes.tell(account.name, group.decode(), full)

        return Brake(self.runtime, self.stats, tell)

    def tell(
        self, hook: Callable[[ClientListener], Callable[[ClientConnection], None]], client: ClientConnection
    ) -> None:
        """Tell every listener what has happened to a client."""
        for listener in tuple(self.client_listeners):
            told = hook(listener)
            try:
                told(client)
            except Exception as error:
                self.runtime.fence.caught(told, error)

    @property
    def most_clients(self) -> int:
        """Clients at most: as configured (below 0: any number), and as the process may have descriptors."""
        wanted, possible = self.options.max_connections, self.descriptors.clients
        return min(wanted, possible) if wanted >= 0 else wanted

    def info_line(self, client: ClientConnection, *, connected: bool = False, leave: bool = False) -> bytes:
        """INFO for one client: the greeting, or the one that names its account after the first PING.

        With `leave` it is as if this server were about to end.
        """
        auth = self.authenticator
        info = replace(self.info, lame_duck=True) if leave else self.info
        if not connected:
            shown = auth.required and auth.default is None
            return info.encode(client.cid, client.ip, auth_required=shown, tls=not client.local)
        account = client.account
        return info.encode(
            client.cid,
            client.ip,
            auth_required=auth.required,
            account=account.name,
            system=account is self.system_account,
            tls=not client.local,
        )

    def renew_tls(self, options: TlsOptions) -> None:
        """Use these files from the next handshake on. Raises StartError, and changes nothing, when they are no use."""
        self.tls = options.accepting(verify=options.verify)
        self.options.tls = options
        self.info.tls_verify = options.verify

    def next_id(self) -> int:
        """A number for a new connection, of whatever kind."""
        self._last_cid += 1
        return self._last_cid

    def forget(self, client: ClientConnection) -> None:
        """A client is closed: keep its record for monitoring."""
        self.clients.pop(client.cid, None)
        self.closed.add(ClosedClient.of(client))

    def set_connect_urls(self, urls: list[str]) -> None:
        """The client URLs of the cluster changed: tell clients that understand it."""
        if urls != self.info.connect_urls:
            self.info.connect_urls = urls
            for client in list(self.clients.values()):
                client.tell_info()

    # -- inside -------------------------------------------------------------------------------------------------

    def _accept(self) -> ClientConnection:
        return ClientConnection(self, self._next_cid())

    def _next_cid(self) -> int:
        self.stats.total_connections += 1
        return self.next_id()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _wait_gone(self, clients: list[ClientConnection]) -> None:
        """Wait until the transports have written out and closed, for a limited time."""
        loop = self.runtime.loop
        deadline = loop.time() + _CLOSE_PATIENCE
        while any(client.transport is not None for client in clients) and loop.time() < deadline:
            await self._sleep(0.005)
        for client in clients:
            if client.transport is not None:
                client.transport.abort()

    async def _sleep(self, delay: float) -> None:
        await self.runtime.sleep(delay)

    def _server_info(self) -> ServerInfo:
        options = self.options
        host, port = options.host or "0.0.0.0", self.port or max(options.port, 0)
        if options.client_advertise:
            advertised, _, given = options.client_advertise.rpartition(":")
            host, port = (
                (advertised, int(given)) if given.isdigit() and advertised else (options.client_advertise, port)
            )
        return ServerInfo(
            server_id=self.server_id,
            server_name=self.server_name,
            version=NATS_VERSION,
            host=host,
            port=port,
            max_payload=options.max_payload,
            api_level=API_LEVEL,
            runtime=f"python{platform.python_version()}",
            headers=options.headers,
            auth_required=self.authenticator.required,
            jetstream=options.jetstream,
            cluster=options.cluster_name,
            tls_required=options.tls is not None,
            tls_verify=options.tls is not None and options.tls.verify,
        )
