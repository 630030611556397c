"""Who may join a cluster: whoever proves its secret, and nobody else, whatever he tries."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop

from nimsnats.broker.route import RouteConnection
from nimsnats.broker.route_table import RouteTable
from nimsnats.proof import Exchange, Role, nonce
from nimsnats.protocol.route_info import AUTH
from tests.broker.peer import until
from tests.broker.route_stand import CLUSTER, meshed, routed
from tests.conformance.route_peer import RoutePeer, connect_line, greeting, info_line
from tests.security.impostor import GUARDED, SECRET, Call, Part, challenge, claim, impostor, says, verbs

NONCE = nonce(random.Random(7))
PASSWORD = {"user": "nimsnats", "pass": SECRET}
PROTOCOL = "nimsnats route 1"


def nothing_given_away(heard: bytes) -> None:
    """No byte of the secret, no password at all, and nothing of the cluster's inside."""
    assert SECRET.encode() not in heard
    assert b'"pass"' not in heard
    assert not [verb for verb in verbs(heard) if verb == b"RS+" or verb.endswith(b"MSG")]


def open_to(table: RouteTable, said: Mapping[str, Any], name: str, instance: str, mine: str) -> Exchange:
    """The exchange of a dialler of that name with a table, as one who knows everything would have it."""
    own = (CLUSTER, table.broker.server_id, table.broker.server_name, f"i-{table.broker.server_name}")
    return Exchange(PROTOCOL, (CLUSTER, name, name, instance), own, mine, said[AUTH]["nonce"])


# -- we dial a stranger ---------------------------------------------------------------------------------------------


async def _mirror(call: Call) -> None:
    """Sends our own proof back."""
    call.send(challenge("evil", NONCE))
    said = json.loads((await call.line()).removeprefix(b"CONNECT "))
    call.send(claim("evil", said[AUTH]["proof"]), b"PONG\r\n", b"RS+ $G >\r\n")


async def _echo(call: Call) -> None:
    """Takes our nonce for its own, too late."""
    call.send(challenge("evil", NONCE))
    said = json.loads((await call.line()).removeprefix(b"CONNECT "))
    call.send(challenge("evil", said[AUTH]["nonce"]), claim("evil", said[AUTH]["proof"]))


async def _knows_another(call: Call) -> None:
    """Proves a secret, but not ours."""
    call.send(challenge("evil", NONCE))
    said = json.loads((await call.line()).removeprefix(b"CONNECT "))
    opener = (CLUSTER, said["name"], "victim", "i-victim")
    exchange = Exchange(PROTOCOL, opener, (CLUSTER, "evil", "evil", "i"), said[AUTH]["nonce"], NONCE)
    call.send(claim("evil", exchange.proof("nimsnats:guess", Role.ANSWERER)), b"PONG\r\n")


async def _own_name(call: Call) -> None:
    """Says that it is the one that calls."""
    call.send(challenge("evil", NONCE))
    said = json.loads((await call.line()).removeprefix(b"CONNECT "))
    call.send(claim(said["name"], said[AUTH]["proof"]))


KIND = {"instance": "i", "http": "127.0.0.1:1"}
STRANGERS: dict[str, Part] = {
    "a Go server": says(info_line("evil"), b"RS+ $G >\r\n", b"PONG\r\n"),
    "a Go server that asks for a password": says(info_line("evil", auth_required=True), b"PONG\r\n"),
    "a node without a secret": says(info_line("evil", nimsnats=KIND), b"PONG\r\n"),
    "an old node": says(info_line("evil", nimsnats=KIND, auth_required=True), b"PONG\r\n"),
    "no proof": says(challenge("evil", NONCE), info_line("evil", nimsnats=KIND), b"PONG\r\n"),
    "an empty proof": says(challenge("evil", NONCE), claim("evil", ""), b"PONG\r\n"),
    "a made-up proof": says(challenge("evil", NONCE), claim("evil", "ab" * 32), b"PONG\r\n"),
    "interest instead of a proof": says(challenge("evil", NONCE), b"RS+ $SYS >\r\n", b"PONG\r\n"),
    "a message instead of a proof": says(challenge("evil", NONCE), b"RMSG $G x 1\r\nx\r\n", b"PONG\r\n"),
    "gossip instead of a proof": says(challenge("evil", NONCE), info_line("x", ip="nats-route://127.0.0.1:1/")),
    "acceptance instead of a proof": says(challenge("evil", NONCE), b"PONG\r\n", b"PING\r\n", b"+OK\r\n"),
    "a nonce that is zero": says(challenge("evil", "00" * 32), claim("evil", "ab" * 32)),
    "a nonce that is short": says(challenge("evil", NONCE[:-2]), claim("evil", "ab" * 32)),
    "no nonce": says(challenge("evil", ""), claim("evil", "ab" * 32)),
    "another cluster": says(challenge("evil", NONCE, cluster="Y"), claim("evil", "ab" * 32)),
    "a mirror": _mirror,
    "an echo": _echo,
    "another secret": _knows_another,
    "our own name": _own_name,
}


