"""Routes through TLS: who is let in, who is not, and that the messages are the same."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

import pytest
import uvloop

from nimsnats.broker.route_table import RouteTable
from nimsnats.broker.tls import TlsOptions
from nimsnats.runtime import StartError
from tests.broker.peer import Peer, until
from tests.broker.route_stand import meshed, routed, settled
from tests.certificates import Authority, needs_openssl

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "theirs")


async def exchanged(a: RouteTable, b: RouteTable, size: int, count: int) -> None:
    """Messages of that size reach a subscriber on the other side, in order, in both directions."""
    for here, there in ((a, b), (b, a)):
        subscriber, publisher = await Peer.connect(here.broker.port), await Peer.connect(there.broker.port)
        await subscriber.sync(b"SUB foo 1\r\n")
        await settled(here, there)
        payloads = [b"%d" % number + b"." * size for number in range(count)]
        publisher.send(b"".join(b"PUB foo %d\r\n%b\r\n" % (len(payload), payload) for payload in payloads))
        for payload in payloads:
            assert await subscriber.line() == b"MSG foo 1 %d" % len(payload)
            assert await subscriber.line() == payload
        subscriber.close()
        publisher.close()
        await until(lambda here=here: not here.broker.clients)


async def test_a_mesh_through_tls(authority: Authority) -> None:
    """The third is told of by the first, and dialled by its address."""
    tls = authority.options("node")
    async with routed("a", tls=tls) as a, routed("b", a, tls=tls) as b, routed("c", a, tls=tls) as c:
        await meshed(a, b, c)
        await exchanged(a, b, 10, 200)
        await exchanged(b, c, 300_000, 20)
        (info,) = (route.peer.raw for route in b.routes.values() if route.peer and route.peer.server_name == "a")
        assert info["tls_required"] is info["tls_verify"] is True


async def test_who_is_not_vouched_for_stays_out_and_is_named_once(
    authority: Authority, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    own = stranger.options("stranger")
    async with routed("a", tls=authority.options("node")) as a:
        wrong = {
            "distrusts us": own,
            "is not trusted": stranger.options("stranger", ca_file=authority.ca),
            "asks nothing": stranger.options("stranger", insecure=True),
        }
        for tls in wrong.values():
            caplog.clear()
            async with routed("b", a, tls=tls, redial_refused=0.02) as b:
                opened = a.broker.next_id()
                await until(lambda opened=opened: a.broker.next_id() > opened + 6)  # it has been back several times
                assert not a.routes and not b.routes
            texts = [record.getMessage() for record in caplog.records]
            assert texts and all("TLS route handshake error: " in text for text in texts)
            reasons = [text.partition("error: ")[2] for text in texts]
            assert len(reasons) == len(set(reasons)), texts
            assert all(text.startswith("127.0.0.1:") for text in texts)
            a._told.clear()  # pyright: ignore[reportPrivateUsage]


async def test_the_certificate_must_name_the_host_that_was_dialled(authority: Authority) -> None:
    tls = authority.options("node")
    async with AsyncExitStack() as stack:
        elsewhere = authority.options("elsewhere", "DNS:elsewhere.example,IP:192.0.2.1")
        a = await stack.enter_async_context(routed("a", tls=elsewhere))
        b = await stack.enter_async_context(routed("b", a, tls=tls, redial_refused=0.02))
        opened = a.broker.next_id()
        await until(lambda: a.broker.next_id() > opened + 4)
        assert not a.routes and not b.routes
    async with routed("a", tls=authority.options("named", "DNS:localhost")) as a:
        names = {"routes": [f"nats://localhost:{a.port}"]}
        async with routed("b", tls=tls, **names) as b, routed("c", a, tls=tls, **names) as c:
            await until(lambda: b.routes and c.routes)


async def test_without_tls_on_both_sides_there_is_no_route(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    quick = {"auth_timeout": 0.05, "redial_refused": 0.02}
    tls = authority.options("node", timeout=0.05)
    async with routed("a", tls=tls, **quick) as a, routed("b", a, **quick) as b, routed("c", b, tls=tls, **quick) as c:
        opened = [table.broker.next_id() for table in (a, b)]
        await until(
            lambda: all(table.broker.next_id() > first + 4 for table, first in zip((a, b), opened, strict=True))
        )
        assert not a.routes and not b.routes and not c.routes
        assert "TLS route handshake error: " in caplog.text


async def test_certificates_are_renewed_and_bad_ones_are_not(authority: Authority, stranger: Authority) -> None:
    tls = authority.options("node")
    async with routed("a", tls=stranger.options("stranger")) as a, routed("b", a, tls=tls, redial_refused=0.02) as b:
        with pytest.raises(StartError, match=r"error parsing X509 certificate/key pair: none\.pem"):
            a.renew_tls(TlsOptions("none.pem", "none.key"))
        assert a.options.tls is not None and a.options.tls.cert_file.endswith("stranger.pem")
        a.renew_tls(authority.options("renewed"))
        await meshed(a, b)


async def test_a_handshake_that_does_not_end_keeps_nothing_from_stopping(authority: Authority) -> None:
    async with routed("a", tls=authority.options("node", timeout=30)) as a:
        _, writer = await asyncio.open_connection("127.0.0.1", a.port)
        await until(lambda: a.open)
        writer.write(b"\x16\x03\x01")
        await writer.drain()
    writer.close()


def test_the_same_on_uvloop(authority: Authority, stranger: Authority, caplog: pytest.LogCaptureFixture) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_a_mesh_through_tls(authority))
        runner.run(test_who_is_not_vouched_for_stays_out_and_is_named_once(authority, stranger, caplog))
        runner.run(test_a_handshake_that_does_not_end_keeps_nothing_from_stopping(authority))
