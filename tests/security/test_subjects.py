"""Subjects with control characters: theirs alone, through batches, restarts, replicas, archives and routes."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimsnats.broker.account import InvalidSubject
from nimsnats.broker.subscription import Subscription
from nimsnats.jetstream.batch import SIZED, VERSION, BadBatch, Batch
from nimsnats.log import LogSettings, TextFormatter
from nimsnats.protocol.gotext import quoted
from nimsnats.protocol.headers import with_headers
from tests.broker.peer import until
from tests.jetstream.archives import ask, restore, snapshot
from tests.jetstream.stand import Stand, running
from tests.jetstream.trio import Trio, TrioNode, trio

STRANGE = [b"\nx.0", b"\rx.0", b"a\rb.0", b"\x00.0", b"a\x0bb.0", b"\x7f.0", b"\xff\xfe.0", b"\n.0", b"\n\rq.0"]
SUBJECTS = [subject for strange in STRANGE for subject in (b"before.0", strange, b"after.0")]


class Raw:
    """A connection that sends what no client library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Raw:
        raw = cls(*await asyncio.open_connection("127.0.0.1", port))
        await raw.reader.readline()
        await raw.send(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        return raw

    async def send(self, *lines: bytes) -> bytes:
        """Send; what comes back until the server has taken it all."""
        self.writer.write(b"".join(lines) + b"PING\r\n")
        await self.writer.drain()
        return await asyncio.wait_for(self.reader.readuntil(b"PONG\r\n"), 10)


async def publish(port: int) -> None:
    raw = await Raw.connect(port)
    await raw.send(*(b"PUB %b 1\r\n%d\r\n" % (subject, at % 10) for at, subject in enumerate(SUBJECTS)))
    raw.writer.close()


def held(stand: Stand, name: str = "S") -> dict[bytes, list[int]]:
    """Which sequences each subject has."""
    index = stand.stream(name).store.index
    return {subject: list(index.seqs(subject)) for subject in index.subjects()}


WANTED = {subject: [at + 1 for at, other in enumerate(SUBJECTS) if other == subject] for subject in SUBJECTS}
CONFIG = {"name": "S", "subjects": ["*.0"], "no_ack": True, "allow_direct": True}


async def test_a_restart_leaves_the_subjects_of_all_where_they_were(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        assert "error" not in await ask(stand.client, "STREAM.CREATE.S", CONFIG)
        await publish(stand.broker.port)
        await until(lambda: stand.stream("S").last_seq == len(SUBJECTS))
        assert held(stand) == WANTED
    for compacted in (False, True):
        async with running(tmp_path) as stand:
            assert held(stand) == WANTED
            for seq, subject in enumerate(SUBJECTS, 1):
                message = await stand.stream("S").load(seq)
                assert message is not None and (message.subject, message.payload) == (subject, b"%d" % ((seq - 1) % 10))
            answer = await stand.client.request("$JS.API.DIRECT.GET.S", b'{"seq": 2}')
            assert answer.headers is not None
            assert answer.headers["Nats-Subject"] == "?x.0" and len(answer.headers) == 4
            if not compacted:
                for group in stand.host.groups():
                    group.compact()


async def test_an_archive_takes_them_along(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await ask(stand.client, "STREAM.CREATE.S", CONFIG)
        await publish(stand.broker.port)
        await until(lambda: stand.stream("S").last_seq == len(SUBJECTS))
        taken = await snapshot(stand.client, "S")
        assert [message.subject for message in taken.messages] == SUBJECTS
        await ask(stand.client, "STREAM.DELETE.S")
        assert "error" not in await restore(stand.client, CONFIG, taken.archive)
        assert held(stand) == WANTED


async def test_a_consumer_that_filters_gets_its_own(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await ask(stand.client, "STREAM.CREATE.S", CONFIG)
        await publish(stand.broker.port)
        await until(lambda: stand.stream("S").last_seq == len(SUBJECTS))
        config = {"name": "C", "filter_subject": "after.0", "ack_policy": "none"}
        info = await ask(stand.client, "CONSUMER.CREATE.S.C", {"stream_name": "S", "config": config})
        assert info["num_pending"] == len(STRANGE)


async def test_three_nodes_hold_the_same_and_stay_together(tmp_path: Path) -> None:
    async with trio(tmp_path) as cluster:
        assert "error" not in await cluster.ask(0, "STREAM.CREATE.S", {**CONFIG, "num_replicas": 3})
        await cluster.led("S")
        await until(
            lambda: all(any(sub.handler is not None for sub in _all(node, b"before.0")) for node in cluster.nodes)
        )
        routes = [_routes(cluster, at) for at in range(3)]
        heard = await _listeners(cluster)
        for at, node in enumerate(cluster.nodes):
            raw = await Raw.connect(int(node.url.rpartition(":")[2]))
            await raw.send(
                b"SUB \nfoo 1\r\n", b"PUB other _R\r.1 1\r\nx\r\n", b"PUB \nother 1\r\nx\r\n", b"PUB a\rb 1\r\nx\r\n"
            )
            raw.writer.close()
            await publish(int(node.url.rpartition(":")[2]))
            await cluster.clients[at].publish("ordinary", b"%d" % at)
        await until(lambda: all(_last(cluster, at) == 3 * len(SUBJECTS) for at in range(3)))
        subjects = [_subjects(cluster, at) for at in range(3)]
        assert subjects[0] == subjects[1] == subjects[2]
        for subject, seqs in subjects[0].items():
            assert len(seqs) == 3 * SUBJECTS.count(subject), subject
        await until(lambda: all(len(messages) == 3 for messages in heard))
        assert [_routes(cluster, at) for at in range(3)] == routes  # the same ones: none has been torn down
        leader = cluster.nodes.index(cluster[cluster.leader("S")])
        await _deliver(int(cluster.nodes[(leader + 1) % 3].url.rpartition(":")[2]))
        assert [_routes(cluster, at) for at in range(3)] == routes


async def _deliver(port: int) -> None:
    """A consumer's messages with such subjects go over a route, and the answers come."""
    body = {"stream_name": "S", "config": {"name": "P", "deliver_subject": "to.me", "ack_policy": "none"}}
    request = json.dumps(body).encode()
    raw = await Raw.connect(port)
    got = await raw.send(
        b"SUB to.me 1\r\nSUB _R 2\r\nPUB $JS.API.CONSUMER.CREATE.S.P _R %d\r\n%b\r\n" % (len(request), request)
    )
    async with asyncio.timeout(10):
        while b'"name":"P"' not in got or len(re.findall(rb" 1 \$JS\.ACK\.S\.P\.", got)) < 3 * len(SUBJECTS):
            got += await raw.reader.read(65536)
    raw.writer.close()


async def _listeners(cluster: Trio) -> list[list[bytes]]:
    heard: list[list[bytes]] = [[] for _ in cluster.clients]
    for client, messages in zip(cluster.clients, heard, strict=True):

        async def take(message: Any, messages: list[bytes] = messages) -> None:
            messages.append(message.data)

        await client.subscribe("ordinary", cb=take)
        await client.flush()
    await until(lambda: all(len(list(_all(node, b"ordinary"))) == 3 for node in cluster.nodes))
    return heard


def _all(node: TrioNode, subject: bytes) -> Iterator[Subscription]:
    for found in node.app.account.interest.match(subject):
        yield from found


def _routes(cluster: Trio, at: int) -> set[int]:
    table = cluster.nodes[at].server.routes
    assert table is not None
    return {id(route) for route in table.routes}


def _last(cluster: Trio, at: int) -> int:
    served = cluster.nodes[at].served("S")
    return served.stream.last_seq if served is not None else 0


def _subjects(cluster: Trio, at: int) -> dict[bytes, list[int]]:
    served = cluster.nodes[at].served("S")
    assert served is not None
    index = served.stream.store.index
    return {subject: list(index.seqs(subject)) for subject in index.subjects()}


async def test_nobody_subscribes_to_what_no_line_can_say(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        account = stand.broker.accounts["$G"]
        for subject in (b"\nfoo", b"a\r.b", b"a b", b"a\tb"):
            with pytest.raises(InvalidSubject):
                account.subscribe(subject, lambda *_: None)


# The batch


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=6)), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_subjects_survive_a_batch(messages: list[tuple[bytes, bytes]]) -> None:
    _survives(messages)


@pytest.mark.extended
@pytest.mark.timeout(900)
@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=6)), min_size=1, max_size=40))
@settings(max_examples=10_000, deadline=None)
def test_any_subjects_survive_a_batch_at_length(messages: list[tuple[bytes, bytes]]) -> None:
    _survives(messages)