@pytest.mark.parametrize("part", STRANGERS.values(), ids=STRANGERS)
async def test_a_stranger_at_an_address_from_a_registry(part: Part, caplog: pytest.LogCaptureFixture) -> None:
    """It hears no secret and no password, is never connected, and the log says so once however often it is dialled."""
    caplog.set_level(logging.ERROR)
    async with routed("victim", auth_timeout=0.1, **GUARDED) as victim, impostor(part) as evil:
        heard: list[str] = []
        victim.watch(lambda name, _address, _up: heard.append(name))
        victim.add_route(evil.address)
        await until(lambda: evil.calls > 5)
        assert evil.verbs <= {b"CONNECT", b"-ERR", b"PONG"}
        nothing_given_away(evil.heard)
        assert not victim.routes and not heard
        assert victim.connected() == {} and victim.instance("evil") == ""
        assert 0 < len(caplog.records) <= 2, caplog.text
        assert victim.refused >= 5


@pytest.mark.parametrize(
    "turns_into", [{"server_name": "other"}, {"server_id": "other"}, {"nimsnats": {"instance": "j"}}, {}]
)
async def test_a_node_that_was_dialled_is_believed_only_as_whom_it_has_proven(turns_into: dict[str, Any]) -> None:
    """One that knows the secret, and changes its name between the challenge and the proof."""

    async def part(call: Call) -> None:
        call.send(challenge("p", NONCE))
        said = json.loads((await call.line()).removeprefix(b"CONNECT "))
        opener = (CLUSTER, said["name"], "victim", "i-victim")
        exchange = Exchange(PROTOCOL, opener, (CLUSTER, "p", "p", "i"), said[AUTH]["nonce"], NONCE)
        proof = exchange.proof(f"nimsnats:{SECRET}", Role.ANSWERER)
        call.send(info_line("p", **{"nimsnats": {"instance": "i"}, AUTH: {"proof": proof}, **turns_into}), b"PONG\r\n")

    async with routed("victim", **GUARDED) as victim, impostor(part) as peer:
        victim.add_route(peer.address)
        await until(lambda: victim.routes or victim.refused)
        assert bool(victim.routes) is not bool(turns_into)


async def test_an_address_with_a_password_in_it_is_no_address() -> None:
    """Who writes into a registry would otherwise say which secret its own server has to know."""
    async with routed("victim", **GUARDED) as victim:
        with pytest.raises(ValueError, match="has no password"):
            victim.add_route("nats://nimsnats:known@127.0.0.1:1")


async def test_an_address_from_gossip_hears_no_password() -> None:
    async with routed("victim", **GUARDED) as victim, impostor(says(info_line("evil", auth_required=True))) as evil:
        go = await RoutePeer.dial(victim.port, connect_line("go", **PASSWORD) + info_line("go"))
        go.send(info_line("news", ip=f"nats-route://{evil.address}/", gossip_mode=2))
        await evil.ended.wait()
        assert evil.heard == b""


