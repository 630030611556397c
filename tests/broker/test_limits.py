"""Connection limits, keep-alive, slow consumers, stalls: what ends a connection and what is said about it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from nimsnats.broker.reasons import Reason
from tests.broker.peer import QUIET, Peer, running, until


async def test_maximum_connections() -> None:
    async with running(max_connections=1) as broker:
        first = await Peer.connect(broker.port)
        second = await Peer.connect(broker.port, b"")
        assert await second.rest() == b"-ERR 'maximum connections exceeded'\r\n"
        await until(lambda: broker.closed)
        assert broker.closed[0].reason is Reason.MAX_CONNECTIONS
        assert await first.sync() == []
        assert len(broker.clients) == 1


async def test_maximum_subscriptions() -> None:
    async with running(max_subscriptions=1) as broker:
        peer = await Peer.connect(broker.port)
        assert await peer.sync(b"SUB a 1\r\nSUB a 1\r\nSUB b 2\r\n") == [b"-ERR 'maximum subscriptions exceeded'"]
        assert await peer.sync(b"UNSUB 1\r\nSUB b 2\r\n") == []


async def test_pings_until_stale() -> None:
    async with running(ping_interval=0.1) as broker:
        peer = await Peer.connect(broker.port)
        assert await peer.rest() == b"PING\r\nPING\r\n-ERR 'Stale Connection'\r\n"
        assert broker.closed[0].reason is Reason.STALE
        assert broker.stats.stale_connections == 1


async def test_answered_pings_keep_the_connection_and_measure_it() -> None:
    async with running(ping_interval=0.05, ping_max=1) as broker:
        peer = await Peer.connect(broker.port)
        for _ in range(3):
            assert await peer.line() == b"PING"
            peer.send(b"PONG\r\n")
        await peer.sync()
        assert 0 < broker.clients[1].rtt < 5


async def test_authentication_timeout() -> None:
    async with running(token="t", auth_timeout=0.05) as broker:
        peer = await Peer.connect(broker.port, b"")
        assert peer.info["auth_required"] is True
        assert await peer.rest() == b"-ERR 'Authentication Timeout'\r\n"
        assert broker.closed[0].reason is Reason.AUTHENTICATION_TIMEOUT


async def test_a_reader_that_stops_is_cut_at_its_pending_limit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nimsnats")
    async with running(max_pending=2 * 1024 * 1024) as broker:
        lazy = await Peer.connect(broker.port, receive_buffer=4096)
        await lazy.sync(b"SUB foo 1\r\n")
        publisher = await Peer.connect(broker.port)
        message = b"PUB foo 100000\r\n%b\r\n" % (b"x" * 100_000)
        while 1 in broker.clients:
            await publisher.sync(message * 5)
        assert broker.closed[0].reason is Reason.SLOW_PENDING
        assert broker.stats.slow_consumers == 1
        assert "Slow Consumer Detected: MaxPending of 2097152 Exceeded" in caplog.text
        assert broker.clients[2].stalls > 0
        assert broker.global_account.interest.count == 0
        await publisher.sync(message)
        lazy.close()


async def test_a_write_that_does_not_finish_in_time_is_cut() -> None:
    async with running(write_deadline=0.1) as broker:
        lazy = await Peer.connect(broker.port, receive_buffer=4096)
        await lazy.sync(b"SUB foo 1\r\n")
        publisher = await Peer.connect(broker.port)
        message = b"PUB foo 1000000\r\n%b\r\n" % (b"x" * 1_000_000)
        for _ in range(12):
            await publisher.sync(message)
        await until(lambda: broker.closed)
        assert broker.closed[0].reason is Reason.SLOW_DEADLINE
        assert broker.stats.slow_consumers == 1
        lazy.close()


async def test_a_fast_publisher_is_held_back_and_nothing_is_lost() -> None:
    async with running(max_pending=4 * 1024 * 1024) as broker:
        receiver = await Peer.connect(broker.port)
        await receiver.sync(b"SUB foo 1\r\n")
        publisher = await Peer.connect(broker.port)
        count, body = 300, b"x" * 65_536
        flood = asyncio.create_task(publisher.sync(b"PUB foo 65536\r\n%b\r\n" % body * count))
        for _ in range(count):
            assert await receiver.line() == b"MSG foo 1 65536"
            await receiver.reader.readexactly(len(body) + 2)
        await flood
        assert broker.stats.slow_consumers == 0


async def test_reasons_of_broken_protocol() -> None:
    async with running() as broker:
        ends = {
            b"FOO\r\n": Reason.PROTOCOL_VIOLATION,
            b"PUB foo\r\n": Reason.PROTOCOL_VIOLATION,
            b"PUB foo 9999999\r\n": Reason.MAX_PAYLOAD,
            b"SUB " + b"x" * 5000: Reason.MAX_CONTROL_LINE,
            b"-ERR 'x'\r\n": Reason.PARSE_ERROR,
            b"CONNECT {\r\n": Reason.PROTOCOL_VIOLATION,
            b'CONNECT {"protocol":7}\r\n': Reason.BAD_PROTOCOL_VERSION,
            b'CONNECT {"headers":false,"no_responders":true}\r\n': Reason.NO_RESPONDERS_HEADERS,
        }
        for script, reason in ends.items():
            peer = await Peer.connect(broker.port, QUIET)
            peer.send(script)
            await peer.rest()
            assert broker.closed[-1].reason is reason, script
        peer = await Peer.connect(broker.port)
        peer.close()
        await until(lambda: not broker.clients)
        assert broker.closed[-1].reason is Reason.CLIENT_CLOSED
        assert broker.closed[-1].stop_ns >= broker.closed[-1].start_ns


async def test_closed_connections_are_remembered_up_to_a_limit() -> None:
    async with running(max_closed_clients=2) as broker:
        for n in range(4):
            peer = await Peer.connect(broker.port)
            await peer.sync(b"SUB s.%d 1\r\n" % n)
            peer.close()
            await until(lambda: not broker.clients)
        assert [client.cid for client in broker.closed] == [3, 4]
        assert [sub.subject for sub in broker.closed[1].subs.values()] == [b"s.3"]
