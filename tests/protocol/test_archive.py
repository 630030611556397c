"""CRC-32C, S2 frames and the archive: known answers, every way to cut the bytes, and what must be refused."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimsnats.protocol import s2
from nimsnats.protocol.archive import ArchivedMessage, ArchiveReader, BadArchive, ForeignArchive, message_entry
from nimsnats.protocol.crc32c import crc32c
from tests.jetstream.archives import archive_of, decoded, framed

STATE = {"messages": 2, "bytes": 9, "first_seq": 1, "last_seq": 9, "consumer_count": 0}
MESSAGES = [
    ArchivedMessage(3, 1_700_000_000_000_000_001, b"a.b", b"NATS/1.0\r\nX: y\r\n\r\n", b"payload"),
    ArchivedMessage(1 << 40, 0, b"c", b"", b""),
]


def plain(data: bytes) -> int:
    """CRC-32C as the books have it."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [0, 1, 31, 63, 64, 65, 127, 128, 500, 4096, 5003])
def test_crc32c_is_the_one_of_the_books(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert crc32c(data) == plain(data)
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_frames_come_back_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    stream = framed(data)
    ends = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    reader = s2.S2Reader()
    pieces = [p for a, b in pairwise(ends) for p in reader.feed(stream[a:b])]
    reader.finish()
    assert b"".join(pieces) == data


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (b"\x05\x10hello", b"hello"),
        (b"\x0d\x10hello\x11\x05", b"hellohellohel"),  # a copy of 8 from 5 back
        (b"\x0b\x04ab\x1a\x02\x00\x04cd", b"ababababacd"),  # a copy of 7 with an offset of two bytes
        (b"\x0e\x04ab\x05\x02\x05\x00\x00c", b"ab" * 6 + b"c"),  # a copy of 5, then the same offset again: 5
        (b"\x14\x04ab\x01\x02\x15\x00\x06", b"ab" * 10),  # a copy of 4, then the same offset again: 6 + 8
        (b"\x14\x04ab\x01\x02\x19\x00\x00\x00", b"ab" * 3 + b"ab" * 130),  # and 0 + 260
    ],
)
def test_blocks_with_copies(block: bytes, content: bytes) -> None:
    length = bytes((len(content),)) if len(content) < 128 else bytes((len(content) & 127 | 128, len(content) >> 7))
    assert s2.decode_block(length + block[1:]) == content


@given(st.binary(min_size=1, max_size=60))
def test_no_block_makes_the_decoder_do_more_than_refuse(block: bytes) -> None:
    try:
        assert len(s2.decode_block(block)) <= s2.MAX_BLOCK
    except (ValueError, IndexError):
        pass


def test_every_flipped_bit_and_every_cut_of_a_stream_is_noticed() -> None:
    archive = archive_of(STATE, [MESSAGES[0]])
    for at in range(len(archive)):
        with pytest.raises((s2.BadStream, BadArchive)):
            decoded(archive[:at])
        for bit in range(0, 8, 3):
            flipped = bytearray(archive)
            flipped[at] ^= 1 << bit
            with pytest.raises((s2.BadStream, BadArchive)):
                decoded(bytes(flipped))


def test_an_archive_comes_back_byte_by_byte() -> None:
    state = {**STATE, "last_seq": 1 << 40}
    content = b"".join(s2.S2Reader().feed(archive_of(state, MESSAGES)))
    reader = ArchiveReader()
    items = [item for at in range(len(content)) for item in reader.feed(content[at : at + 1])]
    reader.finish()
    assert items[1:] == MESSAGES and items[0].fields == state
    assert reader.consumed == len(content)


HUGE = b"\xff" * 9 + b"\x01"


@pytest.mark.parametrize(
    "content",
    [
        b"\x01a\x00" + HUGE,
        b"\x01\x00\x02\x00" + HUGE + b"a",  # a payload of 16 exabytes
        b"\x01\x00\x02" + HUGE + b"\x01a",
        HUGE + b"\x00\x02\x00\x01",
        b"\xff" * 11,
        b"\x00\x00\x05\x00\x00",  # a message without a subject
        b"\x01\x00\x00\x04\x00a",
        message_entry(MESSAGES[0]) + message_entry(MESSAGES[0]),  # out of order
        b"\x00\x00\x00\x00\x00x",  # something after the end
    ],
)
def test_what_an_archive_claims_is_not_believed(content: bytes) -> None:
    whole = archive_of(STATE, [], end=content)
    with pytest.raises(BadArchive):
        decoded(whole)


@pytest.mark.parametrize("state", [{"consumer_count": -1}, {"messages": "1"}, {"last_seq": 1}, {"messages": 10}])
def test_a_state_that_cannot_be(state: dict[str, object]) -> None:
    with pytest.raises(BadArchive):
        decoded(archive_of({**STATE, "first_seq": 5, **state}, []))


def test_the_layout_of_older_servers_is_refused_with_the_way_out() -> None:
    with pytest.raises(ForeignArchive, match=r"nats-server 2\.15, and a new backup"):
        decoded(framed(b"meta.inf" + bytes(600)))
