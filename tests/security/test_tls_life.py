"""A TLS connection has one life and one end: whoever hangs up is gone, whoever is turned away hears why.

On the client port, with the greeting before the handshake and after it, on the cluster port, and on both event loops.
The Go server is the measure of alerts and ends.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from nimsnats.broker import route_table, server
from nimsnats.broker.options import User
from nimsnats.broker.reasons import Reason
from nimsnats.broker.tls import TlsOptions, presented_session
from nimsnats.broker.tls_transport import TlsTransport
from nimsnats.config.settings import Settings
from nimsnats.runtime import StartError
from nimsnats.server import Server, embedded_settings
from tests.broker.peer import until
from tests.broker.route_stand import routed
from tests.certificates import Authority, block, needs_openssl
from tests.conformance.go_mesh import cluster_port
from tests.conformance.oracle import Oracle
from tests.security.tls_peer import KINDS, LOOPS, Port, TlsPeer, hello, listening, only, raw, reset, trusting

pytestmark = needs_openssl

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
Run = Callable[[Coroutine[Any, Any, None]], None]
QUIET = b'CONNECT {"verbose":false}\r\n'
LONG = 3600.0
"""Seconds; whatever is waited for must not need them."""


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test on each loop. A stop that would wait for anybody does not end."""
    for module in (server, route_table):
        monkeypatch.setattr(module, "_CLOSE_PATIENCE", LONG)

    def runs(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(main)

    return runs


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "theirs")


@pytest.fixture(scope="module")
def options(authority: Authority) -> TlsOptions:
    return authority.options("server")


@pytest.fixture(scope="module")
def demanding(options: TlsOptions) -> TlsOptions:
    """Clients must show a certificate."""
    return replace(options, verify=True)


@pytest.fixture(scope="module")
def client(authority: Authority) -> tuple[str, str]:
    return authority.issue("client")


async def served(port: Port, context: ssl.SSLContext) -> TlsPeer:
    """A peer that is let in, and answered."""
    peer = await TlsPeer.connect(port.number, context, greets=port.greets)
    assert not peer.events
    if port.table is None:
        await peer.say(QUIET)
        await peer.round_trip()
    else:
        assert (await peer.line()).startswith(b"INFO ")
    return peer


def transports() -> int:
    """How many TLS connections still take memory."""
    gc.collect()
    return sum(isinstance(found, TlsTransport) for found in gc.get_objects())


# -- who hangs up -------------------------------------------------------------------------------------------------

WORDS = {
    "nothing": b"",
    "no TLS": b"GET / HTTP/1.1\r\n\r\n",
    "half a record's head": b"\x16\x03",
    "half a hello": hello()[:100],
    "a hello": hello(),
    "a hello and nonsense": hello() + b"\xff" * 100,
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "a record too long": b"\x16\x03\x01\xff\xff" + b"x" * 1000,
}
"""What a peer has said before it hangs up."""


