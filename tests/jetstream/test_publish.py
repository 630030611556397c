"""Publishing: every acknowledgement goes to the right inbox with the right sequence, whatever way out it takes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import nats.js.errors
import pytest

from nimsnats.broker import brake
from nimsnats.jetstream import errors, publish, waiting
from nimsnats.jetstream.clock import format_duration, format_time, parse_duration, parse_time
from nimsnats.raft.machine import ProposalDropped
from tests.jetstream.stand import Stand, running


class Raw:
    """A connection that speaks the protocol by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, stand: Stand) -> Raw:
        raw = cls(*await asyncio.open_connection("127.0.0.1", stand.broker.port))
        await raw.reader.readline()
        raw.writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        return raw

    async def messages(self, count: int) -> list[tuple[bytes, bytes, bytes]]:
        """(subject, sid, payload) of the next messages."""
        found: list[tuple[bytes, bytes, bytes]] = []
        while len(found) < count:
            words = (await asyncio.wait_for(self.reader.readline(), 5)).split()
            if words[0] == b"MSG":
                payload = await self.reader.readexactly(int(words[-1]) + 2)
                found.append((words[1], words[2], payload[:-2]))
        return found

    async def statuses(self, count: int) -> list[bytes]:
        """First header lines of the next messages with headers."""
        found: list[bytes] = []
        while len(found) < count:
            words = (await asyncio.wait_for(self.reader.readline(), 5)).split()
            if words[0] == b"HMSG":
                block = await self.reader.readexactly(int(words[-1]) + 2)
                found.append(block.split(b"\r\n")[0])
        return found


def ack(seq: int) -> bytes:
    return b'{"stream":"S","seq":%d}' % seq


