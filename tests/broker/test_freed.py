"""What comes and goes ends by reference counts alone: a cycle that has become old would never be looked for."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nimsnats.broker.client import ClientConnection
from nimsnats.broker.plan import Headed, Plan
from nimsnats.broker.server import Broker
from nimsnats.broker.subscription import indifferent
from nimsnats.broker.tls_transport import TlsTransport
from nimsnats.protocol.parser import Parser
from tests.broker.peer import Peer, running, until
from tests.certificates import Authority, needs_openssl
from tests.security.tls_peer import LOOPS, TlsPeer, listening, trusting

OURS = (ClientConnection, Parser, Plan, Headed, TlsTransport)
CONNECT = b'CONNECT {"verbose":false,"headers":true}\r\n'


@pytest.fixture(autouse=True)
def only_what_follows() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=list(LOOPS))
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return LOOPS[request.param]


async def in_cycles() -> set[str]:
    """Which of our objects only a collection would free, once everything that ends has ended."""
    for _ in range(10):
        await asyncio.sleep(0)
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return {type(each).__name__ for each in gc.garbage if type(each) in OURS}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def forget_plans(broker: Broker) -> None:
    account = broker.global_account
    account.unsubscribe(account.subscribe(b"forget.*", lambda *_: None, acks=indifferent))


def test_clients_and_the_ways_to_them(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        async with running() as broker:
            publisher = await Peer.connect(broker.port, CONNECT)
            one = await Peer.connect(broker.port, CONNECT)
            two = await Peer.connect(broker.port, CONNECT)
            await one.sync(b"SUB a.* 1\r\nSUB b q 2\r\nSUB c.> 3\r\n")
            await two.sync(b"SUB a.* 1\r\nSUB b q 2\r\n")
            headed = b"HPUB %b 12 15\r\nNATS/1.0\r\n\r\n..x\r\n"
            await publisher.sync(b"".join(headed % subject for subject in (b"a.b", b"b", b"c.d")) * 3)
            for peer in (one, two, publisher):
                peer.close()
            await until(lambda: not broker.clients)
            forget_plans(broker)
            assert not await in_cycles()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


async def test_clients_in_memory() -> None:
    async with running() as broker:
        ended: list[bool] = []
        local = broker.connect_local(lambda data: None, lambda: ended.append(True))
        local.write(CONNECT + b"SUB a 1\r\nPUB a 1\r\nx\r\n")
        await until(lambda: broker.stats.in_msgs == 1)
        local.close()
        await until(lambda: ended)
        del local
        assert not await in_cycles()


@needs_openssl
def test_clients_through_tls(loop_factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ours")

    async def main() -> None:
        async with listening("client", authority.options("server")) as port:
            peer = await TlsPeer.connect(port.number, trusting(authority), greets=True)
            await until(port.open)
            peer.sock.close()
            await until(lambda: not port.open())
            assert not await in_cycles()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