async def test_a_password_goes_only_where_it_is_written_and_only_to_a_go_server() -> None:
    written = "written-down"
    async with impostor(says(info_line("go", auth_required=True), b"PONG\r\n")) as go:
        url = f"nats://me:{written}@{go.address}"
        async with routed("victim", routes=[url], **GUARDED) as victim:
            await until(lambda: victim.routes and b"CONNECT" in go.heard)
            assert go.said(b"CONNECT")["pass"] == written
            assert victim.connected() == {}, "a core peer"
            assert SECRET.encode() not in go.heard
    for first in (challenge("evil", NONCE), info_line("evil", nimsnats=KIND, auth_required=True)):
        async with impostor(says(first)) as evil:
            url = f"nats://me:{written}@{evil.address}"
            async with routed("victim", routes=[url], auth_timeout=0.1, **GUARDED) as victim:
                await evil.ended.wait()
                assert written.encode() not in evil.heard
                nothing_given_away(evil.heard)
                assert not victim.routes


# -- a stranger dials us --------------------------------------------------------------------------------------------


async def refused(table: RouteTable, *lines: bytes) -> bytes:
    """Dial, say that, and return what was answered until the end."""
    peer = await RoutePeer.dial(table.port)
    assert "nimsnats" not in peer.info, "what is inside is not told before the proof"
    peer.send(b"".join(lines))
    answer = await peer.reader.read()
    peer.close()
    nothing_given_away(answer)
    assert b"INFO" not in verbs(answer)
    return answer


def auth(**fields: str) -> dict[str, Any]:
    return {AUTH: {"nonce": NONCE, "name": "evil", "instance": "i", **fields}}


NODE = info_line("evil", nimsnats={"instance": "i"})
DIALLERS: dict[str, list[bytes]] = {
    "nothing": [connect_line("evil"), NODE],
    "no connect": [NODE],
    "messages first": [b"RMSG $SYS $NIMS.API.x 2\r\n\x90\x90\r\n"],
    "interest first": [b"RS+ $SYS >\r\n"],
    "a wrong password": [connect_line("evil", user="nimsnats", **{"pass": "x"}), NODE],
    "an old node that knows the password": [connect_line("evil", **PASSWORD), NODE],
    "no proof": [connect_line("evil", **auth()), NODE],
    "no proof, but the password": [connect_line("evil", **PASSWORD, **auth()), NODE],
    "a made-up proof": [connect_line("evil", **auth(proof="ab" * 32)), NODE],
    "a proof of the wrong type": [connect_line("evil", **{AUTH: {"nonce": NONCE, "proof": [1]}}), NODE],
    "a field of the wrong type": [connect_line("evil", **{AUTH: [NONCE]}), NODE],
    "a dedicated route first": [connect_line("evil"), info_line("evil", route_account="$SYS")],
    "the server's account first": [info_line("evil", route_account="$SYS")],
}


@pytest.mark.parametrize("lines", DIALLERS.values(), ids=DIALLERS)
async def test_a_stranger_that_dials(lines: list[bytes]) -> None:
    async with routed("victim", **GUARDED) as victim:
        answer = await refused(victim, *lines, b"RS+ $SYS >\r\nPING\r\n")
        assert answer.startswith(b"-ERR '") and b"PONG" not in verbs(answer), answer
        assert not victim.routes and not victim.open


@pytest.mark.parametrize(
    "change",
    [
        {"role": Role.ANSWERER},
        {"secret": "nimsnats:guess"},
        {"mine": "00" * 32},
        {"mine": "their"},
        {"name": "other"},
        {"cluster": "Y"},
        {"protocol": "nimsnats registry 1"},
    ],
    ids=str,
)
async def test_a_proof_that_is_not_of_this_exchange(change: dict[str, Any]) -> None:
    async with routed("victim", **GUARDED) as victim:
        peer = await RoutePeer.dial(victim.port)
        mine = peer.info[AUTH]["nonce"] if change.get("mine") == "their" else change.get("mine", NONCE)
        made = open_to(victim, peer.info, "evil", "i", mine)
        opener = (change.get("cluster", CLUSTER), change.get("name", "evil"), "evil", "i")
        exchange = Exchange(change.get("protocol", PROTOCOL), opener, made.answerer, mine, made.answerer_nonce)
        proof = exchange.proof(change.get("secret", f"nimsnats:{SECRET}"), change.get("role", Role.OPENER))
        peer.send(connect_line("evil", **auth(nonce=mine, proof=proof)) + NODE)
        assert await peer.reader.read() == b"-ERR 'Authorization Violation'\r\n"


