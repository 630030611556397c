"""TLS between a Go nats-server and ours: whoever dials, whoever is not trusted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nimsnats.broker.tls import TlsOptions
from tests.broker.peer import Peer, until
from tests.broker.route_stand import routed, settled
from tests.certificates import Authority, block, needs_openssl
from tests.conformance.go_mesh import cluster_port, joined
from tests.conformance.oracle import Oracle

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "ours")


def config(options: TlsOptions) -> str:
    return f"cluster {{ {block(options)} }}"


def said(go: Oracle, text: str) -> bool:
    return text in (go.directory / "oracle.log").read_text()


@pytest.mark.parametrize("dialling", ["go", "ours"])
async def test_messages_cross_through_tls(tmp_path: Path, authority: Authority, dialling: str) -> None:
    async with routed("a", tls=authority.options("node")) as a:
        with joined(tmp_path, *([a] if dialling == "go" else []), config=config(authority.options("go"))) as go:
            if dialling == "ours":
                a.add_route(f"127.0.0.1:{cluster_port(go)}")
            await until(lambda: a.routes)
            here, there = await Peer.connect(a.broker.port), await Peer.connect(go.port)
            payload = b"x" * 100_000
            for subscriber, publisher in ((here, there), (there, here)):
                await subscriber.sync(b"SUB t.* 1\r\n")
                await settled(a)
                await publisher.sync(b"PUB t.x 100000\r\n" + payload + b"\r\n" + b"PUB t.y 2\r\nhi\r\n")
                await settled(a)
                assert await subscriber.sync() == [b"MSG t.x 1 100000", payload, b"MSG t.y 1 2", b"hi"]
                await subscriber.sync(b"UNSUB 1\r\n")
                await settled(a)


@pytest.mark.parametrize("dialling", ["go", "ours"])
async def test_an_unknown_authority_is_refused_by_both(tmp_path: Path, authority: Authority, dialling: str) -> None:
    other = Authority.make(tmp_path / "other")
    async with routed("a", tls=authority.options("node"), redial_refused=0.05) as a:
        with joined(tmp_path / "go", *([a] if dialling == "go" else []), config=config(other.options("go"))) as go:
            if dialling == "ours":
                a.add_route(f"127.0.0.1:{cluster_port(go)}")
            await until(lambda: said(go, "TLS route handshake error"))
            assert not a.routes


async def test_a_go_server_wants_our_certificate(tmp_path: Path, authority: Authority) -> None:
    """Ours is one that nobody vouches for, though we trust whoever answers."""
    other = Authority.make(tmp_path / "other").options("other", insecure=True)
    async with routed("a", tls=other, redial_refused=0.05) as a:
        with joined(tmp_path / "go", config=config(authority.options("go"))) as go:
            a.add_route(f"127.0.0.1:{cluster_port(go)}")
            await until(lambda: said(go, "TLS route handshake error"))
            assert not a.routes


async def test_nothing_is_said_before_the_handshake(tmp_path: Path, authority: Authority) -> None:
    """Garbage instead of a ClientHello ends the connection without an INFO, on both."""
    async with routed("a", tls=authority.options("node")) as a:
        with joined(tmp_path, config=config(authority.options("go"))) as go:
            for port in (a.port, cluster_port(go)):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b'CONNECT {"verbose":false}\r\n')
                assert b"INFO" not in await reader.read()
                writer.close()