@pytest.mark.parametrize("kind", KINDS)
def test_who_hangs_up_is_gone_whatever_was_said(
    kind: str,
    run: Run,
    authority: Authority,
    options: TlsOptions,
    client: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with listening(kind, replace(options, timeout=LONG)) as port:
            for words in WORDS.values():
                for ends in (socket.socket.close, reset):
                    for _ in range(3):  # it is over before the server has looked
                        sock = raw(port.number)
                        sock.sendall(words)
                        ends(sock)
                    await until(lambda: not port.open())
                    taken = port.taken
                    sock = raw(port.number)
                    await until(lambda taken=taken: port.taken > taken)
                    sock.sendall(words)
                    ends(sock)
                    sock = raw(port.number)  # it goes in the middle of the answer
                    sock.sendall(words)
                    if words == WORDS["a hello"]:
                        await asyncio.get_running_loop().sock_recv(sock, 10)
                    ends(sock)
            peer = await served(port, trusting(authority, client))
            await until(lambda: len(port.open()) == 1)
            await until(lambda: transports() == 1)
            peer.sock.close()
            await until(lambda: not port.open() and transports() == 0)

    run(main())
    assert {record.name for record in caplog.records} <= {"nimsnats"}, "the loop knows of an error that nobody handled"


@pytest.mark.parametrize("kind", KINDS[:2])
def test_who_hangs_up_takes_no_place(
    kind: str, run: Run, authority: Authority, options: TlsOptions, client: tuple[str, str]
) -> None:
    async def main() -> None:
        async with listening(kind, replace(options, timeout=LONG), max_connections=2) as port:
            for number in range(20):
                sock = raw(port.number)
                sock.sendall(list(WORDS.values())[number % len(WORDS)])
                sock.close()
                await until(lambda number=number: port.taken > number and not port.open())
            for peer in [await served(port, trusting(authority)) for _ in range(2)]:
                peer.sock.close()

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_who_does_not_end_a_handshake_is_ended(kind: str, run: Run, options: TlsOptions) -> None:
    """Whether it is silent, slow or stuck; and a peer that does not hang up then, either, loses its socket."""

    async def main() -> None:
        async with listening(kind, replace(options, timeout=0.1)) as port:
            loop = asyncio.get_running_loop()
            socks = {words: raw(port.number) for words in ("nothing", "half a hello", "a hello", "slow")}
            known: dict[int, Any] = {}
            for words, sock in socks.items():
                sock.sendall(WORDS.get(words, b""))
            while len(known) < len(socks):
                known.update({each.cid: each for each in port.open()})
                await asyncio.sleep(0)  # look in every turn of the loop: however late a turn is, none has ended unseen
            slow = (bytes([byte]) for byte in hello())
            while port.open():
                try:
                    socks["slow"].sendall(next(slow, b""))
                except ConnectionError:
                    break
                await asyncio.sleep(0.005)
            for sock in list(socks.values())[:3]:
                while await loop.sock_recv(sock, 65536):
                    pass
            await until(lambda: not port.open())
            assert {each.reason.value for each in known.values()} == {"TLS Handshake Failure"}
            await until(lambda: all(each.transport is None for each in known.values()))
            for sock in socks.values():
                sock.close()

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_waits_for_nobody(
    kind: str, run: Run, authority: Authority, options: TlsOptions, client: tuple[str, str]
) -> None:
    """Neither for handshakes, nor for peers that answer no close_notify, nor for those that were turned away."""

    async def main() -> None:
        async with listening(kind, replace(options, timeout=LONG)) as port:
            stuck = [raw(port.number) for _ in range(3)]
            for sock, words in zip(stuck, ("nothing", "half a hello", "a hello"), strict=True):
                sock.sendall(WORDS[words])
            failed = raw(port.number)
            failed.sendall(WORDS["a record too long"])
            loop = asyncio.get_running_loop()
            while await loop.sock_recv(failed, 65536):
                pass
            peers = [await served(port, trusting(authority, client)) for _ in range(3)]
            await until(lambda: len(port.open()) == 6)
        for peer in peers:
            assert (await peer.end())[-2:] == ["close_notify", "FIN"]
        for sock in (*stuck, failed):
            sock.close()
        await until(lambda: transports() == 0)

    run(main())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_what_a_client_is_told_during_its_handshake_comes_after_it(
    kind: str, run: Run, authority: Authority, options: TlsOptions
) -> None:
    async def main() -> None:
        async with listening(kind, options) as port:
            peer = TlsPeer(raw(port.number), trusting(authority), None)
            await until(lambda: len(port.open()) == 1)
            (known,) = port.open()
            known.send_away()
            if port.greets:
                await peer.greeting()
            await peer.shake()
            assert b'"ldm":true' in await peer.line()
            peer.sock.close()

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_thrown_out_during_its_handshake_is_gone(kind: str, run: Run, options: TlsOptions) -> None:
    async def main() -> None:
        async with listening(kind, replace(options, timeout=LONG)) as port:
            for words in WORDS.values():
                sock = raw(port.number)
                await until(lambda: len(port.open()) == 1)
                (known,) = port.open()
                sock.sendall(words)
                known.close(Reason.KICKED)
                await until(lambda known=known: known.transport is None)
                assert not port.open()
                sock.close()
            await until(lambda: transports() == 0)

    run(main())


# -- alerts and ends, beside the Go server ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[dict[str, int]]:
    """Ports of a Go server that wants certificates of clients and of peers."""
    tls = block(authority.options("go", verify=True))
    directory = tmp_path_factory.mktemp("go")
    with Oracle(directory).start(f"{tls}\ncluster {{ name: X, listen: '127.0.0.1:-1', {tls} }}") as go:
        yield {"client": go.port, "cluster": cluster_port(go)}


@pytest.fixture(scope="module")
def refused(authority: Authority, stranger: Authority, client: tuple[str, str]) -> dict[str, ssl.SSLContext]:
    """Clients that are turned away, each for another reason."""
    expired = authority.issue_until("expired", datetime.now(UTC) - timedelta(days=1))
    unknown = stranger.issue("client")
    found: dict[str, ssl.SSLContext] = {}
    for version in (TLS12, TLS13):
        found[f"{version.name} without"] = trusting(authority, **only(version))
        found[f"{version.name} unknown"] = trusting(authority, unknown, **only(version))
        found[f"{version.name} expired"] = trusting(authority, expired, **only(version))
    old = trusting(authority, client)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    rare = trusting(authority, client, **only(TLS12))
    rare.set_ciphers("ECDHE-ECDSA-ARIA256-GCM-SHA384")
    return {**found, "old version": old, "rare cipher": rare}


async def turned_away(number: int, context: ssl.SSLContext, greets: bool) -> str:
    """The alert; the connection ends behind it."""
    peer = await TlsPeer.connect(number, context, greets=greets)
    if not peer.events:  # with TLS 1.3 a client is done before the server has looked at its certificate
        await peer.say(QUIET + b"PING\r\n" * 100)
    events = await peer.end()
    assert events[-1] in ("FIN", "RST")
    return events[0]


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_turned_away_hears_the_alert_of_the_go_server(
    kind: str,
    run: Run,
    demanding: TlsOptions,
    authority: Authority,
    strict: dict[str, int],
    refused: dict[str, ssl.SSLContext],
) -> None:
    async def main() -> None:
        go = strict["cluster" if kind == "cluster" else "client"]
        async with listening(kind, demanding) as port:
            for name, context in refused.items():
                theirs = await turned_away(go, context, kind != "cluster")
                assert "ALERT" in theirs
                for _ in range(3):
                    assert (name, await turned_away(port.number, context, port.greets)) == (name, theirs)
            await until(lambda: not port.open())

    run(main())


async def wrong_token(peer: TlsPeer) -> None:
    await peer.say(b'CONNECT {"auth_token":"wrong"}\r\nPING\r\n')


async def says_nothing(peer: TlsPeer) -> None:
    """The time-out of the authentication ends it."""


async def nonsense(peer: TlsPeer) -> None:
    await peer.say(b'CONNECT {"verbose":false,"auth_token":"secret"}\r\nNONSENSE\r\n')


async def notify_at_once(peer: TlsPeer) -> None:
    await peer.notify()


async def notify_after_words(peer: TlsPeer) -> None:
    await let_in(peer)
    await peer.say(b"PING\r\n" * 3)
    await peer.notify()


async def half_closed(peer: TlsPeer) -> None:
    await let_in(peer)
    await peer.say(b"PING\r\n" * 3)
    peer.sock.shutdown(socket.SHUT_WR)


async def broken_record(peer: TlsPeer) -> None:
    await let_in(peer)
    peer.sock.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)


