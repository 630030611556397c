"""Which members get a message when some of them are behind routes."""

from __future__ import annotations

from collections import Counter

import pytest

from nimsnats.broker.options import User
from nimsnats.broker.route_outward import marked, shown_subject
from nimsnats.broker.route_table import RouteTable
from tests.broker.peer import Peer, until
from tests.broker.route_stand import mesh, routed, settled
from tests.conformance.route_peer import RoutePeer, greeting

Taken = list[tuple[bytes, bytes, bytes, bytes]]


def listen(table: RouteTable, subject: bytes, queue: bytes = b"", *, routed: bool = True, takes: bool = True) -> Taken:
    """A handler inside a server; what it was called with."""
    taken: Taken = []

    def take(subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: object) -> bool:
        taken.append((subject, reply, headers, payload))
        return takes

    table.broker.global_account.subscribe(subject, take, queue, routed=routed)
    return taken


async def test_members_of_a_group_are_equally_likely_wherever_they_are() -> None:
    async with mesh("a", "b", "c") as tables:
        members = [await Peer.connect(tables[at].broker.port) for at in (0, 1, 1, 2)]
        for member in members:
            await member.sync(b"SUB job workers 1\r\n")
        publisher = await Peer.connect(tables[0].broker.port)
        await settled(*tables)
        await publisher.sync(b"PUB job 1\r\nx\r\n" * 400 + b"PUB job _INBOX.1 1\r\nx\r\n" * 400)
        await settled(*tables)
        counts = [sum(line.startswith(b"MSG job 1") for line in await member.sync()) for member in members]
        assert sum(counts) == 800
        assert all(120 < count < 280 for count in counts), counts


async def test_plain_and_group_at_one_peer_take_one_message() -> None:
    async with mesh("a", "b", "c") as tables:
        here, there = [await Peer.connect(table.broker.port) for table in tables[:2]]
        await there.sync(b"SUB t.x 1\r\nSUB t.> g 2\r\nSUB t.* h 3\r\n")
        await settled(*tables)
        for _ in range(3):
            await here.sync(b"PUB t.x 1\r\nx\r\n")
        await settled(*tables)
        lines = Counter(line for line in await there.sync() if line.startswith(b"MSG"))
        assert lines == {b"MSG t.x 1 1": 3, b"MSG t.x 2 1": 3, b"MSG t.x 3 1": 3}
        (route,) = [route for route in tables[0].routes.values() if route.name == "b"]
        assert route.out_msgs == 3


async def test_a_message_goes_one_hop_only() -> None:
    async with routed("a") as a:
        taken = listen(a, b"foo")
        sender, other = [await RoutePeer.dial(a.port, greeting(name) + b"RS+ $G foo\r\n") for name in ("p1", "p2")]
        await sender.say(b"RMSG $G foo 1\r\nx\r\n" * 3)
        assert (len(taken), [line for line in await other.say() if line.startswith(b"RMSG")]) == (3, [])
        await sender.say(b"RS+ $G bar g 1\r\n")
        assert await sender.say(b"RMSG $G bar | g 1\r\nx\r\n" * 3) == [], "never back to where it came from"


async def test_handlers_are_told_to_peers_only_when_asked_for() -> None:
    async with mesh("a", "b") as (a, b):
        told, own = listen(b, b"told.*"), listen(b, b"own.*", routed=False)
        await settled(b)
        account = a.broker.global_account
        assert (
            account.publish(b"told.1", b"x", reply=b"r", headers=b"NATS/1.0\r\n\r\n"),
            account.publish(b"own.1"),
        ) == (1, 0)
        client = await Peer.connect(a.broker.port)
        for _ in range(3):
            await client.sync(b"PUB told.2 r 1\r\ny\r\nHPUB told.2 12 13\r\nNATS/1.0\r\n\r\nz\r\n")
        await settled(a)
        head = b"NATS/1.0\r\n\r\n"
        assert told[0] == (b"told.1", b"r", head, b"x")
        assert Counter(told[1:]) == {(b"told.2", b"r", b"", b"y"): 3, (b"told.2", b"", head, b"z"): 3}
        assert own == []


async def test_a_handler_here_is_preferred_to_those_of_its_group_at_peers() -> None:
    async with mesh("a", "b") as (a, b):
        here, there = listen(a, b"api.>", b"g"), listen(b, b"api.>", b"g")
        await settled(a, b)
        client = await Peer.connect(a.broker.port)
        await client.sync(b"PUB api.x 1\r\nx\r\n" * 50)
        await settled(a)
        assert (len(here), len(there)) == (50, 0)


