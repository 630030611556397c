"""What the system account hears unasked: the same from our server and from the Go server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.msg import Msg

from nimsnats import Server
from nimsnats.broker.auth import ConfiguredAuthenticator
from nimsnats.broker.options import User
from tests.monitor.sides import Side, differences, shape
from tests.monitor.test_system import _NO_FLAGS, _ORDINARY, _SYSTEM, our_system, their_system

__all__ = ["our_system", "their_system"]

WANTED = {
    "$SYS.ACCOUNT.A.CONNECT",
    "$SYS.ACCOUNT.A.DISCONNECT",
    "$SYS.ACCOUNT.A.SERVER.CONNS",
    "$SYS.SERVER.ACCOUNT.A.CONNS",
    "$SYS.SERVER.<id>.CLIENT.AUTH.ERR",
    "$SYS.SERVER.<id>.STATSZ",
}


async def heard(side: Side) -> dict[str, Any]:
    """The first event of every kind while a client comes and goes and another one has the wrong password."""
    events: dict[str, Any] = {}
    complete = asyncio.Event()

    async def take(message: Msg) -> None:
        tokens = message.subject.split(".")
        if tokens[1] == "SERVER" and tokens[2] != "ACCOUNT":
            tokens[2] = "<id>"
        subject = ".".join(tokens)
        if subject in WANTED:
            events.setdefault(subject, json.loads(message.data))
        if events.keys() >= WANTED:
            complete.set()

    system = await nats.connect(side.url, **_SYSTEM)
    await system.subscribe("$SYS.ACCOUNT.A.>", cb=take)
    await system.subscribe("$SYS.SERVER.>", cb=take)
    await system.flush()
    client = await nats.connect(side.url, name="app", **_ORDINARY)
    await client.publish("foo", b"hello")
    await client.close()
    try:
        await nats.connect(side.url, user="a", password="wrong", allow_reconnect=False, max_reconnect_attempts=0)
    except nats.errors.Error:
        pass  # that is what it is for
    async with asyncio.timeout(15):
        await complete.wait()
    await system.close()
    return events


async def test_clients_that_come_and_go_and_figures(their_system: Side, our_system: Side) -> None:
    theirs, ours = await asyncio.gather(heard(their_system), heard(our_system))
    for subject in sorted(WANTED):
        found = differences(shape(theirs[subject]), shape(ours[subject]))
        assert [line for line in found if line != _NO_FLAGS and "rtt" not in line] == [], subject
    for side in (theirs, ours):
        gone = side["$SYS.ACCOUNT.A.DISCONNECT"]
        assert (gone["sent"], gone["reason"]) == ({"msgs": 1, "bytes": 5}, "Client Closed")
        assert side["$SYS.SERVER.<id>.CLIENT.AUTH.ERR"]["reason"] == "Authentication Failure"


async def test_the_end_is_announced() -> None:
    async with Server(jetstream=False) as server:
        told: list[bytes] = []

        def take(subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: object) -> None:
            told.append(subject)

        server.broker.system_account.subscribe(b"$SYS.SERVER.*.SHUTDOWN", take)
        server.broker.system_account.subscribe(b"$SYS.SERVER.*.LAMEDUCK", take)
        server_id = server.broker.server_id
        await server.lame_duck()
    assert told == [f"$SYS.SERVER.{server_id}.LAMEDUCK".encode(), f"$SYS.SERVER.{server_id}.SHUTDOWN".encode()]


async def test_connections_are_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimsnats.monitor.events._CONNECTIONS_PERIOD", 0.01)
    async with Server(jetstream=False) as server:
        told: asyncio.Queue[bytes] = asyncio.Queue()

        def take(subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: object) -> None:
            told.put_nowait(payload)

        server.broker.system_account.subscribe(b"$SYS.SERVER.ACCOUNT.A.CONNS", take)
        server.settings.broker.users.append(User("a", "a", "A"))
        server.broker.authenticator = ConfiguredAuthenticator(server.settings.broker, server.broker.passwords)
        client = await nats.connect(server.url, user="a", password="a")
        counts = [json.loads(await told.get())["conns"] for _ in range(3)]
        assert counts == [1, 1, 1], "once when it comes, then again and again"
        await client.close()
