"""Archives that are bombs, or lie: they end as soon as they pass what they may be, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimsnats.jetstream.snapshot import inflow, transfers
from nimsnats.protocol import archive as archives
from nimsnats.protocol.archive import (
    ArchivedConsumer,
    ArchivedMessage,
    ArchiveReader,
    BadArchive,
    message_entry,
    state_entry,
)
from nimsnats.protocol.s2 import STREAM_IDENTIFIER, BadStream, S2Reader, masked_crc
from tests.broker.peer import until
from tests.jetstream.archives import archive_of, ask, framed, restore, snapshot
from tests.jetstream.stand import running

CONFIG: dict[str, Any] = {"name": "R", "subjects": ["r.*"]}
STATE = {"messages": 1, "bytes": 100, "first_seq": 1, "last_seq": 1 << 40, "consumer_count": 0}
PLACE = {"delivered": {"consumer_seq": 1, "stream_seq": 1}, "ack_floor": {"consumer_seq": 0, "stream_seq": 0}}


def message(seq: int = 1, payload: bytes = b"", headers: bytes = b"", subject: bytes = b"r.a") -> ArchivedMessage:
    return ArchivedMessage(seq, 5, subject, headers, payload)


def uvarint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def zeros(size: int) -> bytes:
    """A frame of a few bytes that unpacks to `size` zeros (at least 70,000)."""
    run = size - 5  # one literal, four bytes copied, the rest repeated
    block = uvarint(size) + b"\x00\x00" + b"\x01\x01" + bytes((7 << 2 | 1, 0)) + (run - 65540).to_bytes(3, "little")
    body = masked_crc(bytes(size)).to_bytes(4, "little") + block
    return b"\x00" + len(body).to_bytes(3, "little") + body


def bomb(state: dict[str, Any], count: int, size: int = 1_000_000) -> bytes:
    """`count` messages of zeros, packed into next to nothing."""
    stuff, pieces = zeros(size), [framed(state_entry(1, state))]
    for seq in range(1, count + 1):
        whole = message_entry(message(seq, bytes(size)))
        pieces += [framed(whole[: len(whole) - size])[len(STREAM_IDENTIFIER) :], stuff]
    return b"".join(pieces)


async def test_bombs_end_with_an_error_as_soon_as_they_pass_what_they_may_hold(tmp_path: Path) -> None:
    small = {**CONFIG, "max_bytes": 2_000_000}
    most = {**STATE, "messages": 1 << 30}
    bombs = {
        "more bytes than it says": (CONFIG, bomb(most, 40)),
        "more bytes than it says and than the stream may hold": (small, bomb(most, 40)),
        "more messages than it says": (CONFIG, bomb({**STATE, "bytes": 1 << 30}, 2)),
        "more than the node has room for": (CONFIG, bomb({**most, "bytes": 1 << 40}, 40)),
    }
    async with running(tmp_path, max_file=64 << 20) as stand:
        groups = stand.database.group_names()
        tracemalloc.start()
        try:
            for what, (config, archive) in bombs.items():
                assert len(archive) < 5_000
                answer = await restore(stand.client, config, archive)
                assert answer["error"]["err_code"] == 10062, what
                await until(lambda: stand.database.group_names() == groups)
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()
        assert (await ask(stand.client, "STREAM.NAMES"))["streams"] is None
        assert "error" not in await restore(stand.client, CONFIG, archive_of(STATE, [message()]))


async def test_a_stream_that_is_tightened_while_it_is_restored_keeps_its_newest(tmp_path: Path) -> None:
    """As on the Go server: limits of the stream are enforced on what an honest archive holds."""
    async with running(tmp_path) as stand:
        await ask(stand.client, "STREAM.CREATE.R", CONFIG)
        for _ in range(100):
            await stand.client.request("r.a", bytes(1000))
        taken = await snapshot(stand.client, "R")
        await ask(stand.client, "STREAM.DELETE.R")
        answer = await restore(stand.client, {**CONFIG, "max_bytes": 10_000}, taken.archive)
        assert (answer["state"]["messages"], answer["state"]["last_seq"]) == (9, 100)


async def test_what_a_publisher_may_send_comes_back_from_an_archive(tmp_path: Path) -> None:
    async with running(tmp_path) as stand:
        blocks = [b"garbage", b"N", b"NATS/1.0\r\nA: b", b"\xff\x00"]
        entries = [message(seq, headers=block) for seq, block in enumerate(blocks, 1)]
        entries.append(
            message(9, headers=b"NATS/1.0\r\nNats-TTL: 99999999999999999999\r\n\r\n")
        )  # a Go server takes it
        state = {**STATE, "messages": len(entries)}
        answer = await restore(stand.client, {**CONFIG, "allow_msg_ttl": True}, archive_of(state, entries))
        assert answer["state"]["messages"] == len(entries)
        taken = await snapshot(stand.client, "R")
        assert [one.headers for one in taken.messages] == [one.headers for one in entries]


@pytest.mark.parametrize(
    "fields",
    [
        {"pending": {"1": {"Sequence": 1, "Timestamp": 1 << 70}}},
        {"pending": {"9" * 5000: {"Sequence": 1, "Timestamp": 1}}},
        {"pending": {"1": [1, 1]}},
        {"pending": [1]},
        {"redelivered": {"1": "x"}},
        {"delivered": {"consumer_seq": 1.5, "stream_seq": 1}},
        {"delivered": {"consumer_seq": 1 << 64, "stream_seq": 1}},
        {"ack_floor": None},
    ],
    ids=str,
)
async def test_a_consumer_that_is_none_ends_a_restore(tmp_path: Path, fields: dict[str, Any]) -> None:
    one = ArchivedConsumer(
        "C", {"config": {"durable_name": "C", "ack_policy": "explicit"}, "state": {**PLACE, **fields}}
    )
    async with running(tmp_path) as stand:
        groups = stand.database.group_names()
        answer = await restore(stand.client, CONFIG, archive_of({**STATE, "consumer_count": 1}, [one, message()]))
        assert answer["error"]["err_code"] == 10062
        await until(lambda: stand.database.group_names() == groups)


def test_documents_are_bounded_one_by_one_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = archives._entry(archives.STATE.encode(), 0, 0, b"", b'{"x":' + b"[" * 5000)
    with pytest.raises(BadArchive):
        list(ArchiveReader().feed(archives.MAGIC + deep))
    monkeypatch.setattr(archives, "MAX_VALUES", 100)
    wide = archives._entry(archives.STATE.encode(), 0, 0, b"", json.dumps({"x": [[]] * 60}).encode())
    with pytest.raises(BadArchive, match="too large"):
        list(ArchiveReader().feed(archives.MAGIC + wide))
    monkeypatch.setattr(archives, "MAX_DOCUMENTS", 1_000)
    many = archive_of({**STATE, "consumer_count": 99}, [ArchivedConsumer("C", {"x": "y" * 300})] * 99)
    reader, frames = ArchiveReader(), S2Reader()
    with pytest.raises(BadArchive, match="too large"):
        for piece in frames.feed(many):
            list(reader.feed(piece))


async def test_uploads_are_bounded_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "MAX_UPLOADS", 2)
    monkeypatch.setattr(inflow, "_PATIENCE", 0.2)
    async with running(tmp_path) as stand:
        groups = stand.database.group_names()
        answers = [await ask(stand.client, f"STREAM.RESTORE.R{at}", {"config": {"name": f"R{at}"}}) for at in range(3)]
        assert ["error" in answer for answer in answers] == [False, False, True]
        assert answers[2]["error"]["err_code"] == 10062 and "2 uploads" in answers[2]["error"]["description"]
        await until(lambda: stand.database.group_names() == groups)
        async with asyncio.timeout(10):
            while "error" in await restore(stand.client, CONFIG, archive_of(STATE, [message()])):
                pass  # the last of them is about to say so


def _read(data: bytes) -> None:
    frames, reader = S2Reader(), ArchiveReader()
    try:
        for piece in frames.feed(data):
            for _ in reader.feed(piece):
                pass
    except (BadStream, BadArchive):
        pass


GOOD = archive_of({**STATE, "consumer_count": 1}, [ArchivedConsumer("C", {"state": PLACE}), message(2, b"abc" * 30)])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_archive_is_refused(data: st.DataObject) -> None:
    _damage(data)


@pytest.mark.extended
@pytest.mark.timeout(900)
@given(st.data())
@settings(max_examples=10_000, deadline=None)
def test_a_damaged_archive_is_refused_at_length(data: st.DataObject) -> None:
    _damage(data)


def _damage(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([GOOD, GOOD[len(STREAM_IDENTIFIER) + 8 :]])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    _read(bytes(content))
    _read(framed(bytes(content)))  # what is behind the checksums