async def test_nobody_at_the_peer_wants_it_after_all() -> None:
    """A handler that declines counts as a receiver: the requester's server cannot know."""
    async with mesh("a", "b") as (a, b):
        taken = listen(b, b"ask", takes=False)
        await settled(b)
        client = await Peer.connect(a.broker.port)
        assert await client.sync(b"SUB _INBOX.1 1\r\nPUB ask _INBOX.1 0\r\n\r\n") == []
        await settled(a)
        assert len(taken) == 1


async def test_jetstream_deliveries_show_their_subject_behind_a_route() -> None:
    async with mesh("a", "b") as (a, b):
        client = await Peer.connect(b.broker.port)
        await client.sync(b"SUB _INBOX.x.* 1\r\n")
        await settled(b)
        account = a.broker.global_account
        ack = b"$JS.ACK.S.C.1.2.3.4.5"
        for number in range(3):
            assert account.deliver(b"_INBOX.x.%d" % number, b"stream.subject", ack, b"", b"data") == 1
        await settled(a)
        assert await client.sync() == [b"MSG stream.subject 1 " + ack + b" 4", b"data"] * 3


async def test_accounts_are_apart_and_may_come_later() -> None:
    users = {"users": [User("u", "p", "ONE"), User("v", "p", "TWO")]}
    async with mesh("a", "b", broker=users) as (a, b):
        hello = b'CONNECT {"verbose":false,"headers":true,"no_responders":true,"user":"%b","pass":"p"}\r\n'
        one, two = [await Peer.connect(b.broker.port, hello % user) for user in (b"u", b"v")]
        await one.sync(b"SUB foo 1\r\n")
        await two.sync(b"SUB foo 1\r\n")
        b.broker.account("LATE").subscribe(b"late", lambda *_: None, routed=True)
        await settled(b)
        client = await Peer.connect(a.broker.port, hello % b"u")
        await client.sync(b"PUB foo 1\r\nx\r\n")
        await settled(a)
        assert (await one.sync(), await two.sync()) == ([b"MSG foo 1 1", b"x"], [])
        assert a.broker.account("LATE").has_interest(b"late")


async def test_large_frames_between_servers_are_not_bound_by_max_payload() -> None:
    async with mesh("a", "b", broker={"max_payload": 1000}) as (a, b):
        taken = listen(b, b"big")
        await settled(b)
        a.broker.global_account.publish(b"big", b"x" * 3_000_000)
        await until(lambda: taken)
        assert len(taken[0][3]) == 3_000_000


async def test_runs_are_handed_over_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most messages of a busy subject take the run path on both sides."""
    async with mesh("a", "b") as (a, b):
        subscriber = await Peer.connect(b.broker.port)
        await subscriber.sync(b"SUB t.x 1\r\n")
        await settled(b)
        (inbound,) = b.routes.values()
        slow: list[bytes] = []
        original = type(inbound).routed

        def counting(self: object, account: bytes, subject: bytes, *rest: object) -> None:
            slow.append(subject)
            original(self, account, subject, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(type(inbound), "routed", counting)
        client = await Peer.connect(a.broker.port)
        await client.sync(b"PUB t.x 1\r\nx\r\n" * 10_000)
        await settled(a)
        assert len(await subscriber.sync()) == 20_000
        assert len(slow) <= 2


@pytest.mark.parametrize(
    ("tail", "headers", "result"),
    [
        (b"5\r\nhello\r\n", False, b"RMSG $G s | a b 5\r\nhello\r\n"),
        (b"r 5\r\nhello\r\n", False, b"RMSG $G s + r a b 5\r\nhello\r\n"),
        (b"4 5\r\nhello\r\n", True, b"HMSG $G s | a b 4 5\r\nhello\r\n"),
        (b"r 4 5\r\nhello\r\n", True, b"HMSG $G s + r a b 4 5\r\nhello\r\n"),
    ],
)
def test_groups_are_named_behind_the_reply(tail: bytes, headers: bool, result: bytes) -> None:
    assert b"".join(marked(b"HMSG $G s " if headers else b"RMSG $G s ", tail, b"a b")) == result


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (b"_INBOX.1", None),
        (b"$JS.ACK.S.C.1.2.3.4.5", None),
        (b"$JS.ACK.S.C.1.2.3.4.5@a.b", (b"$JS.ACK.S.C.1.2.3.4.5", b"a.b")),
        (b"$JS.ACK.d.h.S@x.C.1.2.3.4.5.r@a@b", (b"$JS.ACK.d.h.S@x.C.1.2.3.4.5.r", b"a@b")),
        (b"$JS.ACK.S.C.1.2.3.4.5@", None),
        (b"$JS.ACK.S@C", None),
    ],
)
def test_the_subject_behind_an_ack(reply: bytes, result: object) -> None:
    assert shown_subject(reply) == result