async def plain_text(peer: TlsPeer) -> None:
    await let_in(peer)
    peer.sock.sendall(b"PUB foo 5\r\nhello\r\n")


async def let_in(peer: TlsPeer) -> None:
    await peer.say(b'CONNECT {"verbose":false,"auth_token":"secret"}\r\n')
    await peer.round_trip()


def told(events: list[str]) -> list[str]:
    """Without the greeting that comes through TLS, and whether FIN or RST is the end: a Go server resets a connection
    that it closes with unread input, and so what the peer has not read is lost."""
    text = [line for line in events[0].splitlines() if not line.startswith("INFO ")]
    assert events[-1] in ("FIN", "RST")
    return [*text, *events[1:-1]] if events[0] not in ("FIN", "RST") else []


ENDS = [wrong_token, says_nothing, nonsense, notify_at_once, notify_after_words, half_closed, broken_record, plain_text]


@pytest.mark.parametrize("kind", KINDS[:2])
def test_every_end_is_the_go_servers(
    kind: str, run: Run, authority: Authority, options: TlsOptions, tmp_path: Path
) -> None:
    """The last words, then a close_notify or an alert, then FIN, without the peer's help."""
    tls = block(options).replace("tls {", f"tls {{ handshake_first: {str(kind == 'client first').lower()},")

    async def main(patience: float, ends: list[Callable[[TlsPeer], Coroutine[Any, Any, None]]]) -> None:
        with Oracle(tmp_path).start(f"{tls}\nauthorization {{ token: secret, timeout: {patience} }}") as go:
            async with listening(kind, options, token="secret", auth_timeout=patience) as port:
                for version in (TLS12, TLS13):
                    context = trusting(authority, **only(version))
                    for end in ends:
                        found: list[list[str]] = []
                        cut = False
                        for number in (go.port, port.number):
                            peer = await TlsPeer.connect(number, context, greets=port.greets)
                            await end(peer)
                            events = await peer.end()
                            cut = cut or (number == go.port and events[-1] == "RST")
                            found.append(told(events))
                        ours = found[1][: len(found[0])] if cut else found[1]  # RST may have overtaken the rest
                        assert (end.__name__, ours) == (end.__name__, found[0])
                        await until(lambda: not port.open())
                await until(lambda: transports() == 0)

    run(main(LONG, [end for end in ENDS if end is not says_nothing]))
    run(main(0.2, [says_nothing]))