async def test_whoever_knows_the_secret_is_a_member_and_only_as_whom_it_has_proven() -> None:
    async with routed("victim", **GUARDED) as victim:
        for info, welcome in (
            (info_line("p", server_name="other", nimsnats={"instance": "i"}), False),
            (info_line("q", server_name="p", nimsnats={"instance": "i"}), False),
            (info_line("p", nimsnats={"instance": "j"}), False),
            (info_line("p", nimsnats={"instance": "i"}), True),
        ):
            peer = await RoutePeer.dial(victim.port)
            exchange = open_to(victim, peer.info, "p", "i", nonce(random.Random()))
            proof = exchange.proof(f"nimsnats:{SECRET}", Role.OPENER)
            told = {"nonce": exchange.opener_nonce, "name": "p", "instance": "i", "proof": proof}
            peer.send(connect_line("p", **{AUTH: told}))
            ours = json.loads((await peer.reader.readline())[5:])
            assert exchange.proves(f"nimsnats:{SECRET}", Role.ANSWERER, ours[AUTH]["proof"])
            assert ours["nimsnats"] == {"instance": "i-victim"}
            assert (await peer.say(info) == []) is welcome
            assert (set(victim.connected()) == {"p"}) is welcome


async def test_a_nonce_is_taken_once() -> None:
    """Even by one who knows the secret: what was recorded and what is drawn badly looks alike."""
    async with routed("victim", **GUARDED) as victim:
        for attempt in range(2):
            peer = await RoutePeer.dial(victim.port)
            exchange = open_to(victim, peer.info, "p", "i", NONCE)
            told = {"nonce": NONCE, "name": "p", "instance": "i"}
            told["proof"] = exchange.proof(f"nimsnats:{SECRET}", Role.OPENER)
            peer.send(connect_line("p", **{AUTH: told}))
            assert (await peer.reader.readline()).startswith(b"-ERR" if attempt else b"INFO")
            peer.close()


async def test_what_was_recorded_between_two_nodes_opens_nothing() -> None:
    """An honest handshake, heard by somebody in between: no secret in it, and neither side's words work again."""
    ways: list[bytes] = [b"", b""]
    async with routed("a", **GUARDED) as a:

        async def between(call: Call) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)

            async def onward() -> None:
                while line := await call.line():
                    ways[0] += line
                    writer.write(line)
                writer.close()

            there = asyncio.ensure_future(onward())
            while line := await reader.readline():
                ways[1] += line
                call.send(line)
            call.writer.close()
            await there

        async with impostor(between) as wire, routed("b", **GUARDED) as b:
            b.add_route(wire.address)
            await meshed(a, b)
        assert SECRET.encode() not in b"".join(ways) and b'"pass"' not in ways[0]
        assert ways[0].count(b'"proof"') == ways[1].count(b'"proof"') == 1
        answer = await refused(a, ways[0])
        assert answer.startswith(b"-ERR 'Authorization Violation'")
        assert not a.routes
    async with impostor(says(ways[1])) as evil, routed("b", **GUARDED) as b:
        b.add_route(evil.address)
        await until(lambda: evil.calls > 2)
        assert not b.routes
        assert evil.verbs <= {b"CONNECT", b"-ERR"}


@pytest.mark.parametrize("rename", [False, True])
async def test_a_challenge_is_not_answered_by_whom_it_was_taken_from(rename: bool) -> None:
    """Somebody who is dialled passes our own challenge on to us, as it is or under a name of its own."""
    async with routed("victim", **GUARDED) as victim:
        answers: list[bytes] = []

        async def part(call: Call) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", victim.port)
            info = json.loads((await reader.readline())[5:])
            if rename:
                info |= {"server_id": "evil", "server_name": "evil"}
            call.send(b"INFO " + json.dumps(info).encode() + b"\r\n")
            writer.write(await call.line())
            writer.write_eof()
            answers.append(await reader.read())
            writer.close()

        async with impostor(part) as evil:
            victim.add_route(evil.address)
            await until(lambda: answers)
            assert not victim.routes
            assert b"INFO" not in verbs(answers[0]) and b"proof" not in answers[0]
            assert evil.verbs <= {b"CONNECT", b"-ERR"}


