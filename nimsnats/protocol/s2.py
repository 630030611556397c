"""The S2 framing format (a superset of Snappy's): what nats-server wraps the archive of a stream in.

Owns frames and blocks, incrementally in both directions; what is in them is `archive.py`'s business. It writes
uncompressed frames only, which every reader takes: looking for matches in Python would cost far more than the network
it saves. It reads everything that the format has, and trusts nothing: sizes are checked before memory is taken, and
every frame's checksum is compared.

Format: https://github.com/google/snappy/blob/main/framing_format.txt, with blocks of up to 4 MiB and S2's repeated
offsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nimsnats.protocol.crc32c import crc32c

STREAM_IDENTIFIER: Final = b"\xff\x06\x00\x00S2sTwO"
"""Begins every stream."""
FRAME_BYTES: Final = 64 * 1024
"""Content of one frame that we write."""
MAX_BLOCK: Final = 4 << 20
"""Decoded bytes of one block."""

_SNAPPY: Final = b"sNaPpY"
_S2: Final = b"S2sTwO"
_COMPRESSED: Final = 0x00
_PLAIN: Final = 0x01
_IDENTIFIER: Final = 0xFF
_LONGEST: Final = MAX_BLOCK + MAX_BLOCK // 6 + 64
"""Of a frame that holds one block, however badly it compresses."""


class BadStream(ValueError):
    """Bytes that are no S2 stream."""


def masked_crc(data: bytes) -> int:
    """The checksum of a frame, masked as the format says."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One uncompressed frame; `data` has at most `FRAME_BYTES`."""
    assert len(data) <= FRAME_BYTES
    return b"\x01" + (len(data) + 4).to_bytes(3, "little") + masked_crc(data).to_bytes(4, "little") + data


class S2Reader:
    """Decodes a stream that comes in pieces of any size. `consumed` counts the bytes of complete frames."""

    def __init__(self) -> None:
        self.consumed = 0
        self._held = bytearray()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The content of every frame that is complete now, one at a time. Raises BadStream."""
        held = self._held
        held += data
        at = 0
        try:
            while len(held) - at >= 4:
                kind, size = held[at], int.from_bytes(held[at + 1 : at + 4], "little")
                self._check_head(kind, size)
                if len(held) - at < 4 + size:
                    break
                body = bytes(held[at + 4 : at + 4 + size])
                at += 4 + size
                self.consumed += 4 + size
                if kind in (_COMPRESSED, _PLAIN):
                    yield self._content(kind, body)
                elif kind == _IDENTIFIER:
                    if body not in (_S2, _SNAPPY):
                        raise self._bad("unknown stream identifier")
                    self._begun = True
        finally:
            del held[:at]

    def finish(self) -> None:
        """The stream ends here. Raises BadStream when it ends within a frame."""
        if self._held:
            raise self._bad("cut short")

    def _bad(self, reason: str) -> BadStream:
        return BadStream(f"s2: corrupt input, {reason} at byte {self.consumed}")

    def _check_head(self, kind: int, size: int) -> None:
        if kind == _IDENTIFIER:
            if size != len(_S2):
                raise self._bad("no stream identifier")
        elif not self._begun:
            raise self._bad("no stream identifier")
        elif kind in (_COMPRESSED, _PLAIN):
            if not 4 <= size <= _LONGEST:
                raise self._bad("frame size")
        elif kind < 0x80:
            raise self._bad(f"unknown frame type {kind}")

    def _content(self, kind: int, body: bytes) -> bytes:
        data = body[4:]
        if kind == _COMPRESSED:
            try:
                data = decode_block(data)
            except (IndexError, ValueError) as error:
                raise self._bad(f"block: {error}") from error
        elif len(data) > MAX_BLOCK:
            raise self._bad("frame size")
        if masked_crc(data) != int.from_bytes(body[:4], "little"):
            raise self._bad("crc mismatch")
        return data


def decode_block(block: bytes) -> bytes:
    """Decompress one block. Raises ValueError or IndexError for anything that is none."""
    size, at = _uvarint(block)
    if size > MAX_BLOCK:
        raise ValueError("too large")
    out = bytearray()
    offset = 0
    end = len(block)
    while at < end:
        tag = block[at]
        if not tag & 3:
            at, length = _literal(block, at)
            if at + length > end or len(out) + length > size:
                raise ValueError("literal out of bounds")
            out += block[at : at + length]
            at += length
            continue
        at, length, offset = _copy(block, at, offset)
        have = len(out)
        if not 0 < offset <= have or have + length > size:
            raise ValueError("copy out of bounds")
        start = have - offset
        if length <= offset:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // offset + 1))[:length]
    if len(out) != size:
        raise ValueError("too short")
    return bytes(out)


def _uvarint(data: bytes) -> tuple[int, int]:
    """An unsigned number of at most 32 bits and where it ends."""
    value = 0
    for at in range(5):
        value |= (data[at] & 0x7F) << 7 * at
        if data[at] < 0x80:
            return value, at + 1
    raise ValueError("length")


def _literal(block: bytes, at: int) -> tuple[int, int]:
    """Where a literal's bytes begin, and how many there are."""
    length = block[at] >> 2
    more = max(0, length - 59)
    if more:
        if at + 1 + more > len(block):
            raise ValueError("literal cut short")
        length = int.from_bytes(block[at + 1 : at + 1 + more], "little")
    return at + 1 + more, length + 1


def _copy(block: bytes, at: int, last: int) -> tuple[int, int, int]:
    """Where the next tag is, the length and the offset of a copy; `last` is the offset before it."""
    tag = block[at]
    if tag & 3 == 1:
        length, offset = tag >> 2 & 7, (tag & 0xE0) << 3 | block[at + 1]
        at += 2
        if offset:
            return at, length + 4, offset
        if length < 5:
            return at, length + 4, last
        more = length - 4
        if at + more > len(block):
            raise ValueError("repeat cut short")
        base = (4, 1 << 8, 1 << 16)[more - 1]
        return at + more, int.from_bytes(block[at : at + more], "little") + base + 4, last
    more = 2 if tag & 3 == 2 else 4
    if at + 1 + more > len(block):
        raise ValueError("copy cut short")
    return at + 1 + more, (tag >> 2) + 1, int.from_bytes(block[at + 1 : at + 1 + more], "little")
