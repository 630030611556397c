"""A closed connection keeps nothing but what `/connz?state=closed` shows, and that within bounds."""

from __future__ import annotations

import asyncio
import gc
import json

import psutil
import pytest

from nimsnats.broker.client import ClientConnection
from nimsnats.broker.closed import MOST_BYTES, MOST_LISTED, ClosedClients
from nimsnats.broker.local import LocalConnection
from nimsnats.broker.reasons import Reason
from nimsnats.broker.server import Broker
from tests.broker.peer import QUIET, Peer, running, until
from tests.broker.route_stand import routed

MEGABYTE = 1024 * 1024


def resident() -> int:
    """Bytes of this process in memory."""
    return psutil.Process().memory_info().rss


def connections(broker: Broker) -> int:
    """Clients of a broker that somebody still refers to."""
    gc.collect()
    return sum(type(each) is ClientConnection and each.broker is broker for each in gc.get_objects())


async def connected(broker: Broker, said: bytes = QUIET) -> LocalConnection:
    """An in-process client that the broker has heard."""
    local = broker.connect_local(lambda data: None)
    local.write(said)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return local


HALVES = {
    "a payload in one read": [b"PUB a 1048576\r\n" + b"x" * (MEGABYTE // 2)],
    "a payload in many reads": [b"PUB a 1048576\r\n"] + [b"x" * 65536] * 8,
    "headers": [b"HPUB a 1048000 1048576\r\nNATS/1.0\r\n" + b"x" * (MEGABYTE // 2)],
    "after whole messages": [b"PUB a 1\r\nx\r\n" * 5 + b"PUB a 1048576\r\n" + b"x" * (MEGABYTE // 2)],
}


@pytest.mark.parametrize("half", HALVES)
async def test_half_sent_payloads_of_a_thousand_clients_are_given_back(half: str) -> None:
    async with running() as broker:
        before = resident()
        for _ in range(1000):
            local = await connected(broker)
            for piece in HALVES[half]:
                local.write(piece)
                await asyncio.sleep(0)
            local.close()
        await until(lambda: not broker.clients)
        del local
        await asyncio.sleep(0)
        assert len(broker.closed) == 1000
        assert connections(broker) == 0, "whole connections are kept"
        assert resident() - before < 100 * MEGABYTE, "of 500 MB that were sent"


async def test_half_sent_payloads_over_tcp_and_over_routes_are_given_back() -> None:
    async with running() as broker, routed("A") as table:
        before = resident()
        for _ in range(100):
            peer = await Peer.connect(broker.port)
            peer.send(b"PUB a 1048576\r\n" + b"x" * (MEGABYTE // 2))
            await peer.writer.drain()
            peer.close()
            _, writer = await asyncio.open_connection("127.0.0.1", table.port)
            writer.write(b"CONNECT {}\r\nRMSG $G a 1048576\r\n" + b"x" * (MEGABYTE // 2))
            writer.close()
        await until(lambda: not broker.clients and not table.open)
        gc.collect()
        assert not [each for each in gc.get_objects() if type(each) is bytes and len(each) > MEGABYTE // 4]
        assert resident() - before < 60 * MEGABYTE


async def test_what_waited_for_a_client_and_who_it_was_is_given_back() -> None:
    """Messages that it did not read, subscriptions, credentials, and everybody who refers to it."""
    async with running() as broker:
        says = {
            "verbose": False,
            "user": "u",
            "pass": "secret",
            "jwt": "a.b.c",
            "name": "n",
            "lang": "l",
            "version": "v",
        }
        connect = b"CONNECT " + json.dumps(says).encode() + b"\r\n"
        local = await connected(broker, connect + b"SUB a.* 1\r\nSUB b q 2\r\nSUB > 3\r\nPUB a.b 1\r\nx\r\n" * 3)
        client = local.client
        broker.global_account.publish(b"a.b", b"y" * MEGABYTE)
        client.close(Reason.KICKED)
        assert not client.out and not client.queued and not client.subs and not client.parser.tail
        assert client.options.password == client.options.jwt == ""
        del client, local
        for _ in range(3):
            await asyncio.sleep(0)
        assert connections(broker) == 0
        (record,) = broker.closed
        assert (record.name, record.lang, record.version, record.sub_count) == ("n", "l", "v", 3)
        assert [sub.subject for sub in record.subs.values()] == [b"a.*", b"b", b">"]
        assert not any("secret" in str(getattr(record, name)) for name in record.__slots__)


async def test_a_flood_of_subscriptions_is_counted_and_listed_up_to_a_bound() -> None:
    async with running() as broker:
        local = await connected(broker)
        local.write(b"".join(b"SUB %b.%d %d\r\n" % (b"s" * 100, at, at) for at in range(20_000)))
        await until(lambda: local.client.sub_count == 20_000)
        local.close()
        await until(lambda: len(broker.closed) == 1)
        (record,) = broker.closed
        assert record.sub_count == 20_000 and 0 < len(record.subs) < 1000
        assert record.size < 2 * MOST_LISTED
        await until(lambda: not broker.global_account.interest.count)  # it leaves in slices


def test_records_are_bounded_in_bytes_as_well() -> None:
    closed = ClosedClients(10_000)

    class Record:
        size = 100_000

    for _ in range(1000):
        closed.add(Record())  # type: ignore[arg-type]
    assert len(closed) == MOST_BYTES // 100_000 and closed.size <= MOST_BYTES
    small = ClosedClients(0)
    small.add(Record())  # type: ignore[arg-type]
    assert not len(small) and not small.size


async def test_long_names_count() -> None:
    async with running(max_control_line=64 * 1024) as broker:
        name = "\N{SNOWMAN}" * 15_000
        says = json.dumps({"verbose": False, "name": name}, ensure_ascii=False)
        local = await connected(broker, f"CONNECT {says}\r\n".encode())
        local.close()
        await until(lambda: len(broker.closed) == 1)
        assert broker.closed[0].size > 60_000


async def test_whoever_says_nothing_is_cut_off_where_it_must_say_who_it_is() -> None:
    async with running(auth_timeout=0.05, token="t") as broker:
        said: list[bytes] = []
        locals_ = [broker.connect_local(said.append) for _ in range(50)]
        for local in locals_[::2]:
            local.write(b"CONNECT {" + b" " * 500)
        await until(lambda: b"".join(said).count(b"-ERR 'Authentication Timeout'") == 50)
        assert not broker.clients
        assert not any(local.client.parser.tail for local in locals_)


@pytest.mark.errors_inside
async def test_a_broken_reader_of_an_in_process_connection_ends_that_connection_only() -> None:
    async with running() as broker:

        def received(data: bytes) -> None:
            raise KeyError

        broker.connect_local(received)
        other = await Peer.connect(broker.port)
        await until(lambda: len(broker.clients) == 1)
        assert await other.sync() == []
        other.close()
