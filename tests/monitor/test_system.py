"""`$SYS.REQ` requests: who gets which answer, compared with the Go server."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator

import nats
import nats.errors
import pytest
import pytest_asyncio

from nimsnats.broker.options import BrokerOptions, User
from nimsnats.broker.server import Broker
from nimsnats.monitor.system import SystemServices
from nimsnats.monitor.view import NodeView
from nimsnats.runtime import Runtime
from tests.broker.peer import Peer
from tests.conformance.oracle import Oracle
from tests.monitor.sides import Side, differences, shape

_CONFIG = """
server_name: S0
accounts {
  SYS { users: [ {user: sys, password: s} ] }
  A { users: [ {user: a, password: a} ] }
}
system_account: SYS
"""
_SYSTEM = {"user": "sys", "password": "s"}
_ORDINARY = {"user": "a", "password": "a"}


@pytest.fixture(scope="module")
def their_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """The Go server with a system account and an ordinary one."""
    server = Oracle(tmp_path_factory.mktemp("system")).start(_CONFIG)
    yield Side("theirs", server.port, 0)
    server.stop()


@pytest_asyncio.fixture
async def our_system() -> AsyncIterator[Side]:
    """Ours with the same accounts."""
    users = [User("sys", "s", "SYS"), User("a", "a", "A")]
    options = BrokerOptions(host="127.0.0.1", port=-1, server_name="S0", users=users, system_account="SYS")
    broker = Broker(options, Runtime.real())
    view = NodeView(broker)
    system = SystemServices(view)
    system.start()
    await broker.start()
    yield Side("ours", broker.port, 0)
    system.stop()
    await broker.stop()


_NO_FLAGS = "-server.feature_flags"
_ALLOWED = {
    "SERVER.PING.VARZ": ["-data.feature_flags", "-data.git_commit"],
    "SERVER.PING.IPQUEUESZ": ["-data.System recvQ", "-data.System sendQ"],  # what is in them at that moment
    "ACCOUNT.A.INFO": ["-data.imports"],
}


@pytest.mark.parametrize(
    "subject",
    [
        "USER.INFO",
        "SERVER.PING",
        "SERVER.PING.IDZ",
        "SERVER.PING.STATSZ",
        "SERVER.PING.HEALTHZ",
        "SERVER.PING.VARZ",
        "SERVER.PING.CONNZ",
        "SERVER.PING.SUBSZ",
        "SERVER.PING.ROUTEZ",
        "SERVER.PING.LEAFZ",
        "SERVER.PING.GATEWAYZ",
        "SERVER.PING.JSZ",
        "SERVER.PING.ACCOUNTZ",
        "SERVER.PING.IPQUEUESZ",
        "SERVER.PING.RAFTZ",
        "ACCOUNT.PING.STATZ",
        "ACCOUNT.PING.CONNZ",
        "ACCOUNT.A.CONNZ",
        "ACCOUNT.A.SUBSZ",
        "ACCOUNT.A.INFO",
        "ACCOUNT.A.LEAFZ",
        "ACCOUNT.SYS.STATZ",
        "ACCOUNT.SYS.CONNS",
        "ACCOUNT.none.INFO",
        "ACCOUNT.none.CONNZ",
    ],
)
async def test_the_system_account_gets_the_oracles_answer(subject: str, their_system: Side, our_system: Side) -> None:
    expected, answer = [await side.request(f"$SYS.REQ.{subject}", **_SYSTEM) for side in (their_system, our_system)]
    found = differences(shape(expected), shape(answer))
    assert [line for line in found if line not in [_NO_FLAGS, *_ALLOWED.get(subject, [])]] == []
    assert list(answer) == list(expected)


@pytest.mark.parametrize("subject", ["USER.INFO", "SERVER.PING.CONNZ", "ACCOUNT.PING.CONNZ", "ACCOUNT.PING.STATZ"])
async def test_an_ordinary_account_learns_about_itself_only(subject: str, their_system: Side, our_system: Side) -> None:
    for side in (their_system, our_system):
        other = await nats.connect(side.url, **_SYSTEM)
        answer = await side.request(f"$SYS.REQ.{subject}", **_ORDINARY)
        data = answer["data"]
        if subject == "USER.INFO":
            assert data == {"user": "a", "account": "A", "account_name": "A"}
        elif "CONNZ" in subject:
            assert data["num_connections"] == 1
        else:
            assert [account["acc"] for account in data["account_statz"]] == ["A"]
        await other.close()


@pytest.mark.parametrize(
    ("subject", "credentials"),
    [
        ("$SYS.REQ.SERVER.PING", _ORDINARY),
        ("$SYS.REQ.SERVER.PING.VARZ", _ORDINARY),
        ("$SYS.REQ.ACCOUNT.A.CONNZ", _ORDINARY),
        ("$SYS.REQ.SERVER.PING.NOPE", _SYSTEM),
    ],
)
async def test_what_is_not_there_or_not_allowed_has_no_responders(
    subject: str, credentials: dict[str, str], their_system: Side, our_system: Side
) -> None:
    for side in (their_system, our_system):
        with pytest.raises(nats.errors.NoRespondersError):
            await side.request(subject, **credentials)


@pytest.mark.parametrize(
    "body",
    [
        '{"subscriptions":true,"auth":true,"limit":1}',
        '{"acc":"none"}',
        '{"server_name":"S0","exact_match":true}',
        '{"server_name":"S"}',
        '{"nope":1}',
        "{",
        "[]",
        '{"sort":"zzz"}',
        '{"limit":"x"}',
        '{"filter_subject":"foo"}',
    ],
)
async def test_options_in_the_body(body: str, their_system: Side, our_system: Side) -> None:
    subject = "$SYS.REQ.SERVER.PING.CONNZ"
    expected, answer = [await side.request(subject, body, **_SYSTEM) for side in (their_system, our_system)]
    assert [line for line in differences(shape(expected), shape(answer)) if line != _NO_FLAGS] == []
    assert answer.get("error") == expected.get("error")


@pytest.mark.parametrize("body", ['{"server_name":"X"}', '{"server_name":"S","exact_match":true}', '{"tags":["t"]}'])
async def test_a_filter_that_leaves_the_server_out_gets_no_answer(body: str, our_system: Side) -> None:
    client = await nats.connect(our_system.url, **_SYSTEM)
    inbox = await client.subscribe("answers.*")
    await client.publish("$SYS.REQ.SERVER.PING", body.encode(), reply="answers.1")
    await client.publish("$SYS.REQ.SERVER.PING.IDZ", reply="answers.2")
    first = await inbox.next_msg(timeout=20)
    assert first.subject == "answers.2"
    await client.close()


async def test_a_server_answers_on_its_own_id_and_not_on_others(our_system: Side) -> None:
    own = await our_system.request("$SYS.REQ.SERVER.PING.IDZ", **_SYSTEM)
    again = await our_system.request(f"$SYS.REQ.SERVER.{own['id']}.VARZ", **_SYSTEM)
    assert again["data"]["server_id"] == own["id"]
    with pytest.raises(nats.errors.NoRespondersError):
        await our_system.request("$SYS.REQ.SERVER.NOBODY.VARZ", **_SYSTEM)


async def test_a_connection_can_be_kicked(our_system: Side) -> None:
    gone = asyncio.Event()

    async def noticed() -> None:
        gone.set()

    victim = await nats.connect(our_system.url, closed_cb=noticed, allow_reconnect=False, **_ORDINARY)
    server = await our_system.request("$SYS.REQ.SERVER.PING.IDZ", **_SYSTEM)
    kick = f"$SYS.REQ.SERVER.{server['id']}.KICK"
    missing = await our_system.request(kick, '{"cid":99}', **_SYSTEM)
    assert missing["error"] == {"code": 500, "description": "no such client or leafnode id"}
    await our_system.request(kick, json.dumps({"cid": victim.client_id}), **_SYSTEM)
    await gone.wait()


async def test_a_client_can_be_sent_to_another_server(their_system: Side, our_system: Side) -> None:
    for side in (their_system, our_system):
        client = await Peer.connect(side.client_port, b'CONNECT {"user":"a","pass":"a","protocol":1}\r\nPING\r\n')
        found = await side.request("$SYS.REQ.SERVER.PING.CONNZ", '{"acc":"A"}', **_SYSTEM)
        (own,) = [connection["cid"] for connection in found["data"]["connections"]]
        server = await side.request("$SYS.REQ.SERVER.PING.IDZ", **_SYSTEM)
        leave = f"$SYS.REQ.SERVER.{server['id']}.LDM"
        missing = await side.request(leave, '{"cid":999999}', **_SYSTEM)
        assert list(missing) == ["server", "error"]
        assert missing["error"] == {"code": 500, "description": "no such client id"}
        await side.request(leave, json.dumps({"cid": own}), **_SYSTEM)
        while b'"ldm":true' not in await client.line():
            pass
        client.close()


async def test_interest_can_be_counted(their_system: Side, our_system: Side) -> None:
    for side in (their_system, our_system):
        member = await nats.connect(side.url, **_ORDINARY)
        await member.subscribe("foo.*")
        await member.subscribe("foo.>", queue="q")
        await member.flush()
        counted = '{"acc":"A","subject":"foo.1"}'
        assert await side.request("$SYS.REQ.ACCOUNT.NSUBS", counted, **_SYSTEM) == 2
        queued = '{"acc":"A","subject":"foo.1","queue":"cQ=="}'
        assert await side.request("$SYS.REQ.ACCOUNT.NSUBS", queued, **_SYSTEM) == 1
        await member.close()


async def test_gzip_on_demand(our_system: Side) -> None:
    client = await nats.connect(our_system.url, **_SYSTEM)
    answer = await client.request("$SYS.REQ.SERVER.PING.VARZ", headers={"Accept-Encoding": "gzip"})
    assert answer.headers == {"Content-Encoding": "gzip"}
    assert json.loads(gzip.decompress(answer.data))["data"]["server_name"] == "S0"
    plain = await client.request("$SYS.REQ.SERVER.PING.VARZ", headers={"Accept-Encoding": "snappy"})
    assert plain.headers is None
    assert json.loads(plain.data)["server"]["name"] == "S0"
    await client.close()
