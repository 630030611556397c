"""Targets for bytes that peers send or backups hold: S2, archives, Raft's frames, mail, batches, states."""

from __future__ import annotations

import itertools
import json
import logging
import zlib
from typing import Any, cast

import msgpack

from nimsnats.identity import node_hash
from nimsnats.jetstream.batch import BadBatch, Batch
from nimsnats.jetstream.blocks import Note
from nimsnats.jetstream.consumer.rules import ServerLimits, StreamTraits
from nimsnats.jetstream.mail import Mail
from nimsnats.jetstream.packing import pack, unpack
from nimsnats.jetstream.snapshot.consumers import OURS, BadConsumer, beyond, record
from nimsnats.protocol import s2
from nimsnats.protocol.archive import (
    END,
    ArchivedConsumer,
    ArchivedMessage,
    ArchivedState,
    ArchiveReader,
    BadArchive,
    consumer_entry,
    message_entry,
    state_entry,
)
from nimsnats.raft.machine import Entry
from nimsnats.raft.membership import Membership
from nimsnats.raft.message import Kind, Message
from nimsnats.raft.wire import Fetch, Malformed, Piece, decode, encode
from tests.jetstream.archives import framed
from tests.security.fuzz.target import Target, pieces_of

_SELDOM = 8
"""One of so many inputs is put into frames: their checksums take most of the time."""


def _frames(pieces: list[bytes]) -> tuple[bytes, str]:
    """The content of an S2 stream up to its end or its first error, and that error."""
    reader = s2.S2Reader()
    out: list[bytes] = []
    try:
        for piece in pieces:
            out += reader.feed(piece)
        reader.finish()
    except s2.BadStream as error:
        return b"".join(out), str(error)
    return b"".join(out), ""


def compression(data: bytes) -> None:
    """S2: a stream as it is, `data` as the content of one block, and `data` wrapped and unwrapped."""
    whole = _frames([data])
    assert _frames(pieces_of(data)) == whole
    try:
        content = s2.decode_block(data)
    except (IndexError, ValueError):
        pass
    else:
        assert len(content) <= s2.MAX_BLOCK
        if len(content) < 1 << 16:
            body = s2.masked_crc(content).to_bytes(4, "little") + data
            stream = s2.STREAM_IDENTIFIER + b"\0" + len(body).to_bytes(3, "little") + body
            assert _frames(pieces_of(stream)) == (content, "")
    if zlib.crc32(data) % _SELDOM == 0:
        assert _frames(pieces_of(framed(data))) == (data, "")


_TRAITS = StreamTraits("S", subjects=["a.>"])
_LIMITS = ServerLimits()


def _items(pieces: list[bytes]) -> tuple[list[Any], str]:
    reader = ArchiveReader()
    items: list[Any] = []
    try:
        for piece in pieces:
            for item in reader.feed(piece):
                items.append(item)
        reader.finish()
    except BadArchive as error:
        return items, str(error)
    return items, ""


def archive(data: bytes) -> None:
    """An archive, plain and in S2 frames, and its consumers; what was read and is written again reads the same."""
    found, wrong = _items([data])
    assert _items(pieces_of(data)) == (found, wrong)
    if zlib.crc32(data) % _SELDOM == 0:
        frames = s2.S2Reader()
        assert _items([part for piece in pieces_of(framed(data)) for part in frames.feed(piece)]) == (found, wrong)
    again = b""
    for item in found:
        if isinstance(item, ArchivedState):
            again += state_entry(item.time, item.fields)
        elif isinstance(item, ArchivedConsumer):
            again += consumer_entry(0, item.name, item.fields)
            consumer(item)
        else:
            again += message_entry(item)
    if not wrong:
        assert _items([again + END]) == (found, "")


def consumer(item: ArchivedConsumer) -> None:
    """A consumer of an archive as an entry of a stream's log."""
    try:
        body = record(item, _TRAITS, _LIMITS, 1)
    except BadConsumer as error:
        assert str(error)
        return
    assert unpack(pack(body))["name"] == item.name
    beyond(body, 10)


def frames(data: bytes) -> None:
    """Raft's frames."""
    try:
        frame = decode(data)
    except Malformed as error:
        assert str(error)
        return
    again = decode(encode(frame.sender, frame.receiver, frame.incarnation, frame.groups))
    assert again == frame