@pytest.mark.parametrize("fin", [False, True])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_what_a_client_has_said_before_it_left_counts_though_its_password_takes_long(
    kind: str, fin: bool, run: Run, authority: Authority, options: TlsOptions
) -> None:
    """Words and a close_notify come together, while the bcrypt hash is still being computed."""
    users = [User("u", bcrypt.hashpw(b"s3cret", bcrypt.gensalt(4)).decode()), User("v", "plain")]

    async def main() -> None:
        async with listening(kind, options, users=users) as port:
            hearer = await TlsPeer.connect(port.number, trusting(authority), greets=port.greets)
            await hearer.say(b'CONNECT {"user":"v","pass":"plain","verbose":false}\r\nSUB foo 1\r\n')
            await hearer.round_trip()
            for version in (TLS12, TLS13):
                leaver = await TlsPeer.connect(port.number, trusting(authority, **only(version)), greets=port.greets)
                leaver.tls.write(b'CONNECT {"user":"u","pass":"s3cret","verbose":false}\r\nPUB foo 2\r\nhi\r\n')
                await leaver.notify()
                if fin:
                    leaver.sock.shutdown(socket.SHUT_WR)
                assert (await leaver.end())[-2:] == ["close_notify", "FIN"]
                await hearer.say(b"PING\r\n")
                lines = [b""]
                while lines[-1] != b"PONG\r\n":
                    lines.append(await hearer.line())
                assert b"MSG foo 1 2\r\n" in lines
            hearer.sock.close()

    run(main())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_who_does_not_read_the_end_holds_nothing_for_longer_than_the_write_deadline(
    kind: str, run: Run, authority: Authority, options: TlsOptions
) -> None:
    """A subscriber that takes nothing is cut as a slow consumer; one that makes a mistake meanwhile is, too."""

    async def main() -> None:
        async with listening(kind, options, write_deadline=0.2, max_pending=2**26) as port:
            for mistake in (b"", b"NONSENSE\r\n"):
                lazy, busy = [await served(port, trusting(authority)) for _ in range(2)]
                await lazy.say(b"SUB foo 1\r\n")
                await lazy.round_trip()
                (known,) = [each for each in port.broker.clients.values() if each.subs]
                await busy.say((b"PUB foo 100000\r\n" + b"x" * 100_000 + b"\r\n") * 100)
                await busy.round_trip()
                await lazy.say(mistake or b"PING\r\n")
                await until(lambda known=known: known.closed and known.transport is None)
                assert known.reason.value == ("Protocol Violation" if mistake else "Slow Consumer (Write Deadline)")
                await busy.round_trip()
                lazy.sock.close()
                busy.sock.close()

    run(main())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_everything_arrives_in_order_however_slowly_it_is_read(
    kind: str, run: Run, authority: Authority, options: TlsOptions
) -> None:
    async def main() -> None:
        async with listening(kind, options) as port:
            reader, writer = [await served(port, trusting(authority)) for _ in range(2)]
            await reader.say(b"SUB foo 1\r\n")
            await reader.round_trip()
            sizes = [number * number % 70_001 for number in range(400)]
            sent = b"".join(b"PUB foo %d\r\n%b\r\n" % (size, b"%d" % (size % 10) * size) for size in sizes)
            for start in range(0, len(sent), 1_000_003):
                await writer.say(sent[start : start + 1_000_003])
            await writer.round_trip()
            for size in sizes:
                assert await reader.line() == b"MSG foo 1 %d\r\n" % size
                assert await reader.line() == b"%d" % (size % 10) * size + b"\r\n"
            for peer in (reader, writer):
                await peer.notify()
                assert await peer.end() == ["close_notify", "FIN"]

    run(main())


