"""The header block of HPUB and HMSG (ADR-4): `NATS/1.0[ status[ text]]`, `Key: value` lines, an empty line.

Owns look-up of one header and the building of small blocks. Names are case-sensitive; order and repetition are kept. It
never parses a whole block into a mapping: the broker passes blocks through untouched, JetStream stores them verbatim,
and most headers are nobody's business here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LINE: Final = b"NATS/1.0\r\n"
END: Final = b"\r\n"


def header_value(block: bytes, name: bytes) -> bytes | None:
    """The value of the first header called `name`, stripped of blanks around it, or None."""
    start = block.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = block.find(b"\r\n", start)
    return (block[start:end] if end >= 0 else block[start:]).strip(b" \t")


def header_text(value: bytes) -> bytes:
    """A value of others' making, as it may stand in a header that we write: it begins no other one."""
    return value.replace(b"\r", b"?").replace(b"\n", b"?")


def header_block(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A complete block of these headers."""
    return LINE + b"".join([b"%b: %b\r\n" % pair for pair in pairs]) + END


def with_headers(block: bytes, pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """`block` (may be empty) with headers added at its end."""
    added = b"".join([b"%b: %b\r\n" % pair for pair in pairs])
    return (block[:-2] if len(block) > len(END) else LINE) + added + END


def without_header(block: bytes, name: bytes) -> bytes:
    """`block` without any header called `name`; empty when no header is left."""
    mark = b"\r\n" + name + b":"
    while (start := block.find(mark)) >= 0:
        end = block.find(b"\r\n", start + 2)
        block = block[:start] + block[end:]
    return b"" if len(block) <= len(LINE) + len(END) else block


def without_status(block: bytes) -> bytes:
    """`block` with the text after `NATS/1.0` on its first line removed: clients may not store a status."""
    if not block or block.startswith(LINE):
        return block
    end = block.find(b"\r\n")
    return LINE + block[end + 2 :] if end >= 0 else block


def status_block(code: int, text: str, pairs: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A status line (`NATS/1.0 404 Message Not Found`) with optional headers."""
    return b"NATS/1.0 %d %b\r\n" % (code, text.encode()) + b"".join([b"%b: %b\r\n" % p for p in pairs]) + END
