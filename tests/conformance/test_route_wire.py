"""What goes over the wire between a hand-written peer and clients, beside the Go server: byte for byte."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.broker.peer import Peer
from tests.broker.route_stand import routed
from tests.conformance.go_mesh import cluster_port, joined
from tests.conformance.route_peer import RoutePeer, greeting

Side = tuple[int, int]
"""Client port and cluster port."""

HEADED = b"18 23\r\nNATS/1.0\r\nA: b\r\n\r\nhello\r\n"
REMOTE = (
    b"RS+ $G py.sub\r\nRS+ $G py.> \r\nRS+ $G py.q workers 2\r\nRS+ $G both\r\nRS+ $G both q1 1\r\nRS+ $G both q2 1\r\n"
)
PUBLISHED = [
    b"PUB py.sub 5\r\nhello\r\n",
    b"PUB py.sub _INBOX.1 5\r\nhello\r\n",
    b"PUB py.q 5\r\nhello\r\n",
    b"PUB py.q _INBOX.1 5\r\nhello\r\n",
    b"HPUB py.sub " + HEADED,
    b"HPUB py.sub _INBOX.1 " + HEADED,
    b"HPUB py.q " + HEADED,
    b"HPUB py.q _INBOX.2 " + HEADED,
    b"PUB both 1\r\nx\r\n",
    b"PUB both rep 1\r\nx\r\n",
    b"HPUB both rep " + HEADED,
    b"PUB nobody 1\r\nx\r\n",
]
ARRIVING = [
    b"RMSG $G go.sub 5\r\nworld\r\n",
    b"RMSG $G go.sub _INBOX.9 5\r\nworld\r\n",
    b"RMSG $G go.q | qg 5\r\nworld\r\n",
    b"RMSG $G go.q + _INBOX.9 qg 5\r\nworld\r\n",
    b"RMSG $G go.q + _INBOX.9 qg other 5\r\nworld\r\n",
    b"RMSG $G go.q 5\r\nworld\r\n",
    b"RMSG $G go.q | other 5\r\nworld\r\n",
    b"HMSG $G go.sub " + HEADED,
    b"HMSG $G go.sub _INBOX.9 " + HEADED,
    b"HMSG $G go.q | qg " + HEADED,
    b"HMSG $G go.q + _INBOX.9 qg " + HEADED,
    b"HMSG $G go.sub 0 5\r\nworld\r\n",
    b"LMSG L $G go.sub 0 5\r\nworld\r\n",
    b"LMSG L $G go.q | qg 0 5\r\nworld\r\n",
    b"RMSG NOACC go.sub 5\r\nworld\r\n",
    b"RMSG $G go.sub $JS.ACK.S.C.1.1.1.1.0@stream.subject 5\r\nworld\r\n",
    b"RMSG $G go.sub $JS.ACK.S@stream.subject 5\r\nworld\r\n",
    b"rmsg  $G \t go.sub  5 \r\nworld\r\n",
]
CHANGES = [
    b"SUB zz 9\r\n", b"SUB zz 10\r\n", b"UNSUB 9\r\n", b"UNSUB 10\r\n",
    b"SUB qq g 1\r\n", b"SUB qq g 2\r\n", b"UNSUB 2\r\n", b"UNSUB 1\r\n",
    b"SUB au 3\r\nUNSUB 3 1\r\n", b"PUB au 1\r\nx\r\n",
    b"SUB wild.*.> 4\r\n", b"SUB zz 5\r\nSUB zz g 6\r\n", b"UNSUB 5\r\n",
]  # fmt: skip


@pytest_asyncio.fixture
async def sides(tmp_path: Path) -> AsyncIterator[list[Side]]:
    """The Go server and ours."""
    async with routed("ours") as ours:
        with joined(tmp_path) as go:
            yield [(go.port, cluster_port(go)), (ours.broker.port, ours.port)]


async def test_publishing_to_a_peer(sides: list[Side]) -> None:
    said: list[list[list[bytes]]] = []
    for client_port, route_port in sides:
        client = await Peer.connect(client_port)
        peer = await RoutePeer.dial(route_port, greeting("p") + REMOTE)
        heard: list[list[bytes]] = []
        for line in PUBLISHED * 3:  # first use of a subject, plan kept, known line
            await client.sync(line)
            heard.append([b" ".join(sorted(message.split(b" "))) for message in await peer.say()])  # queues: any order
        said.append(heard)
    assert said[1] == said[0]


async def test_messages_from_a_peer(sides: list[Side]) -> None:
    said: list[list[list[bytes]]] = []
    for client_port, route_port in sides:
        client = await Peer.connect(client_port)
        await client.sync(b"SUB go.sub 1\r\nSUB go.q qg 2\r\n")
        peer = await RoutePeer.dial(route_port, greeting("p"))
        heard: list[list[bytes]] = []
        for line in ARRIVING * 3:
            assert await peer.say(line) == []
            heard.append(await client.sync())
        said.append(heard)
    assert said[1] == said[0]


async def test_telling_of_interest(sides: list[Side]) -> None:
    said: list[list[list[bytes]]] = []
    for client_port, route_port in sides:
        client = await Peer.connect(client_port)
        await client.sync(b"SUB before 20\r\nSUB before 21\r\nSUB before g 22\r\nSUB before g 23\r\n")
        peer = await RoutePeer.dial(route_port, greeting("p"))
        heard = [sorted(await peer.say())]
        for line in CHANGES:
            await client.sync(line)
            heard.append(await peer.say())
        client.close()
        assert await client.rest() == b""
        heard.append(sorted(await peer.until(b"RS- $G wild")))
        said.append(heard)
    assert said[1][:-1] == said[0][:-1]


async def test_nobody_answers(sides: list[Side]) -> None:
    """Interest of a peer counts as an answer to come; its end brings back the 503."""
    said: list[list[bytes]] = []
    for client_port, route_port in sides:
        client = await Peer.connect(client_port)
        await client.sync(b"SUB _INBOX.* 1\r\n")
        peer = await RoutePeer.dial(route_port, greeting("p") + b"RS+ $G ask\r\n")
        heard = await client.sync(b"PUB ask _INBOX.1 0\r\n\r\n")
        await peer.say(b"RMSG $G _INBOX.1 2\r\nok\r\nRS- $G ask\r\nRMSG $G unheard _INBOX.3 0\r\n\r\n")
        heard += await client.sync(b"PUB ask _INBOX.2 0\r\n\r\n")
        assert all(line.startswith((b"RMSG $G ask _INBOX.1", b"RS")) for line in await peer.say())
        said.append(heard)
    assert said[1] == said[0]


async def test_a_group_whose_last_member_has_just_left(sides: list[Side]) -> None:
    """The only case of a second hop: the message goes on to the server of another member."""
    said: list[list[list[bytes]]] = []
    for client_port, route_port in sides:
        client = await Peer.connect(client_port)
        one = await RoutePeer.dial(route_port, greeting("p1"))
        two = await RoutePeer.dial(route_port, greeting("p2") + b"RS+ $G q g 1\r\n")
        heard: list[list[bytes]] = []
        for _ in range(3):
            await one.say(b"RMSG $G q | g 2\r\nhi\r\nRMSG $G q + r g 2\r\nhi\r\nRMSG $G q 2\r\nhi\r\n")
            heard.append(await two.say())
            assert await one.say() == []
        await client.sync(b"SUB q g 1\r\n")
        await one.say(b"RMSG $G q | g 2\r\nhi\r\n")
        heard.append(await client.sync())
        heard.append(await two.say())
        said.append(heard)
    assert said[1] == said[0]
