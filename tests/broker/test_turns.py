"""A connection is read from once in a turn of the loop, however fast it sends: on every kind of connection and loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nimsnats.broker.connection import Connection
from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.route_table import RouteTable
from nimsnats.broker.server import Broker
from nimsnats.broker.turns import MOST
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.broker.route_stand import routed
from tests.certificates import Authority, needs_openssl
from tests.security.tls_peer import LOOPS, listening, trusting

COUNT = 2000
BODY = b"x" * 1000
FLOOD = (b"PUB foo 1000\r\n" + BODY + b"\r\n") * COUNT
CONNECT = b'CONNECT {"verbose":false}\r\n'
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test on each loop."""

    def runs(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(main)

    return runs


class Reads:
    """Counts the reads of each connection in each turn of the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        """Reads of one connection in one turn."""
        self.largest = 0
        self.total = 0
        self._seen: Counter[Connection] = Counter()
        self._ending = False
        read = Connection.buffer_updated

        def counted(connection: Connection, nbytes: int) -> None:
            self._seen[connection] += 1
            self.most = max(self.most, self._seen[connection])
            self.largest = max(self.largest, nbytes)
            self.total += nbytes
            read(connection, nbytes)

        monkeypatch.setattr(Connection, "buffer_updated", counted)

    def watch(self) -> None:
        """Count from now on, until `end`."""
        self.most = self.largest = self.total = 0
        self._turn()

    def _turn(self) -> None:
        if not self._ending:
            self._seen.clear()
            asyncio.get_running_loop().call_soon(self._turn)

    def end(self) -> None:
        """What is to hold."""
        self._ending = True
        assert self.total >= len(FLOOD)
        assert self.most == 1
        assert self.largest <= MOST


def flood(port: int, context: ssl.SSLContext | None = None) -> None:
    """Publish without waiting for anything but the PONG at the end."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.recv(65536)
        sock = plain if context is None else context.wrap_socket(plain)
        sock.sendall(CONNECT + FLOOD + b"PING\r\n")
        heard = b""
        while b"PONG\r\n" not in heard:
            got = sock.recv(65536)
            assert got, heard
            heard += got


def test_a_client(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        reads = Reads(monkeypatch)
        broker = Broker(BrokerOptions(host="127.0.0.1", port=-1), Runtime.real())
        await broker.start()
        reads.watch()
        await asyncio.to_thread(flood, broker.port)
        reads.end()
        await broker.stop()

    run(main())


@needs_openssl
def test_a_client_over_tls(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ours")

    async def main() -> None:
        reads = Reads(monkeypatch)
        async with listening("client", authority.options("server")) as port:
            reads.watch()
            await asyncio.to_thread(flood, port.number, trusting(authority))
            reads.end()

    run(main())


def test_a_client_in_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        reads = Reads(monkeypatch)
        broker = Broker(BrokerOptions(), Runtime.real())
        heard = bytearray()
        local = broker.connect_local(heard.extend)
        reads.watch()
        local.write(CONNECT + FLOOD + b"PING\r\n")
        assert reads.total == 0
        await local.drain()
        assert len(FLOOD) - 2**20 <= reads.total < len(FLOOD), "who drains waits for most of it"
        await until(lambda: b"PONG" in heard)
        reads.end()
        local.write(FLOOD)
        draining = asyncio.ensure_future(local.drain())
        await asyncio.sleep(0)
        local.close()
        await draining

    run(main())


def test_a_route(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        reads = Reads(monkeypatch)
        async with AsyncExitStack() as stack:
            table: RouteTable = await stack.enter_async_context(routed("A"))
            other: RouteTable = await stack.enter_async_context(routed("B", table))
            await until(lambda: table.routes and other.routes)
            got: list[int] = []

            def take(*message: object) -> None:
                got.append(1)

            table.broker.global_account.subscribe(b"foo", take, routed=True)
            await until(lambda: other.broker.global_account.has_interest(b"foo"))
            (route,) = other.routes.values()
            reads.watch()
            route.send((b"RMSG $G foo 1000\r\n" + BODY + b"\r\n") * COUNT)
            await until(lambda: len(got) == COUNT)
            reads.end()

    run(main())


async def test_a_connection_that_is_closed_while_it_waits_for_its_turn_is_left_alone() -> None:
    broker = Broker(BrokerOptions(), Runtime.real())
    ended = asyncio.Event()
    local = broker.connect_local(lambda data: None, ended.set)
    local.write(CONNECT + FLOOD + b"NONSENSE\r\n" + FLOOD)
    await ended.wait()
    assert local.client.in_msgs == COUNT
