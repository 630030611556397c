"""A peer whose TLS is in its own hands, record by record, and the ports that it talks to, on every event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import uvloop

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.route_options import RouteOptions
from nimsnats.broker.route_table import RouteTable
from nimsnats.broker.server import Broker
from nimsnats.broker.tls import TlsOptions
from nimsnats.runtime import Runtime
from tests.certificates import Authority

LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
KINDS: Final = ("client", "client first", "cluster")
"""The client port that greets before the handshake, the one that does not, the cluster port."""


@dataclass
class Port:
    """One listener of a running server."""

    kind: str
    number: int
    broker: Broker
    table: RouteTable | None

    @property
    def greets(self) -> bool:
        """Whether INFO comes before the handshake."""
        return self.kind == "client"

    @property
    def taken(self) -> int:
        """How many connections there have been."""
        return self.broker._last_cid  # pyright: ignore[reportPrivateUsage]

    def open(self) -> list[Any]:
        """The connections that the server knows."""
        return list(self.table.open if self.table is not None else self.broker.clients.values())


@asynccontextmanager
async def listening(
    kind: str, tls: TlsOptions, *, time_ns: Callable[[], int] | None = None, **options: Any
) -> AsyncIterator[Port]:
    """A server with that kind of port; `options` are the broker's."""
    runtime = Runtime.real()
    if time_ns is not None:
        runtime.time_ns = time_ns
    tls = replace(tls, handshake_first=kind == "client first")
    client = {} if kind == "cluster" else {"tls": tls}
    broker = Broker(BrokerOptions(host="127.0.0.1", port=-1, **client, **options), runtime)
    table = RouteTable(broker, RouteOptions("X", "127.0.0.1", -1, tls=tls)) if kind == "cluster" else None
    await broker.start()
    try:
        if table is not None:
            await table.start()
        yield Port(kind, broker.port if table is None else table.port, broker, table)
    finally:
        if table is not None:
            await table.stop()
        await broker.stop()


def trusting(authority: Authority, certificate: tuple[str, str] | None = None, **more: Any) -> ssl.SSLContext:
    """A client that trusts the authority, with a certificate or none; `more` are attributes of the context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(authority.ca)
    for name, value in more.items():
        setattr(context, name, value)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


def only(version: ssl.TLSVersion) -> dict[str, Any]:
    """What makes `trusting` speak that version alone."""
    return {"minimum_version": version, "maximum_version": version}


def hello() -> bytes:
    """A ClientHello as a client says it first."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def raw(port: int) -> socket.socket:
    """A TCP connection, made at once: the server may not have looked yet."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class TlsPeer:
    """A client. What happens to it is in `events`: text, `close_notify`, alerts by OpenSSL's names, `FIN`, `RST`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, session=session)
        self.events: list[str] = []
        self.text = b""

    @classmethod
    async def connect(
        cls, port: int, context: ssl.SSLContext, *, greets: bool, session: ssl.SSLSession | None = None
    ) -> TlsPeer:
        """Connect and shake hands; `events` is empty when that has worked, as far as a client can tell."""
        peer = cls(raw(port), context, session)
        if greets:
            await peer.greeting()
        await peer.shake()
        return peer

    async def greeting(self) -> bytes:
        """The INFO that comes before the handshake."""
        line = b""
        while not line.endswith(b"\n"):
            line += await asyncio.get_running_loop().sock_recv(self.sock, 1)
        return line

    async def shake(self) -> None:
        """Go on with the handshake until it is done, or has failed."""
        await self._do(self.tls.do_handshake)
        await self.pass_on()

    async def say(self, data: bytes) -> None:
        """Send through TLS."""
        self.tls.write(data)
        await self.pass_on()

    async def notify(self) -> None:
        """Send a close_notify, and nothing else.

        What has come behind the handshake, and is not read yet, is kept from OpenSSL meanwhile: its shutdown goes on to
        read, gives the connection up when it meets application data, and so this side would hear of no end any more.
        """
        unread = self.incoming.read()
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.incoming.write(unread)
        await self.pass_on()

    async def pass_on(self) -> None:
        """Send the records that are waiting."""
        data = self.outgoing.read()
        if data:
            try:
                await asyncio.get_running_loop().sock_sendall(self.sock, data)
            except ConnectionError:
                pass  # what the server has said before can still be read

    async def line(self) -> bytes:
        """The next line that is no PING, which comes by the clock; b"" at the end."""
        while True:
            while b"\n" not in self.text and await self._read():
                pass
            line, mark, self.text = self.text.partition(b"\n")
            if line != b"PING\r":
                return line + mark

    async def round_trip(self) -> None:
        """A PING there and a PONG back."""
        await self.say(b"PING\r\n")
        while (line := await self.line()) != b"PONG\r\n":
            assert line, self.events

    async def end(self) -> list[str]:
        """Read to the very end; everything that has happened."""
        while await self._read():
            pass
        self.text = self.text.replace(b"PING\r\n", b"")
        if self.text:
            self.events.insert(0, self.text.decode())
            self.text = b""
        loop = asyncio.get_running_loop()
        while self.events[-1] not in ("FIN", "RST"):
            try:
                if not await loop.sock_recv(self.sock, 65536):
                    self.events.append("FIN")
            except ConnectionError:
                self.events.append("RST")
        self.sock.close()
        return self.events

    async def _read(self) -> bool:
        found = None if self.events else await self._do(lambda: self.tls.read(65536))
        if found:
            self.text += found
        elif not self.events:
            self.events.append("close_notify")
        return bool(found)

    async def _do(self, step: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                self.events.append(error.reason or str(error))
                return None
            await self.pass_on()
            try:
                data = await loop.sock_recv(self.sock, 65536)
            except ConnectionError:
                self.events.append("RST")
                return None
            if not data:
                self.events.append("FIN")
                return None
            self.incoming.write(data)
