"""Broken conversations on the cluster port of a node with data: refused, told once, and nothing has changed.

The recorded conversation is what a peer of our kind says, from its introduction to Raft's frames and questions between
nodes. Each seed flips, cuts, repeats, drops or moves some of its bytes and sends the rest over a real connection, in
pieces of any size.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nimsnats.config.settings import ClusterSettings
from nimsnats.identity import node_hash
from nimsnats.jetstream.packing import pack
from nimsnats.raft.machine import Entry
from nimsnats.raft.message import Kind, Message
from nimsnats.raft.wire import Fetch, Piece, encode
from nimsnats.server import Server, embedded_settings
from tests.broker.peer import until
from tests.broker.route_stand import CLUSTER
from tests.conformance.route_peer import RoutePeer, connect_line, greeting, info_line

STRANGER = "fuzz@123"


@asynccontextmanager
async def node(directory: Path) -> AsyncIterator[Server]:
    """A server that takes part in a cluster, so far alone, with one stream of three messages."""
    settings = embedded_settings("127.0.0.1", -1, directory, jetstream=True, monitor_port=0, name="ours")
    settings.cluster = ClusterSettings(name=CLUSTER, host="127.0.0.1", port=-1, auth_timeout=0.3)
    server = Server(settings)
    server.clustered = True
    async with server:
        client = await server.client()
        js = client.jetstream()
        await js.add_stream(name="KEPT", subjects=["kept.>"])
        for number in range(3):
            await js.publish("kept.x", b"%d" % number)
        await client.close()
        yield server


async def state(server: Server) -> Any:
    """What must not change: the stream, the catalogue, the members."""
    client = await server.client()
    info = await client.jetstream().stream_info("KEPT")
    engine = server.jetstream
    assert engine is not None and info.cluster is not None
    group = engine.meta.group
    await client.close()
    streams = sorted(engine.meta.streams)
    return info.state.messages, info.state.last_seq, info.cluster.leader, streams, group.members, group.learners


def framed(subject: bytes, payload: bytes) -> bytes:
    return b"RMSG $SYS %b %d\r\n%b\r\n" % (subject, len(payload), payload)


def conversation(server: Server) -> list[bytes]:
    """What a peer says, line by line and message by message; none of it may change anything."""
    engine = server.jetstream
    assert engine is not None
    member = engine.host.member
    raft, mail = (b"$NIMS.%b." % kind + node_hash(member).encode() for kind in (b"RAFT", b"API"))
    groups = [(name, _raft_items(member)) for name in (engine.meta.group.name, "unknown", "S.KEPT")]
    said = [connect_line("FUZZ"), info_line("FUZZ", server_name="fuzz", nimsnats={"instance": "123"})]
    said += [b"PING\r\n", b"RS+ $G foo.*\r\n", b"RS+ $G foo.> q 3\r\n", b"RS+ NOACC foo\r\n", b"RS- $G foo.*\r\n"]
    said += [
        b"RMSG $G bar 5\r\nhello\r\n",
        b"RMSG $G bar _INBOX.1 5\r\nhello\r\n",
        b"RMSG $G bar | q1 q2 5\r\nhello\r\n",
        b"RMSG $G bar + _INBOX.1 q1 5\r\nhello\r\n",
        b"HMSG $G bar 18 23\r\nNATS/1.0\r\nA: b\r\n\r\nhello\r\n",
        b"LMSG L $G bar 0 5\r\nhello\r\n",
        b"LS+ L $G baz\r\n",
    ]
    for number in range(3):
        said.append(framed(raft, encode(STRANGER, member, 10**18 + number, groups)))
    for what, body in (
        ("hello", {"cluster": "x", "members": [STRANGER], "empty": True, "joining": False}),
        ("join", ["another cluster", STRANGER]),
        ("leave", ["evade", STRANGER]),
        ("api", ["$G", b"$JS.API.STREAM.INFO.KEPT", b"_INBOX.2", b"", b"", 1]),
        ("stream", ["$G", "KEPT", "?", "?", None]),
        ("unheard of", None),
    ):
        said += [framed(mail, pack([form, 7, STRANGER, member, what, body])) for form in (0, 1, 2, 3)]
    return [*said, info_line("OTHER", ip="nats-route://127.0.0.1:1/"), b"PONG\r\n"]


def _raft_items(member: str) -> list[Any]:
    to, sender = member, STRANGER
    return [
        Message(Kind.HEARTBEAT, to, sender, 0, commit=1),
        Message(Kind.APPEND_REPLY, to, sender, 1, 2),
        Message(Kind.APPEND, to, sender, 0, 5, 0, 4, [Entry(6, 0, 2, b"x", None, 1)]),
        Fetch(1, 1, 1),
        Piece(1, 100, b"part", [(1, 1, 2, 0, 0, b"block")]),
    ]


def broken(said: list[bytes], chance: random.Random) -> bytes:
    """The conversation with some harm done to it; its introduction mostly stays, or nothing behind it would be read."""
    lines = list(said)
    first = 0 if chance.random() < 0.3 else 2
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(first, len(lines))
        line, where = lines[at], chance.randrange(len(lines[at]) + 1)
        harm = chance.randrange(6)
        if harm == 0 and line:
            where = chance.randrange(len(line))
            lines[at] = line[:where] + bytes([line[where] ^ 1 << chance.randrange(8)]) + line[where + 1 :]
        elif harm == 1:
            lines[at] = line[:where]
        elif harm == 2:
            lines[at] = line[:where] + line[where:] * chance.randrange(2, 50)
        elif harm == 3:
            lines[at] = line[:where] + chance.randbytes(chance.randrange(1, 64)) + line[where:]
        elif harm == 4:
            other = chance.randrange(first, len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif chance.random() < 0.5:
            lines[at] = line.replace(b" 5\r\n", b" %d\r\n" % chance.choice((-1, 0, 4, 6, 2**31, 2**63, 10**30)))
        else:
            del lines[at + 1 :]
    return b"".join(lines)


async def say(port: int, data: bytes, chance: random.Random) -> None:
    """Send all that in pieces, hang up, and wait until the server has done so, too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        at = 0
        while at < len(data):
            size = chance.choice((1, 7, 100, 5000, len(data)))
            writer.write(data[at : at + size])
            at += size
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        writer.write_eof()
        await reader.read()
    except OSError:
        pass  # it has hung up already
    finally:
        writer.close()