# -- sessions -----------------------------------------------------------------------------------------------------

OFFERS = [(version, ticket) for version in (TLS12, TLS13) for ticket in (True, False)]


def resuming(authority: Authority, client: tuple[str, str], version: ssl.TLSVersion, ticket: bool) -> ssl.SSLContext:
    context = trusting(authority, client, **only(version))
    if not ticket:
        context.options |= ssl.OP_NO_TICKET
    return context


async def comes_again(port: Port, context: ssl.SSLContext, session: ssl.SSLSession | None) -> list[str]:
    """What a client hears that comes with a session; nothing when it is served."""
    peer = await TlsPeer.connect(port.number, context, greets=port.greets, session=session)
    if not peer.events:
        await peer.say(QUIET + b"PING\r\n" if port.table is None else b"PING\r\n")
        while not peer.events and (line := await peer.line()):
            if line == b"PONG\r\n" or (port.table is not None and line.startswith(b"INFO ")):
                peer.sock.close()
                return []
    return await peer.end()


@pytest.mark.parametrize("kind", KINDS)
def test_an_expired_certificate_does_not_come_in_by_its_old_session(
    kind: str, run: Run, demanding: TlsOptions, authority: Authority, client: tuple[str, str]
) -> None:
    """By the clock of the server; before that, the same clients are served."""
    now = time.time_ns()

    async def main() -> None:
        async with listening(kind, demanding, time_ns=lambda: now) as port:
            sessions: list[tuple[ssl.SSLContext, ssl.SSLSession | None]] = []
            for version, ticket in OFFERS:
                context = resuming(authority, client, version, ticket)
                peer = await served(port, context)
                sessions.append((context, peer.tls.session))
                assert await comes_again(port, context, peer.tls.session) == []
                await peer.notify()
                await peer.end()
            nonlocal now
            for later in (3, 100):
                now = time.time_ns() + later * 24 * 3600 * 10**9
                for context, session in sessions:
                    assert "FIN" in await comes_again(port, context, session)
            now = time.time_ns() - 10 * 24 * 3600 * 10**9
            for context, session in sessions:
                assert "FIN" in await comes_again(port, context, session)
            now = time.time_ns()
            for context, session in sessions:
                assert await comes_again(port, context, session) == []
            await until(lambda: not port.open())

    run(main())


