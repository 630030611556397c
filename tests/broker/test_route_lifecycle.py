"""How routes come, stay one a pair, and go."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from nimsnats.broker.route_table import RouteTable
from nimsnats.broker.server import ListenError
from tests.broker.peer import Peer, until
from tests.broker.route_stand import mesh, meshed, routed, settled
from tests.conformance.route_peer import RoutePeer, connect_line, greeting, info_line

Heard = list[tuple[str, bool]]


def watched(table: RouteTable) -> Heard:
    """What a table reports from now on."""
    heard: Heard = []
    table.watch(lambda name, _address, up: heard.append((name, up)))
    return heard


@pytest.mark.parametrize("attempt", range(5))
async def test_two_that_dial_each_other_keep_one_route(attempt: int) -> None:
    async with routed("a") as a, routed("b") as b:
        heard = watched(a)
        a.add_route(f"127.0.0.1:{b.port}")
        b.add_route(f"127.0.0.1:{a.port}")
        await meshed(a, b)
        await until(lambda: len(a.open) == len(b.open) == 1)
        await settled(a, b)
        assert (heard, len(a.routes), len(b.routes)) == ([("b", True)], 1, 1)


async def test_a_route_comes_back_and_both_sides_say_so() -> None:
    async with routed("a") as a:
        heard = watched(a)
        async with routed("b", a) as b:
            await meshed(a, b)
            b.routes[a.broker.server_id].transport.abort()  # type: ignore[union-attr]
            await until(lambda: len(heard) == 3)
        assert heard == [("b", True), ("b", False), ("b", True), ("b", False)]
        assert a.connected() == {}


async def test_a_server_that_dials_itself_stops() -> None:
    async with routed("a") as a:
        a.add_route(f"127.0.0.1:{a.port}")
        await until(lambda: not a._dials)  # pyright: ignore[reportPrivateUsage]
        assert not a.routes


async def test_nobody_there_yet() -> None:
    async with routed("a") as a:
        port = a.port
    async with routed("b", routes=[f"127.0.0.1:{port}"], dial_timeout=0.2) as b:
        await asyncio.sleep(0.03)
        async with routed("a", port=port) as again:
            await meshed(again, b)


async def test_a_route_that_was_removed_is_not_dialled_again() -> None:
    async with routed("a") as a, routed("b", a) as b:
        await meshed(a, b)
        b.remove_route(f"127.0.0.1:{a.port}")
        b.remove_route("127.0.0.1:1")
        assert len(b.routes) == 1, "what is up stays"
        b.routes[a.broker.server_id].transport.abort()  # type: ignore[union-attr]
        await until(lambda: not a.open and not b.open)
        await asyncio.sleep(0.05)
        assert not a.open


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "Y"}, 'cluster name "X" does not match "Y"'),
        ({"user": "nimsnats", "password": "wrong"}, "Route Error 'Authorization Violation'"),
        ({}, "Route Error 'Authorization Violation'"),
    ],
)
async def test_who_does_not_belong_is_never_connected(
    options: dict[str, str], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with routed("a", user="nimsnats", password="right") as a:
        heard = watched(a)
        async with routed("b", a, redial_refused=0.02, **options) as b:
            heard += watched(b)
            await until(lambda: text in caplog.text)
            first = len(caplog.records)
            opened = a.broker.next_id()
            await until(lambda: a.broker.next_id() > opened + 10)  # it has been back several times
            assert len(caplog.records) == first, "each fault is logged once"
            assert '"a"' in caplog.text
    assert heard == []


async def test_a_shared_secret_opens_the_port_also_through_a_url() -> None:
    async with routed("a", user="nimsnats", password="s p") as a, routed("b", a, user="nimsnats", password="s p") as b:
        await meshed(a, b)
        url = f"nats://nimsnats:s%20p@127.0.0.1:{a.port}"
        async with routed("c", routes=[url]) as c:
            await until(lambda: c.routes)


async def test_two_of_one_name_and_one_that_was_restarted() -> None:
    async with routed("a", doubt=0.05, ping_interval=60.0) as a:
        old = await RoutePeer.dial(a.port, greeting("b1", server_name="b", nimsnats={"instance": "i"}))
        again = greeting("b3", server_name="b", nimsnats={"instance": "i"})
        other = await RoutePeer.dial(a.port)
        assert await other.say(greeting("b2", server_name="b", nimsnats={"instance": "j"})) == [b"END"]
        own = await RoutePeer.dial(a.port)
        assert await own.say(greeting("a2", server_name="a")) == [b"END"]
        same = await RoutePeer.dial(a.port)
        assert await same.say(greeting("b1", server_name="other")) == [b"END"], "that id has a route"
        for _ in range(3):
            early = await RoutePeer.dial(a.port)
            assert await early.say(again) == [b"END"], "the one that is connected answers, and stays"
            assert await old.say() == []
        assert list(a.routes) == ["b1"]
        early = await RoutePeer.dial(a.port)
        assert await early.say(again) == [b"END"]
        assert (await old.reader.read()).endswith(b"PING\r\n-ERR 'Stale Connection'\r\n")
        new = await RoutePeer.dial(a.port, again)
        assert list(a.routes) == ["b3"]
        assert await new.say() == []


@pytest.mark.parametrize("name", ["", "two words", "new\nline", "n" * 300])
async def test_a_node_needs_a_name_that_can_be_shown(name: str) -> None:
    async with routed("a") as a:
        heard = watched(a)
        peer = await RoutePeer.dial(a.port)
        assert await peer.say(greeting("p", server_name=name, nimsnats={"instance": "i"})) == [b"END"]
        assert heard == []


async def test_a_client_port_is_no_cluster_port() -> None:
    async with routed("a") as a, routed("b", routes=[f"127.0.0.1:{a.broker.port}"]) as b:
        await until(lambda: a.broker.closed)
        assert not b.routes


async def test_silence_is_not_accepted() -> None:
    async with routed("a", auth_timeout=0.02) as a:
        peer = await RoutePeer.dial(a.port)
        assert await peer.until(b"never") == [b"-ERR 'Authentication Timeout'\r\n", b"END"]


async def test_a_peer_that_answers_no_ping_is_cut() -> None:
    async with routed("a", ping_interval=0.02) as a:
        peer = await RoutePeer.dial(a.port, greeting("p") + b"RS+ $G foo\r\n")
        assert a.broker.global_account.has_interest(b"foo")
        said = await peer.reader.read()
        assert said.endswith(b"PING\r\nPING\r\n-ERR 'Stale Connection'\r\n")
        assert not a.broker.global_account.has_interest(b"foo")
        assert a.broker.stats.stale_connections == 1


async def test_interest_of_a_peer_ends_with_its_route() -> None:
    async with mesh("a", "b") as (a, b):
        client = await Peer.connect(b.broker.port)
        await client.sync(b"SUB foo.* 1\r\nSUB foo.> q 2\r\n")
        await settled(b, a)
        account = a.broker.global_account
        assert account.has_interest(b"foo.1") and account.has_interest(b"foo.1", b"q")
        await b.stop()
        await until(lambda: not a.routes)
        assert not account.has_interest(b"foo.1")
        assert account.interest.count == 0


async def test_clients_learn_where_else_they_can_go() -> None:
    async with mesh("a", "b") as (a, b):
        client = await Peer.connect(a.broker.port)
        urls = [f"127.0.0.1:{table.broker.port}" for table in (a, b)]
        assert client.info["connect_urls"] == urls
        b.broker.lame_duck = True
        b.lame_duck()
        assert json.loads((await client.line())[5:])["connect_urls"] == urls[:1]
        assert len(a.routes) == 1, "it is still there"
        await b.stop()


async def test_nothing_is_advertised_when_that_is_not_wanted() -> None:
    async with routed("a", no_advertise=True) as a, routed("b", a) as b:
        await meshed(a, b)
        (to_b,) = b.routes.values()
        assert to_b.peer is not None and to_b.peer.connect_urls == []
        assert "connect_urls" not in (await Peer.connect(a.broker.port)).info


async def test_what_a_newcomer_is_to_the_others() -> None:
    """Gossip as the Go server sends it: INFO with the address, without the nonce."""
    async with routed("a") as a, routed("b", advertise="example.net") as b:
        first = await RoutePeer.dial(a.port, greeting("p"))
        await RoutePeer.dial(a.port, greeting("n", port=1234, nonce="x", unknown=[1]))
        news = json.loads((await first.reader.readline())[5:])
        assert (news["server_id"], news["ip"], news["gossip_mode"]) == ("n", "nats-route://127.0.0.1:1234/", 1)
        assert news["unknown"] == [1] and "nonce" not in news
        b.add_route(f"127.0.0.1:{a.port}")
        news = json.loads((await first.reader.readline())[5:])
        assert news["ip"] == f"nats-route://example.net:{b.port}/"


@pytest.mark.parametrize("ip", ["", "nonsense", "nats-route://host/", "nats-route://[::1:1/", "nats-route://h:99999/"])
async def test_gossip_without_an_address_does_no_harm(ip: str) -> None:
    async with routed("a") as a:
        peer = await RoutePeer.dial(a.port, greeting("p"))
        assert await peer.say(info_line("other", ip=ip)) == []
        assert await peer.say(info_line(a.broker.server_id, ip="nats-route://127.0.0.1:1/")) == []
        assert len(a.routes) == 1


async def test_a_port_that_is_taken() -> None:
    async with routed("a") as a:
        with pytest.raises(ListenError, match=f"cannot listen for routes on 127.0.0.1:{a.port}: "):
            async with routed("b", port=a.port):
                pass


async def test_a_route_that_is_not_read_holds_publishers_back_and_is_cut_in_the_end() -> None:
    async with routed("a", broker={"max_pending": 1024 * 1024, "write_deadline": 0.1}) as a:
        peer = await RoutePeer.dial(a.port, greeting("p") + b"RS+ $G foo\r\n")
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client = await Peer.connect(a.broker.port)
        while a.routes:
            client.send(b"PUB foo 100000\r\n" + b"x" * 100_000 + b"\r\n")
            await asyncio.sleep(0)
        assert a.broker.stats.slow_consumers == 1
        assert await client.sync() == []
        peer.close()


async def test_an_unfinished_handshake_does_not_keep_a_table_from_stopping() -> None:
    async with routed("a") as a:
        peer = await RoutePeer.dial(a.port)
        peer.send(connect_line("p"))
        await until(lambda: a.open)
    assert await peer.until(b"never") == [b"END"]