async def endure(directory: Path, caplog: pytest.LogCaptureFixture, seeds: range) -> None:
    """Everything that these seeds do to the conversation."""
    caplog.set_level(logging.WARNING)
    escaped: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: escaped.append(context))
    async with node(directory) as server:
        assert server.routes is not None
        before, said = await state(server), conversation(server)
        for seed in seeds:
            chance = random.Random(seed)
            await say(server.routes.port, broken(said, chance), chance)
            assert not escaped, (seed, escaped)
        await until(lambda: server.routes is not None and not server.routes.open)
        assert not [record for record in caplog.records if record.exc_info], "an exception escaped"
        texts = [record.getMessage().partition(" - rid:")[2] or record.getMessage() for record in caplog.records]
        assert len(texts) < 40 * len(seeds) ** 0.5 + 40, "the log is flooded"
        assert not server.broker.global_account.has_interest(b"foo.1")
        assert await state(server) == before
        honest = await RoutePeer.dial(server.routes.port, greeting("honest") + b"RS+ $G foo.*\r\n")
        assert server.broker.global_account.has_interest(b"foo.1")
        honest.close()


async def test_a_broken_conversation_costs_the_peer_its_connection_and_nobody_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await endure(tmp_path, caplog, range(150))


@pytest.mark.extended
@pytest.mark.timeout(900)
async def test_many_broken_conversations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await endure(tmp_path, caplog, range(1000, 11000))


BOMBS = [
    b"\x91" * 200_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff" + b"x" * 1000,
    b"\xdb\x7f\xff\xff\xff",
    b"\x96" + b"\x95" * 600,
    pack([[], 1, "a", "b", "c", None]),
    pack([0, [], "a", "b", "c", None]),
    pack([1, 1, STRANGER, "?", [], None]),
    pack({1: 2}),
]


async def test_bombs_and_questions_that_make_no_sense(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Through the usual way of Raft's frames and of questions; each fault is in the log once."""
    caplog.set_level(logging.WARNING)
    async with node(tmp_path) as server:
        engine = server.jetstream
        assert engine is not None and engine.mail is not None and server.routes is not None
        before, member = await state(server), engine.host.member
        raft, mail = (b"$NIMS.%b." % kind + node_hash(member).encode() for kind in (b"RAFT", b"API"))
        peer = await RoutePeer.dial(server.routes.port, greeting("fuzz", nimsnats={"instance": "123"}))
        odd = [None, 7, "text", b"bytes", [], [1], [1, 2], ["x", 7], {}, {"cluster": 1}, [[], [], []], [1] * 5, [1] * 6]
        kinds = ("hello", "join", "leave", "api", "stream", "unheard of")
        questions = [
            pack([form, 9, STRANGER, member, what, body]) for form in range(4) for what in kinds for body in odd
        ]
        for _ in range(2):
            said = await peer.say(*(framed(subject, bomb) for subject in (raft, mail) for bomb in BOMBS))
            assert said == []
            assert await peer.say(*(framed(mail, question) for question in questions)) == []
        await until(lambda: not engine.mail._tasks)  # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess]
        assert sum(engine.host.peers.refused.values()) == 2 * len(BOMBS)
        assert engine.mail.refused > 2 * len(BOMBS)
        texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(texts) == len(set(texts)), "each fault once"
        assert texts and not [record for record in caplog.records if record.exc_info]
        assert await state(server) == before
        peer.close()
