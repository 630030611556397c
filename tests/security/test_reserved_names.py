"""Names that are neither for clients nor for core peers: of nodes' talk, of JetStream's own queue groups."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nimsnats.broker.options import User
from nimsnats.broker.server import Broker
from nimsnats.config.settings import ClusterSettings
from nimsnats.identity import node_hash, nuid
from nimsnats.jetstream.packing import pack
from nimsnats.raft.wire import encode
from nimsnats.runtime import Runtime
from nimsnats.server import Server, embedded_settings
from tests.broker.peer import Peer, running, until
from tests.broker.route_stand import CLUSTER, meshed, routed, settled
from tests.conformance.route_peer import RoutePeer, connect_line, greeting, info_line
from tests.security.impostor import GUARDED, SECRET

USERS = [User("app", "a", "APP"), User("sys", "s", "$SYS")]
CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"user":"%b","pass":"%b"}\r\n'
LOGINS = {"app": CONNECT % (b"app", b"a"), "sys": CONNECT % (b"sys", b"s")}

DENIED = {
    b"SUB $NIMS.> 1\r\n": b'Subscription to "$NIMS.>"',
    b"SUB $NIMS.RAFT.x 1\r\n": b'Subscription to "$NIMS.RAFT.x"',
    b"SUB $NIMS.API.* q 1\r\n": b'Subscription to "$NIMS.API.*" using queue "q"',
    b"SUB foo $JS.S.Q1 1\r\n": b'Subscription to "foo" using queue "$JS.S.Q1"',
    b"SUB > $JS.S.Q1 1\r\n": b'Subscription to ">" using queue "$JS.S.Q1"',
    b"SUB $JS.API.> $JS.API 1\r\n": b'Subscription to "$JS.API.>" using queue "$JS.API"',
    b"SUB $JS.ACK.> $JS.ACK 1\r\n": b'Subscription to "$JS.ACK.>" using queue "$JS.ACK"',
    b"SUB foo _sys_ 1\r\n": b'Subscription to "foo" using queue "_sys_"',
    b"PUB $NIMS.API.x 1\r\nx\r\n": b'Publish to "$NIMS.API.x"',
    b"PUB $NIMS.RAFT.x r 1\r\nx\r\n": b'Publish to "$NIMS.RAFT.x"',
    b"HPUB $NIMS.RAFT.x 12 13\r\nNATS/1.0\r\n\r\nx\r\n": b'Publish to "$NIMS.RAFT.x"',
    b"PUB $NRG.x 1\r\nx\r\n": b'Publish to "$NRG.x"',
    b"PUB foo $NIMS.API.x 1\r\nx\r\n": b'Publish with Reply of "$NIMS.API.x"',
    b"PUB foo $JS.ACK.S.C.1.1.1.1.1 1\r\nx\r\n": b'Publish with Reply of "$JS.ACK.S.C.1.1.1.1.1"',
}


async def in_memory(broker: Broker, hello: bytes) -> tuple[Any, list[bytes]]:
    said: list[bytes] = []
    connection = broker.connect_local(said.append)
    connection.write(hello + b"PING\r\n")
    await until(lambda: b"PONG\r\n" in b"".join(said))
    said.clear()
    return connection, said


@pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS)
async def test_a_client_is_told_no_and_stays_connected(login: bytes) -> None:
    """The same on every kind of connection; a second attempt, when the plan is known, is answered like the first."""
    async with running(users=USERS) as broker:
        client = await Peer.connect(broker.port, login)
        local, said = await in_memory(broker, login)
        for line, what in DENIED.items():
            answer = b"-ERR 'Permissions Violation for %b'" % what
            assert [await client.sync(line * 3)] == [[answer] * 3], line
            local.write(line * 3 + b"PING\r\n")
            await until(lambda: b"PONG\r\n" in b"".join(said))
            assert b"".join(said) == (answer + b"\r\n") * 3 + b"PONG\r\n"
            said.clear()
        assert all(account.interest.count == 0 for account in broker.accounts.values())


async def test_a_stream_keeps_what_is_published_to_it(tmp_path: Path) -> None:
    """A client that wants to be a member of the stream's own queue group gets no message, and so acknowledges none."""
    async with Server(store_dir=tmp_path) as server:
        client = await server.client()
        js = client.jetstream()
        await js.add_stream(name="Q1", subjects=["q.>"])
        thief = await Peer.connect(server.port)
        groups = [b"$JS.S.Q1", b"$JS.STREAM.Q1", b"$JS.API", b"$JS."]
        for number, group in enumerate(groups):
            for subject in (b"q.>", b"q.x", b">", b"$JS.API.>"):
                (error,) = await thief.sync(b"SUB %b %b %d\r\n" % (subject, group, number))
                assert error.startswith(b"-ERR 'Permissions Violation for Subscription")
        acks = [await js.publish("q.x", b"%d" % number) for number in range(100)]
        assert [ack.seq for ack in acks] == list(range(1, 101))
        assert await thief.sync() == []
        await client.close()