async def test_acknowledgements_of_many_clients_in_one_tick(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s.*"])
        clients = [await Raw.connect(stand) for _ in range(3)]
        for n, raw in enumerate(clients):
            raw.writer.write(b"SUB _INBOX.%d.* s%%d%d\r\n" % (n, n))
            raw.writer.write(b"".join(b"PUB s.%d _INBOX.%d.%d 1\r\nx\r\n" % (i % 3, n, i) for i in range(150)))
        seqs: list[int] = []
        for n, raw in enumerate(clients):
            messages = await raw.messages(150)
            assert [subject for subject, _, _ in messages] == [b"_INBOX.%d.%d" % (n, i) for i in range(150)]
            assert {sid for _, sid, _ in messages} == {b"s%%d%d" % n}
            mine = [json.loads(payload)["seq"] for _, _, payload in messages]
            assert mine == sorted(mine)
            seqs += mine
            raw.writer.close()
        assert sorted(seqs) == list(range(1, 451))


async def test_replies_that_are_special(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        raw = await Raw.connect(stand)
        raw.writer.write(b"SUB _INBOX.a.* 1\r\nSUB _INBOX.a.literal 2\r\nSUB _INBOX.b.* 3\r\nSUB _INBOX.*.x 4\r\n")
        replies = [b"_INBOX.a.1", b"_INBOX.a.literal", b"_INBOX.b.1", b"", b"_INBOX.b.x", b"_INBOX.b.", b"_INBOX.c.1"]
        raw.writer.write(b"".join(b"PUB s %b 1\r\nx\r\n" % reply for reply in replies))
        got = sorted(await raw.messages(6))
        assert got == sorted(
            [
                (b"_INBOX.a.1", b"1", ack(1)),
                (b"_INBOX.a.literal", b"1", ack(2)),
                (b"_INBOX.a.literal", b"2", ack(2)),
                (b"_INBOX.b.1", b"3", ack(3)),
                (b"_INBOX.b.x", b"3", ack(5)),
                (b"_INBOX.b.x", b"4", ack(5)),
            ]
        )
        raw.writer.write(b"SUB > 9\r\nPUB s _INBOX.a.2 1\r\nx\r\nPUB s _INBOX.a.3 1\r\ny\r\n")
        seen = await raw.messages(6)
        assert {message for message in seen if message[1] == b"9" and message[0] != b"s"} == {
            (b"_INBOX.a.2", b"9", ack(8)),
            (b"_INBOX.a.3", b"9", ack(9)),
        }
        raw.writer.close()


async def test_a_dropped_batch_is_an_error_for_everyone_in_it(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        stream = stand.stream("S")
        stream.propose_batch = lambda publication, data: asyncio.get_running_loop().call_soon(  # type: ignore[assignment,method-assign]
            stream.refuse, publication, ProposalDropped("database or disk is full")
        )
        answers = await asyncio.gather(*(stand.client.request("s", b"x") for _ in range(3)))
        for answer in answers:
            error = json.loads(answer.data)["error"]
            assert (error["code"], error["err_code"]) == (503, 10077)
            assert error["description"] == "database or disk is full"
        del stream.propose_batch
        assert json.loads((await stand.client.request("s", b"x")).data)["seq"] == 1


async def test_a_full_node_and_an_overloaded_stream_refuse(tmp_path: Path) -> None:
    async with running(tmp_path, max_file=200) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        answers = [json.loads((await stand.client.request("s", b"x" * 80)).data) for _ in range(3)]
        assert [answer.get("seq") for answer in answers] == [1, 2, 0]
        assert answers[2]["error"]["err_code"] == errors.INSUFFICIENT_RESOURCES.err_code
        served = stand.engine.accounts["$G"].served("S")
        served.ingest.full = errors.STREAM_TOO_MANY_REQUESTS
        answer = await stand.client.request("s", b"x")
        assert answer.headers == {"Status": "429", "Description": "Too Many Requests"}
        assert json.loads(answer.data)["error"]["err_code"] == 10167
        with pytest.raises(nats.js.errors.APIError, match="insufficient storage"):
            await stand.client.jetstream().add_stream(name="T", max_bytes=500)


async def test_a_disk_that_stands_still_bounds_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "QUEUE_MESSAGES", 10)
    monkeypatch.setattr(publish, "FULL_MESSAGES", 6)
    monkeypatch.setattr(brake, "HOLD", 0.01)
    for module in (publish, waiting):
        monkeypatch.setattr(module, "MAX_BATCH", 4)
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        stream = stand.stream("S")
        held: list[tuple[publish.Publication, bytes]] = []
        stream.propose_batch = lambda publication, data: held.append((publication, data))  # type: ignore[method-assign]
        raw = await Raw.connect(stand)
        raw.writer.write(b"SUB i.* 1\r\n")
        for n in range(40):
            raw.writer.write(b"PUB s i.%d 1\r\nx\r\n" % n)
            await stand.client.flush()
        refused = await raw.statuses(1)
        stored = sum(len(publication.batch) for publication, _ in held) + publish.QUEUE_MESSAGES
        refused += await raw.statuses(39 - stored)
        assert set(refused) == {b"NATS/1.0 429 Too Many Requests"}
        del stream.propose_batch
        for publication, data in held:
            stream.propose_batch(publication, data)
        acked = await raw.messages(stored)
        assert [json.loads(payload)["seq"] for _, _, payload in acked] == list(range(1, len(acked) + 1))
        raw.writer.close()


async def test_status_lines_are_not_stored_and_headers_are(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        await stand.client.jetstream().add_stream(name="S", subjects=["s"])
        raw = await Raw.connect(stand)
        block = b"NATS/1.0 503 Go away\r\nA: b\r\n\r\n"
        raw.writer.write(b"SUB i 1\r\nHPUB s i %d %d\r\n%bx\r\n" % (len(block), len(block) + 1, block))
        await raw.messages(1)
        assert stand.stream("S").get(1).headers == b"NATS/1.0\r\nA: b\r\n\r\n"  # type: ignore[union-attr]
        raw.writer.close()


async def test_messages_of_a_deleted_stream_find_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        js = stand.client.jetstream()
        await js.add_stream(name="S", subjects=["s"])
        await js.publish("s", b"x")
        await js.delete_stream("S")
        with pytest.raises(nats.js.errors.NoStreamResponseError):
            await js.publish("s", b"x")
        await js.add_stream(name="S", subjects=["s"])
        assert (await js.publish("s", b"x")).seq == 1


def test_times_and_durations_read_what_they_write() -> None:
    for nanoseconds in (1, 10**9, 1732_000_000_123_456_789, 1732_000_000_500_000_000):
        assert parse_time(format_time(nanoseconds)) == nanoseconds
    assert parse_time("2024-01-01T02:00:00+02:00") == parse_time("2024-01-01T00:00:00Z")
    for text in ("0s", "1ns", "1.5µs", "2ms", "1s", "1m30s", "1h0m0.5s", "-3s"):
        assert format_duration(parse_duration(text)) == text
    for bad in ("", "1", "x", "1s1", "-", "1d"):
        with pytest.raises(ValueError):
            parse_duration(bad)
