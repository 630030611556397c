"""Random and valid-looking messages to every handler inside a server, some of which raise: nothing leaves a connection.

Each example is one read of a client, and one of a route, made of messages for internal subjects with a marked message
after each of them: all marked ones arrive, nobody is cut off, and every handler has been called as often as without the
errors. `EXAMPLES` is the one knob.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimsnats.identity import node_hash
from nimsnats.jetstream.packing import pack
from nimsnats.server import Server
from tests.broker.peer import Peer
from tests.broker.test_route_fuzz import node
from tests.conformance.route_peer import RoutePeer, greeting

pytestmark = pytest.mark.errors_inside

EXAMPLES: Final = 200
LONG: Final = 10_000
HEADERS: Final = b"NATS/1.0\r\nA: b\r\nNats-Trace-Dest: r.1\r\n\r\n"
ERRORS: Final = (RecursionError, MemoryError, KeyError, ValueError, AssertionError)

bodies = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"+ACK", b"+NXT", b"-NAK", b"+WPI", b"+TERM", b"{}", b"[]", b'{"batch":5,"expires":1000}']),
    st.integers(1, 3000).map(lambda depth: b'-NAK {"delay":' + b"[" * depth),
    st.integers(1, 1200).map(lambda depth: b"+NXT " + b'{"a":' * depth + b"1" + b"}" * depth),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
        max_leaves=8,
    ).map(pack),
)
token = st.sampled_from(["S", "C", "X", "*x", "1", "99", "9" * 30, "INFO", "PING", "NAMES", "CREATE", "GET", "a"])
tokens = st.lists(token, min_size=1, max_size=7).map(".".join)
API: Final = [
    "INFO", "STREAM.NAMES", "STREAM.LIST", "STREAM.INFO.S", "STREAM.MSG.GET.S", "STREAM.MSG.DELETE.S",
    "CONSUMER.NAMES.S", "CONSUMER.INFO.S.C",
    "CONSUMER.MSG.NEXT.S.C", "CONSUMER.CREATE.S", "CONSUMER.PAUSE.S.C", "DIRECT.GET.S",
    "STREAM.SNAPSHOT.S", "STREAM.RESTORE.X", "META.LEADER.STEPDOWN", "ACCOUNT.PURGE.X", "SERVER.REMOVE",
]  # fmt: skip
subjects = st.one_of(
    st.sampled_from(API).map("$JS.API.{}".format),
    tokens.map("$JS.API.{}".format),
    tokens.map("$JS.ACK.S.C.{}".format),
    st.integers(0, 2**70).map(lambda seq: f"$JS.ACK.S.C.1.{seq}.{seq}.1700000000000000000.0"),
    tokens.map("$JS.FC.S.C.{}".format),
    st.sampled_from(["SERVER.PING", "SERVER.PING.VARZ", "ACCOUNT.NSUBS", "USER.INFO", "ACCOUNT.PING.STATZ"]).map(
        "$SYS.REQ.{}".format
    ),
    tokens.map("$SYS.REQ.{}".format),
    tokens.map("$SRV.{}".format),
    st.sampled_from(["raising.a", "raising.b", "raising.c", "s.a", "river.stripe.webhook", "forest.x"]),
    st.sampled_from(["MAIL", "RAFT"]),
)
kinds = st.sampled_from(["hello", "join", "leave", "api", "stream", "usage", "ended", "strike", "publish", "published"])
messages = st.lists(
    st.tuples(subjects, st.sampled_from(["", "r.1", "r.2"]), bodies, st.booleans()), min_size=1, max_size=12
)


class Site:
    """One node with JetStream whose handlers raise at random, with a client, a receiver and a peer on it."""

    def __init__(self, server: Server, client: Peer, receiver: Peer, peer: RoutePeer) -> None:
        self.server = server
        self.client = client
        self.receiver = receiver
        self.peer = peer
        self.chance = Random(1)
        self.called = 0
        self.escaped: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: self.escaped.append(context))
        account = server.broker.global_account
        account.subscribe(b"raising.>", self.handle, routed=True)
        for each in (account, server.broker.system_account):
            for prefix in (b"$JS.API.>", b"$JS.ACK.>", b"$SYS.REQ.>", b"$SRV.>", b"forest.>", b"$JS.FC.>"):
                each.subscribe(prefix, self.raises)

    def handle(self, *_: object) -> None:
        """Count, and raise."""
        self.called += 1
        self.raises()

    def raises(self, *_: object) -> None:
        """Raise mostly."""
        if self.chance.random() < 0.7:
            raise self.chance.choice(ERRORS)

    def connections(self) -> tuple[list[int], list[Any]]:
        """Who is connected."""
        assert self.server.routes is not None
        return list(self.server.broker.clients), list(self.server.routes.open)

    async def example(self, said: list[tuple[str, str, bytes, bool]], what: str) -> None:
        """One read of the client and one of the peer, all of whose messages arrive."""
        before, called = self.connections(), self.called
        await self.client.sync(b"".join(self._published(*each) + b"PUB mark 1\r\nx\r\n" for each in said))
        lines = b"".join(self._routed(*each, what) + b"RMSG $G mark 1\r\nx\r\n" for each in said)
        await self.peer.say(lines)
        marks = [line for line in await self.receiver.sync() if line == b"MSG mark 1 1"]
        assert len(marks) == 2 * len(said)
        assert self.called - called == 2 * sum(subject.startswith("raising.") for subject, *_ in said)
        assert self.connections() == before
        assert not self.escaped

    def _published(self, subject: str, reply: str, body: bytes, headers: bool) -> bytes:
        to = f"{reply} ".encode() if reply else b""
        if headers:
            size = len(HEADERS) + len(body)
            return b"HPUB %b %b%d %d\r\n%b%b\r\n" % (subject.encode(), to, len(HEADERS), size, HEADERS, body)
        return b"PUB %b %b%d\r\n%b\r\n" % (subject.encode(), to, len(body), body)

    def _routed(self, subject: str, reply: str, body: bytes, headers: bool, what: str) -> bytes:
        engine = self.server.jetstream
        assert engine is not None
        member = engine.host.member
        account = "$SYS" if subject.startswith("$SYS") else "$G"
        if subject in ("MAIL", "RAFT"):
            account = "$SYS"
            if subject == "MAIL" and headers:
                body = pack([1, 7, "fuzz@123", member, what, body])
            subject = f"$NIMS.{'API' if subject == 'MAIL' else 'RAFT'}.{node_hash(member)}"
        to = f"{reply} " if reply else ""
        return f"RMSG {account} {subject} {to}{len(body)}\r\n".encode() + body + b"\r\n"


async def begin(directory: Path, ending: AsyncExitStack) -> Site:
    """Start the node, with a stream and a consumer, and connect everybody."""
    server = await ending.enter_async_context(node(directory))
    client = await server.client()
    js = client.jetstream()
    await js.add_stream(name="S", subjects=["s.>"])
    await js.publish("s.a", b"1")
    await js.add_consumer("S", durable_name="C", ack_policy="explicit")
    await client.close()
    peers = [await Peer.connect(server.broker.port) for _ in range(2)]
    assert server.routes is not None
    route = await RoutePeer.dial(server.routes.port, greeting("fuzz"))
    ending.callback(route.close)
    for peer in peers:
        ending.callback(peer.close)
    await peers[1].sync(b"SUB mark 1\r\n")
    await peers[0].sync(b"SUB r.* 1\r\n")
    return Site(server, *peers, route)


def campaign(directory: Path, examples: int) -> None:
    """So many examples on one node."""
    with asyncio.Runner() as runner:
        ending = AsyncExitStack()
        place = runner.run(begin(directory, ending))

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(messages, kinds)
        def run(said: list[tuple[str, str, bytes, bool]], what: str) -> None:
            runner.run(place.example(said, what))

        try:
            run()
            assert place.called > examples / 10
        finally:
            runner.run(ending.aclose())


def test_nothing_leaves_a_connection(tmp_path: Path) -> None:
    campaign(tmp_path, EXAMPLES)


@pytest.mark.extended
@pytest.mark.timeout(3600)
def test_nothing_leaves_a_connection_long(tmp_path: Path) -> None:
    campaign(tmp_path, LONG)