# -- names, numbers, sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_live_members_name_is_not_to_be_had(guarded: bool) -> None:
    options = GUARDED if guarded else {}
    async with routed("a", **options) as a, routed("b", a, **options) as b:
        await meshed(a, b)
        told = a.routes[b.broker.server_id]
        hello = connect_line("evil", **(PASSWORD if guarded else {}))
        for info in (
            info_line("evil", server_name="b"),
            info_line("evil", server_name="b", nimsnats={"instance": "i-b"}),
            info_line("evil", server_name="a"),
            info_line(b.broker.server_id, server_name="b", nimsnats={"instance": "i-b"}),
            info_line(b.broker.server_id, server_name="c"),
            info_line(a.broker.server_id, server_name="c"),
        ):
            peer = await RoutePeer.dial(a.port)
            assert (await peer.say(hello, info))[-1] == b"END"
            assert a.routes == {b.broker.server_id: told} and not told.closed
        assert set(a.connected()) == {"b"}


async def test_a_core_peer_gives_a_members_name_back() -> None:
    async with routed("a", **GUARDED) as a:
        squatter = await RoutePeer.dial(a.port, connect_line("go", **PASSWORD) + info_line("go", server_name="b"))
        async with routed("b", a, **GUARDED) as b:
            await meshed(a, b)
            assert (await squatter.until(b"never"))[-1] == b"END"
            assert set(a.connected()) == {"b"}