class _Account:
    """As much of an account as `Mail` uses."""

    def subscribe(self, subject: bytes, callback: Any, **_options: Any) -> Any:
        self.callback = callback
        return subject

    def publish(self, subject: bytes, payload: bytes) -> int:
        raise AssertionError("nothing was asked")


_LOG = logging.getLogger("fuzz")


class _Runtime:
    """As much of a runtime as `Mail` uses while nobody asks anything."""

    class random:
        @staticmethod
        def getrandbits(bits: int) -> int:
            return 7


def mail(data: bytes) -> None:
    """Messages between nodes, before any listener has seen them."""
    system = _Account()
    box = Mail(cast("Any", system), "ours@1", cast("Any", _Runtime()), _LOG)
    heard: list[Any] = []
    box.hear("word", lambda sender, body: heard.append((sender, body)))
    subject = b"$NIMS.API." + node_hash("ours@1").encode()
    system.callback(subject, b"", b"", data, None)
    assert box.refused + len(heard) <= 1
    assert all(type(sender) is str for sender, _ in heard)


def batch(data: bytes) -> None:
    """Batches of messages, from the log, from a peer, from the disk."""
    try:
        found = Batch.decode(data)
    except BadBatch as error:
        assert str(error)
        return
    subjects, payloads, headers = list(found.subjects), list(found.payloads), found.headers
    assert len(subjects) == len(payloads) == len(found) == len(found.sizes)
    assert headers is None or len(headers) == len(found)
    again = Batch.decode(found.encode())
    assert (again.time, list(again.subjects), list(again.payloads), again.headers, again.offsets, again.times) == (
        *(found.time, subjects, payloads, headers, found.offsets, found.times),
    )
    assert (again.base, again.told, again.expire) == (found.base, found.told, found.expire)


def states(data: bytes) -> None:
    """msgpack of ours, memberships and the notes of blocks."""
    try:
        value = unpack(data)
    except ValueError:
        pass
    else:
        assert msgpack.packb(value) is not None
    try:
        membership = Membership.decode(data)
    except (ValueError, TypeError, AssertionError, RecursionError):  # as `raft.wire.check_members` expects
        pass
    else:
        if all(type(name) is str for name in membership.everyone):
            assert Membership.decode(membership.encode()) == membership


def note(data: bytes) -> None:
    """The note of a block."""
    try:
        found = Note(data)
    except ValueError:
        return
    assert len(found.live) <= max(len(data), int(found.count))


_STATE = {"messages": 2, "bytes": 9, "first_seq": 1, "last_seq": 9, "consumer_count": 1}
_CONSUMER = {
    "config": {"durable_name": "C", "name": "C", "ack_policy": "explicit"},
    "state": {"delivered": {"consumer_seq": 3, "stream_seq": 3}, "ack_floor": {"consumer_seq": 1, "stream_seq": 1},
              "pending": {"2": {"Sequence": 2, "Timestamp": 5}}, "redelivered": {"2": 1}},
}  # fmt: skip
_OURS = {**_CONSUMER, OURS: {"created": 1, "generated": False,
                             "state": [[3, 3, 1, 1], [0, 0, 0, 0], [2, 2, 5], [2, 2], [], [1, 2]]}}  # fmt: skip
