"""Clients of a Go server in the mesh do not get into the queue groups in which our nodes share the work.

A Go server keeps no group for itself, so all that protects them there is that nobody can know their names. Each attempt
is made by a client of the Go server against another one of the same server, which is what a Go server prefers.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from nimsnats.broker.route_table import RouteTable
from nimsnats.broker.subscription import Subscription
from nimsnats.config.settings import ClusterSettings
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from nimsnats.server import Server, embedded_settings
from tests.broker.peer import Peer, until
from tests.broker.route_stand import CLUSTER, routed, settled
from tests.conformance.go_mesh import joined
from tests.conformance.oracle import Oracle
from tests.conformance.route_peer import RoutePeer, greeting
from tests.jetstream.nodes import HubNode
from tests.security.impostor import GUARDED, SECRET

SUBJECTS = (b"ev.>", b"ev.1", b"ev.*", b">", b"$JS.API.>", b"$JS.ACK.>", b"$JS.FC.>", b"$JS.>", b"$SYS.>", b"$KV.>")
GUESSES = (
    b"$JS", b"$JS.", b"$JS.S", b"$JS.S.EV", b"$JS.S.EV/", b"$JS.S.EV/AAAAAAAAAAAAAAAAAAAAAA", b"$JS.S.ev.>",
    b"$JS.STREAM.EV", b"$JS.S.KV_B", b"$JS.API", b"$JS.API/", b"$JS.ACK", b"$JS.FC", b"$NIMS.API", b"EV", b"ev.>",
)  # fmt: skip
FORGED = b'{"stream":"EV","seq":4711}'


class Stand:
    """A Go server that has routes to all nodes of a cluster of ours."""

    def __init__(self, go: Oracle, servers: list[Server], nodes: list[HubNode]) -> None:
        self.go = go
        self.servers = servers
        self.nodes = nodes
        self.publishers: list[Client] = []

    @property
    def publisher(self) -> Client:
        """A client of the Go server that publishes to a stream."""
        return self.publishers[0]

    @property
    def replicas(self) -> int:
        """How many hold a stream."""
        return len(self.servers)

    async def heard(self) -> None:
        """Wait until the Go server knows all interest of ours."""
        await settled(*[server.routes for server in self.servers if server.routes is not None])

    def true_name(self, group: bytes) -> bytes:
        """What the Go server calls a group; the same for all nodes."""
        (name,) = {server.routes.groups.names.outside(group) for server in self.servers if server.routes is not None}
        return name


async def _alone(stack: AsyncExitStack, directory: Path, secret: str) -> list[Server]:
    settings = embedded_settings("127.0.0.1", -1, directory / "data", jetstream=True, monitor_port=0, name="ours")
    login = {"user": "nimsnats", "password": secret} if secret else {}
    settings.cluster = ClusterSettings(name=CLUSTER, host="127.0.0.1", port=-1, **login)
    return [await stack.enter_async_context(Server(settings))]


async def _cluster(stack: AsyncExitStack, directory: Path, secret: str, count: int) -> list[HubNode]:
    hub = MemoryHub(Runtime.real())
    nodes = [HubNode(directory, f"n{number}", hub) for number in range(count)]
    for node in nodes:
        if secret:
            node.settings.cluster.user, node.settings.cluster.password = "nimsnats", secret
        await stack.enter_async_context(node)
    await until(lambda: all(node.engine.meta.group.leader for node in nodes))
    await until(lambda: all(len(node.engine.meta.group.members) == count for node in nodes))
    return nodes


KINDS = [
    pytest.param((1, SECRET), id="one node, secret"),
    pytest.param((2, ""), id="two nodes, no secret"),
    pytest.param((1, ""), id="one node, no secret", marks=pytest.mark.extended),
    pytest.param((2, SECRET), id="two nodes, secret", marks=pytest.mark.extended),
]


@pytest_asyncio.fixture(params=KINDS)
async def stand(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stand]:
    count, secret = request.param
    async with AsyncExitStack() as stack:
        nodes: list[HubNode] = []
        if count > 1:
            nodes = await _cluster(stack, tmp_path, secret, count)
            servers = [node.server for node in nodes]
        else:
            servers = await _alone(stack, tmp_path, secret)
        tables = [server.routes for server in servers if server.routes is not None]
        login = f"nimsnats:{secret}@" if secret else ""
        go = stack.enter_context(joined(tmp_path / "go", *tables, login=login, cluster=tables[0].options.name))
        await until(lambda: all(len(table.routes) == count for table in tables))
        made = Stand(go, servers, nodes)
        for _ in range(2):
            client = await nats.connect(go.url)
            stack.push_async_callback(client.close)
            made.publishers.append(client)
        js = made.publisher.jetstream(timeout=5)
        await js.add_stream(name="EV", subjects=["ev.>"], num_replicas=count)
        await made.heard()
        yield made


async def _thief(stand: Stand, groups: tuple[bytes, ...]) -> Peer:
    """A client of the Go server that joins each of these groups for everything that it may be about."""
    thief = await Peer.connect(stand.go.port)
    lines = [b"SUB %b %b %d-%d\r\n" % (subject, group, one, two) for one, subject in enumerate(SUBJECTS)
             for two, group in enumerate(groups)]  # fmt: skip
    assert await thief.sync(b"".join(lines)) == []
    return thief


async def test_guesses_get_no_more_than_a_copy(stand: Stand) -> None:
    """Every publish is stored once and acknowledged by the stream; every request of the API is answered; a consumer
    gets and acknowledges what it should, whichever groups a client has joined beside them."""
    thief = await _thief(stand, GUESSES)
    js = stand.publisher.jetstream(timeout=5)
    acks = [await js.publish(f"ev.{n % 3}", b"%d" % n) for n in range(60)]
    assert [ack.seq for ack in acks] == list(range(1, 61))
    bucket = await js.create_key_value(bucket="B", replicas=stand.replicas)
    assert await bucket.put("k", b"v") == 1 and (await bucket.get("k")).value == b"v"
    consumer = await js.pull_subscribe("ev.>", durable="D")
    for message in await consumer.fetch(60, timeout=5):
        await message.ack_sync(timeout=5)
    assert (await js.consumer_info("EV", "D")).ack_floor.stream_seq == 60
    state = (await js.stream_info("EV")).state
    assert (state.messages, state.last_seq) == (60, 60), "nothing was stored twice"
    thief.close()


async def test_it_is_the_name_that_protects_and_a_trace_does_not_tell_it(stand: Stand) -> None:
    """A client of the Go server can ask where its message went, and gets the reports of the Go server and of ours.
    With the right name, which operators of the Go server can see, it gets what it wants."""
    name = stand.true_name(b"$JS.S.EV")
    spy = await Peer.connect(stand.go.port)
    head = b"NATS/1.0\r\nNats-Trace-Dest: spy.trace\r\n\r\n"
    await spy.sync(b"SUB spy.trace 1\r\nSUB > 2\r\nHPUB ev.1 _INBOX.x %d %d\r\n%b\r\n" % (len(head), len(head), head))
    said: list[bytes] = []
    while sum(b'"events":[' in line for line in said) < 4:  # two reports for each of the two subscriptions
        said.append(await spy.line())
    assert any(b'"type":"js"' in line for line in said), "the stream was reached"
    assert not any(name[len(b"$JS.S.EV") + 1 :] in line for line in said), said
    spy.close()
    forged: list[Msg] = []

    async def answer(message: Msg) -> None:
        forged.append(message)
        await message.respond(FORGED)

    await stand.publishers[1].subscribe("ev.>", queue=name.decode(), cb=answer)
    await stand.publishers[1].flush()
    replies: list[bytes] = []
    while FORGED not in replies:  # the Go server draws a member for each message
        replies.append((await stand.publisher.request("ev.1", b"", timeout=5)).data)
    messages = (await stand.publisher.jetstream(timeout=5).stream_info("EV")).state.messages
    assert messages == 1 + len(replies) - len(forged)


async def test_each_message_is_stored_once_while_the_leader_changes(tmp_path: Path) -> None:
    """Two nodes with a route each to two Go servers, whose clients publish; the stream's leader steps down again and
    again. A publish that finds nobody in that moment is told so, and is made again under its id."""
    async with AsyncExitStack() as stack:
        nodes = await _cluster(stack, tmp_path, SECRET, 2)
        tables = [node.server.routes for node in nodes if node.server.routes is not None]
        name, login = tables[0].options.name, f"nimsnats:{SECRET}@"
        gos = [stack.enter_context(joined(tmp_path / f"go{n}", *tables, login=login, cluster=name)) for n in range(2)]
        await until(lambda: all(len(table.routes) == 3 for table in tables))
        clients = [await nats.connect(go.url) for go in gos]
        for client in clients:
            stack.push_async_callback(client.close)
        js = [client.jetstream(timeout=2) for client in clients]
        await js[0].add_stream(name="EV", subjects=["ev.>"], num_replicas=2)
        await settled(*tables)
        acked: Counter[int] = Counter()

        async def publish(number: int) -> None:
            who = js[number % 2]
            while True:
                try:
                    ack = await who.publish(f"ev.{number}", b"%d" % number, headers={"Nats-Msg-Id": str(number)})
                except (nats.errors.Error, nats.js.errors.APIError):
                    continue  # no leader at the moment
                acked[ack.seq] += 1
                return

        leaders: set[str] = set()
        for turn in range(4):
            await asyncio.gather(*(publish(turn * 25 + n) for n in range(25)))
            before = [node for node in nodes if node.leads("EV")]
            leaders |= {node.settings.node_name for node in before}
            answer = json.loads((await clients[0].request("$JS.API.STREAM.LEADER.STEPDOWN.EV", timeout=5)).data)
            assert answer.get("success"), answer
        assert sorted(acked) == list(range(1, 101)) and set(acked.values()) == {1}
        state = (await js[1].stream_info("EV")).state
        assert (state.messages, state.last_seq) == (100, 100)
        assert leaders == {"n0", "n1"}, "it did change"


# -- what peers are told --------------------------------------------------------------------------------------------


def _interest(lines: list[bytes]) -> list[bytes]:
    return [line.rstrip() for line in lines if line.startswith((b"RS+ $G ", b"RS- $G "))]


def _listen(table: RouteTable, group: bytes, heard: list[bytes]) -> Subscription:
    def take(subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: object) -> None:
        heard.append(payload)

    return table.broker.account("$G").subscribe(b"ev.>", take, group, routed=True)


NODE: dict[str, str] = {"instance": "i"}


@pytest.mark.parametrize("group", [b"$JS.S.EV", b"$JS.API", b"$JS.ACK", b"$JS.S.a-b_c", "$JS.S.Ä".encode()])
async def test_members_hear_the_name_and_core_peers_another_one(group: bytes) -> None:
    """As a newcomer, and when a listener comes and goes. A message that names either comes in, once, in both forms and
    whether or not the line was known; groups of clients keep their names."""
    async with routed("a") as a:
        heard: list[bytes] = []
        before = _listen(a, group, heard)
        member = await RoutePeer.dial(a.port)
        member_said = await member.say(greeting("n", nimsnats=NODE, nimsnats_groups=True))
        go = await RoutePeer.dial(a.port)
        go_said = await go.say(greeting("go"))
        name = a.groups.names.outside(group)
        assert name.startswith(group + b"/") and len(name) == len(group) + 23
        assert _interest(member_said) == [b"RS+ $G ev.> %b 1" % group]
        assert _interest(go_said) == [b"RS+ $G ev.> %b 1" % name]
        _listen(a, b"workers", [])
        second = _listen(a, group, [])
        a.broker.account("$G").unsubscribe(second)
        own, theirs = b"RS+ $G ev.> workers 1", b"RS+ $G ev.> %b %d"
        assert _interest(await member.say()) == [own, theirs % (group, 2), theirs % (group, 1)]
        assert _interest(await go.say()) == [own, theirs % (name, 2), theirs % (name, 1)]
        for number in range(3):
            go.send(b"RMSG $G ev.1 | %b 1\r\n%d\r\n" % (name, number))
            go.send(b"RMSG $G ev.1 + r.r %b other 1\r\n%d\r\n" % (name, number))
            go.send(b"RMSG $G ev.1 | %b %b 1\r\n%d\r\n" % (name, group, number))
            go.send(b"HMSG $G ev.1 | %b 12 13\r\nNATS/1.0\r\n\r\n%d\r\n" % (name, number))
        await go.say()
        assert heard == [b"%d" % (number // 4) for number in range(12)]
        a.broker.account("$G").unsubscribe(before)
        assert _interest(await go.say()) == [b"RS- $G ev.> %b" % name]
        assert _interest(await member.say()) == [b"RS- $G ev.> %b" % group]


async def test_an_older_member_is_not_given_half_of_everything(caplog: pytest.LogCaptureFixture) -> None:
    """While a member tells core peers the plain names, so do we, and the log says what that means. Afterwards the new
    names come before the old ones end, and what was sent under those still arrives."""
    caplog.set_level(logging.WARNING)
    async with routed("a") as a:
        heard: list[bytes] = []
        _listen(a, b"$JS.API", heard)
        _listen(a, b"workers", [])
        go = await RoutePeer.dial(a.port, greeting("go"))
        name = a.groups.names.outside(b"$JS.API")
        old = await RoutePeer.dial(a.port, greeting("old", nimsnats=NODE))
        assert _interest(await go.say()) == [b"RS+ $G ev.> $JS.API 1", b"RS- $G ev.> %b" % name]
        newcomer = await RoutePeer.dial(a.port)
        assert b"RS+ $G ev.> $JS.API 1" in _interest(await newcomer.say(greeting("go2")))
        await go.say(b"RMSG $G ev.1 | %b 1\r\n1\r\n" % name)
        old.close()
        await until(lambda: len(a.routes) == 2)
        for each in (go, newcomer):
            assert _interest(await each.say()) == [b"RS+ $G ev.> %b 1" % name, b"RS- $G ev.> $JS.API"]
        await go.say(b"RMSG $G ev.1 | $JS.API 1\r\n2\r\n", b"RMSG $G ev.1 | $JS.API %b 1\r\n3\r\n" % name)
        assert heard == [b"1", b"2", b"3"]
        (text,) = [record.getMessage() for record in caplog.records if "queue groups" in record.getMessage()]
        assert text == (
            "Clients of a nats-server in this cluster can join the queue groups of streams until old is updated"
        )


async def test_all_nodes_make_the_same_name_and_nobody_else_does() -> None:
    """Under the secret; without one under the id of the cluster, once that is known."""
    group = b"$JS.S.EV"
    made: list[bytes] = []
    for options, cluster in (
        (GUARDED, "_meta_-1"), (GUARDED, "_meta_-2"), (GUARDED | {"password": "another"}, "_meta_-1"),
        ({}, "_meta_-1"), ({}, "_meta_-1"), ({}, "_meta_-2"), ({}, ""), ({}, ""),
    ):  # fmt: skip
        async with routed("a", **options) as table:
            if cluster:
                table.belong_to(cluster)
            made.append(table.groups.names.outside(group))
    assert made[0] == made[1] and made[3] == made[4]
    assert len({*made}) == 6, made
