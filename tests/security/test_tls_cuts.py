"""However the bytes of a TLS client are cut, and whenever its FIN comes, it is heard to the end and told of the end.

The TCP connection is a list of bytes here, so that each order is tried and none is left to chance.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from nimsnats.broker.tls import Accepting, Secured
from nimsnats.broker.tls_transport import Handshake, TlsTransport
from nimsnats.runtime import Runtime
from tests.certificates import Authority, needs_openssl
from tests.security.tls_peer import only, trusting

pytestmark = needs_openssl

GREETING = b"INFO {}\r\n"
WORDS = b"PUB foo 2\r\nhi\r\n"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@dataclass
class Contexts:
    """Of both sides."""

    accepting: Accepting
    trusting: ssl.SSLContext


@pytest.fixture(scope="module", params=VERSIONS)
def contexts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    authority = Authority.make(tmp_path_factory.mktemp("tls") / "ours")
    server = authority.options("server").listening(verify=False)
    return Contexts(Accepting(server, None), trusting(authority, **only(request.param)))


class Below(asyncio.Transport):
    """A TCP transport; what is written to it is in `sent`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.ended = False
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def write(self, data: Any) -> None:
        assert not self.ended
        self.sent += bytes(data)

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Spoken:
    """Who speaks through TLS: it greets, and pauses when it has heard something, if it is a `slow` one."""

    def __init__(self, slow: bool) -> None:
        self.slow = slow
        self.heard = b""
        self.events: list[str] = []
        self.view = memoryview(bytearray(1024))
        self.transport: TlsTransport | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view

    def buffer_updated(self, nbytes: int) -> None:
        self.heard += bytes(self.view[:nbytes])
        if self.slow and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.events.append("eof")
        return False

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")

    def tls_up(self, secured: Secured) -> None:
        assert self.transport is not None
        self.transport.write(GREETING)

    def tls_failed(self, why: str, *, early: bool) -> None:
        self.events.append(why)


class Client:
    """A client beside the server's transport; `feed` is its network."""

    def __init__(self, contexts: Contexts, *, slow: bool = False) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = contexts.trusting.wrap_bio(self.incoming, self.outgoing)
        self.below, self.server = Below(), Spoken(slow)
        self.view = memoryview(bytearray(65536))
        transport = TlsTransport(
            Runtime.real(), self.below, self.server, self.view, Handshake(contexts.accepting, 3600.0)
        )
        self.server.transport = self.transport = transport
        transport.begin()

    def shake(self) -> None:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass

    def last_flight(self) -> bytes:
        """The end of the handshake, words and a close_notify: everything that this client will ever say."""
        self.shake()
        self.feed(self.outgoing.read())
        self.take()
        self.shake()
        flight = self.outgoing.read()
        if (
            self.tls.context.maximum_version is ssl.TLSVersion.TLSv1_2
        ):  # it may not speak before the server's last flight is there
            self.feed(flight)
            self.take()
            self.shake()
            flight = b""
        unread = self.incoming.read()
        self.tls.write(WORDS)
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.incoming.write(unread)
        return flight + self.outgoing.read()

    def feed(self, data: bytes) -> None:
        if data:
            self.view[: len(data)] = data
            self.transport.buffer_updated(len(data))

    def take(self) -> None:
        self.incoming.write(self.below.sent)
        self.below.sent = b""

    def hears(self) -> bytes:
        """What the server says up to its close_notify, behind which is nothing."""
        self.take()
        heard = b""
        try:
            while data := self.tls.read(65536):
                heard += data
        except ssl.SSLZeroReturnError:
            pass
        assert not self.incoming.pending
        return heard


def cuts(length: int) -> Iterable[list[int]]:
    """One piece, two of every size, single bytes."""
    yield [0, length]
    for cut in range(1, length, 5):
        yield [0, cut, length]
    yield list(range(length + 1))


@pytest.mark.parametrize("fin", [False, True])
async def test_who_ends_at_once_is_heard_and_hears_the_end(contexts: Contexts, fin: bool) -> None:
    length = len(Client(contexts).last_flight())
    for ends in cuts(length):
        client = Client(contexts)
        flight = client.last_flight()
        for start, end in pairwise(ends):
            client.feed(flight[start:end])
        if fin:
            assert not client.transport.eof_received()
        assert (client.server.heard, client.server.events) == (WORDS, ["eof"])
        assert client.hears() == GREETING
        assert client.below.ended


@pytest.mark.parametrize("fin", [False, True])
async def test_who_pauses_hears_of_the_end_when_it_goes_on(contexts: Contexts, fin: bool) -> None:
    """Whether the close_notify comes with the words or is still to be read, with or without a FIN behind it."""
    length = len(Client(contexts).last_flight())
    for ends in cuts(length):
        client = Client(contexts, slow=True)
        flight = client.last_flight()
        for start, end in pairwise(ends):
            client.feed(flight[start:end])
        if fin:
            assert client.transport.eof_received(), "the loop closes the connection, and what was heard is lost"
        assert (client.server.heard, client.server.events) == (WORDS, [])
        assert not client.below.ended and not client.below.reading
        client.transport.write(b"PONG\r\n")
        client.transport.resume_reading()
        await asyncio.sleep(0)
        assert client.server.events == ["eof"]
        assert client.hears() == GREETING + b"PONG\r\n"
        assert client.below.ended