def _survives(messages: list[tuple[bytes, bytes]]) -> None:
    subjects, payloads = map(list, zip(*messages, strict=True))
    data = Batch(7, subjects, payloads).encode()
    assert data[0] == (SIZED if any(b"\n" in subject for subject in subjects) else VERSION)
    again = Batch.decode(data)
    assert list(again.subjects) == subjects and list(again.payloads) == payloads and again.encode() == data
    for end in range(0, len(data), 7):
        with pytest.raises(BadBatch):
            Batch.decode(data[:end])


@given(st.binary(max_size=80), st.integers(1, 3), st.integers(0, 255), st.integers(0, 1 << 32 - 1))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_batch_or_none(tail: bytes, version: int, flags: int, count: int) -> None:
    head = pack("<BBHQIIQ", version, flags, 0, 1, count % (1 << 32), len(tail) // 2, len(tail) // 4)
    for data in (head + tail, tail):
        try:
            batch = Batch.decode(data)
        except BadBatch:
            continue
        assert len(batch.subjects) == len(batch.payloads) == len(batch)


def test_blocks_of_before_are_still_read() -> None:
    """Byte for byte as the version before wrote them."""
    head = pack("<BBHQIIQ", 1, 4, 0, 5, 2, 3, 0)
    data = head + b"a\nb" + array("I", [0, 1]).tobytes() + array("I", [1]).tobytes() + b"xy"
    batch = Batch.decode(data)
    assert (list(batch.subjects), list(batch.payloads), batch.rules) == ([b"a", b"b"], [b"x", b"y"], 0)
    assert batch.encode() == data


# Lines and headers that we write


def test_a_log_line_is_one_line_whatever_stands_in_it() -> None:
    forged = "x\n[1] 2026/01/02 15:04:05.000000 [INF] Server is ready\r\x1b[31m\u2028"
    record = logging.LogRecord("nimsnats", logging.WARNING, "", 0, "client %s has gone", (forged,), None)
    line = TextFormatter(LogSettings()).format(record)
    assert "\n" not in line and "\r" not in line and "\x1b" not in line and "\\n[1] 2026" in line
    try:
        raise ValueError(forged)
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    lines = TextFormatter(LogSettings()).format(record).split("\n")
    assert len(lines) > 2 and not any(line.startswith("[") for line in lines[1:])


def test_quoted_texts_stay_in_their_quotes() -> None:
    assert quoted('a"\\\n\x01\u2028é\U000e0001') == '"a\\"\\\\\\n\\x01\\u2028é\\U000e0001"'


@pytest.mark.parametrize("block", [b"", b"N", b"\r\n"])
def test_headers_are_added_to_what_is_hardly_a_block(block: bytes) -> None:
    assert with_headers(block, ((b"A", b"b"),)) == b"NATS/1.0\r\nA: b\r\n\r\n"