# -- peers that are no members --------------------------------------------------------------------------------------


async def core_peer(port: int, lines: bytes = b"") -> RoutePeer:
    """A server that was let in by password."""
    hello = connect_line("GO", user="nimsnats", **{"pass": SECRET}) + info_line("GO")
    return await RoutePeer.dial(port, hello + lines)


async def test_nodes_do_not_talk_to_core_peers_and_clients(caplog: pytest.LogCaptureFixture) -> None:
    """Two members exchange messages; whoever listens to everything on the system account hears none of them."""
    caplog.set_level(logging.WARNING)
    options: dict[str, Any] = {"broker": {"users": USERS}, **GUARDED}
    async with routed("a", **options) as a, routed("b", a, **options) as b:
        await meshed(a, b)
        got: list[bytes] = []
        b.broker.system_account.subscribe(
            b"$NIMS.API.b", lambda _s, _r, _h, payload, _o: got.append(payload), routed=True
        )
        wide = (b">", b"*.API.b", b"*.*.*", b"$NIMS.API.b", b"$NIMS.>")
        go = await core_peer(a.port, b"".join(b"RS+ $SYS %b\r\nRS+ $SYS %b q 1\r\n" % (what, what) for what in wide))
        clients = [await Peer.connect(table.broker.port, LOGINS["sys"]) for table in (a, b)]
        for client in clients:
            await client.sync(b"SUB > 1\r\nSUB *.API.* 2\r\nSUB *.API.b 3\r\nSUB *.> q 4\r\n")
        await settled(b)
        system = a.broker.system_account
        for number in range(5):
            assert system.publish(b"$NIMS.API.b", b"%d" % number) == 1, "one node hears it"
        system.publish(b"other", b"open")
        await settled(b)
        await until(lambda: len(got) == 5)
        assert got == [b"0", b"1", b"2", b"3", b"4"]
        for client in clients:
            lines = await client.sync()
            assert not any(b"$NIMS." in line for line in lines), lines
            assert b"MSG other 1 4" in lines, "it does hear the rest"
        heard = await go.say()
        assert not any(b"$NIMS." in line for line in heard) and any(b"other" in line for line in heard), heard
        texts = [record.getMessage() for record in caplog.records]
        assert sum("interest in subjects or queue groups of nodes alone is ignored" in text for text in texts) == 1
        assert a.refused == 4


@asynccontextmanager
async def node(directory: Path) -> AsyncIterator[Server]:
    """A server that takes part in a cluster with a secret, with one stream."""
    settings = embedded_settings("127.0.0.1", -1, directory, jetstream=True, monitor_port=0, name="ours")
    settings.cluster = ClusterSettings(name=CLUSTER, host="127.0.0.1", port=-1, user="nimsnats", password=SECRET)
    server = Server(settings)
    server.clustered = True
    async with server:
        client = await server.client()
        await client.jetstream().add_stream(name="S", subjects=["s.>"])
        await client.close()
        yield server


@pytest.mark.parametrize("before", [b"", b"RS+ $G unrelated\r\n" * 2])
async def test_a_core_peer_cannot_speak_as_a_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, before: bytes
) -> None:
    """Raft's frames, questions, batches for a leader: dropped before anything looks at them, and counted."""
    caplog.set_level(logging.WARNING)
    async with node(tmp_path) as server:
        engine, table = server.jetstream, server.routes
        assert engine is not None and engine.mail is not None and table is not None
        member = engine.host.member
        raft, mail = (b"$NIMS.%b." % kind + node_hash(member).encode() for kind in (b"RAFT", b"API"))
        frames = [(raft, encode("evil@1", member, 1, [(engine.meta.group.name, [])]))]
        for what in ("hello", "join", "leave", "api", "stream", "publish", "published"):
            frames += [(mail, pack([form, 7, "evil@1", member, what, None])) for form in range(4)]
        go = await core_peer(table.port, before)
        for subject, body in frames * 3:
            go.send(b"RMSG $SYS %b %d\r\n%b\r\n" % (subject, len(body), body))
            go.send(b"RMSG $SYS %b r.r %d\r\n%b\r\n" % (subject, len(body), body))
            go.send(b"RMSG $SYS %b | q %d\r\n%b\r\n" % (subject, len(body), body))
            head = b"NATS/1.0\r\nA: b\r\n\r\n"
            go.send(b"HMSG $SYS %b %d %d\r\n%b%b\r\n" % (subject, len(head), len(head + body), head, body))
            go.send(b"LMSG L $SYS %b 0 %d\r\n%b\r\n" % (subject, len(body), body))
        trace = b"NATS/1.0\r\nNats-Trace-Dest: %b\r\n\r\n" % mail
        go.send(b"HMSG $SYS x %d %d\r\n%b\r\n" % (len(trace), len(trace), trace))
        go.send(b"RMSG $SYS $SYS.REQ.SERVER.PING %b 0\r\n\r\n" % mail)
        assert await go.say() == []
        assert not engine.mail.refused and not engine.host.peers.refused, "nothing has come so far"
        assert table.refused == len(frames) * 3 * 5 + 1
        assert sum("messages that only nodes may send" in record.getMessage() for record in caplog.records) == 1
        member_like = await RoutePeer.dial(table.port)
        assert (await member_like.say(connect_line("X"), info_line("X", nimsnats={"instance": "1"})))[-1] == b"END"


