"""nats-py through TLS: to our server as to the Go one."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
import uvloop

from nimsnats.broker.tls import TlsOptions
from nimsnats.server import Server, embedded_settings
from tests.broker.peer import Peer
from tests.certificates import Authority, block, needs_openssl
from tests.conformance.oracle import Oracle

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "ours")


@asynccontextmanager
async def serving(options: TlsOptions) -> AsyncIterator[Server]:
    settings = embedded_settings("127.0.0.1", -1, None, jetstream=False, monitor_port=0, name="")
    settings.broker.tls = options
    async with Server(settings) as server:
        yield server


def trusting(authority: Authority, certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
    """What a client needs that trusts the authority, and has a certificate or none."""
    context = ssl.create_default_context(cafile=authority.ca)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


async def round_trip(port: int, context: ssl.SSLContext, **more: object) -> None:
    client = await nats.connect(f"tls://127.0.0.1:{port}", tls=context, allow_reconnect=False, **more)  # type: ignore[arg-type]
    sub = await client.subscribe("foo")
    for size in (0, 10, 200_000, 900_000):
        await client.publish("foo", b"x" * size)
    assert [len((await sub.next_msg(5)).data) for _ in range(4)] == [0, 10, 200_000, 900_000]
    await client.close()


async def test_a_client_that_trusts_the_server(authority: Authority) -> None:
    async with serving(authority.options("server")) as server:
        await round_trip(server.port, trusting(authority))
        local = await server.client()
        await local.flush()
        await local.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await round_trip(server.port, ssl.create_default_context())
        await round_trip(server.port, trusting(authority))


async def test_only_clients_with_a_certificate(authority: Authority, tmp_path: Path) -> None:
    other = Authority.make(tmp_path / "other")
    async with serving(authority.options("server", verify=True)) as server:
        await round_trip(server.port, trusting(authority, authority.issue("client")))
        for stranger in (None, other.issue("client")):
            with pytest.raises((OSError, nats.errors.Error)):
                await round_trip(server.port, trusting(authority, stranger))
            assert not server.broker.clients


async def test_the_handshake_first(authority: Authority) -> None:
    async with serving(authority.options("server", handshake_first=True)) as server:
        await round_trip(server.port, trusting(authority), tls_handshake_first=True)


async def test_a_client_whose_handshake_is_there_before_the_server_looks(authority: Authority) -> None:
    for first in (False, True):
        async with serving(authority.options("server", handshake_first=first)) as server:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            hello = socket.create_connection(("127.0.0.1", server.port))
            hello.sendall(outgoing.read())  # the loop has not accepted it yet
            reader, writer = await asyncio.open_connection(sock=hello)
            if not first:
                await reader.readline()
            while tls.version() is None:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    data = await reader.read(65536)
                    assert data, "the server hung up"
                    incoming.write(data)
                writer.write(outgoing.read())
            writer.close()


def test_the_same_on_uvloop(authority: Authority, tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_a_client_that_trusts_the_server(authority))
        runner.run(test_only_clients_with_a_certificate(authority, tmp_path))
        runner.run(test_the_handshake_first(authority))
        runner.run(test_a_client_whose_handshake_is_there_before_the_server_looks(authority))


@pytest.mark.parametrize("verify", [False, True])
async def test_the_greeting_is_the_go_servers(authority: Authority, tmp_path: Path, verify: bool) -> None:
    options = authority.options("server", verify=verify)
    with Oracle(tmp_path).start(block(options)) as go:
        async with serving(options) as server:
            theirs, ours = [(await Peer.connect(port, b"")).info for port in (go.port, server.port)]
    names = [name for name in theirs if name not in ("git_commit", "nonce", "xkey")]
    assert [name for name in ours if name in names or name.startswith("tls")] == names
    assert {name: theirs[name] for name in theirs if name.startswith("tls")} == {
        name: ours[name] for name in ours if name.startswith("tls")
    }


async def test_a_client_without_tls_is_sent_away(authority: Authority) -> None:
    async with serving(authority.options("server")) as server:
        peer = await Peer.connect(server.port, b"")
        peer.send(b'CONNECT {"verbose":false}\r\nPING\r\n')
        assert b"PONG" not in await peer.rest()
        assert server.broker.closed[-1].reason is not None
        assert server.broker.closed[-1].reason.value == "TLS Handshake Failure"


async def test_certificates_are_read_again_on_reload(authority: Authority, tmp_path: Path) -> None:
    """Under the same names; and whether there is TLS at all cannot change."""
    first, second = Authority.make(tmp_path / "first"), Authority.make(tmp_path / "second")
    options = first.options("server")
    async with serving(options) as server:
        await round_trip(server.port, trusting(first))
        for source, target in zip(second.issue("server"), (options.cert_file, options.key_file), strict=True):
            shutil.copy(source, target)
        wanted = embedded_settings("127.0.0.1", -1, None, jetstream=False, monitor_port=0, name="")
        with pytest.raises(Exception, match="not supported for Tls"):
            server.reload(wanted)
        wanted.broker.tls = options
        server.reload(wanted)
        await round_trip(server.port, trusting(second))