def test_a_certificate_that_expires_while_its_session_is_kept(
    run: Run, demanding: TlsOptions, authority: Authority
) -> None:
    """By the clock of the world, and what the client hears is why."""

    async def main() -> None:
        ends = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
        brief = authority.issue_until("brief", ends)
        async with listening("client", demanding) as port:
            sessions: list[tuple[ssl.SSLContext, ssl.SSLSession | None]] = []
            for version, ticket in OFFERS:
                context = resuming(authority, brief, version, ticket)
                peer = await served(port, context)
                sessions.append((context, peer.tls.session))
                await peer.notify()
                await peer.end()
            await until(lambda: datetime.now(UTC) > ends + timedelta(seconds=1))
            for context, session in sessions:
                assert (await comes_again(port, context, session))[0] == "SSLV3_ALERT_CERTIFICATE_EXPIRED"

    run(main())


@pytest.mark.parametrize(
    ("kind", "demanded"), [*((kind, True) for kind in KINDS), ("client", False), ("client first", False)]
)
def test_a_reload_asks_everybody_anew(
    kind: str,
    demanded: bool,
    run: Run,
    demanding: TlsOptions,
    authority: Authority,
    stranger: Authority,
    client: tuple[str, str],
) -> None:
    """An authority that is no longer trusted, or a certificate that is demanded now, counts for old sessions too."""

    async def main() -> None:
        async with listening(kind, replace(demanding, verify=demanded)) as port:
            sessions: list[tuple[ssl.SSLContext, ssl.SSLSession | None]] = []
            for version, ticket in OFFERS:
                context = resuming(authority, client, version, ticket)
                peer = await served(port, context)
                sessions.append((context, peer.tls.session))
                peer.sock.close()
            renewed = replace(demanding, ca_file=stranger.ca, handshake_first=kind == "client first")
            (port.table or port.broker).renew_tls(renewed)
            for context, session in sessions:
                assert (await comes_again(port, context, session))[0] == "TLSV1_ALERT_UNKNOWN_CA"

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_no_session_is_resumed_where_certificates_are_demanded(
    kind: str, run: Run, demanding: TlsOptions, authority: Authority, client: tuple[str, str]
) -> None:
    """Each time the newest session is presented, and the client is served after a full handshake."""

    async def main() -> None:
        async with listening(kind, demanding) as port:
            for version, ticket in OFFERS:
                context = resuming(authority, client, version, ticket)
                session: ssl.SSLSession | None = None
                for _ in range(5):
                    peer = await TlsPeer.connect(port.number, context, greets=port.greets, session=session)
                    assert not peer.events and not peer.tls.session_reused
                    session = peer.tls.session
                    if port.table is None:
                        await peer.say(QUIET)
                        await peer.round_trip()
                    await peer.notify()
                    assert (await peer.end())[-1] == "FIN"

    run(main())