async def test_what_is_known_of_a_members_lines_does_not_help_a_core_peer() -> None:
    """The same bytes again and again, first from a node and then from a nats-server."""
    async with routed("a") as a:
        got: list[bytes] = []
        a.broker.system_account.subscribe(
            b"$NIMS.API.x", lambda _s, _r, _h, payload, _o: got.append(payload), routed=True
        )
        node = await RoutePeer.dial(a.port, greeting("n", nimsnats={"instance": "i"}))
        go = await RoutePeer.dial(a.port, greeting("go"))
        for _ in range(3):
            assert await node.say(b"RMSG $SYS $NIMS.API.x 1\r\nn\r\n" * 3) == []
            assert await go.say(b"RMSG $SYS $NIMS.API.x 1\r\ng\r\n" * 3) == []
        assert got == [b"n"] * 9
        assert a.refused == 9
        assert any(b"$NIMS.API.x" in line for line in a.lines), "lines were known"


async def test_a_core_peer_does_not_get_into_a_streams_queue_group(tmp_path: Path) -> None:
    """Messages published at the node stay with the stream, and so do those that the core peer's clients publish."""
    async with node(tmp_path) as server:
        assert server.routes is not None
        go = await core_peer(server.routes.port)
        for group in (b"$JS.S.S", b"$JS.STREAM.S", b"$JS.API"):
            go.send(b"RS+ $G s.> %b 9\r\nRS+ $G $JS.API.> %b 9\r\n" % (group, group))
        client = await server.client()
        js = client.jetstream()
        assert [(await js.publish("s.x", b"")).seq for _ in range(50)] == list(range(1, 51))
        said = await go.say(b"RS+ $G _INBOX.go\r\n", *[b"RMSG $G s.x _INBOX.go 1\r\nx\r\n"] * 5)
        del said
        assert (await js.stream_info("S")).state.messages >= 50
        assert not any(b"s.x" in line for line in await go.say()), "nothing was stolen"
        await client.close()


async def test_other_accounts_do_not_reach_the_system_account() -> None:
    """`$SYS.>` in an ordinary account is a subject like any other."""
    async with running(users=USERS) as broker:
        heard: list[bytes] = []
        broker.system_account.subscribe(b">", lambda subject, _r, _h, _p, _o: heard.append(subject))
        client = await Peer.connect(broker.port, LOGINS["app"])
        await client.sync(b"PUB $SYS.REQ.SERVER.PING 0\r\n\r\nPUB $SYS.ACCOUNT.x.CONNECT 0\r\n\r\nSUB $SYS.> 1\r\n")
        other = await Peer.connect(broker.port, LOGINS["sys"])
        await other.sync(b"PUB $SYS.x 0\r\n\r\n")
        assert heard == [b"$SYS.x"]
        assert await client.sync() == []


async def test_a_system_user_cannot_have_an_answer_sent_to_nodes(tmp_path: Path) -> None:
    """Neither as a reply nor as a trace."""
    settings = embedded_settings("127.0.0.1", -1, tmp_path, jetstream=True, monitor_port=0, name="ours")
    settings.cluster = ClusterSettings(name=CLUSTER, host="127.0.0.1", port=-1)
    settings.broker.users = USERS
    server = Server(settings)
    server.clustered = True
    async with server:
        engine = server.jetstream
        assert engine is not None and engine.mail is not None
        mail = b"$NIMS.API." + node_hash(engine.host.member).encode()
        client = await Peer.connect(server.port, LOGINS["sys"])
        (error,) = await client.sync(b"PUB $SYS.REQ.SERVER.PING %b 0\r\n\r\n" % mail)
        assert error == b"-ERR 'Permissions Violation for Publish with Reply of \"%b\"'" % mail
        head = b"NATS/1.0\r\nNats-Trace-Dest: %b\r\n\r\n" % mail
        assert await client.sync(b"HPUB x %d %d\r\n%b\r\n" % (len(head), len(head), head)) == []
        assert engine.mail.refused == 0


async def test_replies_of_our_own_cannot_be_guessed() -> None:
    """Everything that waits for an answer draws its name, or its number, from here."""
    source = Runtime.real().random
    assert isinstance(source, random.SystemRandom)
    names = {nuid(source) for _ in range(1000)}
    assert len(names) == 1000 and all(len(name) == 22 for name in names)
