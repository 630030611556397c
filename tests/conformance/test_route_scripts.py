"""The same words to the Go server's cluster port and to ours: they must be answered alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from nimsnats.broker.route_table import RouteTable
from tests.broker.route_stand import routed
from tests.conformance.go_mesh import cluster_port, joined
from tests.conformance.oracle import Oracle
from tests.conformance.route_peer import RoutePeer, connect_line, greeting, info_line

BYTEWISE = "bytes one by one"
SCRIPTS = {
    "INFO first": [info_line("p")],
    "PING first": [b"PING\r\n"],
    "RS+ first": [b"RS+ $G foo\r\n"],
    "garbage": [b"\x00\x01\x02garbage\r\n"],
    "garbage later": [greeting("p"), b"garbage\r\n"],
    "another cluster": [connect_line("p", cluster="Y")],
    "no cluster": [connect_line("p", cluster=None)],
    "another cluster in INFO only": [connect_line("p"), info_line("p", cluster="Y")],
    "no cluster in INFO": [connect_line("p"), info_line("p", cluster=None)],
    "a client": [connect_line("p", lang="go")],
    "a gateway": [connect_line("p", gateway="G")],
    "CONNECT is no JSON": [b"CONNECT {nonsense\r\n"],
    "INFO is no JSON": [connect_line("p"), b"INFO {nonsense\r\n"],
    "INFO of the wrong type": [connect_line("p"), b'INFO {"server_id":1}\r\n'],
    "second CONNECT": [greeting("p"), connect_line("p")],
    "dedicated": [connect_line("p"), info_line("p", route_account="$SYS")],
    "+OK": [greeting("p"), b"+OK\r\n"],
    "-ERR": [greeting("p"), b"-ERR 'foo'\r\n"],
    "MSG": [greeting("p"), b"MSG foo 1 1\r\nx\r\n"],
    "SUB": [greeting("p"), b"SUB foo 1\r\n"],
    "PUB": [greeting("p"), b"PUB foo 1\r\nx\r\n"],
    "UNSUB": [greeting("p"), b"UNSUB 1\r\n"],
    "A+": [greeting("p"), b"A+ $G\r\nA- $G\r\n"],
    "odd spelling": [greeting("p"), b"rs+ $G low\r\nRS+  $G \t more\r\nrS- $G   low\r\n"],
    "RS+ too short": [greeting("p"), b"RS+ $G\r\n"],
    "RS+ of three": [greeting("p"), b"RS+ $G foo q\r\n"],
    "RS+ too long": [greeting("p"), b"RS+ $G foo q 1 2\r\n"],
    "RS- too short": [greeting("p"), b"RS- $G\r\n"],
    "RS- of something unknown": [greeting("p"), b"RS- $G foo\r\nRS- NOACC foo\r\nRS- $G foo q\r\n"],
    "RS+ in an unknown account": [greeting("p"), b"RS+ NOACC foo\r\nRMSG NOACC foo 1\r\nx\r\n"],
    "LS+ without origin": [greeting("p"), b"LS+ $G foo\r\n"],
    "LS+": [greeting("p", lnoc=True, lnocu=True), b"LS+ L $G a\r\nLS+ L $G a q 1\r\nLS- L $G a q\r\nLS- L $G a\r\n"],
    "RMSG without size": [greeting("p"), b"RMSG $G foo\r\n"],
    "RMSG of no size": [greeting("p"), b"RMSG $G foo x\r\n"],
    "RMSG of negative size": [greeting("p"), b"RMSG $G foo -1\r\n"],
    "RMSG with another mark": [greeting("p"), b"RMSG $G foo * a b 1\r\nx\r\n"],
    "RMSG with a wrong end": [greeting("p"), b"RMSG $G foo 1\r\nxyz\r\n"],
    "HMSG larger than all": [greeting("p"), b"HMSG $G foo 9 1\r\nx\r\n"],
    "HMSG without size": [greeting("p"), b"HMSG $G foo 1\r\nx\r\n"],
    "good messages to nobody": [
        greeting("p"),
        b"RMSG $G foo 1\r\nx\r\nRMSG $G foo r 1\r\nx\r\nRMSG $G foo | q 1\r\nx\r\nRMSG $G foo + r q w 1\r\nx\r\n"
        b"LMSG L $G foo 0 1\r\nx\r\nHMSG $G foo 12 13\r\nNATS/1.0\r\n\r\nx\r\n",
    ],
    "a long line": [greeting("p"), b"RS+ $G " + b"x" * 70_000 + b"\r\n"],
    "a line without end": [greeting("p"), b"RS+ $G " + b"x" * 70_000],
    BYTEWISE: [greeting("p") + b"RS+ $G foo\r\nRMSG $G foo 1\r\nx\r\n"],
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    oracle = joined(tmp_path_factory.mktemp("scripts"))
    yield oracle
    oracle.stop()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    oracle = joined(tmp_path_factory.mktemp("guarded"), login="u:p@")
    yield oracle
    oracle.stop()


@pytest_asyncio.fixture
async def ours() -> AsyncIterator[RouteTable]:
    async with routed("ours") as table:
        yield table


@pytest.mark.parametrize("script", list(SCRIPTS))
async def test_answered_like_the_go_server(script: str, theirs: Oracle, ours: RouteTable) -> None:
    said: list[list[bytes]] = []
    name = f'"{script}"'.encode()  # the Go server may not have noticed yet that the one before is gone
    pieces = [piece.replace(b'"p"', name) for piece in SCRIPTS[script]]
    if script == BYTEWISE:
        pieces = [bytes([byte]) for piece in pieces for byte in piece]
    for port in (cluster_port(theirs), ours.port):
        peer = await RoutePeer.dial(port)
        said.append(await peer.say(*pieces))
        peer.close()
    assert said[1] == said[0]


@pytest.mark.parametrize(
    "login", [{}, {"user": "u"}, {"user": "u", "pass": "x"}, {"user": "x", "pass": "p"}, {"user": "u", "pass": "p"}]
)
async def test_credentials_like_the_go_server(login: dict[str, str], guarded: Oracle) -> None:
    said: list[list[bytes]] = []
    async with routed("ours", user="u", password="p") as table:
        for port in (cluster_port(guarded), table.port):
            peer = await RoutePeer.dial(port)
            assert peer.info["auth_required"]
            pieces = [connect_line(str(login), **login), info_line(str(login))]
            if port != table.port and login != {"user": "u", "pass": "p"}:
                # Go ends a refused connection at once: input that it has not read takes its last words back (RFC 2525)
                pieces.pop()
            said.append(await peer.say(*pieces))
            peer.close()
    assert said[1] == said[0]