async def test_strangers_are_few_and_take_little(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with routed("a", auth_timeout=60.0, **GUARDED) as a:
        waiting = [await asyncio.open_connection("127.0.0.1", a.port) for _ in range(64)]
        await until(lambda: len(a.open) == 64)
        for reader, _ in waiting[:2]:
            waiting.append(await asyncio.open_connection("127.0.0.1", a.port))
            await reader.readline()
            assert await reader.read() == b"", "who has waited longest goes"
            assert len(a.open) == 64
        assert [record.getMessage().partition("rid:")[2].partition(" - ")[2] for record in caplog.records] == [
            "too many connections wait for introductions, the one that has waited longest ends"
        ]
        async with routed("b", a, **GUARDED) as b:
            await meshed(a, b)
        for _, each in waiting:
            each.close()
        await until(lambda: not a.open)


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_connection_that_is_given_up_as_it_opens_leaves_nothing(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The time for dialling runs out in the turn in which the peer answers."""
    opened: list[RouteConnection] = []
    take = RouteTable.opened

    def open_late(table: RouteTable, route: RouteConnection) -> None:
        take(table, route)
        if route.dial is not None:
            opened.append(route)
            assert route.dial._task is not None
            route.dial._task.cancel()

    async def scene() -> None:
        async with routed("a", auth_timeout=60.0) as a, impostor(says()) as silent:
            a.add_route(silent.address)
            await until(lambda: opened and not a.open)
            assert opened[0].closed and opened[0].gone.is_set()

    monkeypatch.setattr(RouteTable, "opened", open_late)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scene())
    assert "Internal error" not in caplog.text


async def test_strangers_from_everywhere_keep_no_node_out() -> None:
    """They hold every place that there is, and take a new one for each that they lose."""
    async with routed("a", auth_timeout=60.0, **GUARDED) as a:
        held: set[asyncio.Task[None]] = set()
        lost = 0

        async def hold(source: str) -> None:
            nonlocal lost
            while True:
                reader, writer = await asyncio.open_connection("127.0.0.1", a.port, local_addr=(source, 0))
                try:
                    await reader.read()
                except ConnectionError:
                    pass  # it was cut off
                finally:
                    writer.close()
                lost += 1

        try:
            for number in range(260):
                held.add(asyncio.ensure_future(hold(f"127.0.1.{1 + number % 5}")))
                await until(lambda: lost or len(a.open) == len(held))  # more at once than the kernel queues come late
            await until(lambda: lost > 20)
            assert len(a.open) <= 257
            async with routed("b", a, **GUARDED) as b:
                await meshed(a, b)
                assert set(a.connected()) == {"b"}
        finally:
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)


@pytest.mark.parametrize("proven", [False, True])
@pytest.mark.parametrize("verb", [b"RMSG $SYS $NIMS.API.x", b"HMSG $G x 10", b"PUB x"])
async def test_nothing_large_is_taken_from_a_stranger(verb: bytes, proven: bool) -> None:
    """Neither before the secret nor between the password and the introduction."""
    async with routed("a", **GUARDED) as a:
        peer = await RoutePeer.dial(a.port)
        verb += b" 60000000\r\n"
        peer.send((connect_line("go", **PASSWORD) if proven else b"") + verb)
        assert (await peer.reader.read()).startswith(b"-ERR '")
        peer.close()
    async with impostor(says(challenge("evil", NONCE), verb)) as evil, routed("a", **GUARDED) as a:
        a.add_route(evil.address)
        await evil.ended.wait()
        assert not a.routes


async def test_the_log_is_not_filled_by_one_who_thinks_of_something_new(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with routed("a", **GUARDED) as a:
        for number in range(60):
            await refused(a, connect_line("evil", **auth(name=f"n{number}", proof="x")))
        assert len(caplog.records) == 16
        assert a.refused == 60


# -- old nodes, nodes with other secrets ----------------------------------------------------------------------------


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("dialling", ["theirs", "ours"])
@pytest.mark.parametrize("other", [{"user": "nimsnats", "password": "wrong"}, {}], ids=["another secret", "no secret"])
async def test_a_node_with_another_secret_is_refused_and_both_say_why(
    dialling: str, other: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with routed("a", **GUARDED) as a, routed("b", redial_refused=0.02, **other) as b:
        dialler, dialled = (b, a) if dialling == "theirs" else (a, b)
        dialler.add_route(f"127.0.0.1:{dialled.port}")
        opened = dialled.broker.next_id()
        await until(lambda: dialled.broker.next_id() > opened + 20)
        assert not a.routes and not b.routes
        told = texts(caplog)
        assert len(told) == 2, told
        if not other and dialling == "theirs":  # it does not know that there is anything to prove
            assert "Route Error 'Authorization Violation'" in caplog.text
            assert "authentication error - User" in caplog.text
        else:
            assert all("NATS_CLUSTER_SECRET must be the same on all nodes" in text for text in told)


async def test_a_node_of_an_older_version_is_told_to_be_updated(caplog: pytest.LogCaptureFixture) -> None:
    """It sends the password, and takes itself for a member. It gets no further, and both logs say what to do."""
    async with routed("a", **GUARDED) as a:
        old = await RoutePeer.dial(a.port)
        old.send(connect_line("old", **PASSWORD) + info_line("old", nimsnats={"instance": "i"}))
        said = await old.reader.read()
        assert said.startswith(b"-ERR 'this server sends the cluster secret") and said.endswith(b"update it'\r\n")
        assert not a.routes
    says_old = says(info_line("old", nimsnats=KIND, auth_required=True))
    async with impostor(says_old) as there, routed("a", **GUARDED) as a:
        a.add_route(there.address)
        await there.ended.wait()
        nothing_given_away(there.heard)
        assert there.said(b"CONNECT")[AUTH]["name"] == "a", "its log names who has called"
    assert sum("as older versions do: update it" in text for text in texts(caplog)) == 2


async def test_without_a_secret_every_node_is_a_member_and_a_go_server_is_none() -> None:
    async with routed("a") as a:
        node = await RoutePeer.dial(a.port, greeting("n", nimsnats={"instance": "i"}))
        go = await RoutePeer.dial(a.port, greeting("go"))
        assert {name: route.member for name, route in a.routes.items()} == {"n": True, "go": False}
        assert set(a.connected()) == {"n"}
        node.close()
        go.close()