_ARCHIVES = [
    state_entry(1, {**_STATE, "consumer_count": count})
    + consumers
    + message_entry(ArchivedMessage(3, 1_700_000_000_000_000_001, b"a.b", b"NATS/1.0\r\nX: y\r\n\r\n", b"payload"))
    + message_entry(ArchivedMessage(1 << 40, -5, b"a.c", b"", b""))
    + END
    for count, consumers in (
        (0, b""),
        (1, consumer_entry(1, "C", _CONSUMER)),
        (2, consumer_entry(1, "C", _OURS) + consumer_entry(1, "D", _CONSUMER)),
    )
]
_MEMBERS = Membership(frozenset({"a@1", "b@2"}), frozenset({"c@3"})).encode()
_FRAMES = [
    encode("a@1", "b@2", 7, [("meta", [Message(kind, "b@2", "a@1", 3, 1, 2, 1) for kind in Kind])]),
    encode(
        *("a@1", "b@2", 7),
        [
            (
                "S.x",
                [
                    Message(Kind.APPEND, "b@2", "a@1", 3, 1, 2, 1, [Entry(2, 3, 1, _MEMBERS), Entry(3, 3, 9, b"data")]),
                    Fetch(1, 2, 3, 4, [5, 6]),
                    Piece(3, 10, b"manifest", [(1, 2, 3, 4, 5, b"block")]),
                ],
            )
        ],
    ),
]
_BATCHES = [
    Batch(1_700_000_000_000_000_000, [b"a", b"b", b"a"], [b"1", b"22", b"333"]).encode(),
    Batch(1, [b"a"], [b""]).encode(),
    Batch(1, [b"a", b"b"], [b"x", b"y"], headers=[b"", b"NATS/1.0\r\nA: b\r\n\r\n"]).encode(),
]
_BOMBS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 2000,
    b"\x81" * 600 + b"\xc0" * 600,
    b"\x81\x90\xc0",
    b"\x81\x81\x01\x01\x01",
    b"\xd6\xff\0\0\0\0",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xa2\xff\xfe",
]

TARGETS = (
    Target(
        "s2",
        compression,
        [
            framed(b"hello, hello"),
            b"\x05\x10hello",
            b"\x0d\x10hello\x11\x05",
            b"\x0b\x04ab\x1a\x02\x00\x04cd",
            b"\x0e\x04ab\x05\x02\x05\x00\x00c",
            b"\x14\x04ab\x01\x02\x19\x00\x00\x00",
            s2.STREAM_IDENTIFIER + b"\xfe\x03\x00\x00abc" + b"\x00\x04\x00\x00abcd",
            b"\xff\xff\xff\xff\x0f\x00a",
        ],
        [
            s2.STREAM_IDENTIFIER,
            b"\xff\x06\x00\x00sNaPpY",
            b"\x01\x08\x00\x00",
            b"\xfe\x00\x00\x00",
            b"\x80\x80\x80\x02",
        ],
    ),
    Target(
        "archive",
        archive,
        _ARCHIVES,
        [
            END,
            b"NATSARC1",
            b"state.json",
            b"consumers/",
            b'"pending":{"1":',
            b"18446744073709551615",
            b'"state":',
            b"null",
        ],
        longest=8192,
    ),
    Target(
        "frames", frames, [*_FRAMES, *_BOMBS], [b"\x93", b"\xc4\x01", b"\xcf", b"\xff" * 8, b"\xa3a@1", b"\xdc\xff\xff"]
    ),
    Target(
        "mail",
        mail,
        [
            *(pack([form, 1, "a@1", "ours@1", "word", {"x": [1, b"y"]}]) for form in range(5)),
            pack([0, 1, "a@1", "ours", "other", None]),
            pack([3, 7, "a@1", "ours", "other", [1, 2, "x"]]),
            *_BOMBS,
        ],
        [b"\x96\x00", b"\xa4word", b"\xa6ours@1", b"\xc0", b"\x80", b"\x90"],
    ),
    Target("batch", batch, _BATCHES, [b"\n", b"\xff\xff\xff\xff", b"\x00" * 4, b"\x01\x00\x00\x00"]),
    Target(
        "states",
        states,
        [pack(value) for value in (None, [1, 2], {"config": {"name": "S"}, "first": 1}, {1: b"x"}, [[1, [2, (3,)]]])]
        + [_MEMBERS, b'[["a"],[],[],1]', json.dumps([["a"], ["b"]]).encode(), *_BOMBS],
        [b"\x81", b"\xdc", b"\xcf", b"\xff" * 8, b"[", b'"a"', b",", b"\xc4\x01"],
    ),
    Target(
        "note",
        note,
        [
            pack([1, 3, None, None, None, 9]),
            pack([5, 3, b"\1\0\0\0", b"\0\0\0\0", None]),
            pack([5, 3, None, None, b"\5\0\0\0\0\0\0\0"]),
            pack(list(itertools.repeat(0, 6))),
            pack([0, 1 << 40, None, b"", None]),
            pack([5, 3, None, b"\xff\0\0\0", None]),
            pack([5, -3, None, None, 7]),
            pack(7),
        ],
        [b"\xcf", b"\xff" * 8, b"\xc4\x04", b"\xc0"],
    ),
)