def test_the_session_is_seen_as_soon_as_it_is_there(authority: Authority, client: tuple[str, str]) -> None:
    """However a ClientHello is cut; and nonsense is not waited for."""
    outgoing = ssl.MemoryBIO()
    tls = trusting(authority, client).wrap_bio(ssl.MemoryBIO(), outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    whole = outgoing.read()
    session = whole[44:76]  # TLS 1.3 sends one for the sake of old middleboxes
    assert whole[43] == 32
    for length in range(len(whole) + 1):
        assert presented_session(whole[:length]) == (None if length < 76 else session)
    for nonsense in (b"GET /", b"\x16\x03\x01\x00\x05", b"\x16\x03\x01\x00\x30" + b"\xff" * 40, b"\x80" * 50):
        assert presented_session(nonsense) == b""


def test_a_session_is_not_resumed_when_its_identifier_comes_in_pieces(
    run: Run, demanding: TlsOptions, authority: Authority, client: tuple[str, str]
) -> None:
    """A ClientHello in records of one byte each is legal; without a session it is served, with one it is not."""

    async def main() -> None:
        async with listening("client first", demanding) as port:
            context = resuming(authority, client, TLS12, False)
            known = await served(port, context)
            for session in (None, known.tls.session):
                peer = TlsPeer(raw(port.number), context, session)
                with pytest.raises(ssl.SSLWantReadError):
                    peer.tls.do_handshake()
                message = peer.outgoing.read()[5:]
                peer.sock.sendall(b"".join(b"\x16\x03\x01\x00\x01%c" % byte for byte in message))
                await peer.shake()
                assert peer.tls.session_reused is (session is not None)
                await peer.say(QUIET + b"PING\r\n")
                if session is None:
                    await peer.round_trip()
                else:
                    assert await peer.end() == ["FIN"]

    run(main())


def test_sessions_are_resumed_where_nobody_has_to_show_a_certificate(
    run: Run, authority: Authority, client: tuple[str, str], options: TlsOptions
) -> None:
    async def main() -> None:
        async with listening("client", options) as port:
            for version, ticket in OFFERS:
                context = resuming(authority, client, version, ticket)
                first = await served(port, context)
                again = await TlsPeer.connect(port.number, context, greets=True, session=first.tls.session)
                await again.say(QUIET)
                await again.round_trip()
                assert again.tls.session_reused

    run(main())


@pytest.mark.parametrize("spoilt", ["client", "cluster"])
def test_a_reload_with_one_bad_certificate_changes_nothing(
    spoilt: str, run: Run, authority: Authority, options: TlsOptions, client: tuple[str, str]
) -> None:
    """Nor does one that would take TLS from the cluster port, or give it."""

    def settings(clients: TlsOptions, peers: TlsOptions | None) -> Settings:
        found = embedded_settings("127.0.0.1", -1, None, jetstream=False, monitor_port=0, name="")
        found.broker.tls = clients
        found.cluster.enabled, found.cluster.host, found.cluster.port, found.cluster.tls = True, "127.0.0.1", -1, peers
        return found

    async def main() -> None:
        stricter = replace(options, verify=True)
        bad = replace(options, cert_file="none.pem")
        async with Server(settings(options, options)) as node:
            broker, routes = node.broker, node.broker.routes
            assert routes is not None
            before = broker.tls, routes.tls
            with pytest.raises(StartError, match=r"none\.pem"):
                node.reload(settings(bad, options) if spoilt == "client" else settings(stricter, bad))
            with pytest.raises(StartError, match="not supported for Cluster TLS: old=True, new=False"):
                node.reload(settings(options, None))
            assert (broker.tls, routes.tls) == before
            port = Port("client", node.port, broker, None)
            (await served(port, trusting(authority))).sock.close()
            node.reload(settings(stricter, options))
            peer = TlsPeer(raw(node.port), trusting(authority, client), None)
            assert b'"tls_verify":true' in await peer.greeting()
            peer.sock.close()
            (await served(port, trusting(authority, client))).sock.close()

    run(main())


# -- where we dial ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", list(WORDS))
def test_a_dialler_is_left_by_nobody_for_ever(answer: str, run: Run, authority: Authority) -> None:
    """The other side takes the connection, says something, and ends it in one way or the other, or stays silent."""

    async def main() -> None:
        took: list[asyncio.StreamWriter] = []

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(took) % 2:
                await reader.read(10)
            writer.write(WORDS[answer])
            took.append(writer)
            if len(took) % 3 == 0:
                writer.transport.abort()
            elif len(took) % 3 == 1:
                writer.close()
            await writer.wait_closed()

        fake = await asyncio.start_server(take, "127.0.0.1", 0)
        where = f"127.0.0.1:{fake.sockets[0].getsockname()[1]}"
        quick: dict[str, Any] = {"redial": 0.0, "redial_refused": 0.0, "dial_timeout": LONG}
        tls = authority.options("node", timeout=0.05)
        async with routed("a", tls=tls, routes=[where], **quick) as table:
            await until(lambda: len(took) >= 7)
            assert not table.routes and len(table.open) <= 1
        for writer in took:
            writer.transport.abort()
        fake.close()
        await until(lambda: transports() == 0)

    run(main())


def test_a_name_that_no_certificate_can_hold_ends_the_attempt(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with routed("a", tls=authority.options("node")) as a:
            quick: dict[str, Any] = {"redial": 0.0, "redial_refused": 0.0}
            async with routed("b", tls=authority.options("node"), **quick) as b:
                b.add_route(f"127.1:{a.port}")
                await until(lambda: b.broker._last_cid > 4)  # pyright: ignore[reportPrivateUsage]
                assert not a.routes and not b.routes and len(b.open) <= 1

    run(main())
