"""Starting, INFO, logging, authentication that takes time, lame duck, stopping, connections through memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import bcrypt
import nats
import pytest
from nats.errors import NoRespondersError

from nimsnats.broker.options import BrokerOptions, User
from nimsnats.broker.reasons import Reason
from nimsnats.broker.server import Broker, ListenError
from nimsnats.runtime import Runtime
from nimsnats.version import NATS_VERSION
from tests.broker.peer import QUIET, Peer, running, until


async def test_a_port_in_use_is_one_clear_line() -> None:
    async with running() as broker:
        second = Broker(BrokerOptions(host="127.0.0.1", port=broker.port), Runtime.real())
        with pytest.raises(ListenError, match=f"^cannot listen for clients on 127.0.0.1:{broker.port}: .*in use"):
            await second.start()
        await second.stop()


async def test_info() -> None:
    async with running(server_name="n1", cluster_name="c1", jetstream=True, client_advertise="example.org:1") as broker:
        peer = await Peer.connect(broker.port, b"")
        info = peer.info
        assert info["server_id"] == broker.server_id
        assert (info["server_name"], info["cluster"], info["version"]) == ("n1", "c1", NATS_VERSION)
        assert (info["host"], info["port"], info["client_ip"], info["client_id"]) == ("example.org", 1, "127.0.0.1", 1)
        assert info["jetstream"] is True
        peer.send(QUIET + b"PING\r\n")
        assert await peer.line() == b"PONG"
        again: dict[str, Any] = json.loads((await peer.line())[5:])
        assert {**again, "connect_info": None} == {**info, "connect_info": None, "remote_account": "$G"}
        broker.set_connect_urls(["a:1", "b:2"])
        assert json.loads((await peer.line())[5:])["connect_urls"] == ["a:1", "b:2"]
        assert await peer.sync() == []


async def test_logs_in_the_words_of_nats_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(5, "nimsnats")
    async with running(trace=True, debug=True) as broker:
        peer = await Peer.connect(broker.port, b'CONNECT {"lang":"py","version":"1","name":"t","verbose":false}\r\n')
        await peer.sync(b"SUB foo 1\r\n" + b"PUB foo re 5\r\nhello\r\n" * 3)
        host, port = peer.writer.get_extra_info("sockname")
        peer.close()
        await until(lambda: not broker.clients)
    prefix = f"{host}:{port} - cid:1"
    named = prefix + ' - "v1:py:t"'
    lines = [record.getMessage() for record in caplog.records]
    assert f"{prefix} - Client connection created" in lines
    assert lines.count(f"{named} - <<- [PUB foo re 5]") == 3
    assert lines.count(f'{named} - <<- MSG_PAYLOAD: ["hello"]') == 3
    assert lines.count(f"{named} - ->> [MSG foo 1 re 5]") == 3
    assert f"{named} - ->> [PONG]" in lines
    assert f"{named} - Client connection closed: Client Closed" in lines


async def test_what_clients_say_cannot_break_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(5, "nimsnats")
    async with running(trace=True) as broker:
        peer = await Peer.connect(broker.port, b'CONNECT {"name":"a\\nb\\ud800\\"","verbose":false}\r\n')
        await peer.sync(b"SUB \xff 1\r\nPUB \xff 3\r\na\nb\r\nPUB \x1b[0m _R_.\xff 0\r\n\r\n")
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() and line.encode() for line in lines)
    assert any(line.endswith(r'<<- MSG_PAYLOAD: ["a\nb"]') for line in lines)
    assert any('"a\\nb\ufffd\\""' in line for line in lines)


async def test_bcrypt_does_not_hold_up_the_loop() -> None:
    secret = bcrypt.hashpw(b"s3cret", bcrypt.gensalt(4)).decode()
    async with running(users=[User("u", secret, "ACME")]) as broker:
        peer = await Peer.connect(broker.port, b"")
        peer.send(
            b'CONNECT {"user":"u","pass":"s3cret","verbose":false,"pedantic":false}\r\nSUB foo 1\r\nPUB foo 2\r\nhi\r\n'
        )
        assert [await peer.line(), await peer.line()] == [b"MSG foo 1 2", b"hi"]
        assert broker.clients[1].account is broker.accounts["ACME"]
        assert broker.clients[1].identity is not None
        wrong = await Peer.connect(broker.port, b"")
        wrong.send(b'CONNECT {"user":"u","pass":"guess"}\r\nPING\r\n')
        assert await wrong.rest() == b"-ERR 'Authorization Violation'\r\n"
        leaving = await Peer.connect(broker.port, b"")
        leaving.send(b'CONNECT {"user":"u","pass":"s3cret"}\r\n')
        leaving.close()
        await until(lambda: len(broker.clients) == 1)


async def test_stop_tells_nobody_and_closes_everybody() -> None:
    async with running() as broker:
        peers = [await Peer.connect(broker.port) for _ in range(3)]
        broker.global_account.publish(b"nobody")
        await peers[0].sync(b"SUB foo 1\r\n")
        broker.global_account.publish(b"foo", b"last words")
        await broker.stop()
        assert await peers[0].rest() == b"MSG foo 1 10\r\nlast words\r\n"
        assert [await peer.rest() for peer in peers[1:]] == [b"", b""]
        assert {client.reason for client in broker.closed} == {Reason.SERVER_SHUTDOWN}
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", broker.port)


async def test_lame_duck() -> None:
    async with running(lame_duck_duration=0.1, lame_duck_grace_period=0.02) as broker:
        peer, old = await Peer.connect(broker.port), await Peer.connect(broker.port, b'CONNECT {"verbose":false}\r\n')
        await broker.enter_lame_duck()
        assert broker.lame_duck
        assert json.loads((await peer.line())[5:])["ldm"] is True
        assert await peer.rest() == await old.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", broker.port)


async def test_lame_duck_without_clients_is_over_at_once() -> None:
    async with running() as broker:
        await broker.enter_lame_duck()
        await broker.enter_lame_duck()


async def test_through_memory() -> None:
    async with running(max_connections=0) as broker:
        received = bytearray()
        closed = asyncio.Event()
        local = broker.connect_local(received.extend, closed.set)
        local.write(QUIET)
        local.write(b"SUB foo 1\r\nPUB foo 2\r\nhi\r\nPING\r\n")
        await until(lambda: b"PONG\r\n" in received)
        assert received.startswith(b"INFO {")
        assert b"MSG foo 1 2\r\nhi\r\nPONG\r\n" in received
        assert not local.closing
        body = b"x" * 900_000
        local.write(b"PUB foo 900000\r\n" + body[:5])
        local.write(body[5:] + b"\r\n")
        await until(lambda: received.endswith(body + b"\r\n"))
        local.close()
        await closed.wait()
        assert local.closing
        assert broker.closed[-1].reason is Reason.CLIENT_CLOSED
        local.write(b"PING\r\n")
        again = asyncio.Event()
        broker.connect_local(received.extend, again.set).write(b"FOO\r\n")
        await again.wait()
        assert received.endswith(b"-ERR 'Unknown Protocol Operation'\r\n")


async def test_nats_py() -> None:
    async with running() as broker:
        one, two = [await nats.connect(f"nats://127.0.0.1:{broker.port}") for _ in range(2)]
        got: asyncio.Queue[Any] = asyncio.Queue()

        async def keep(message: Any) -> None:
            await got.put(message)

        async def answer(message: Any) -> None:
            await message.respond(b"re:" + message.data)

        await one.subscribe("news.*", cb=keep)
        await one.subscribe("svc", queue="q", cb=answer)
        await one.flush()
        await two.publish("news.a", b"1", headers={"k": "v"})
        await two.publish("news.b", b"x" * 500_000)
        first, second = await got.get(), await got.get()
        assert (first.data, first.headers) == (b"1", {"k": "v"})
        assert len(second.data) == 500_000
        assert (await two.request("svc", b"x")).data == b"re:x"
        assert (await two.request("svc", b"y", old_style=True)).data == b"re:y"
        with pytest.raises(NoRespondersError):
            await two.request("nobody", b"")
        await one.drain()
        await two.close()
        await until(lambda: not broker.clients)


async def test_round_trips_are_measured_finer_than_a_loop_counts() -> None:
    async with running(ping_interval=0.01) as broker:
        clock = iter(range(1_000_000_000, 2_000_000_000, 123_456))
        broker.runtime.boot_time_ns = lambda: next(clock)
        peer = await Peer.connect(broker.port, QUIET + b"PING\r\n")
        while await peer.line() != b"PING":
            pass
        estimate = broker.clients[1].rtt
        assert estimate > 0, "from the time that CONNECT took"
        peer.send(b"PONG\r\n")
        await until(lambda: broker.clients[1].rtt != estimate)
        assert broker.clients[1].rtt == 123_456 / 1e9
        peer.close()
