"""The header block of HPUB and HMSG (ADR-4): `NATS/1.0[ status[ text]]`, `Key: value` lines, an empty line.

Owns reading and writing the block. The broker passes blocks through untouched and unchecked; only the parts of the
server that act on headers (JetStream, tracing) read them. Keys are case-sensitive, order and repetition are kept.
"""

from __future__ import annotations

from collections.abc import Iterable

VERSION_LINE = b"NATS/1.0"


def encode(fields: Iterable[tuple[str, str]] = (), status: str = "") -> bytes:
    """A header block with `fields` in order; `status` is an inline status such as `503` or `404 No Messages`."""
    lines = [f"NATS/1.0 {status}" if status else "NATS/1.0"]
    lines.extend(f"{key}: {value}" for key, value in fields)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def get(block: bytes, key: bytes) -> bytes | None:
    """The first value of `key`, stripped of blanks, or None. Reads nothing but the block's own lines."""
    start = block.find(b"\r\n" + key + b":")
    if start < 0:
        return None
    start += len(key) + 3
    end = block.find(b"\r\n", start)
    return (block[start:] if end < 0 else block[start:end]).strip(b" \t")


def decode(block: bytes) -> list[tuple[str, str]]:
    """All fields in order. Lines without a colon are passed over, as nats clients do."""
    fields: list[tuple[str, str]] = []
    for line in block.split(b"\r\n")[1:]:
        key, colon, value = line.partition(b":")
        if colon:
            fields.append((_text(key), _text(value.strip(b" \t"))))
    return fields


def status(block: bytes) -> tuple[str, str]:
    """Inline status code and text of the version line (`("503", "")`), empty strings when there is none."""
    line = block.partition(b"\r\n")[0]
    code, _, text = line[len(VERSION_LINE) :].strip().partition(b" ")
    return _text(code), _text(text.strip())


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
